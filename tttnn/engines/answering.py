"""What an engine does for a completion: adapt once for each query, continue its prompts, put the weights back.

Knows trainers, prompts and turns. Does not know HTTP or the pipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..lm.generate import Generation, continued, drawing
from ..training.adapted_model import AdaptedModel
from . import logprobs
from .adapting_turn import AdaptedTurn
from .cost import Work
from .failures import Cancelled, Wrong
from .session import Session
from .turn import Turn, fail

_REASONS = {"eos": "stop", "stop": "stop", "max_new_tokens": "length", "callback": "length"}


@dataclass
class _Prompt:
    """One prompt, understood by the tokenizer."""

    index: int
    ids: list[int]
    begins: int
    """Tokens at the beginning that the tokenizer adds by itself."""
    text: str
    query: str
    before: list[int] = field(default_factory=list)
    """Tokens of neighbors that stand before the prompt's own, behind `begins`."""
    choice: dict[str, Any] = field(default_factory=dict)


def answer(session: Session, turn: Turn) -> dict[str, Any]:
    """Do a completion's job; see `completions.work_for` for its frame.

    Raises:
        Wrong: a prompt and what is to be written do not fit the window together.
        Cancelled: nobody waits any more.
    """
    frame = turn.frame
    prompts = _prompts(session, frame)
    new = frame["sampling"]["max_new_tokens"]
    groups: dict[str, list[_Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.query, []).append(prompt)
    adaptations = []
    for query, members in groups.items():
        # What is left after this group's training is for its own answers and for the groups after it.
        after = [prompt for prompt in prompts if not prompt.choice]
        reserve = session.costs.predict(
            Work(
                adaptations=0 if frame["mode"] == "base" else 1,
                read_tokens=sum(len(prompt.ids) for prompt in after),
                new_tokens=new * len(after),
            )
        )
        block = nullcontext() if frame["mode"] == "base" else AdaptedTurn(session, turn, query, reserve)
        with block as model:
            last = _answer_all(session, turn, model, members)
        if model is not None:
            adaptations.append({"choices": [p.index for p in members], "report": session.report(model.report)})
        if last is not None:
            last()
    turn.check()
    if frame["compare"]:
        for prompt in prompts:
            prompt.before = []
            generation = _continued(session, turn, prompt, tell=False)
            prompt.choice["base"] = generation.text if generation is not None else ""
            turn.say("base", prompt=prompt.index, text=prompt.choice["base"])
    return _result(frame, prompts, adaptations)


def _prompts(session: Session, frame: dict[str, Any]) -> list[_Prompt]:
    """Return a frame's prompts, which fit the window with what is to be written."""
    prompts = [_understood(session, i, prompt, frame) for i, prompt in enumerate(frame["prompts"])]
    new = frame["sampling"]["max_new_tokens"]
    longest = max(len(prompt.ids) for prompt in prompts)
    if longest + new > session.window:
        raise Wrong(
            f"prompt has {longest} tokens and {new} are to follow, but the model reads {session.window} at once",
            "messages" if "messages" in frame["prompts"][0] else "prompt",
            "too_long",
        )
    return prompts


def _result(frame: dict[str, Any], prompts: list[_Prompt], adaptations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"mode": frame["mode"], "choices": [prompt.choice for prompt in prompts], "adaptations": adaptations}


def _answer_all(
    session: Session, turn: Turn, model: AdaptedModel | None, prompts: list[_Prompt]
) -> Callable[[], None] | None:
    """Answer a turn's prompts with the weights as they are, and those of the turns that joined it.

    Where some joined, all turns but the last are told their end at once: nobody waits for another one's text.

    Returns:
        What tells the last of them its end, once the weights are back; None: nobody joined, and the turn goes on.
    """
    if not turn.joined:
        _write(session, turn, model, prompts)
        return None
    assert model is not None, "what leaves the model as it is shares nothing"
    ends: list[Callable[[], None]] = []
    for one in (turn, *turn.joined):
        if ends:
            ends.pop()()
        ends.append(_answer_one(session, one, model, prompts if one is turn else None))
    return ends.pop()


def _answer_one(session: Session, one: Turn, model: AdaptedModel, prompts: list[_Prompt] | None) -> Callable[[], None]:
    """Answer one of several turns from one state; return what tells its end. What is wrong with it ends no other."""
    try:
        one.check()
        prompts = _prompts(session, one.frame) if prompts is None else prompts
        _write(session, one, model, prompts)
    except Exception as error:
        return partial(fail, one, error)
    one.counts["reused"] += one.frame.get("joined") is None

    def end() -> None:
        adaptation = {"choices": [prompt.index for prompt in prompts], "report": session.report(model.report)}
        one.done(_result(one.frame, prompts, [adaptation]))

    return end


def _write(session: Session, turn: Turn, model: AdaptedModel | None, prompts: list[_Prompt]) -> None:
    for prompt in prompts:
        prompt.before = _before(session, model, len(prompt.ids) + turn.frame["sampling"]["max_new_tokens"])
        _answer(session, turn, prompt)


def _before(session: Session, model: AdaptedModel | None, taken: int) -> list[int]:
    """Return the tokens of neighbors that are read before a prompt, in the room that it leaves."""
    return [] if model is None else model.before(session.window - taken)


def _understood(session: Session, index: int, prompt: dict[str, Any], frame: dict[str, Any]) -> _Prompt:
    tokenizer = session.tokenizer
    if "ids" in prompt:
        text = str(tokenizer.decode(prompt["ids"]))
        return _Prompt(index, prompt["ids"], 0, text, _query(frame, text))
    if "messages" in prompt:
        ids = _chat_ids(tokenizer, prompt["messages"])
        return _Prompt(index, ids, 0, "", _query(frame, prompt["messages"][-1]["content"]))
    ids, begins = session.trainer.texts.prompt(prompt["text"], session.window)
    return _Prompt(index, ids, begins, prompt["text"], _query(frame, prompt["text"]))


def _chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens of a chat. Its control tokens are the template's alone: no message may spell one."""
    control = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for i, message in enumerate(messages):
        if any(token in message["content"] for token in control):
            raise Wrong(f"messages[{i}].content must not spell a control token of the model", f"messages[{i}].content")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # A template is a program of the model's folder, and says in its own way that it takes no such chat.
        raise Wrong("messages must be a chat that the model's template takes", "messages") from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _query(frame: dict[str, Any], text: str) -> str:
    query: str = text if frame["query"] is None else frame["query"]
    if frame["mode"] != "base" and not query.strip():
        raise Wrong("prompt must hold some text to search with, or tttnn.query must", "prompt")
    return query


def _answer(session: Session, turn: Turn, prompt: _Prompt) -> None:
    """Continue one prompt with the weights as they are, and describe its choice."""
    frame = turn.frame
    if frame["pieces"]:
        turn.say("begin", prompt=prompt.index)
        if frame["echo"]:
            turn.say("piece", prompt=prompt.index, text=prompt.text)
    generation = _continued(session, turn, prompt, tell=frame["pieces"])
    written = [] if generation is None else list(generation.tokens)
    prompt.choice = {
        "text": (prompt.text if frame["echo"] else "") + ("" if generation is None else generation.text),
        "finish_reason": "length" if generation is None else _REASONS[generation.ended_by],
        "prompt_tokens": len(prompt.ids),
        "completion_tokens": len(written),
        "logprobs": _logprobs(session, turn, prompt, written),
    }
    turn.counts["prompt"] += len(prompt.ids)
    turn.counts["written"] += len(written)
    if frame["pieces"]:
        turn.say("end", prompt=prompt.index, finish_reason=prompt.choice["finish_reason"])


def _continued(session: Session, turn: Turn, prompt: _Prompt, *, tell: bool) -> Generation | None:
    """Write, telling pieces as they settle; None where nothing is to be written."""
    sampling = turn.frame["sampling"]
    if sampling["max_new_tokens"] == 0:
        return None
    turn.check()
    started = time.perf_counter()
    first: list[float] = []
    cancelled = False

    def after_token() -> bool:
        nonlocal cancelled
        now = time.perf_counter()
        if not first:
            first.append(now)
        cancelled = turn.gone()
        return cancelled or now + session.costs.each("restore") >= turn.deadline

    def on_token(piece: str, token: int) -> None:
        if piece:
            turn.say("piece", prompt=prompt.index, text=piece)

    temperature, seed = sampling["temperature"], sampling["seed"]
    with session.trainer.engine.turns.reading():
        generation = continued(
            session.trainer.model,
            session.tokenizer,
            _read(prompt),
            window=session.window,
            begins=prompt.begins,
            max_new_tokens=sampling["max_new_tokens"],
            stop=sampling["stop"],
            seed=(session.trainer.config.seed if seed is None else seed) if temperature > 0 else None,
            on_token=on_token if tell else None,
            after_token=after_token,
            **drawing(temperature, sampling["top_p"]),
        )
    ended = time.perf_counter()
    turn.stage("generate", ended - started)
    turn.cost("read", first[0] - started, len(prompt.ids) + len(prompt.before))
    turn.cost("write", ended - first[0], len(generation.tokens) - 1)
    if cancelled:
        raise Cancelled
    return generation


def _read(prompt: _Prompt) -> list[int]:
    """Return what the model reads: neighbors, if any, and the prompt."""
    return [*prompt.ids[: prompt.begins], *prompt.before, *prompt.ids[prompt.begins :]]


def _logprobs(session: Session, turn: Turn, prompt: _Prompt, written: list[int]) -> dict[str, Any] | None:
    count = turn.frame["logprobs"]
    if count is None:
        return None
    turn.check()
    started = time.perf_counter()
    ids = [*_read(prompt), *written]
    first = len(prompt.before) + (prompt.begins if turn.frame["echo"] else len(prompt.ids))
    with session.trainer.engine.turns.reading():
        values, likeliest = logprobs.token_logprobs(
            session.trainer.model, ids, first=first, count=count, precision=session.trainer.scorer.config.precision
        )
    turn.stage("score", time.perf_counter() - started)
    turn.counts["scored"] += len(values)
    return logprobs.described(session.tokenizer, ids[first:], values, likeliest)
