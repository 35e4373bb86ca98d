"""Training on what is found in a part of the datastore: how much of the gain needs all of it.

Knows a document's neighbors in shares of the datastore, and its passes of training. Does not know how text is scored,
nor groups or statistics: what the lines say together, `size_law` sums up.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import replace
from typing import Any

from ..config import EvalConfig
from ..errors import ConfigError, NonFiniteLossError
from ..retrieval.retriever import Retriever
from ..retrieval.selector import Selector
from ..retrieval.where import EVERYTHING, Where
from .case import Case
from .catalogue import INDEX_SIZE, TTT_NN
from .lab import Lab
from .measurement import Measurement
from .records import Point, UsedNeighbor
from .training_methods import trained_measurement


class IndexSize:
    """Training on the nearest neighbors in each of several shares of the datastore, one pass of training for each.

    A larger share holds every document of a smaller one (`Where.fraction`), and nothing is rebuilt. What may not be
    trained on is left out in each share by the same rule. Each point's `extra` holds, by share, under "fractions" the
    nats and under "found" the neighbors that there were; the point itself is of the largest share. Receipts are of the
    neighbors of all shares.
    """

    name = INDEX_SIZE.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the trainer's settings, the shares, and of how many documents they are, where that is known.

        Raises:
            ConfigError: no share is named.
        """
        if not lab.config.index_fractions:
            raise ConfigError(f"index_fractions must name at least one share for {self.name}, got none")
        return lab.trainer.config.to_dict() | {
            "index_fractions": list(_fractions(lab.config).values()),
            "index_seed": lab.config.index_seed,
            "index_documents": _documents(lab.trainer.datastore),
        }

    def measure(self, case: Case) -> Measurement:
        """Search and train in each share, and score after each number of neighbors."""
        lab = case.lab
        passes = {}
        for name, fraction in _fractions(lab.config).items():
            whole = fraction == 1
            where = EVERYTHING if whole else Where(fraction=fraction, seed=lab.config.index_seed)
            found = case.found(where=where)
            # In all of the datastore it is the pass of ttt-nn.
            key = TTT_NN.name if whole else f"{self.name} {name}"
            passes[name] = found, case.trained(key, lab.trainer, found)
        found, trained = list(passes.values())[-1]
        points, seconds = [], {}
        for k in lab.curve:
            state = trained.at(k)
            nats = {name: one.at(k).scored.nats for name, (_, one) in passes.items()}
            for name, value in nats.items():
                if not math.isfinite(value):
                    raise NonFiniteLossError(
                        f"loss of the scored text must be finite, got {value} at k = {k} in {name} of the datastore"
                    )
            there = {name: min(k, len(held.neighbors)) for name, (held, _) in passes.items()}
            extra = {"fractions": nats, "found": there}
            points.append(Point(k, state.scored.nats, state.scored.query_nats, state.steps, state.tokens, 0, extra))
            seconds[k] = found.total * (k > 0) + state.seconds
        each = [trained_measurement(case, held, one, points, seconds, one.after) for held, one in passes.values()]
        used: dict[int, UsedNeighbor] = {}
        stages: dict[str, float] = {}
        for measured in reversed(each):
            for neighbor in measured.neighbors:
                if neighbor.id not in used or used[neighbor.id].tokens < neighbor.tokens:
                    used[neighbor.id] = neighbor
            for stage, spent in measured.stages.items():
                stages[stage] = stages.get(stage, 0.0) + spent
        return replace(each[-1], neighbors=list(used.values()), stages=stages)


def _fractions(config: EvalConfig) -> dict[str, float]:
    """Return the shares by their names in a result, the smallest first."""
    return {f"{fraction:.9g}": fraction for fraction in sorted(set(config.index_fractions))}


def _documents(retriever: Retriever | None) -> int | None:
    """Return how many documents a retriever searches; None where it does not say."""
    behind = retriever.datastore if isinstance(retriever, Selector) else retriever
    return len(behind) if isinstance(behind, Sized) else None
