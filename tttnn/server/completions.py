"""`/v1/completions` and `/v1/chat/completions`: from the request's fields to work for an engine.

Knows the fields of the OpenAI API and what of them is supported. Does not know HTTP or how replies are written.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from ..config import ServeConfig
from ..dispatch.job import Job
from ..dispatch.refusals import bad
from ..engines.pipe import Frame
from ..settings import Config, setting
from .asked import Adapting, adapting
from .fields import Fields
from .tokens import TokenCounter

MAX_PROMPTS, MAX_STOPS, MAX_LOGPROBS, MAX_MESSAGES = 128, 16, 5, 1000
COMPLETION_TOKENS, CHAT_TOKENS = 16, 256
"""Tokens written where a request does not say how many; of a chat at most, the rest of the window where it is less."""

_BYTES_PER_TOKEN = 3
"""For a guess of the tokens of a text where they cannot be counted."""

_UNUSED = "is not supported; leave it out"


@dataclass(frozen=True)
class Sampling(Config):
    """How tokens are chosen, and what is told of them."""

    max_tokens: int | None = setting(None, "tokens to write", minimum=0, maximum=10_000_000)
    temperature: float = setting(1.0, "0 takes the likeliest token", minimum=0.0, maximum=2.0)
    top_p: float = setting(1.0, "share of the probability that tokens are drawn from", minimum=1e-6, maximum=1.0)
    seed: int | None = setting(None, "seed of the draw", minimum=-(2**63), maximum=2**63 - 1)
    stream: bool = setting(False, "answer piece by piece")


@dataclass(frozen=True)
class Completion:
    """One request, understood."""

    chat: bool
    prompts: tuple[Frame, ...]
    """Each {"text"} or {"ids"} or {"messages"}."""
    adapting: Adapting
    sampling: Sampling
    stop: tuple[str, ...]
    echo: bool
    logprobs: int | None
    include_usage: bool

    @property
    def stream(self) -> bool:
        """Whether the answer is wanted piece by piece."""
        return self.sampling.stream


def completion(value: Any, facts: Frame, config: ServeConfig) -> Completion:
    """Understand the body of `/v1/completions`.

    Raises:
        Refused: a field is wrong or not supported.
    """
    fields = Fields(value)
    take_model(fields, facts)
    prompts = _prompts(fields.take("prompt"), facts["limits"]["vocabulary"])
    how = adapting(fields, facts, config.max_neighbors)
    echo = fields.flag("echo")
    logprobs = fields.take("logprobs")
    if logprobs is not None and (type(logprobs) is not int or not 0 <= logprobs <= MAX_LOGPROBS):
        raise fields.wrong("logprobs", f"must be a whole number from 0 to {MAX_LOGPROBS}")
    fields.only("best_of", 1, otherwise="must be 1: there is one answer to a prompt")
    fields.only("suffix", "", otherwise=_UNUSED)
    sampling, stop, include_usage = _shared(fields, logprobs is not None)
    return Completion(False, prompts, how, sampling, stop, echo, logprobs, include_usage)


def chat(value: Any, facts: Frame, config: ServeConfig) -> Completion:
    """Understand the body of `/v1/chat/completions`.

    Raises:
        Refused: a field is wrong or not supported, or the model has no chat template.
    """
    fields = Fields(value)
    take_model(fields, facts)
    if not facts["model"]["chat_template"]:
        raise bad(
            "model must have a chat template for /v1/chat/completions, and its tokenizer has none. Use /v1/completions",
            param="model",
            code="unsupported",
        )
    messages = _messages(fields.take("messages"))
    how = adapting(fields, facts, config.max_neighbors)
    wants = fields.flag("logprobs")
    top = fields.take("top_logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= MAX_LOGPROBS):
        raise fields.wrong("top_logprobs", f"must be a whole number from 0 to {MAX_LOGPROBS}")
    if top is not None and not wants:
        raise fields.wrong("top_logprobs", "must come with logprobs true")
    if "max_completion_tokens" in value and "max_tokens" in value:
        raise fields.wrong("max_completion_tokens", "must not be given beside max_tokens, which means the same")
    renamed = fields.take("max_completion_tokens")
    if renamed is not None:
        fields = Fields({**fields.rest(), "max_tokens": renamed})
    for name in ("tools", "functions"):
        fields.only(name, [], otherwise=_UNUSED)
    fields.only("tool_choice", "none", otherwise=_UNUSED)
    fields.only("response_format", {"type": "text"}, otherwise="must be of type text")
    fields.only("store", False, otherwise="must be false: nothing is stored")
    sampling, stop, include_usage = _shared(fields, wants)
    prompt = {"messages": messages}
    return Completion(True, (prompt,), how, sampling, stop, False, (top or 0) if wants else None, include_usage)


async def work_for(wanted: Completion, facts: Frame, counter: TokenCounter, tenant: str) -> Job:
    """Return the work that a request is, once its tokens fit the model.

    Raises:
        Refused: a prompt and what is to be written do not fit the window together.
    """
    window = facts["limits"]["window"]
    counts = [await _tokens(prompt, counter) for prompt in wanted.prompts]
    asked = wanted.sampling.max_tokens
    if asked is None:
        asked = min(CHAT_TOKENS, max(1, window - max(counts))) if wanted.chat else COMPLETION_TOKENS
    field = "messages" if wanted.chat else "prompt"
    if max(counts) + asked > window:
        raise bad(
            f"{field} has {max(counts)} tokens and {asked} are to follow, but the model reads {window} at once",
            param=field,
            code="context_length_exceeded",
        )
    # Prompts that differ are adapted to one by one, unless one query is given for all.
    queries = 1 if wanted.adapting.query is not None else len({str(prompt) for prompt in wanted.prompts})
    times = 1 + wanted.adapting.asked.compare
    again = 1 if wanted.logprobs is not None else 0
    work = wanted.adapting.work(
        facts,
        queries,
        len(counts) * (1 + again),
        read_tokens=sum(counts) * (times + again),
        new_tokens=asked * len(counts) * times,
    )
    payload = {
        "prompts": list(wanted.prompts),
        "query": wanted.adapting.query,
        "sampling": {
            "max_new_tokens": asked,
            "temperature": wanted.sampling.temperature,
            "top_p": wanted.sampling.top_p,
            "seed": wanted.sampling.seed,
            "stop": list(wanted.stop),
        },
        "echo": wanted.echo,
        "logprobs": wanted.logprobs,
        "pieces": wanted.stream,
        **wanted.adapting.payload(tenant),
    }
    asked_by = wanted.adapting.asked
    return Job("answer", payload, work, deadline_ms=asked_by.deadline_ms, shares=_shares(wanted, tenant))


def _shares(wanted: Completion, tenant: str) -> Hashable:
    """Return what decides the adapted state that answers a request; None where it wants one that is its own.

    A request that is watched, has a deadline, or wants answers of several states shares none.
    """
    how = wanted.adapting
    if how.mode == "base" or how.asked.events or how.asked.compare or how.asked.deadline_ms is not None:
        return None
    queries = {how.query} if how.query is not None else {_query(prompt) for prompt in wanted.prompts}
    if len(queries) > 1:
        return None
    salt = f"{tenant}/{how.asked.cache_salt}"
    return *queries, how.mode, how.neighbors, how.context_neighbors, how.where, how.exclude_digests, salt


def _query(prompt: Frame) -> str | tuple[int, ...]:
    """Return what a prompt is searched with where no query is given; of tokens, these."""
    if "ids" in prompt:
        return tuple(prompt["ids"])
    return str(prompt["text"] if "text" in prompt else prompt["messages"][-1]["content"])


def take_model(fields: Fields, facts: Frame) -> None:
    """Take the model's name out, which must be the one that is served, where it is given."""
    name = fields.text("model")
    if name is not None and name != facts["model"]["name"]:
        refused = bad("model must be the one that /v1/models names", param="model", code="model_not_found")
        refused.status = 404
        raise refused


