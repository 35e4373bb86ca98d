"""Methods that are measured side by side: the same scored tokens and the same context rule for each.

A method is asked for one document at a time (`cases.Case`) and answers with a point for each number of neighbors. Does
not know files, groups or statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..config import AdaptConfig
from ..errors import ConfigError
from ..retrieval.neighbors import Neighbor
from ..training.adapted_model import AdaptedModel
from ..training.trainer import TestTimeTrainer
from .case import (
    GENERATED,
    SEPARATOR,
    TOGETHER,
    TTT_NN,
    Case,
    Choice,
    Found,
    Lab,
    Measurement,
    Method,
    Trained,
    sift_selector,
)
from .protocols import token_ends
from .records import Point, UsedNeighbor
from .results import EvalResult

WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Weights of the histogram that interpolation reports beside its own, so that one can be chosen on held-out text."""


class Base:
    """The model as it is."""

    name = "base"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return nothing: there are none."""
        return {}

    def measure(self, case: Case) -> Measurement:
        """Score once."""
        scored = case.base()
        return Measurement([Point(0, scored.nats, scored.query_nats, 0, 0, 0)], {0: 0.0}, {"score": scored.seconds})


class TestTimeTraining:
    """Training on the nearest neighbors, one after another."""

    __test__ = False  # the name starts like a test class of pytest
    name = TTT_NN
    choice: Choice = "nearest"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the trainer's settings."""
        return self.trainer(lab).config.to_dict()

    def trainer(self, lab: Lab) -> TestTimeTrainer:
        """Return the trainer that this method uses."""
        return lab.trainer

    def measure(self, case: Case) -> Measurement:
        """Train, and score after each number of neighbors."""
        found = case.found(self.choice)
        trained = case.trained(self.name, self.trainer(case.lab), found)
        points, seconds = [], {}
        for k in case.lab.curve:
            state = trained.at(k)
            points.append(Point(k, state.scored.nats, state.scored.query_nats, state.steps, state.tokens, 0))
            seconds[k] = found.total * (k > 0) + state.seconds
        return _trained_measurement(case, found, trained, points, seconds, trained.after)


def _trained_measurement(
    case: Case, found: Found, trained: Trained, points: list[Point], seconds: dict[int, float], after: str | None
) -> Measurement:
    report = trained.report
    used = [UsedNeighbor(n.id, n.digest, n.distance, n.tokens, n.span) for n in report.neighbors]
    stages = found.seconds | {name: value for name, value in report.seconds.items() if name != "observe"}
    stages["score"] = sum(state.scored.seconds for state in trained.states.values())
    return Measurement(
        points, seconds, stages, used, len(found.neighbors), report.stopped_by, after, left_out=found.left_out
    )


class Sift(TestTimeTraining):
    """Training on the neighbors that SIFT chooses; see `selection.sift`."""

    name = "ttt-nn-sift"
    choice: Choice = "sift"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the trainer's settings and those of the choice."""
        return lab.trainer.config.to_dict() | {"selection": sift_selector(lab.trainer).config.to_dict()}


