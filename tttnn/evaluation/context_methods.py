"""Methods that read the neighbors in the context, before the query.

Know a document's neighbors and its states. Do not know how text is scored, nor files, groups or statistics.
"""

from __future__ import annotations

import time
from typing import Any

from ..lm.neighbor_context import SEPARATOR
from .case import GENERATED, Case
from .catalogue import IN_CONTEXT, TOGETHER, TTT_NN
from .lab import Lab
from .measurement import Measurement
from .records import Point
from .training_methods import trained_measurement


class InContext:
    """Neighbors before the query, the nearest next to it; nothing is trained."""

    name = IN_CONTEXT.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the room for neighbors and how they stand in it, and their numbers where they are others."""
        other = {"curve": lab.context_curve} if lab.context_curve != lab.curve else {}
        return context_settings(lab) | other

    def measure(self, case: Case) -> Measurement:
        """Score behind each number of neighbors."""
        found = case.found()
        points, seconds = [], {}
        spent = scoring = 0.0
        before: list[int] = []
        scored = case.base()
        for k in case.lab.context_curve:
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


def context_settings(lab: Lab) -> dict[str, Any]:
    """Return the room for neighbors and how they stand in it."""
    return {
        "context_tokens": lab.config.context_tokens,
        "max_neighbor_tokens": lab.trainer.config.max_neighbor_tokens,
        "order": "farthest first",
        "separator": SEPARATOR,
    }


class Together:
    """Training on the nearest neighbors, and the same neighbors before the query."""

    name = TOGETHER.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of both."""
        return lab.trainer.config.to_dict() | context_settings(lab)

    def measure(self, case: Case) -> Measurement:
        """Take the states of ttt-nn, each scored behind its neighbors."""
        found = case.found()
        trained = case.trained(TTT_NN.name, case.lab.trainer, found)
        points, seconds = [], {}
        for k in case.lab.curve:
            state = trained.at(k)
            scored = state.together
            assert scored is not None
            used = case.neighbors_in_context(found, k)[1]
            context = sum(neighbor.tokens for neighbor in used)
            points.append(Point(k, scored.nats, scored.query_nats, state.steps, state.tokens, context))
            seconds[k] = found.total * (k > 0) + state.seconds + scored.seconds * scored.context_share
        return trained_measurement(case, found, trained, points, seconds, trained.after_together)