def _shared(fields: Fields, logprobs: bool) -> tuple[Sampling, tuple[str, ...], bool]:
    """Take what both kinds of completions have, and refuse what is left."""
    sampling = fields.settings(Sampling)
    stop = tuple(fields.texts("stop", MAX_STOPS))
    if any(not text for text in stop):
        raise fields.wrong("stop", "must hold texts that are not empty")
    options = fields.take("stream_options")
    include_usage = False
    if options is not None:
        if not sampling.stream:
            raise fields.wrong("stream_options", "must come with stream true")
        own = Fields(options, "stream_options.")
        include_usage = own.flag("include_usage")
        own.end()
    if sampling.stream and logprobs:
        raise fields.wrong("logprobs", "is not supported in a stream", code="unsupported")
    fields.only("n", 1, otherwise="must be 1: there is one answer to a prompt")
    for name in ("presence_penalty", "frequency_penalty"):
        fields.only(name, 0, 0.0, otherwise="must be 0")
    fields.only("logit_bias", {}, otherwise=_UNUSED)
    fields.text("user")  # says who asks: no answer depends on it, here or there
    fields.end()
    return sampling, stop, include_usage


def _prompts(value: Any, vocabulary: int) -> tuple[Frame, ...]:
    if value is None:
        raise bad("prompt must be given", param="prompt", code="missing_field")
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PROMPTS:
        raise bad(f"prompt must be a text, a list of tokens, or a list of 1 to {MAX_PROMPTS} of these", param="prompt")
    return tuple(_prompt(one, vocabulary) for one in value)


def _prompt(value: Any, vocabulary: int) -> Frame:
    if isinstance(value, str):
        if not value:
            raise bad("prompt must not be empty", param="prompt")
        return {"text": value}
    if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
        raise bad("prompt must be a text or a list of tokens that is not empty", param="prompt")
    if not all(0 <= token < vocabulary for token in value):
        raise bad(f"prompt must hold tokens from 0 to {vocabulary - 1}", param="prompt")
    return {"ids": value}


def _messages(value: Any) -> list[Frame]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise bad(f"messages must be a list of 1 to {MAX_MESSAGES} messages", param="messages")
    messages = []
    for i, one in enumerate(value):
        fields = Fields(one, f"messages[{i}].")
        role = fields.text("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise fields.wrong("role", "must be system, developer, user or assistant")
        content = fields.take("content")
        if isinstance(content, list):
            content = "".join(_part(part, f"messages[{i}].content[{j}].") for j, part in enumerate(content))
        if not isinstance(content, str):
            raise fields.wrong("content", "must be a text or a list of texts")
        fields.end()
        messages.append({"role": "system" if role == "developer" else role, "content": content})
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise bad("messages must end with one of the user that is not empty", param="messages")
    return messages


def _part(value: Any, where: str) -> str:
    fields = Fields(value, where)
    fields.only("type", "text", otherwise="must be text")
    text = fields.text("text", "")
    fields.end()
    return text or ""


async def _tokens(prompt: Frame, counter: TokenCounter) -> int:
    """Count a prompt's tokens; of a chat those of the messages, to which the template adds some."""
    if "ids" in prompt:
        return len(prompt["ids"])
    text = prompt["text"] if "text" in prompt else "\n".join(message["content"] for message in prompt["messages"])
    counted = await counter.count(text)
    return len(text.encode()) // _BYTES_PER_TOKEN if counted is None else counted
