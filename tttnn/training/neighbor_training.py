"""Training an engine on neighbors, one after the other, until there are no more or something says stop.

Knows neighbors, schedules, deadlines and what a report holds of them. Does not know where neighbors come from, nor how
the model is put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..config import AdaptConfig
from ..errors import NonFiniteLossError
from ..lm.neighbor_tokens import portion_of
from ..lm.windows import training_windows
from ..retrieval.neighbors import Neighbor
from .adapted_model import AdaptedModel, Observer
from .engine import Engine
from .guard import Guard
from .report import StoppedBy, TrainedNeighbor
from .schedule import rate_factors


class NeighborTraining:
    """One query's pass over its neighbors, and the rules by which it ends."""

    def __init__(
        self,
        engine: Engine,
        adapted: AdaptedModel,
        config: AdaptConfig,
        *,
        deadline: float = math.inf,
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
        max_steps: int | None = None,
        keep_after: int | None = None,
    ) -> None:
        """Make a pass that is yet to run.

        Args:
            engine: is trained; its transaction has begun.
            adapted: the model that observers see; its report is written.
            config: how to train.
            deadline: as `time.perf_counter` counts.
            observe: called before training and after each neighbor.
            cancelled: asked before each step; True ends training.
            max_steps: at most this many.
            keep_after: keep the state after so many neighbors; None: no state.
        """
        self._engine = engine
        self._adapted = adapted
        self._report = adapted.report
        self._config = config
        self._deadline = deadline
        self._observe = observe
        self._cancelled = cancelled
        self._max_steps = max_steps
        self._keep_after = keep_after

    def run(self, neighbors: list[Neighbor], guard: Guard | None) -> StoppedBy:
        """Train on one neighbor after the other; return why that ended."""
        self._observed(0)
        report, config = self._report, self._config
        factors = rate_factors(config.schedule, [neighbor.distance for neighbor in neighbors])
        for i, (neighbor, factor) in enumerate(zip(neighbors, factors, strict=True)):
            stopped = self._train(neighbor, i, config.learning_rate * factor, guard)
            if stopped is not None:
                return stopped
            if guard is not None:
                guard.check(i + 1, steps=report.steps)
            self._observed(i + 1)
        return "neighbors"

    def _train(self, neighbor: Neighbor, position: int, rate: float, guard: Guard | None) -> StoppedBy | None:
        """Train on one neighbor; return why it was not finished, None where it was."""
        engine, config, report = self._engine, self._config, self._report
        with report.seconds("tokenize"):
            portion = portion_of(engine.texts, neighbor, config.max_neighbor_tokens)
        losses: list[float] = []
        trained = 0
        stopped: StoppedBy | None = None
        with report.seconds("train"):
            for window in training_windows(len(portion.tokens), min(config.max_length, engine.max_window)):
                stopped = self._why_stop(window.end - window.begin, guard)
                if stopped is not None:
                    break
                tokens = portion.tokens[window.begin : window.end]
                losses.append(self._step(tokens, rate, position, neighbor))
                trained += len(tokens)
        if losses or stopped is None:
            report.neighbors.append(
                TrainedNeighbor(
                    id=neighbor.id,
                    distance=neighbor.distance,
                    source=neighbor.source,
                    digest=neighbor.digest,
                    span=neighbor.span,
                    trained_span=portion.span(neighbor.text, trained),
                    tokens=trained,
                    losses=losses,
                )
            )
            if len(report.neighbors) == self._keep_after:
                engine.arena.keep()
        return stopped

    def _why_stop(self, tokens: int, guard: Guard | None) -> StoppedBy | None:
        if self._cancelled is not None and self._cancelled():
            return "cancelled"
        if self._max_steps is not None and self._report.steps >= self._max_steps:
            return "max_steps"
        limit = self._config.max_tokens
        if limit is not None and self._report.tokens + tokens > limit:
            return "max_tokens"
        predicted = self._engine.training_pace.predict(tokens)
        if guard is not None:
            predicted += guard.predicted  # of the state that the step makes
        if time.perf_counter() + predicted >= self._deadline:
            return "deadline"
        return None

    def _step(self, tokens: list[int], rate: float, position: int, neighbor: Neighbor) -> float:
        report = self._report
        started = time.perf_counter()
        try:
            step = self._engine.step(tokens, rate)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"step {report.steps}, on neighbor {position} (document {neighbor.id}): {error}. The weights are "
                "restored; leave the document out or lower the learning rate."
            ) from error
        report.steps += 1
        report.tokens += len(tokens)
        report.bytes_moved += step.bytes_moved
        taken = time.perf_counter() - started
        report.step_seconds.append(taken)
        self._engine.training_pace.saw(taken, len(tokens))
        return step.loss

    def _observed(self, k: int) -> None:
        if self._observe is not None:
            with self._report.seconds("observe"):
                self._observe(self._adapted, k)
