"""The transaction around one query: train an engine on its neighbors, hand out the adapted model, put it all back.

Knows an engine, neighbors and clocks. Does not know how neighbors are found, HTTP, files, or metrics over sets of
documents.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch

from ..config import AdaptConfig
from ..lm.neighbor_context import SEPARATOR
from ..lm.neighbor_tokens import portion_of
from ..retrieval.neighbors import Neighbor
from ..undone import UndoneBlock
from ..weights.low_rank_update import LowRankUpdate
from .adapted_model import AdaptedModel, Observer
from .engine import Engine
from .experts import ChosenExperts
from .guard import Guard
from .neighbor_training import NeighborTraining
from .report import AdaptReport, ContextNeighbor, GuardReport
from .reuse import TrainedState
from .transaction import Transaction

_log = logging.getLogger("tttnn")

Finder = Callable[[AdaptReport], list[Neighbor]]
"""Called once, inside the transaction: returns the neighbors to train on, and writes into the report how it went."""


Merging = Callable[[float | None], ChosenExperts]
"""Called once, inside the transaction, with the distance of the nearest neighbor: returns what is merged."""


class Adaptation(UndoneBlock[AdaptedModel]):
    """One query's transaction; made by `TestTimeTrainer.adapt`, entered once."""

    def __init__(
        self,
        engine: Engine,
        report: AdaptReport,
        config: AdaptConfig,
        find: Finder,
        *,
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
        max_steps: int | None = None,
        replayed_guard: GuardReport | None = None,
        salt: str = "",
        most_trained: int | None = None,
        context: Sequence[Neighbor] | None = None,
        experts: Merging | None = None,
        answer_tokens: int = 0,
    ) -> None:
        """Begin the clock of a query; nothing else happens before `__enter__`.

        Args:
            engine: is trained and put back.
            report: is written; it holds the query, which a guard scores.
            config: how to train.
            find: gives the neighbors.
            observe: called with the model between neighbors.
            cancelled: asked before each step; True ends training.
            max_steps: at most this many.
            replayed_guard: what the guard of an earlier adaptation decided; no guard then scores anew.
            salt: states kept for reuse are told apart by it.
            most_trained: of the neighbors found, train on so many; None: on all of them.
            context: neighbors that are read before texts; None: the nearest ones, as many as the settings say.
            experts: called with the distance of the nearest neighbor, gives what is merged; None: nothing is.
            answer_tokens: a deadline leaves training no time that a continuation of so many tokens is expected to take.
        """
        self._most_trained = most_trained
        self._context = context
        self._experts = experts
        self._engine = engine
        self._config = config
        self._find = find
        self._observe = observe
        self._cancelled = cancelled
        self._max_steps = max_steps
        self._replayed_guard = replayed_guard
        self._salt = salt
        self._answer_tokens = answer_tokens
        self._started = time.perf_counter()
        self._deadline = math.inf  # of training
        self._reserved = 0.0
        self._transaction = Transaction(engine)
        self.report = report

    def _enter(self) -> AdaptedModel:
        self._transaction.open()
        answered_by = math.inf
        if self._config.deadline_ms is not None:
            answered_by = self._started + self._config.deadline_ms / 1000
            self._deadline = answered_by - self._engine.answer_seconds(self.report.query, self._answer_tokens)
        neighbors = self._find(self.report)
        self.report.found = len(neighbors)
        self._transaction.begin(self._config.seed)
        trained = neighbors[: self._most_trained]
        context = self._in_context(neighbors) if self._context is None else self._context
        self.report.context = [ContextNeighbor(n.id, n.distance, n.source, n.digest, n.span) for n in context]
        adapted = AdaptedModel(
            self._engine,
            self._transaction,
            self.report,
            context=context,
            max_neighbor_tokens=self._config.max_neighbor_tokens,
            update=self._merge(neighbors, steps_follow=bool(trained)),
            deadline=answered_by,
        )
        self._deadline -= self._reserved
        self._train(adapted, trained)
        return adapted

    def _merge(self, neighbors: list[Neighbor], *, steps_follow: bool) -> LowRankUpdate | None:
        """Merge the query's experts into the weights; return what was merged."""
        if self._experts is None:
            return None
        with self.report.seconds("experts"):
            chosen = self._experts(min((neighbor.distance for neighbor in neighbors), default=None))
            self.report.experts = chosen.report
            if chosen.update is not None:
                self._engine.change(chosen.update, steps_follow=steps_follow)
        return chosen.update

    def _in_context(self, neighbors: list[Neighbor]) -> list[Neighbor]:
        """Return the neighbors that are read before texts: in the mode auto as many as the deadline leaves time for.

        Their time is taken from that of training: a token that is read brings more than one that is trained on.
        """
        engine, config, pace = self._engine, self._config, self._engine.reading_pace
        context = neighbors[: config.in_context]
        if config.mode != "auto" or self._deadline == math.inf or not context:
            return context
        kept, tokens, gap = 0, 0, len(engine.texts.ids(SEPARATOR))
        left = self._deadline - time.perf_counter()
        for neighbor in context:
            tokens += len(portion_of(engine.texts, neighbor, config.max_neighbor_tokens).tokens) + gap
            if pace.predict(tokens) > left:
                break
            kept += 1
            self._reserved = pace.predict(tokens)
        if kept == 0:
            pace.doubt()
        return context[:kept]

    def undo(self) -> None:
        """Put the weights back and end the query; nothing where it has ended."""
        self._transaction.end(self.report.seconds, verify=self._config.verify)

    def _train(self, adapted: AdaptedModel, neighbors: list[Neighbor]) -> None:
        engine, config, report = self._engine, self._config, self.report
        key = self._reuse_key(neighbors)
        state = None if key is None else engine.states.get(key)
        if state is not None and not (self._cancelled is not None and self._cancelled()):
            self._use(state, neighbors)
            return
        if config.optimizer_state == "fresh":
            engine.optimizer.reset()
        report.seconds.add({"tokenize": 0.0, "train": 0.0})
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        guard = self._new_guard()
        if guard is not None and not guard.start():
            report.stopped_by = "deadline"
        else:
            report.stopped_by = NeighborTraining(
                engine,
                adapted,
                config,
                deadline=self._deadline,
                observe=self._observe,
                cancelled=self._cancelled,
                max_steps=self._max_steps,
                keep_after=None if self._replayed_guard is None else self._replayed_guard.kept,
            ).run(neighbors, guard)
        if neighbors and report.steps == 0:
            report.untrained = self._why_untrained(len(neighbors))
            if report.untrained is not None:
                _log.warning("nothing was trained for this query: %s", report.untrained)
        if report.stopped_by == "deadline" and report.steps == 0:
            engine.training_pace.doubt()
            engine.guard_pace.doubt()
            engine.writing_pace.doubt()
            engine.reading_pace.doubt()
        if guard is not None:
            guard.finish(len(report.neighbors), steps=report.steps)
        elif report.guard is not None and report.guard.kept is not None:
            engine.arena.use_kept()
        report.page_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        if key is not None and report.steps and report.stopped_by in ("neighbors", "max_tokens"):
            self._hold(key)

    def _why_untrained(self, neighbors: int) -> str | None:
        if self.report.stopped_by == "neighbors":
            return f"none of {neighbors} neighbors has the two tokens of a training window"
        if self.report.stopped_by == "max_tokens":
            return f"max_tokens ({self._config.max_tokens}) has no room for the first training window"
        if self.report.stopped_by == "deadline":
            spent = sum(seconds for stage, seconds in self.report.seconds.items() if stage != "train")
            return f"deadline_ms ({self._config.deadline_ms:g}) had no room for a step, {spent:.2f} s after the call"
        return None

    def _new_guard(self) -> Guard | None:
        """Return the query's guard; None where there is none to be, which the report then explains."""
        engine, config, report = self._engine, self._config, self.report
        if self._replayed_guard is not None:
            # A report does not hold the query, and need not: it says which state was kept.
            report.guard = self._replayed_guard
        if config.guard == "none" or self._replayed_guard is not None:
            return None
        room = min(config.max_length, engine.max_window)
        tokens = engine.texts.last_ids(report.query, max(room, config.guard_min_tokens))
        if len(tokens) < config.guard_min_tokens:
            report.guard = GuardReport(
                reason=f"the query has {len(tokens)} tokens, fewer than guard_min_tokens ({config.guard_min_tokens})"
            )
            return None
        tokens = tokens[-room:]
        guard = Guard(
            engine.arena,
            lambda: engine.loss(tokens),
            every=config.guard_every,
            tokens=len(tokens),
            pace=engine.guard_pace,
            stages=report.seconds,
            deadline=self._deadline,
        )
        report.guard = guard.report
        return guard

    def _reuse_key(self, neighbors: list[Neighbor]) -> Hashable:
        """Return what decides the weights after training, to the last bit; None where no state may be reused."""
        config = self._config
        watched = self._observe is not None or self._max_steps is not None
        if config.reuse == 0 or config.optimizer_state == "carried" or watched or not neighbors:
            return None
        settings = tuple(config.trained_with().items())
        distances = [neighbor.distance for neighbor in neighbors] if config.schedule == "distance" else []
        query = self.report.query_digest if config.guard == "query" else None
        texts = tuple((neighbor.digest, neighbor.span) for neighbor in neighbors)
        experts = () if self.report.experts is None else tuple(self.report.experts.used)
        return self._salt, texts, tuple(distances), query, settings, experts, torch.get_num_threads()

    def _use(self, state: TrainedState, neighbors: list[Neighbor]) -> None:
        """Take over the weights that training on the same neighbors gave before."""
        report = self.report
        with report.seconds("reuse"):
            self._engine.arena.load(state.weights)
        report.reused = True
        # The same texts may lie in other documents, at another distance from this query.
        report.neighbors = [
            replace(trained, id=now.id, distance=now.distance, source=now.source, losses=list(trained.losses))
            for trained, now in zip(state.neighbors, neighbors, strict=False)
        ]
        report.steps, report.tokens, report.bytes_moved = state.steps, state.tokens, state.bytes_moved
        report.stopped_by = state.stopped_by
        report.guard = None if state.guard is None else replace(state.guard)

    def _hold(self, key: Hashable) -> None:
        """Hold the weights for the next query with these neighbors, unless the deadline leaves no time for the copy."""
        engine, report = self._engine, self.report
        nbytes = engine.arena.trainable_nbytes
        if time.perf_counter() + engine.copying_pace.predict(nbytes) >= self._deadline:
            return
        with report.seconds("reuse"):
            engine.states.make_room()
            state = TrainedState(
                engine.arena.snapshot(),
                list(report.neighbors),
                report.steps,
                report.tokens,
                report.bytes_moved,
                report.stopped_by,
                report.guard,
            )
            engine.states.put(key, state)
        engine.copying_pace.saw(report.seconds["reuse"], nbytes)
