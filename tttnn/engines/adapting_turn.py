"""A turn's adaptation: neighbors told, steps told, given up at a step, its costs noted.

Knows trainers and turns. Does not know what is done with the adapted model.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ..errors import AdaptError, ConfigError, DatastoreMismatchError, NonFiniteLossError, RestoreError
from ..retrieval.neighbors import SearchResult
from ..retrieval.where import EVERYTHING, Where
from ..training.adaptation import Adaptation
from ..training.adapted_model import AdaptedModel
from ..training.report import AdaptReport
from ..undone import UndoneBlock
from .failures import Cancelled, Wrong, where
from .session import Session
from .turn import Turn

_log = logging.getLogger("tttnn.engines")

_EXCERPT = 400
"""Characters of a neighbor that are told to one who watches."""

_WATCHED_TOKENS = 256
"""Tokens at the query's end whose loss is told to one who watches."""


class AdaptedTurn(UndoneBlock[AdaptedModel]):
    """A block in which the session's model is adapted to a query; the weights are back when it has ended, however."""

    def __init__(self, session: Session, turn: Turn, query: str, reserve: float) -> None:
        """Do nothing before the block.

        Args:
            session: whose trainer is used.
            turn: whose frame says how; is told neighbors and steps.
            query: the text to search with.
            reserve: seconds of the turn's deadline that are needed after training.
        """
        self._session = session
        self._turn = turn
        self._query = query
        self._reserve = reserve
        self._steps = 0
        self._started: float | None = None
        self._adaptation: Adaptation | None = None

    def _enter(self) -> AdaptedModel:
        """Adapt.

        Raises:
            Wrong: the frame's mode wants experts that cannot be used.
            Cancelled: nobody waits any more.
        """
        session, turn = self._session, self._turn
        frame, trainer = turn.frame, session.trainer
        if turn.nobody():
            raise Cancelled
        self._started = time.perf_counter()
        session.retriever.where, session.retriever.found = Where.read(frame["where"]), self._found
        self._adaptation = trainer.adapt(
            self._query,
            config=trainer.config.with_(mode=frame["mode"], context_neighbors=frame["context_neighbors"]),
            num_neighbors=frame["num_neighbors"],
            deadline_ms=turn.left_ms(self._reserve),
            exclude_digests=frame["exclude_digests"],
            observe=self._watch if frame["events"] else None,
            cancelled=self._gone,
            salt=frame["salt"],
        )
        model = _entered(self._adaptation, frame["mode"])
        if model.report.stopped_by == "cancelled":
            raise Cancelled
        return model

    def undo(self) -> None:
        """Put the weights back, and note what the turn cost; nothing where that was done."""
        if self._adaptation is not None:
            self._adaptation.undo()
        self._session.retriever.where, self._session.retriever.found = EVERYTHING, None
        started, self._started = self._started, None
        if started is not None and self._adaptation is not None:
            _note(self._turn, self._adaptation.report, time.perf_counter() - started)

    def _found(self, result: SearchResult) -> None:
        if self._turn.frame["events"]:
            self._turn.say("neighbors", neighbors=[_shown(neighbor) for neighbor in result])

    def _gone(self) -> bool:
        assert self._adaptation is not None
        turn, report = self._turn, self._adaptation.report
        if report.steps != self._steps or report.steps == 0:
            self._steps = report.steps
            if not turn.frame["events"]:
                for one in (turn, *turn.joined):
                    one.say_step(len(report.neighbors), report.found)
        return turn.nobody()

    def _watch(self, model: Any, k: int) -> None:
        assert self._adaptation is not None
        report = self._adaptation.report
        last = report.neighbors[-1].losses if k and report.neighbors else []
        loss = self._session.query_loss(self._query, _WATCHED_TOKENS)
        self._turn.say("step", step=k, of=report.found, loss=loss, neighbor_loss=last[0] if last else None)


def _entered(adaptation: Adaptation, mode: str) -> AdaptedModel:
    """Enter an adaptation; of a mode that wants experts, what is wrong with these is told to the one who asked."""
    try:
        return adaptation.__enter__()
    except (NonFiniteLossError, RestoreError):
        raise
    except (AdaptError, ConfigError, DatastoreMismatchError, FileNotFoundError) as error:
        if mode == "exact":
            raise
        _log.error("mode %s: %s", mode, where(error))
        raise Wrong(
            "tttnn.mode must be exact or base, because the experts of the datastore cannot be used; the server's log "
            "says why. Train them with: tttnn precompute",
            "tttnn.mode",
        ) from None


def _shown(neighbor: Any) -> dict[str, Any]:
    begin = 0 if neighbor.span is None else len(neighbor.text.encode()[: neighbor.span[0]].decode(errors="ignore"))
    return {
        "id": neighbor.id,
        "distance": neighbor.distance,
        "source": neighbor.source,
        "digest": neighbor.digest,
        "excerpt": neighbor.text[begin : begin + _EXCERPT],
    }


def _note(turn: Turn, report: AdaptReport, seconds: float) -> None:
    """Note an adaptation's stages and costs."""
    for stage, taken in report.seconds.items():
        turn.stage(stage, taken)
    known = report.seconds.get
    turn.cost("retrieve", sum(known(stage, 0.0) for stage in ("embed", "search", "read", "select", "tokenize")), 1)
    turn.cost("restore", known("restore", 0.0), 1)
    if report.experts is not None:
        turn.cost("merge", known("experts", 0.0), 1)
    if report.steps and not report.reused:
        turn.cost("train", sum(report.step_seconds), report.tokens)
        turn.cost("neighbor_tokens", report.tokens, len(report.neighbors))
    turn.counts["trained"] += 0 if report.reused else report.tokens
    turn.counts["reused"] += report.reused
