"""One document as all methods see it: its tokens, its neighbors, the base model's loss, a pass of training.

Each is made once per document, when a method first asks for it. Holds the rule of what is scored after which context;
does not know what any one method does with it, nor files, groups or statistics.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..config import AdaptConfig
from ..errors import ConfigError
from ..lm.neighbor_context import SEPARATOR, neighbors_before
from ..lm.neighbor_tokens import portion_of
from ..retrieval.neighbors import Neighbor
from ..retrieval.selector import Selector, selected_otherwise
from ..retrieval.where import EVERYTHING, Where
from ..store.document import Document, text_digest
from ..training.adapted_model import AdaptedModel
from ..training.report import AdaptReport
from ..training.trainer import TestTimeTrainer
from .catalogue import SIFT, TOGETHER, TTT_NN
from .lab import Lab
from .overlap import ngrams_of, shared
from .protocols import Task
from .records import UsedExperts, UsedNeighbor

GENERATED = 48
"""Tokens of the continuations that are kept with the texts."""

_EXCERPT_TOKENS = 160

Choice = Literal["nearest", "sift"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Loss of each scored token in nats, (tokens,) float64; of the query, where it was read; seconds of the pass.

    `query_share` and `context_share` are the shares of the pass's tokens that are the query's and the neighbors'.
    """

    token_nats: torch.Tensor
    query_nats: float | None
    seconds: float
    query_share: float
    context_share: float

    @property
    def nats(self) -> float:
        """Loss of the scored text."""
        return float(self.token_nats.sum())


@dataclass(frozen=True, slots=True)
class Found:
    """Neighbors in the order of use, and the seconds of each stage that found them.

    `left_out` counts those that were near but hold scored text.
    """

    neighbors: list[Neighbor]
    seconds: dict[str, float]
    left_out: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class State:
    """The model after some neighbors: its loss, and its loss with them in the context too."""

    scored: Scored
    together: Scored | None
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """One pass of training: a state for each number of neighbors reached."""

    states: dict[int, State]
    report: AdaptReport
    after: str | None
    after_together: str | None

    def at(self, k: int) -> State:
        """Return the state after `k` neighbors, or after as many as there were."""
        return self.states[max(held for held in self.states if held <= k)]


