"""The model's probabilities mixed with how often each token occurs in the neighbors.

Knows probabilities and counts of tokens. Does not know how text is scored; trains nothing.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from .case import Case
from .catalogue import INTERPOLATION
from .lab import Lab
from .measurement import Measurement
from .records import Point, UsedNeighbor
from .results import EvalResult

WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Weights of the histogram that interpolation reports beside its own, so that one can be chosen on held-out text."""


class Interpolation:
    """The model's probabilities mixed with how often each token occurs in the neighbors.

    p(t) = (1 - w) p_model(t) + w h(t) with h(t) = (count(t) + 1 / V) / (N + 1): the neighbors' N tokens, cut as for
    training, and one more spread over the vocabulary of V. Each point's `extra` holds, under "weights", the nats at
    each of `WEIGHTS`, from the same pass: the weight is to be chosen on held-out text (`interpolation_curve`).
    """

    name = INTERPOLATION.name

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
        by_document = [line.at(k).extra["weights"] for line in lines.values()]
        curve[k] = {float(w): sum(weights[w] for weights in by_document) / math.log(2) / size for w in by_document[0]}
    return curve
