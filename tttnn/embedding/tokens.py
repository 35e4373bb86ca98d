"""Texts to an encoder's token ids, reading no more of a long text than its first tokens need.

Knows tokenizers; does not know models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

_CHARACTERS_PER_TOKEN = 6  # of the prefix that is tokenised first; most text has 3 to 5
_PROBE = "The quick brown fox, Zürich 42!\n\tnaïve  日本語 🐍 def f(x): return x"


class Tokenized(NamedTuple):
    """Token ids of each text; how many texts were truncated, and how many were empty."""

    ids: list[list[int]]
    truncated: int
    empty: int


class EncoderTokens:
    """Texts to token ids with special tokens, at most `max_length` of them. Leaves the caller's tokenizer alone."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._slow = tokenizer
        self._fast = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            self._fast = type(backend).from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
        with_special = self._raw("a", special=True)
        plain = self._raw("a", special=False)
        # One sequence between fixed special tokens is all that encoders use.
        at = next(
            (i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain),
            0,
        )
        self._before = with_special[:at]
        self._after = with_special[at + len(plain) :]
        self.special = len(self._before) + len(self._after)
        if max_length <= self.special:
            raise ConfigError(f"max_length must be more than {self.special} (the special tokens), got {max_length}")
        self._room = max_length - self.special

    def _raw(self, text: str, *, special: bool) -> list[int]:
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=special).ids)
        return list(self._slow(text, add_special_tokens=special)["input_ids"])

    def fingerprint(self) -> str:
        """Return a digest of what decides token ids: vocabulary, special tokens and how a probe is split."""
        vocabulary = self._fast.get_vocab(with_added_tokens=True) if self._fast is not None else self._slow.get_vocab()
        content = [sorted(vocabulary.items()), self._before, self._after, self._raw(_PROBE, special=False)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Return token ids of each text, how many were truncated, and how many were empty."""
        texts = [_valid(text) for text in texts]
        empty = sum(not text for text in texts)
        texts = [text or " " for text in texts]
        ids: list[list[int]] = [[] for _ in texts]
        truncated = 0
        pending = list(range(len(texts)))
        reach = self._room * _CHARACTERS_PER_TOKEN
        while pending:
            # The end of a long text cannot change its first tokens, so it is not tokenised.
            again = []
            parts = [texts[i][:reach] for i in pending]
            for i, part, (found, settled) in zip(pending, parts, self._split(parts), strict=True):
                whole = len(part) == len(texts[i])
                if not whole and not settled:
                    again.append(i)
                    continue
                truncated += not whole or len(found) > self._room
                ids[i] = self._before + found[: self._room] + self._after
            pending = again
            reach *= 4
        return Tokenized(ids, truncated, empty)

    def _split(self, parts: list[str]) -> Iterator[tuple[list[int], bool]]:
        """Yield each part's ids and whether its first `room` tokens stay the same whatever follows the part.

        They do when they lie in words before the last but one: a pre-tokenizer looks at most one word ahead.
        """
        if self._fast is None:
            for part in parts:
                yield self._raw(part, special=False), False
            return
        for encoding in self._fast.encode_batch(parts, add_special_tokens=False):
            found = encoding.ids
            settled = False
            if len(found) > self._room:
                kept = encoding.token_to_word(self._room - 1)
                end = encoding.token_to_word(len(found) - 1)
                settled = kept is not None and end is not None and kept < end - 1
            yield found, settled

    def spans(self, text: str) -> NDArray[np.int64]:
        """Return begin and end of each token, in characters."""
        if self._fast is None:
            raise ConfigError("unit must be document for an encoder without a fast tokenizer, got passage")
        found = [np.zeros((0, 2), np.int64)]
        text = _valid(text)
        begin = 0
        while begin < len(text):
            end = min(len(text), begin + 65536)  # a bounded piece, ended at a space where there is one
            if end < len(text):
                space = text.rfind(" ", begin + 1, end)
                end = space if space > 0 else end
            offsets = self._fast.encode(text[begin:end], add_special_tokens=False).offsets
            found.append(np.array(offsets, np.int64).reshape(-1, 2) + begin)
            begin = end
        return np.concatenate(found)


def _valid(text: str) -> str:
    """Return the text with lone surrogates, which tokenizers refuse, as question marks."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
