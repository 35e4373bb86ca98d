"""A turn's adaptation: neighbors told, steps told, given up at a step, its costs noted.

Knows trainers and turns. Does not know what is done with the adapted model.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from ..retrieval.neighbors import SearchResult
from ..training.report import AdaptReport
from .failures import Cancelled
from .session import Session
from .turn import Turn

_EXCERPT = 400
"""Characters of a neighbor that are told to one who watches."""

_WATCHED_TOKENS = 256
"""Tokens at the query's end whose loss is told to one who watches."""


@contextlib.contextmanager
def base_model(session: Session) -> Iterator[None]:
    """The model as it is, where `adapted` would give it trained."""
    yield None


@contextlib.contextmanager
def adapted(session: Session, turn: Turn, query: str, reserve: float) -> Iterator[AdaptReport]:
    """Adapt the session's model to a query; the weights are back when the block has ended, however it ends.

    Args:
        session: whose trainer is used.
        turn: whose frame says how; is told neighbors and steps.
        query: the text to search with.
        reserve: seconds of the turn's deadline that are needed after training.

    Raises:
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
                turn.say("step", step=len(report.neighbors), of=report.found)
        return turn.gone()

    def watch(model: Any, k: int) -> None:
        report = adaptation.report
        last = report.neighbors[-1].losses if k and report.neighbors else []
        loss = session.query_loss(query, _WATCHED_TOKENS)
        turn.say("step", step=k, of=report.found, loss=loss, neighbor_loss=last[0] if last else None)

    turn.check()
    retriever.sources, retriever.found = frame["sources"], found
    started = time.perf_counter()
    adaptation = session.trainer.adapt(
        query,
        num_neighbors=frame["num_neighbors"],
        deadline_ms=turn.left_ms(reserve),
        exclude_digests=frame["exclude_digests"],
        observe=watch if frame["events"] else None,
        cancelled=gone,
        salt=frame["salt"],
    )
    report = adaptation.report
    try:
        with adaptation:
            if report.stopped_by == "cancelled":
                raise Cancelled
            yield report
    finally:
        retriever.sources, retriever.found = (), None
        _note(turn, report, time.perf_counter() - started)


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
    if report.steps and not report.reused:
        turn.cost("train", sum(report.step_seconds), report.tokens)
        turn.cost("neighbor_tokens", report.tokens, len(report.neighbors))
    turn.counts["trained"] += 0 if report.reused else report.tokens
    turn.counts["reused"] += report.reused