class Guard:
    """Training on the nearest neighbors, stopped by the query: of the states so far, the one that knows it best.

    At k neighbors it stands in that state among the curve's points 0..k under which the query's loss is lowest; the
    scored text plays no part. Computed from the states of ttt-nn; its cost is theirs and that of reading the query at
    each point.
    """

    name = "ttt-nn-guard"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return where the states come from.

        Raises:
            ConfigError: under ``full`` the query is the scored text: the choice would look at what is measured.
        """
        if lab.config.protocol == "full":
            raise ConfigError("ttt-nn-guard must have a query apart from the scored text, got the protocol full")
        return lab.trainer.config.to_dict() | {"chosen_by": "query_nats"}

    def measure(self, case: Case) -> Measurement:
        """Choose among the states of ttt-nn."""
        found = case.found()
        trained = case.trained(TTT_NN, case.lab.trainer, found)
        points, seconds, reading = [], {}, 0.0
        for k in case.lab.curve:
            state = trained.at(k)
            reading += state.scored.seconds * state.scored.query_share
            best = min((held for held in trained.states if held <= k), key=lambda h: (_query_nats(trained, h), h))
            chosen = trained.states[best]
            points.append(
                Point(k, chosen.scored.nats, chosen.scored.query_nats, state.steps, state.tokens, 0, {"chosen": best})
            )
            seconds[k] = found.total * (k > 0) + state.seconds + reading
        return _trained_measurement(case, found, trained, points, seconds, None)


def _query_nats(trained: Trained, k: int) -> float:
    nats = trained.states[k].scored.query_nats
    return math.inf if nats is None else nats


class InContext:
    """Neighbors before the query, the nearest next to it; nothing is trained."""

    name = "in-context"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the room for neighbors and how they stand in it."""
        return _context_settings(lab)

    def measure(self, case: Case) -> Measurement:
        """Score behind each number of neighbors."""
        found = case.found()
        points, seconds = [], {}
        spent = scoring = 0.0
        before: list[int] = []
        scored = case.base()
        for k in case.lab.curve:
            started = time.perf_counter()
            context, used = case.neighbors_in_context(found, k)
            spent += time.perf_counter() - started
            if context != before:
                scored, before = case.scored(case.lab.trainer, context), context
                scoring += scored.seconds
            query = scored.query_nats
            points.append(Point(k, scored.nats, query, 0, 0, sum(neighbor.tokens for neighbor in used)))
            seconds[k] = found.total * (k > 0) + spent + scored.seconds * scored.context_share
        after = None
        if case.lab.keep_text:
            context_text = case.lab.trainer.tokenizer.decode(before)
            after = case.lab.trainer.generate(context_text + case.task.query, max_new_tokens=GENERATED)
        stages = found.seconds | {"tokenize": spent, "score": scoring}
        return Measurement(points, seconds, stages, used, len(found.neighbors), after=after, left_out=found.left_out)


def _context_settings(lab: Lab) -> dict[str, Any]:
    return {
        "context_tokens": lab.config.context_tokens,
        "max_neighbor_tokens": lab.trainer.config.max_neighbor_tokens,
        "order": "farthest first",
        "separator": SEPARATOR,
    }


class Together:
    """Training on the nearest neighbors, and the same neighbors before the query."""

    name = TOGETHER

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of both."""
        return lab.trainer.config.to_dict() | _context_settings(lab)

    def measure(self, case: Case) -> Measurement:
        """Take the states of ttt-nn, each scored behind its neighbors."""
        found = case.found()
        trained = case.trained(TTT_NN, case.lab.trainer, found)
        points, seconds = [], {}
        for k in case.lab.curve:
            state = trained.at(k)
            scored = state.together
            assert scored is not None
            used = case.neighbors_in_context(found, k)[1]
            context = sum(neighbor.tokens for neighbor in used)
            points.append(Point(k, scored.nats, scored.query_nats, state.steps, state.tokens, context))
            seconds[k] = found.total * (k > 0) + state.seconds + scored.seconds * scored.context_share
        return _trained_measurement(case, found, trained, points, seconds, trained.after_together)


class Lora(TestTimeTraining):
    """Training a low-rank update of the weights on the nearest neighbors."""

    name = "lora"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of its trainer."""
        return self._config(lab).to_dict()

    @staticmethod
    def _config(lab: Lab) -> AdaptConfig:
        return lab.trainer.config.with_(trainable="lora", learning_rate=lab.config.lora_learning_rate)

    def trainer(self, lab: Lab) -> TestTimeTrainer:
        """Return a trainer over a copy of the model."""
        return lab.variant(self.name, self._config(lab))


