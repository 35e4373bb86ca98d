"""Dynamic evaluation: training on the document itself, window by window.

Knows windows and the order of scoring and training. Does not know neighbors.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from ..config import AdaptConfig
from ..errors import ConfigError
from ..retrieval.neighbors import Neighbor
from ..training.adapted_model import AdaptedModel
from .case import Case
from .catalogue import DYNAMIC
from .lab import Lab
from .measurement import Measurement
from .protocols import token_ends
from .records import Point


class DynamicEvaluation:
    """Training on the document itself, each window scored before it is trained on (Krause et al., ICML 2018).

    The query comes first, where it is not the scored text; then each window of the scored text is scored, behind the
    same context as for every method, and trained on. Needs no neighbors: one point, at k = 0.
    """

    name = DYNAMIC.name

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
        trainer = case.lab.trainer
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
        config = self._config(case.lab)
        with trainer.adapt(case.task.query, config=config, neighbors=own, observe=observe) as adapted:
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
        ends = token_ends(case.lab.trainer.texts, text, len(text) + 1)
        cuts = [0, *(ends[min(last, len(ends)) - 1] for last in range(width, len(ends) + width, width))]
        return [text[begin:end] for begin, end in pairwise(cuts)]
