"""Methods that train on neighbors: the nearest, those that SIFT chooses, guarded, by low-rank matrices, as published.

Know a document's neighbors and its pass of training. Do not know how text is scored, nor files, groups or statistics.
"""

from __future__ import annotations

import math
from typing import Any

from ..config import AdaptConfig
from ..errors import ConfigError
from ..training.trainer import TestTimeTrainer
from .case import Case, Choice, Found, Trained, sift_selector
from .catalogue import GUARD, LORA, REFERENCE, SIFT, TTT_NN
from .lab import Lab
from .measurement import Measurement
from .records import Point, UsedNeighbor


class TestTimeTraining:
    """Training on the nearest neighbors, one after another."""

    __test__ = False  # the name starts like a test class of pytest
    name = TTT_NN.name
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
        return trained_measurement(case, found, trained, points, seconds, trained.after)


def trained_measurement(
    case: Case, found: Found, trained: Trained, points: list[Point], seconds: dict[int, float], after: str | None
) -> Measurement:
    """Answer with the points of a method that was trained, its receipts and its seconds by stage."""
    report = trained.report
    used = [UsedNeighbor(n.id, n.digest, n.distance, n.tokens, n.span) for n in report.neighbors]
    stages = found.seconds | {name: value for name, value in report.seconds.items() if name != "observe"}
    stages["score"] = sum(state.scored.seconds for state in trained.states.values())
    return Measurement(
        points, seconds, stages, used, len(found.neighbors), report.stopped_by, after, left_out=found.left_out
    )


class Sift(TestTimeTraining):
    """Training on the neighbors that SIFT chooses; see `selection.sift`."""

    name = SIFT.name
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

    name = GUARD.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return where the states come from.

        Raises:
            ConfigError: under ``full`` the query is the scored text: the choice would look at what is measured.
        """
        if lab.config.protocol == "full":
            raise ConfigError(f"{GUARD.name} must have a query apart from the scored text, got the protocol full")
        return lab.trainer.config.to_dict() | {"chosen_by": "query_nats"}

    def measure(self, case: Case) -> Measurement:
        """Choose among the states of ttt-nn."""
        found = case.found()
        trained = case.trained(TTT_NN.name, case.lab.trainer, found)
        points, seconds, reading = [], {}, 0.0
        for k in case.lab.curve:
            state = trained.at(k)
            reading += state.scored.seconds * state.scored.query_share
            best = min((number for number in trained.states if number <= k), key=lambda h: (_query_nats(trained, h), h))
            chosen = trained.states[best]
            points.append(
                Point(k, chosen.scored.nats, chosen.scored.query_nats, state.steps, state.tokens, 0, {"chosen": best})
            )
            seconds[k] = found.total * (k > 0) + state.seconds + reading
        return trained_measurement(case, found, trained, points, seconds, None)


def _query_nats(trained: Trained, k: int) -> float:
    nats = trained.states[k].scored.query_nats
    return math.inf if nats is None else nats


class Lora(TestTimeTraining):
    """Training a low-rank update of the weights on the nearest neighbors."""

    name = LORA.name

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

    name = REFERENCE.name

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
