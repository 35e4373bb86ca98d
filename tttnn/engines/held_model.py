"""A model that stays adapted while somebody's block is open, and does in it what it is told.

Knows adapted models and turns. Does not know who tells it, or the pipe.
"""

from __future__ import annotations

import time
from typing import Any

from ..training.adapted_model import AdaptedModel
from .adapting_turn import AdaptedTurn
from .cost import Work
from .failures import Cancelled
from .pipe import Frame
from .scoring import nats_of
from .session import Session
from .turn import Turn


def block(session: Session, turn: Turn) -> dict[str, Any]:
    """Adapt, tell that it is done, and do one command after the other until there will be none; then put back.

    Raises:
        Cancelled: nobody waits any more.
    """
    frame = turn.frame
    reserve = session.costs.predict(Work(adaptations=1, new_tokens=frame["reserve_tokens"]))
    with AdaptedTurn(session, turn, frame["query"], reserve) as model:
        turn.say("adapted", report=session.report(model.report))
        while (command := turn.command()) is not None:
            _do(session, turn, model, command)
    return {"report": session.report(model.report)}


def _do(session: Session, turn: Turn, model: AdaptedModel, command: Frame) -> None:
    number = command["command"]
    do = {"continue": _continue, "score": _score}[command["do"]]
    try:
        said = do(session, turn, model, command)
    except (ValueError, TypeError) as error:
        # An argument's fault, said to the one who gave it; the block goes on.
        turn.say("wrong", command=number, message=str(error))
    else:
        turn.say("answered", command=number, **said)


def _continue(session: Session, turn: Turn, model: AdaptedModel, command: Frame) -> dict[str, Any]:
    """Write, telling pieces as they settle."""
    number, started = command["command"], time.perf_counter()
    first: list[float] = []

    def on_token(piece: str, token: int) -> bool:
        now = time.perf_counter()
        if not first:
            first.append(now)
        if piece:
            turn.say("piece", command=number, text=piece)
        return turn.gone() or turn.interrupted(number) or now + session.costs.each("restore") >= turn.deadline

    text = model.generate(command["prompt"], on_token=on_token, **command["options"])
    ended, generation = time.perf_counter(), model.report.generations[-1]
    turn.stage("generate", ended - started)
    turn.cost("read", first[0] - started, generation.prompt_tokens)
    turn.cost("write", ended - first[0], generation.tokens - 1)
    turn.counts["prompt"] += generation.prompt_tokens
    turn.counts["written"] += generation.tokens
    if turn.gone():
        raise Cancelled
    return {"text": text, "ended_by": generation.ended_by, "tokens": generation.tokens}


def _score(session: Session, turn: Turn, model: AdaptedModel, command: Frame) -> dict[str, Any]:
    """Score a text after a context, as `AdaptedModel.score` does, so that one who leaves is heard at each window."""
    texts = session.trainer.texts
    text, context = command["text"], command["context"]
    tokens, before = texts.ids(text), texts.ids(context) if context else []
    read = [*model.before(session.trainer.scorer.max_length - len(tokens) - len(before)), *before]
    nats = nats_of(session, turn, [texts.prefix(), *read, *tokens], 1 + len(read))
    turn.counts["scored"] += len(tokens)
    return {"nats": nats, "tokens": len(tokens), "bytes": len(text.encode("utf-8"))}
