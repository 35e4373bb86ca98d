"""Text that goes on: one prompt continued token by token, with a callback that may read along and stop it.

Knows models, tokenizers and stop strings. Does not know whether weights are adapted, nor where a prompt comes from.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.thread_modes import Gradients
from ..undone import UndoneBlock
from .caching import fails_with_cache, lacks_cache
from .modes import eval_mode

_log = logging.getLogger("tttnn")

OnToken = Callable[[str, int], bool | None]
"""Called as ``on_token(piece, token)`` after each token with the text that it settles, "" where it settles none.

True ends the text there. Pieces joined are the whole text: a character whose bytes are not all there, and what may be
the beginning of a stop string, wait for the tokens after them.
"""

AfterToken = Callable[[], bool | None]
"""Called after each token, before its text is known; True ends the text there. No token is decoded for it."""

EndedBy = Literal["eos", "stop", "max_new_tokens", "callback"]


@dataclass(frozen=True, slots=True)
class Generation:
    """A continuation, and what it took.

    Attributes:
        text: The continuation alone, without special tokens and cut before a stop string.
        tokens: Every token that was made, those behind the cut and the end token included.
        seconds: From the first pass over the prompt to the last token.
        ended_by: The model's end token, a stop string, the limit, or the callback.
        prompt_tokens: Tokens of the prompt that were read.
        prompt_cut: Tokens of the prompt that were left out, because the window had no room for them; of a prompt of
            more than 64 characters for each token of the window, those of its end.
    """

    text: str
    tokens: tuple[int, ...]
    seconds: float
    ended_by: EndedBy
    prompt_tokens: int
    prompt_cut: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens made per second, reading the prompt included."""
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0


def drawing(temperature: float, top_p: float = 1.0) -> dict[str, Any]:
    """Return transformers' names for how a token is chosen: the likeliest at temperature 0, else drawn.

    Raises:
        ValueError: temperature is below 0 or not finite, or top_p not above 0 and at most 1.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def fitted(prompt: Sequence[int], window: int, max_new_tokens: int, *, begins: int = 0) -> list[int]:
    """Return the tokens of a prompt that leave room for a continuation: its first `begins`, and the last of the rest.

    Args:
        prompt: tokens.
        window: tokens that the model reads at once.
        max_new_tokens: tokens that are to follow.
        begins: tokens at the beginning that are kept: the tokenizer's `bos`.

    Raises:
        ValueError: the continuation alone fills the window.
    """
    if not 1 <= max_new_tokens < window:
        raise ValueError(
            f"max_new_tokens must be between 1 and {window - 1} (the model reads {window} tokens at once), "
            f"got {max_new_tokens}"
        )
    room = window - max_new_tokens
    if len(prompt) <= room:
        return list(prompt)
    begins = min(begins, room - 1)
    _log.warning(
        "a prompt of %d tokens is cut to its last %d: the model reads %d at once, and %d are to follow",
        len(prompt),
        room - begins,
        window,
        max_new_tokens,
    )
    return [*prompt[:begins], *prompt[len(prompt) - (room - begins) :]]


def continued(
    model: nn.Module,
    tokenizer: Any,
    prompt: Sequence[int],
    *,
    window: int,
    max_new_tokens: int,
    begins: int = 0,
    stop: Sequence[str] = (),
    seed: int | None = None,
    on_token: OnToken | None = None,
    after_token: AfterToken | None = None,
    checkpoint_settings: bool = False,
    **options: Any,
) -> Generation:
    """Continue a prompt with a model's weights as they are now.

    Of the generation settings that a checkpoint brings, its end and padding tokens alone count, unless
    `checkpoint_settings`: then all do, as in transformers' own ``generate``.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        prompt: Tokens, at least one.
        window: Tokens that the model reads at once; see `fitted` for a prompt that is too long.
        max_new_tokens: At most this many tokens.
        begins: Tokens at the prompt's beginning that are kept where it is cut.
        stop: Strings that end the text, which is cut before the first of them; special tokens may be written in them.
        seed: Of the draw, after which torch's random state is what it was; None: draws from torch's state.
        on_token: Called after each token; see `OnToken`.
        after_token: Called after each token, before `on_token`; see `AfterToken`.
        checkpoint_settings: Whether to obey what else the checkpoint says of generation.
        options: Transformers' names for how tokens are chosen; see `drawing`.

    Raises:
        ValueError: the prompt is empty, or `max_new_tokens` leaves no room for it.
        UnknownModelError: the model cannot generate.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one token, got none")
    ids = fitted(prompt, window, max_new_tokens, begins=begins)
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    reader = _Reader(tokenizer, len(ids), [string for string in stop if string], on_token, after_token)
    settings = _Settings(model, None if checkpoint_settings else _own_settings(model, tokenizer))
    ends = settings.ends
    if checkpoint_settings:
        options["pad_token_id"] = _padding(tokenizer.pad_token_id, tokenizer.eos_token_id, *ends)
    if reader.wanted:
        # Not transformers' own stop strings: those also match what begins in the prompt.
        options["stopping_criteria"] = [lambda out, *_, **__: reader.read(out, ends, max_new_tokens)]
    started = time.perf_counter()
    options |= {"attention_mask": torch.ones_like(inputs), "max_new_tokens": max_new_tokens}
    with Gradients(False), eval_mode(model), settings, _Seeded(seed) as seeded:
        out = _generated(model, inputs, options, seeded)
    seconds = time.perf_counter() - started
    tokens = tuple(out[0, len(ids) :].tolist())
    return Generation(
        text=reader.text(tokens),
        tokens=tokens,
        seconds=seconds,
        ended_by=reader.ended_by or ("eos" if tokens and tokens[-1] in ends else "max_new_tokens"),
        prompt_tokens=len(ids),
        prompt_cut=len(prompt) - len(ids),
    )