class Reference(TestTimeTraining):
    """The published procedure (Hardt & Sun, ICLR 2024, and its code of 2024).

    AdamW's moments are carried from document to document, and only the weights are put back; all of each neighbor is
    trained on, in windows of 1,024 tokens (GPT-Neo: 2,048), at the paper's learning rate: 2e-5, for GPT-Neo 5e-6. Two
    faults of the published code are not repeated: its dropout, and that it may train on the document itself.
    """

    name = "tttlm-2024"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of its trainer."""
        return self._config(lab).to_dict()

    @staticmethod
    def _config(lab: Lab) -> AdaptConfig:
        neo = lab.trainer.model.config.model_type == "gpt_neo"
        return AdaptConfig(
            num_neighbors=lab.trainer.config.num_neighbors,
            max_length=2048 if neo else 1024,
            max_neighbor_tokens=None,
            learning_rate=5e-6 if neo else 2e-5,
            schedule="constant",
            epsilon=1e-8,
            clip_norm=1.0,
            optimizer_state="carried",
            precision="float32",
        )

    def trainer(self, lab: Lab) -> TestTimeTrainer:
        """Return a trainer over a copy of the model."""
        return lab.variant(self.name, self._config(lab))


class DynamicEvaluation:
    """Training on the document itself, each window scored before it is trained on (Krause et al., ICML 2018).

    The query comes first, where it is not the scored text; then each window of the scored text is scored, behind the
    same context as for every method, and trained on. Needs no neighbors: one point, at k = 0.
    """

    name = "dynamic"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the trainer's settings and the window.

        Raises:
            ConfigError: the trainer would cut a window short.
        """
        config = self._config(lab)
        limit = min(config.max_length, config.max_neighbor_tokens or config.max_length)
        if lab.config.dynamic_window > limit:
            raise ConfigError(
                f"dynamic_window must be at most {limit} (max_length and max_neighbor_tokens), "
                f"got {lab.config.dynamic_window}"
            )
        return config.to_dict() | {"dynamic_window": lab.config.dynamic_window}

    @staticmethod
    def _config(lab: Lab) -> AdaptConfig:
        return lab.trainer.config.with_(learning_rate=lab.config.dynamic_learning_rate, schedule="constant")

    def measure(self, case: Case) -> Measurement:
        """Score and train, window by window."""
        trainer, settings = case.lab.trainer, case.lab.trainer.config
        trainer.config = self._config(case.lab)
        try:
            return self._measure(case, trainer)
        finally:
            trainer.config = settings

    def _measure(self, case: Case, trainer: TestTimeTrainer) -> Measurement:
        width = case.lab.config.dynamic_window
        queried = [] if case.lab.config.protocol == "full" else self._pieces(case, case.task.query, width)
        pieces = self._pieces(case, case.task.scored, width)
        count = len(case.scored_ids)
        nats = torch.full((count,), math.nan, dtype=torch.float64)
        scoring = 0.0

        def score(begin: int, end: int) -> None:
            nonlocal scoring
            scored = case.base() if not queried and begin == 0 else case.scored(trainer)
            nats[begin:end] = scored.token_nats[begin:end]
            scoring += scored.seconds

        def observe(_: AdaptedModel, trained: int) -> None:
            place = trained - len(queried)
            if place >= 0:
                score(place * width, min((place + 1) * width, count))

        # Nothing follows the last window: training on it would change nothing that is scored.
        own = [Neighbor(-1, 0.0, text) for text in [*queried, *pieces[:-1]]]
        with trainer.adapt(case.task.query, neighbors=own, observe=observe) as adapted:
            report = adapted.report
            missing = int(nats.isnan().nonzero()[0]) if bool(nats.isnan().any()) else count
            if missing < count:
                score(missing, count)  # training was stopped: the rest in the state it ended in
        seconds = report.seconds["tokenize"] + report.seconds["train"]
        stages = {name: value for name, value in report.seconds.items() if name != "observe"} | {"score": scoring}
        point = Point(0, float(nats.sum()), None, report.steps, report.tokens, 0)
        return Measurement([point], {0: seconds}, stages, stopped_by=report.stopped_by)

    @staticmethod
    def _pieces(case: Case, text: str, width: int) -> list[str]:
        ends = token_ends(case.lab.trainer.tokenizer, text, len(text) + 1)
        cuts = [0, *(ends[min(last, len(ends)) - 1] for last in range(width, len(ends) + width, width))]
        return [text[begin:end] for begin, end in pairwise(cuts)]


