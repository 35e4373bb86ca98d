"""What a request's texts and options mean: tokens of a prompt, the query in it, halves, how a continuation is drawn.

Knows a tokenizer and the options that tasks of lm-evaluation-harness give. Does not know requests, models or results.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import ConfigError
from ..lm.tokens import prefix_token

DEFAULT_NEW_TOKENS = 256
"""Longest continuation where a task states none; as the harness's own models have it."""

LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the longest continuation; the first one given counts."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def readable(text: str) -> str:
    """Return a text that tokenizers and files can hold: lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return a task's options by transformers' names for them, without those of the continuation's length."""
    drawn = {name: value for name, value in options.items() if name not in LIMIT_NAMES}
    temperature, sample = drawn.pop("temperature", None), drawn.pop("do_sample", None)
    drawn["do_sample"] = float(temperature or 0) > 0 if sample is None else bool(sample)
    if temperature is not None and float(temperature) == 0:
        drawn["do_sample"] = False  # nothing is drawn at temperature 0, whatever the task calls it
    if drawn["do_sample"] and temperature is not None:
        drawn["temperature"] = float(temperature)
    return drawn


class Prompts:
    """Prompts of one model.

    Attributes:
        query_tokens: longest query; None: the whole context.
    """

    def __init__(self, tokenizer: Any, *, query_tokens: int | None, add_bos_token: bool | None, window: int) -> None:
        self._tokenizer = tokenizer
        self.query_tokens = query_tokens
        self._add_bos_token = add_bos_token
        self._window = window

    @property
    def settings(self) -> dict[str, Any]:
        """What prompts depend on beside the tokenizer."""
        return {"query_tokens": self.query_tokens, "add_bos_token": self._add_bos_token}

    def tokens(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return a text's tokens, with the tokenizer's special tokens unless the text begins with `bos` already."""
        text = readable(text)
        special = add_special_tokens if add_special_tokens is not None else self._add_bos_token
        if add_special_tokens is None and text.startswith(self._tokenizer.decode(prefix_token(self._tokenizer))):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        return list(self._tokenizer(text, verbose=False, **options)["input_ids"])

    def query(self, context: str) -> str:
        """Return the end of a context, `query_tokens` long at most, cut between characters."""
        context = readable(context)
        if self.query_tokens is None or len(context) <= self.query_tokens:  # a token has one character at least
            return context
        begins = self._offsets(context)
        return context if len(begins) <= self.query_tokens else context[begins[-self.query_tokens][0] :]

    def half(self, text: str) -> tuple[str, int]:
        """Return the first half of a text by its tokens, and the number of tokens that begin behind it."""
        offsets = self._offsets(text)
        if len(offsets) < 2:
            return "", len(offsets)
        end = offsets[len(offsets) // 2 - 1][1]
        # Several tokens can be one character together: they all belong to the half that has the character.
        return text[:end], sum(begin >= end for begin, _ in offsets)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        out = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(out["offset_mapping"])

    def longest(self, options: dict[str, Any]) -> int:
        """Return how many tokens a task allows a continuation.

        Raises:
            ConfigError: that leaves no room for a context.
        """
        given = [options[name] for name in LIMIT_NAMES if options.get(name) is not None]
        limit = int(given[0] if given else DEFAULT_NEW_TOKENS)
        if not 0 < limit < self._window:
            raise ConfigError(f"max_gen_toks must be between 1 and {self._window - 1}, got {limit}")
        return limit