class Case:
    """One document: what its methods share, each thing made when it is first asked for."""

    def __init__(self, lab: Lab, document: Document, task: Task) -> None:
        self.lab = lab
        self.document = document
        self.task = task
        texts = lab.trainer.texts
        self.query_ids = texts.ids(task.query)
        self.scored_ids = texts.ids(task.scored)
        self.context_ids = texts.ids(task.context) if task.context else []
        self._base: Scored | None = None
        self._before: str | None = None
        self._found: dict[tuple[Choice, Where], Found] = {}
        self._tokens: dict[int, list[int]] = {}
        self._scored_ngrams: set[tuple[str, ...]] | None = None
        self._trained: dict[str, Trained] = {}

    def scored(self, trainer: TestTimeTrainer, neighbors: Sequence[int] = ()) -> Scored:
        """Score the text under a trainer's weights as they are now, after the tokens of neighbors.

        The scored tokens, and what stands before them beside the neighbors, are those of the protocol. Where all fits
        into one window, query and scored text come from one pass; otherwise the windows are those of `Scorer.score`,
        and the query is read apart.
        """
        started = time.perf_counter()
        scorer = trainer.scorer
        prefix = trainer.texts.prefix()
        context, scored = self.context_ids, self.scored_ids
        sequence = [prefix, *neighbors, *context, *scored]
        query: float | None = None
        read = len(sequence)
        if context and len(sequence) - 1 <= scorer.max_length:
            nats = scorer.token_nats(sequence, first=1 + len(neighbors))
            query, nats = float(nats[: len(context)].sum()), nats[len(context) :]
            queried = len(context)
        else:
            nats = scorer.token_nats(sequence, first=1 + len(neighbors) + len(context))
            queried = 0
            if self.lab.config.protocol == "full":
                query = float(nats.sum())
            elif not neighbors:
                query = float(scorer.token_nats([prefix, *self.query_ids], first=1).sum())
                queried = len(self.query_ids)
                read += queried
        seconds = time.perf_counter() - started
        if self.lab.on_scored is not None:
            self.lab.on_scored()
        return Scored(nats, query, seconds, queried / read, len(neighbors) / read)

    def base(self) -> Scored:
        """Return the loss under the base model."""
        if self._base is None:
            self._base = self.scored(self.lab.trainer)
        return self._base

    def before(self) -> str:
        """Return the base model's continuation of the query."""
        if self._before is None:
            self._before = self.lab.trainer.generate(self.task.query, max_new_tokens=GENERATED)
        return self._before

    def found(self, choice: Choice = "nearest", where: Where = EVERYTHING) -> Found:
        """Search with the query, once for all methods that choose alike among the same documents."""
        if (choice, where) not in self._found:
            self._found[choice, where] = self._search(choice, where)
        return self._found[choice, where]

    def _search(self, choice: Choice, where: Where) -> Found:
        lab, k = self.lab, self.lab.curve[-1]
        if k == 0:
            return Found([], {})
        retriever = sift_selector(lab.trainer) if choice == "sift" else lab.trainer.datastore
        assert retriever is not None  # the lab sees to it
        excluded = {text_digest(self.document.text)} if lab.exclude_own_text else set()
        own = len(excluded)
        while True:
            started = time.perf_counter()
            # Left out before a selection is made: an excluded text would make what is like it look superfluous.
            among = None if where == EVERYTHING else where
            found = retriever.search(self.task.query, k, exclude_digests=excluded, where=among)
            seconds = found.seconds or {"retrieve": time.perf_counter() - started}
            # The seconds are those of one search: leaving out is no part of a method.
            leaking = {neighbor.digest for neighbor in found if self._holds_scored_text(neighbor)}
            if not leaking:
                return Found(list(found), dict(seconds), len(excluded) - own)
            excluded |= leaking

    def _holds_scored_text(self, neighbor: Neighbor) -> bool:
        limit = self.lab.config.max_overlap
        if limit is None:
            return False
        whole = shared(self._ngrams_scored(), ngrams_of(neighbor.text))[0]
        return whole > limit or self._shares_too_much(self.tokens(neighbor))

    def _shares_too_much(self, passage: list[int]) -> bool:
        """Return whether tokens of a neighbor hold too much of the scored text, or it of them."""
        limit = self.lab.config.max_overlap
        if limit is None:
            return False
        return max(shared(self._ngrams_scored(), ngrams_of(self.lab.trainer.tokenizer.decode(passage)))) > limit

    def seen_and_scored(self, config: AdaptConfig) -> set[str]:
        """Return the digests of texts for which experts are left out: those that hold scored text, and the document."""
        own = {text_digest(self.document.text)} if self.lab.exclude_own_text else set()
        limit = self.lab.config.max_overlap
        return own | self.lab.seen().holding(self.task.query, config, [self.task.scored], limit)

    def for_distance(self, config: AdaptConfig) -> list[Neighbor]:
        """Return the nearest neighbor, where experts are used by its distance."""
        return self.found().neighbors[:1] if config.expert_distance is not None else []

    @staticmethod
    def receipts(report: AdaptReport) -> list[UsedExperts]:
        """Return which experts a query used."""
        used = [] if report.experts is None else report.experts.used
        return [UsedExperts(expert.name, expert.weight, expert.members) for expert in used]

    def _ngrams_scored(self) -> set[tuple[str, ...]]:
        if self._scored_ngrams is None:
            self._scored_ngrams = ngrams_of(self.task.scored)
        return self._scored_ngrams

    def tokens(self, neighbor: Neighbor) -> list[int]:
        """Return the tokens of a neighbor that training uses: other methods read the same."""
        if neighbor.id not in self._tokens:
            trainer = self.lab.trainer
            limit = trainer.config.max_neighbor_tokens
            self._tokens[neighbor.id] = portion_of(trainer.texts, neighbor, limit).tokens
        return self._tokens[neighbor.id]

    def excerpt(self, neighbor_id: int) -> str:
        """Return the beginning of what was used of a neighbor, as text."""
        for found in self._found.values():
            for neighbor in found.neighbors:
                if neighbor.id == neighbor_id:
                    return str(self.lab.trainer.tokenizer.decode(self.tokens(neighbor)[:_EXCERPT_TOKENS]))
        return ""

    def neighbors_in_context(self, found: Found, k: int) -> tuple[list[int], list[UsedNeighbor]]:
        """Return the tokens of up to `k` neighbors as they stand in the context, and how many are of which.

        The nearest neighbor stands last, next to the query. Where there is no room for all, the farthest are left out,
        and of the last one that finds room its first tokens are kept, unless these few share more with the scored text
        than `max_overlap`, as all of it does not. There is room for `context_tokens`, and never for more than the model
        reads at once together with query and scored text.
        """
        trainer = self.lab.trainer
        room = trainer.scorer.max_length - len(self.context_ids) - len(self.scored_ids)
        if self.lab.config.context_tokens is not None:
            room = min(room, self.lab.config.context_tokens)
        nearest = found.neighbors[:k]
        tokens, counts = neighbors_before(
            [self.tokens(neighbor) for neighbor in nearest],
            trainer.texts.ids(SEPARATOR),
            room,
            refused=self._shares_too_much,
        )
        used = [UsedNeighbor(n.id, n.digest, n.distance, c, n.span) for n, c in zip(nearest, counts, strict=False)]
        return tokens, used

    def trained(self, key: str, trainer: TestTimeTrainer, found: Found) -> Trained:
        """Train on the neighbors, and measure after each number of them; once for all methods that train alike."""
        if key not in self._trained:
            self._trained[key] = self._train(key, trainer, found)
        return self._trained[key]

    def _train(self, key: str, trainer: TestTimeTrainer, found: Found) -> Trained:
        lab = self.lab
        together = key == TTT_NN.name and TOGETHER.name in lab.names
        watched = lab.observe if key == TTT_NN.name else None
        states: dict[int, State] = {}
        seen = (0, 0)  # neighbors and steps at the last observation

        def measure(report: AdaptReport, k: int) -> None:
            scored = self.base() if report.steps == 0 else self.scored(trainer)
            tokens = self.neighbors_in_context(found, k)[0] if together else []
            both = (self.scored(trainer, tokens) if tokens else scored) if together else None
            seconds = report.seconds["tokenize"] + report.seconds["train"]
            states[k] = State(scored, both, report.steps, report.tokens, seconds)

        def observe(adapted: AdaptedModel, k: int) -> None:
            nonlocal seen
            if watched is not None:
                try:
                    watched(self.document, adapted, k)
                except Exception as error:
                    lab.raised = error
                    raise
            seen = (k, adapted.report.steps)
            if k in lab.curve:
                measure(adapted.report, k)

        with trainer.adapt(self.task.query, neighbors=found.neighbors, observe=observe) as adapted:
            report = adapted.report
            last = seen[0] + (report.steps > seen[1])
            if last not in states:
                # Fewer neighbors than the curve asks for, or training stopped inside one: the state it ended in.
                measure(report, last)
            after = after_together = None
            if lab.keep_text:
                after = adapted.generate(max_new_tokens=GENERATED)
                if together:
                    context = trainer.tokenizer.decode(self.neighbors_in_context(found, last)[0])
                    after_together = adapted.generate(context + self.task.query, max_new_tokens=GENERATED)
        return Trained(states, report, after, after_together)


def sift_selector(trainer: TestTimeTrainer) -> Selector:
    """Return the trainer's datastore with SIFT in front of it.

    Raises:
        ConfigError: there is none, or it gives no vectors.
    """
    if trainer.datastore is None:
        raise ConfigError(f"{SIFT.name} must have a datastore, whose vectors it compares, got None")
    return selected_otherwise(trainer.datastore, "sift")