class Interpolation:
    """The model's probabilities mixed with how often each token occurs in the neighbors.

    p(t) = (1 - w) p_model(t) + w h(t) with h(t) = (count(t) + 1 / V) / (N + 1): the neighbors' N tokens, cut as for
    training, and one more spread over the vocabulary of V. Each point's `extra` holds, under "weights", the nats at
    each of `WEIGHTS`, from the same pass: the weight is to be chosen on held-out text (`interpolation_curve`).
    """

    name = "interpolation"

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the weight."""
        return {
            "interpolation_weight": lab.config.interpolation_weight,
            "max_neighbor_tokens": lab.trainer.config.max_neighbor_tokens,
        }

    def measure(self, case: Case) -> Measurement:
        """Mix the base model's probabilities with the histogram of each number of neighbors."""
        found = case.found()
        model = (-case.base().token_nats).exp()
        targets = torch.tensor(case.scored_ids)
        vocabulary = int(case.lab.trainer.model.get_output_embeddings().weight.shape[0])
        counts = torch.zeros(vocabulary, dtype=torch.float64)
        points, seconds, used = [], {}, []
        spent, done = 0.0, 0
        for k in case.lab.curve:
            started = time.perf_counter()
            for neighbor in found.neighbors[done:k]:
                tokens = case.tokens(neighbor)
                counts += torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=vocabulary)
                used.append(UsedNeighbor(neighbor.id, neighbor.digest, neighbor.distance, len(tokens), neighbor.span))
            done = max(done, k)
            histogram = ((counts + 1 / vocabulary) / (counts.sum() + 1))[targets]
            spent += time.perf_counter() - started

            def nats(weight: float, known: torch.Tensor = histogram, k: int = k) -> float:
                share = weight if k > 0 else 0.0
                return float(-((1 - share) * model + share * known).log().sum())

            weights = {f"{weight:g}": nats(weight) for weight in WEIGHTS}
            total = nats(case.lab.config.interpolation_weight)
            points.append(Point(k, total, None, 0, 0, sum(n.tokens for n in used), {"weights": weights}))
            seconds[k] = found.total * (k > 0) + spent
        stages = found.seconds | {"tokenize": spent}
        return Measurement(points, seconds, stages, used, len(found.neighbors), left_out=found.left_out)


def interpolation_curve(result: EvalResult) -> dict[int, dict[float, float]]:
    """Return, for each k, the bits per byte of interpolation at each weight, over all documents' bytes.

    To choose a weight: measure documents of `val`, take the weight of the smallest value, and give it as
    `interpolation_weight` when `test` is measured.
    """
    lines = result.of(Interpolation.name)
    size = sum(line.num_bytes for line in lines.values())
    curve: dict[int, dict[float, float]] = {}
    for k in sorted({point.k for line in lines.values() for point in line.points}):
        held = [line.at(k).extra["weights"] for line in lines.values()]
        curve[k] = {float(w): sum(weights[w] for weights in held) / math.log(2) / size for w in held[0]}
    return curve


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Base(),
        TestTimeTraining(),
        Sift(),
        Guard(),
        Lora(),
        InContext(),
        Together(),
        DynamicEvaluation(),
        Interpolation(),
        Reference(),
    )
}


def methods_named(names: Sequence[str]) -> list[Method]:
    """Return methods by name, base first in any case.

    Raises:
        ConfigError: there is no such method.
    """
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return [METHODS[name] for name in dict.fromkeys(("base", *names))]
