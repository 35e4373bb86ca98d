"""TestTimeTrainer: an engine, a retriever and settings; for each query, find neighbors and adapt the model to them.

Knows what it is made of and what it hands to each. Does not know how a model is trained or put back, HTTP or files.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch

from ..config import AdaptConfig, ScoreConfig
from ..errors import ConfigError
from ..kernels.device import check_device
from ..lm.generate import Generation, OnToken
from ..lm.loading import load_model
from ..lm.score import Scorer
from ..lm.tokens import TextTokens
from ..retrieval.neighbors import Neighbor
from ..retrieval.retriever import Retriever, require_full
from ..weights.shared_weights import SharedWeights
from .adaptation import Adaptation, Finder, Merging
from .adapted_model import Observer
from .description import TrainerInfo, description_of
from .engine import Engine
from .experts import ExpertSource
from .recorded import Recorded
from .report import AdaptReport

_WARM_UP = "The first step of a process is the slowest, and nobody should have to wait for it. " * 8
_WARM_UP_TOKENS = 4


class TestTimeTrainer:
    """Trains a causal language model on the neighbors of a query, for the length of a `with` block.

    The trainer owns the model's weights from creation until `release`: they live in one block, and a change from
    outside is refused by name at the next query. One query at a time; a second one while a block is open is an
    AdaptError.

    Example:
        >>> trainer = TestTimeTrainer.load("smollm2-135m", datastore)  # doctest: +SKIP
        >>> with trainer.adapt("def quicksort(") as adapted:  # doctest: +SKIP
        ...     print(adapted.generate(max_new_tokens=64))
    """

    __test__ = False  # the name starts like a test class of pytest

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        datastore: Retriever | None,
        config: AdaptConfig | None = None,
        *,
        score: ScoreConfig | None = None,
        shared_weights: SharedWeights | None = None,
    ) -> None:
        """Take over a loaded model.

        Args:
            model: a transformers causal language model, on one device, not quantised.
            tokenizer: its tokenizer.
            datastore: where neighbors come from; None: every call of `adapt` brings its own.
            config: how to train.
            score: how to score.
            shared_weights: from `share_weights` of a trainer with the same model and settings, in another process: this
                one then keeps no copy of its own.
        """
        self.datastore = datastore
        self.experts: ExpertSource | None = None
        """Where experts come from, for the modes instant and auto."""
        self.engine = Engine(model, tokenizer, config or AdaptConfig(), score=score, shared_weights=shared_weights)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        datastore: Retriever | None,
        config: AdaptConfig | None = None,
        *,
        score: ScoreConfig | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        shared_weights: SharedWeights | None = None,
    ) -> Self:
        """Load a model by demo name, hub id or directory.

        Args:
            name: for example ``smollm2-135m``, ``gpt2`` or ``path/to/model``.
            datastore: where neighbors come from.
            config: how to train.
            score: how to score.
            device: a torch device.
            dtype: type of the weights; float32 unless memory forbids it.
            threads: torch's threads on the CPU; None leaves them as they are.
            cache_dir: where demo models are kept.
            shared_weights: of the same model; see the constructor.

        Raises:
            ConfigError: there is no such device.
            UnknownModelError: there is no such model in reach, its files lack something, or it is no causal language
                model that fits its tokenizer.
        """
        check_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        model, tokenizer = load_model(name, dtype=dtype, cache_dir=cache_dir)
        return cls(model.to(device), tokenizer, datastore, config, score=score, shared_weights=shared_weights)

    @property
    def config(self) -> AdaptConfig:
        """How to train where a call says nothing else."""
        return self.engine.config

    @property
    def model(self) -> Any:
        """The language model; its weights are the adapted ones inside a block."""
        return self.engine.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def texts(self) -> TextTokens:
        """How the model reads texts."""
        return self.engine.texts

    @property
    def scorer(self) -> Scorer:
        """Scores texts under the weights as they are."""
        return self.engine.scorer

    @property
    def fingerprint(self) -> str:
        """Digest of the weights taken over; the same whichever of them are trained."""
        return self.engine.fingerprint

    def adapt(
        self,
        query: str,
        *,
        config: AdaptConfig | None = None,
        neighbors: Iterable[Neighbor] | None = None,
        num_neighbors: int | None = None,
        deadline_ms: float | None = None,
        exclude_digests: Collection[str] = (),
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
        salt: str = "",
        answer_tokens: int = 0,
    ) -> Adaptation:
        """Return a context manager that yields the model adapted to `query`.

        However the block ends, every parameter and buffer is then bit for bit what it was before, and train/eval mode,
        `requires_grad`, gradients and torch's random state are as before.

        Args:
            query: a text that is not empty.
            config: how to train for this query; None: as the trainer was made. Only settings that are read anew for
                each query may differ from the trainer's.
            neighbors: trains on these, in this order, and does not search.
            num_neighbors: instead of the settings' own.
            deadline_ms: milliseconds from this call to the end of the answer. Finding neighbors counts, though it is
                not cut; training stops before the step that would overrun (`stopped_by`); a continuation inside the
                block ends at it (`ended_by` of the report's `generations`).
            exclude_digests: neighbors with such a text are left out; see `store.text_digest`.
            observe: called between neighbors with the model in its present state, also where a guard then hands out
                an earlier one; `reuse` is not used beside it.
            cancelled: asked before each step; True stops training, as at a deadline. May be set by another thread.
            salt: of the states kept for `reuse`, those made under another salt are not used: nobody learns from the
                seconds that somebody else had the same neighbors.
            answer_tokens: tokens to be made inside the block. A deadline leaves training as much less time as they
                are expected to take, by continuations before this one (see `warm_up`).

        Raises:
            ValueError: the query is empty.
            AdaptError: another query's block is open.
            RestoreError: a parameter was moved, replaced or written since the last query.
            ConfigError: `config` differs in a setting for which another trainer must be made; names it.
            NonFiniteLossError: a loss or gradient is not finite; names the neighbor.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, got {type(query).__name__}")
        if not query:
            raise ValueError("query must not be empty, got ''")
        changes: dict[str, Any] = {}
        if num_neighbors is not None:
            changes["num_neighbors"] = num_neighbors
        if deadline_ms is not None:
            changes["deadline_ms"] = deadline_ms
        config = (self.config if config is None else config).with_(**changes)
        self._require_fit(config)
        excluded = frozenset(exclude_digests)
        if neighbors is not None:
            given = list(neighbors)
            report = self._report(query, config, requested=len(given))
            find: Finder = partial(_given, given, excluded)
        else:
            report = self._report(query, config, requested=config.searched, retriever=self.datastore)
            find = partial(self._search, query, config.searched, excluded)
        most = 0 if not config.trains else None if neighbors is not None else config.num_neighbors
        return Adaptation(
            self.engine,
            report,
            config,
            find,
            observe=observe,
            cancelled=cancelled,
            salt=salt,
            most_trained=most,
            experts=self._merging(query, config, excluded),
            answer_tokens=answer_tokens,
        )

    def _merging(self, query: str, config: AdaptConfig, excluded: frozenset[str]) -> Merging | None:
        """Return what chooses the experts of a query; None in the mode that uses none."""
        if config.mode == "exact":
            return None
        if config.guard != "none":
            raise ConfigError(f"guard must be none with the mode {config.mode}, got {config.guard!r}")
        experts = self.experts
        if experts is None:
            raise ConfigError(
                f"mode must be exact for a trainer without experts, got {config.mode!r}. Train them with: tttnn "
                "precompute"
            )
        return lambda distance: experts.choose(query, config, excluded, distance=distance)

    def _report(
        self, query: str, config: AdaptConfig, *, requested: int, retriever: Retriever | None = None
    ) -> AdaptReport:
        """Return the report of a query before anything is done for it."""
        info = description_of(self.engine, retriever)
        return AdaptReport(
            query_digest=hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
            requested=requested,
            query=query,
            mode=config.mode,
            settings=config.to_dict(),
            seed=config.seed,
            precision=info.precision,
            model=info.model,
            datastore=info.datastore,
            embedder=info.embedder,
            threads=info.threads,
            versions=info.versions,
        )

    def _search(self, query: str, k: int, excluded: frozenset[str], report: AdaptReport) -> list[Neighbor]:
        if k == 0:
            return []
        if self.datastore is None:
            raise ValueError("adapt must be given neighbors, because the trainer has no datastore")
        started = time.perf_counter()
        result = self.datastore.search(query, k, exclude_digests=excluded)
        report.seconds.add(result.seconds or {"retrieve": time.perf_counter() - started})
        report.query_truncated = result.query_truncated
        report.left_out = dict(result.left_out)
        report.excluded = result.excluded
        report.coverage = None if result.coverage is None else result.coverage.to_dict()
        return list(result)

    def replay(self, report: AdaptReport | dict[str, Any], *, observe: Observer | None = None) -> Adaptation:
        """Return a context manager that repeats an adaptation from its report: as many steps, and no clock.

        On the same machine with the same number of threads, losses and weights are the same bit for bit.

        Args:
            report: from `AdaptedModel.report`, or the dictionary that its `to_dict` gave.
            observe: called with the model between neighbors, as by `adapt`.

        Raises:
            AdaptError: this model or datastore is not the report's, or a document's text has changed.
        """
        recorded = Recorded.read(report, self.fingerprint)
        config = recorded.settings(self.config)
        self._require_fit(config)
        require_full(self.datastore, "a replay")
        neighbors = recorded.neighbors(self.datastore)
        # Without the query's text in the report, generate() must be given a prompt.
        again = replace(
            self._report(recorded.report.query, config, requested=len(neighbors)),
            query_digest=recorded.report.query_digest,
        )
        return Adaptation(
            self.engine,
            again,
            config,
            partial(_given, neighbors, frozenset()),
            observe=observe,
            max_steps=recorded.report.steps,
            replayed_guard=recorded.report.guard,
            context=recorded.context(self.datastore),
            experts=recorded.experts(self.experts),
        )

    def warm_up(self) -> AdaptReport:
        """Do each kind of work twice, since the first time is the slowest: search, train on one text, put back, write.

        Deadlines know from then on what work costs. Nothing is left of it: no weight, no state for `reuse`; AdamW's
        moments, where they are carried from query to query, begin anew.

        Returns:
            The report of the second time.

        Raises:
            As `adapt`.
        """
        plain = self.config.with_(mode="exact", context_neighbors=0, max_tokens=None, deadline_ms=None)
        searching: dict[str, float] = {}
        for _ in range(2):
            if self.datastore is not None:
                started = time.perf_counter()
                searching = dict(self.datastore.search(_WARM_UP, 1).seconds)
                searching = searching or {"retrieve": time.perf_counter() - started}
            # Watched, so that no state is kept. A character is a token at most.
            alone = [Neighbor(0, 0.0, _WARM_UP)]
            with self.adapt(_WARM_UP, config=plain, neighbors=alone, observe=lambda *_: None) as adapted:
                adapted.generate(_WARM_UP[: self.engine.max_window // 2], max_new_tokens=_WARM_UP_TOKENS)
        if self.config.optimizer_state == "carried":
            self.engine.optimizer.reset()
        adapted.report.seconds.add(searching)
        return adapted.report

    def generate(self, prompt: str, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Return the text of `continued`, with the same arguments."""
        return self.continued(prompt, max_new_tokens=max_new_tokens, **options).text

    def continued(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        on_token: OnToken | None = None,
    ) -> Generation:
        """Continue a prompt with the weights as they are now.

        Args:
            prompt: the text before, which begins as the tokenizer begins a text (`bos`); of one that is too long the
                end is read, which the result and a log line tell.
            max_new_tokens: at most this many tokens, fewer than the model reads at once.
            temperature: 0 takes the likeliest token each time; above it, tokens are drawn.
            top_p: draws only among the likeliest tokens that hold this much probability together.
            stop: strings that end the text; they are cut off.
            seed: seed of the draw; None: the configuration's.
            on_token: called with each new piece of text; True ends the text. See `lm.generate.OnToken`.

        Returns:
            The continuation, its tokens, and how long they took.

        Raises:
            ValueError: an argument is not as above, or the prompt is empty.
        """
        return self.engine.continued(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=self.config.seed if seed is None else seed,
            on_token=on_token,
        )

    def describe(self) -> TrainerInfo:
        """Return what answers depend on beside the query, as plain values."""
        return description_of(self.engine, self.datastore)

    def verify(self) -> None:
        """Prove that the weights are those taken over at creation; a RestoreError otherwise."""
        self.engine.verify()

    def digest(self) -> str:
        """Return the digest of the model's own weights as they are now between queries; reads them all.

        Low-rank matrices are left out.
        """
        return self.engine.digest()

    def share_weights(self) -> SharedWeights:
        """Return a copy of the model's weights for trainers in other processes; see `SharedWeights`."""
        return self.engine.arena.share()

    def release(self) -> None:
        """Give the model back as an ordinary one and free states kept for reuse; the trainer cannot be used again."""
        self.engine.release()

    def __repr__(self) -> str:
        name = getattr(self.model, "name_or_path", "") or type(self.model).__name__
        weights, config = self.engine.weights, self.config
        return (
            f"TestTimeTrainer({str(name)!r}, {weights.trained / 1e6:.4g} of {weights.parameters / 1e6:.4g} million "
            f"weights trained, {config.num_neighbors} neighbors, {self.engine.precision}, {self.engine.device})"
        )

    def _require_fit(self, config: AdaptConfig) -> None:
        """Refuse settings for which another trainer must be made."""
        own = self.config
        fixed = own.differing(config, per_call=False)
        if own.trainable == "lora" and config.seed != own.seed:
            fixed.append("seed")  # low-rank matrices are drawn by it when the trainer is made
        if fixed:
            raise ConfigError(
                f"{fixed[0]} must be as the trainer was made with ({getattr(own, fixed[0])!r}), "
                f"got {getattr(config, fixed[0])!r}. Make another trainer for it, after release()."
            )


def _given(neighbors: Sequence[Neighbor], excluded: frozenset[str], report: AdaptReport) -> list[Neighbor]:
    """Return the neighbors whose texts are not excluded, and count the others."""
    kept = [neighbor for neighbor in neighbors if neighbor.digest not in excluded]
    report.excluded = len(neighbors) - len(kept)
    return kept
