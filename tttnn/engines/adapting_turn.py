"""A turn's adaptation: neighbors told, steps told, given up at a step, its costs noted.

Knows trainers and turns. Does not know what is done with the adapted model.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from ..errors import AdaptError, ConfigError, DatastoreMismatchError, NonFiniteLossError, RestoreError
from ..retrieval.neighbors import SearchResult
from ..training.adaptation import Adaptation
from ..training.adapted_model import AdaptedModel
from ..training.report import AdaptReport
from .failures import Cancelled, Wrong, where
from .session import Session
from .turn import Turn

_log = logging.getLogger("tttnn.engines")

_EXCERPT = 400
"""Characters of a neighbor that are told to one who watches."""

_WATCHED_TOKENS = 256
"""Tokens at the query's end whose loss is told to one who watches."""


@contextlib.contextmanager
def base_model(session: Session) -> Iterator[None]:
    """The model as it is, where `adapted` would give it trained."""
    yield None


@contextlib.contextmanager
def adapted(session: Session, turn: Turn, query: str, reserve: float) -> Iterator[AdaptedModel]:
    """Adapt the session's model to a query; the weights are back when the block has ended, however it ends.

    Args:
        session: whose trainer is used.
        turn: whose frame says how; is told neighbors and steps.
        query: the text to search with.
        reserve: seconds of the turn's deadline that are needed after training.

    Raises:
        Wrong: the frame's mode wants experts that cannot be used.
        Cancelled: nobody waits any more.
    """
    frame, retriever = turn.frame, session.retriever
    steps = 0

    def found(result: SearchResult) -> None:
        if frame["events"]:
            turn.say("neighbors", neighbors=[_shown(neighbor) for neighbor in result])

    def gone() -> bool:
        nonlocal steps
        report = adaptation.report
        if report.steps != steps or report.steps == 0:
            steps = report.steps
            if not frame["events"]:
                for one in (turn, *turn.joined):
                    one.say("step", step=len(report.neighbors), of=report.found)
        return turn.nobody()

    def watch(model: Any, k: int) -> None:
        report = adaptation.report
        last = report.neighbors[-1].losses if k and report.neighbors else []
        loss = session.query_loss(query, _WATCHED_TOKENS)
        turn.say("step", step=k, of=report.found, loss=loss, neighbor_loss=last[0] if last else None)

    if turn.nobody():
        raise Cancelled
    retriever.sources, retriever.found = frame["sources"], found
    started = time.perf_counter()
    trainer = session.trainer
    adaptation = trainer.adapt(
        query,
        config=trainer.config.with_(mode=frame["mode"], context_neighbors=frame["context_neighbors"]),
        num_neighbors=frame["num_neighbors"],
        deadline_ms=turn.left_ms(reserve),
        exclude_digests=frame["exclude_digests"],
        observe=watch if frame["events"] else None,
        cancelled=gone,
        salt=frame["salt"],
    )
    report = adaptation.report
    try:
        with contextlib.ExitStack() as held:
            model = _entered(held, adaptation, frame["mode"])
            if report.stopped_by == "cancelled":
                raise Cancelled
            yield model
    finally:
        retriever.sources, retriever.found = (), None
        _note(turn, report, time.perf_counter() - started)


def _entered(held: contextlib.ExitStack, adaptation: Adaptation, mode: str) -> AdaptedModel:
    """Enter an adaptation; of a mode that wants experts, what is wrong with these is told to the one who asked."""
    try:
        return held.enter_context(adaptation)
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
