"""What an engine can be asked to do, by name.

Knows trainers and turns. Does not know HTTP or the pipe.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..embedding.embed_report import EmbedReport
from ..errors import AdaptError, ConfigError
from ..retrieval.where import EVERYTHING, Where
from .adapting_turn import AdaptedTurn
from .answering import answer
from .cost import Work
from .failures import Wrong
from .held_model import block
from .scoring import nats_of
from .session import Session
from .turn import Turn

Task = Callable[[Session, Turn], dict[str, Any]]


def search(session: Session, turn: Turn) -> dict[str, Any]:
    """Find neighbors, texts and all."""
    frame, retriever = turn.frame, session.retriever
    turn.check()
    started = time.perf_counter()
    retriever.where = Where.read(frame["where"])
    try:
        result = retriever.search(frame["query"], frame["k"], exclude_digests=frame["exclude_digests"])
    finally:
        retriever.where = EVERYTHING
    turn.cost("retrieve", time.perf_counter() - started, 1)
    for stage, seconds in result.seconds.items():
        turn.stage(stage, seconds)
    coverage = {} if result.coverage is None else {"coverage": result.coverage.to_dict()}
    return {"object": "list", "data": [neighbor.to_dict() for neighbor in result], **coverage}


def adapt(session: Session, turn: Turn) -> dict[str, Any]:
    """Adapt, and put back at once: what it would do and cost."""
    with AdaptedTurn(session, turn, turn.frame["query"], session.costs.each("restore")) as model:
        pass
    return {"report": session.report(model.report)}


def score(session: Session, turn: Turn) -> dict[str, Any]:
    """Score a text after a context, adapted to a query, and on request under the model as it is."""
    frame, texts = turn.frame, session.trainer.texts
    text, context = frame["text"], frame["context"]
    tokens, before = texts.ids(text), texts.ids(context) if context else []
    size = len(text.encode("utf-8"))

    def scored(neighbors: list[int]) -> dict[str, Any]:
        read = [*neighbors, *before]
        nats = nats_of(session, turn, [texts.prefix(), *read, *tokens], 1 + len(read))
        return {"nats": nats, "bits_per_byte": nats / math.log(2) / size}

    reserve = session.costs.predict(Work(adaptations=1, read_tokens=1 + len(before) + len(tokens)))
    block = nullcontext() if frame["mode"] == "base" else AdaptedTurn(session, turn, frame["query"], reserve)
    with block as model:
        room = session.trainer.scorer.max_length - len(tokens) - len(before)
        result = scored([] if model is None else model.before(room))
    turn.counts["scored"] += len(tokens)
    return {
        **result,
        "tokens": len(tokens),
        "bytes": size,
        "query_is_scored_text": frame["mode"] != "base" and text in frame["query"],
        "report": None if model is None else session.report(model.report),
        **({"base": scored([])} if frame["compare"] else {}),
    }


def replay(session: Session, turn: Turn) -> dict[str, Any]:
    """Repeat an adaptation from its report, and compare every loss."""
    report = turn.frame["report"]
    turn.check()
    try:
        before = [float(loss) for neighbor in report["neighbors"] for loss in neighbor["losses"]]
        adaptation = session.trainer.replay(report)
    except (AdaptError, ConfigError, IndexError) as error:
        # What stands in parentheses is the report's own, and not told back.
        raise Wrong(re.sub(r" \([^)]*\)", "", str(error)), "report") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Wrong("report must be one that this server gave, whole", "report") from None
    with adaptation as model:
        losses = model.report.losses
    for stage, seconds in adaptation.report.seconds.items():
        turn.stage(stage, seconds)
    pairs = list(zip(before, losses, strict=False))
    difference = max((abs(a - b) for a, b in pairs), default=0.0)
    same = difference == 0.0 and len(before) == len(losses)
    return {"steps": len(losses), "largest_difference": difference, "same": same}


def embed(session: Session, turn: Turn) -> dict[str, Any]:
    """Make texts into vectors."""
    turn.check()
    texts = turn.frame["texts"]
    embedder = session.datastore.embedder
    started = time.perf_counter()
    report = EmbedReport()
    vectors = embedder.embed(texts, report=report)
    seconds = time.perf_counter() - started
    turn.stage("embed", seconds)
    turn.cost("embed", seconds, len(texts))
    return {"vectors": vectors.tolist(), "tokens": report.tokens}


TASKS: dict[str, Task] = {
    "answer": answer,
    "block": block,
    "search": search,
    "adapt": adapt,
    "score": score,
    "replay": replay,
    "embed": embed,
}