def _generated(model: Any, inputs: Tensor, options: dict[str, Any], seeded: _Seeded) -> Tensor:
    """Return a prompt's tokens and those after it, (1, length): made without a cache where the model fails with one."""
    try:
        out: Tensor = model.generate(inputs, **options, **({"use_cache": False} if lacks_cache(model) else {}))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        if lacks_cache(model) or not fails_with_cache(model, inputs[0, :2].tolist()):
            raise
        seeded.begin_again()
        out = model.generate(inputs, **options, use_cache=False)
    return out


class _Reader:
    """Reads along while tokens are made: finds stop strings, and hands out the text that is settled."""

    def __init__(
        self,
        tokenizer: Any,
        begin: int,
        stop: Sequence[str],
        on_token: OnToken | None,
        after_token: AfterToken | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._begin = begin
        self._stop = stop
        self._on_token = on_token
        self._after_token = after_token
        self._out = ""
        self.ended_by: EndedBy | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to read along for."""
        return bool(self._stop) or self._on_token is not None or self._after_token is not None

    def read(self, out: Tensor, ends: Sequence[int], limit: int) -> Tensor:
        """Return for each row of tokens (rows, n) whether it ends here, as transformers' stopping criteria do."""
        rows = [row[self._begin :].tolist() for row in out]
        stopped = [self._has_stop(tokens) for tokens in rows]
        if len(rows) == 1:
            self.ended_by = "stop" if stopped[0] else None
            tokens = rows[0]
            last = stopped[0] or tokens[-1] in ends or len(tokens) >= limit
            ended = self._after_token is not None and bool(self._after_token())
            if self._on_token is not None:
                piece = self._settled(tokens, last or ended)
                self._out += piece
                ended = bool(self._on_token(piece, tokens[-1])) or ended
            if ended and not last:
                self.ended_by, stopped = "callback", [True]
        return torch.tensor(stopped, device=out.device)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of all tokens; with a callback, what was handed to it."""
        return self._out if self._on_token is not None else self._cut(self._decoded(tokens))

    def _has_stop(self, tokens: list[int]) -> bool:
        if not self._stop:
            return False
        # Special tokens are kept: a stop string may be one.
        texts = (str(self._tokenizer.decode(tokens)), self._decoded(tokens))
        return any(string in text for string in self._stop for text in texts)

    def _settled(self, tokens: list[int], last: bool) -> str:
        """Return what no later token changes, beyond what was handed out."""
        if last:
            text = self._cut(self._decoded(tokens))
        else:
            text = self._decoded(tokens[: len(tokens) - self._open_bytes(tokens)]).rstrip("\N{REPLACEMENT CHARACTER}")
            if getattr(self._tokenizer, "clean_up_tokenization_spaces", False):
                text = text[:-_CLEANED]
            text = text[: len(text) - max((_overlap(text, string) for string in self._stop), default=0)]
        return text.removeprefix(self._out) if text.startswith(self._out) else ""

    def _open_bytes(self, tokens: list[int]) -> int:
        """Return how many tokens at the end are single bytes (``<0xE6>``), which decoders read together."""
        count = 0
        for name in reversed(self._tokenizer.convert_ids_to_tokens(tokens)):
            if not (isinstance(name, str) and name.startswith("<0x") and name.endswith(">")):
                break
            count += 1
        return count

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _cut(self, text: str) -> str:
        return text[: min((text.find(string) for string in self._stop if string in text), default=len(text))]


_CLEANED = 4
"""Characters at the end that a tokenizer which cleans up spaces may still change: its longest pattern is `` n't``."""


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of a text that a string begins with, shorter than the string."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def _own_settings(model: nn.Module, tokenizer: Any) -> Any:
    """Return generation settings that say nothing but which tokens end and pad."""
    from transformers import GenerationConfig

    own: Any = getattr(model, "generation_config", None)
    ends = _ends(own)
    padding = _padding(getattr(own, "pad_token_id", None), tokenizer.pad_token_id, *ends, tokenizer.eos_token_id)
    return GenerationConfig(eos_token_id=ends or None, pad_token_id=padding)


def _ends(settings: Any) -> list[int]:
    """Return the tokens that end a text, by generation settings: there may be none, one or several."""
    ends = getattr(settings, "eos_token_id", None)
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]


def _padding(*candidates: int | None) -> int:
    """Return the first that is given; token 0 where none is: one prompt alone is never padded."""
    return next((token for token in candidates if token is not None), 0)


class _Settings(UndoneBlock[None]):
    """Generation settings of a model for the length of a block; None leaves its own."""

    def __init__(self, model: nn.Module, settings: Any) -> None:
        self._model: Any = model
        self._before: Any = model.generation_config
        self._settings = self._before if settings is None else settings
        self.ends = _ends(self._settings)

    def _enter(self) -> None:
        self._model.generation_config = self._settings

    def undo(self) -> None:
        """Let the model have its own settings again."""
        self._model.generation_config = self._before


class _Seeded(UndoneBlock["_Seeded"]):
    """Torch's random numbers begin with a seed inside of the block, and go on as before after it; None: neither."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._cpu = torch.random.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def _enter(self) -> _Seeded:
        if self._seed is not None:
            torch.manual_seed(self._seed)
        return self

    def begin_again(self) -> None:
        """Let the numbers be those that they were at the block's begin."""
        self._put_back()
        self._enter()

    def undo(self) -> None:
        """Let the random numbers go on as before."""
        if self._seed is not None:
            self._put_back()

    def _put_back(self) -> None:
        torch.random.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
