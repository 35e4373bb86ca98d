"""Texts to an encoder's token ids, reading no more of a long text than the tokens that are kept need.

A text is plain text: where it spells a special token, as "[SEP]", it is read as these characters.

Knows tokenizers; does not know models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

_CHARACTERS_PER_TOKEN = 6  # of the part that is tokenised first; most text has 3 to 5
_MOST_CHARACTERS_PER_TOKEN = 1024
"""A text longer than so many characters for each token that is kept is cut there before it is tokenised.

Only text in which words are thousands of characters long, or hardly any, is read otherwise than as a whole.
"""
_PROBE = "The quick brown fox, Zürich 42!\n\tnaïve  日本語 🐍 def f(x): return x"
_LOWER_PROBE = "The Quick BROWN Fox, ZÜRICH ΣΑΣ"
_SHORT = ("a", "1", "A", "的", "م", ".")  # the first that a tokenizer knows shows what it puts around a text


_Whole = TypeVar("_Whole", str, list[int])


class Tokenized(NamedTuple):
    """Token ids of each text; how many texts were truncated, and how many were empty."""

    ids: list[list[int]]
    truncated: int
    empty: int


class EncoderTokens:
    """Texts to token ids with special tokens, at most `max_length` of them. Leaves the caller's tokenizer alone."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        *,
        prompt: str = "",
        lower_case: bool = False,
        truncation: Literal["right", "left"] = "right",
    ) -> None:
        """Make it of a transformers tokenizer.

        Args:
            tokenizer: A fast one is copied; a slow one is used as it is.
            max_length: As of `limit`; None: it is called later, before any text is read.
            prompt: Put before every text.
            lower_case: Texts are made lower case first.
            truncation: The side on which a text that is too long loses tokens.

        Raises:
            ConfigError: No token of a text would be left, or the tokenizer works in a way tttnn does not know.
        """
        self._slow = tokenizer
        self._fast = None
        self.unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        """What stands for text that the vocabulary has not."""
        self.lower_case = False
        """Whether texts are made lower case, where the tokenizer would not do so anyway."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            self._fast = type(backend).from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
        self.prompt = ""
        self.truncation = truncation
        self._before, self._after = self._surroundings()
        self.special = len(self._before) + len(self._after)
        if lower_case:
            self._make_lower_case()
        self._set_prompt(prompt)
        self._room = 0
        if max_length is not None:
            self.limit(max_length)

    def limit(self, max_length: int) -> None:
        """Keep at most so many tokens of a text, those of the prompt and special tokens included.

        Raises:
            ConfigError: No token of a text would be left.
        """
        needed = self.special + self.prompt_length
        if max_length <= needed:
            what = "the prompt and the special tokens" if self.prompt_length else "the special tokens"
            raise ConfigError(f"max_length must be more than {needed} ({what}), got {max_length}")
        self._room = max_length - self.special
        self._blank = [int(getattr(self._slow, "pad_token_id", None) or 0)]
        self._blank = self.encode([" "]).ids[0]

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a text: one sequence between fixed ones is all encoders use."""
        for text in _SHORT:
            with_special, plain = self._raw(text, special=True), self._raw(text, special=False)
            at = next((i for i in range(len(with_special)) if plain and with_special[i:][: len(plain)] == plain), None)
            if at is not None:
                return with_special[:at], with_special[at + len(plain) :]
        return self._raw("", special=True), []

    def _make_lower_case(self) -> None:
        """Make texts lower case before all else, as sentence-transformers does."""
        before = self.plain(_LOWER_PROBE)
        if self._fast is not None:
            from tokenizers import normalizers

            own, lower = self._fast.normalizer, normalizers.Lowercase()
            self._fast.normalizer = lower if own is None else normalizers.Sequence([lower, own])
        self.lower_case = True
        self.lower_case = self.plain(_LOWER_PROBE) != before

    def kinds(self) -> set[int]:
        """Return the kinds of tokens (token_type_ids) that a model of this tokenizer is told of."""
        if "token_type_ids" not in getattr(self._slow, "model_input_names", ()):
            return {0}
        return {*self._fast.encode("a").type_ids} if self._fast is not None else {*self._slow("a")["token_type_ids"]}

    def _set_prompt(self, prompt: str) -> None:
        as_tokens = self.plain(prompt) if prompt else []
        if self._fast is not None:
            self._fast.encode_special_tokens = True  # from here on they are text
        if prompt and self.plain(prompt) != as_tokens:
            raise ConfigError(f"prompt must be plain text, got {prompt!r}, which spells a special token")
        self.prompt, self.prompt_length = prompt, len(as_tokens)
        last = as_tokens[-1:] if not self._after else self._after[-1:]
        closed = bool(last) and last[0] in getattr(self._slow, "all_special_ids", ())
        self.prompt_states = self.special + self.prompt_length - int(closed) if prompt else 0
        """Tokens that sentence-transformers counts as the prompt's where it leaves them out of pooling."""

    def _raw(self, text: str, *, special: bool) -> list[int]:
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=special).ids)
        text = text.lower() if self.lower_case else text
        return list(self._slow(text, add_special_tokens=special, split_special_tokens=True)["input_ids"])

    def fingerprint(self) -> str:
        """Return a digest of what decides token ids: vocabulary, special tokens and how a probe is split."""
        content = [sorted(self.vocabulary.items()), self._before, self._after, self.plain(_PROBE)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens with their ids."""
        found: dict[str, int] = (
            self._fast.get_vocab(with_added_tokens=True) if self._fast is not None else self._slow.get_vocab()
        )
        return found

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a whole text, without prompt and special tokens."""
        return self._raw(text, special=False)

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Return token ids of each text, how many were truncated, and how many were empty.

        An empty text is read as a single space. Where a tokenizer finds nothing in a text, as in white space or control
        characters, its special tokens are left; an encoder without them reads a space, or else its padding.
        """
        texts = [self.prompt + text for text in texts]
        most = self._room * _MOST_CHARACTERS_PER_TOKEN
        parts = [_valid(self._kept(text, most)) or " " for text in texts]
        ids: list[list[int]] = [[] for _ in texts]
        truncated = 0
        pending = list(range(len(texts)))
        reach = self._room * _CHARACTERS_PER_TOKEN
        before: dict[int, list[int]] = {}  # what was kept of a shorter piece
        while pending:
            # What lies far from the kept end of a long text cannot change the tokens there, so it is not tokenised.
            again = []
            pieces = [self._kept(parts[i], reach) for i in pending]
            for i, piece, (found, settled) in zip(pending, pieces, self._split(pieces), strict=True):
                kept = self._kept(found, self._room)
                settled |= len(found) > self._room and before.get(i) == kept
                if len(piece) < len(parts[i]) and not settled:
                    before[i] = kept
                    again.append(i)
                    continue
                truncated += len(piece) < len(texts[i]) or len(found) > self._room
                ids[i] = self._before + kept + self._after or self._blank
            pending = again
            reach *= 4
        empty = sum(len(text) == len(self.prompt) for text in texts)
        return Tokenized(ids, truncated, empty)

    def _kept(self, whole: _Whole, length: int) -> _Whole:
        """Return the end of a text, or of its tokens, that is kept: so many of them."""
        return whole[-length:] if self.truncation == "left" else whole[:length]

    def _split(self, pieces: list[str]) -> Iterator[tuple[list[int], bool]]:
        """Yield each piece's ids and whether those that are kept stay the same whatever lies beyond the piece.

        They do when they lie in words before the last but one, or after the second where the left is cut off: a
        pre-tokenizer looks at most one word around.
        """
        if self._fast is None:
            for piece in pieces:
                yield self._raw(piece, special=False), False
            return
        for encoding in self._fast.encode_batch(pieces, add_special_tokens=False):
            ids = encoding.ids
            settled = False
            if len(ids) > self._room:
                left = self.truncation == "left"
                kept, end = (len(ids) - self._room, 0) if left else (self._room - 1, len(ids) - 1)
                inner, outer = encoding.token_to_word(kept), encoding.token_to_word(end)
                settled = inner is not None and outer is not None and abs(outer - inner) > 1
            yield ids, settled

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
