"""How texts become the tokens of one model: for training, scoring and prompts alike.

Knows tokenizers. Does not know models, windows or what tokens are for.

A text may spell a control token: a page about GPT-2 that says ``<|endoftext|>``, a corpus of conversations. Tokenizers
read such letters as the token itself, and what a stranger wrote then ends a text or begins a turn. Here a text is plain
text, its letters are read as letters, unless the setting `control_tokens` says that its texts are written with control
tokens. What a tokenizer puts around a text of its own accord (`bos`) is no matter of the text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from ..config import ControlTokens

_log = logging.getLogger("tttnn")
_CHARACTERS_PER_TOKEN = 64  # most text has 3 to 5


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Tokenize."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Tokens of one text in their order, and where each begins and ends in it, in characters.

    `offsets` is None where the tokenizer does not say (those written in Python).
    """

    tokens: list[int]
    offsets: list[tuple[int, int]] | None

    def span(self, text: str, count: int) -> tuple[int, int] | None:
        """Return the bytes of the text's UTF-8 that the first `count` tokens cover; None where that is not known."""
        if self.offsets is None or count == 0:
            return None
        begin, end = self.offsets[0][0], self.offsets[count - 1][1]
        before = len(text[:begin].encode("utf-8", "surrogatepass"))
        return before, before + len(text[begin:end].encode("utf-8", "surrogatepass"))


class TextTokens:
    """Reads texts as the tokens of one model.

    Example:
        >>> TextTokens(tokenizer).ids("a<|endoftext|>b")   # doctest: +SKIP
        [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    """

    def __init__(self, tokenizer: Tokenizer, control_tokens: ControlTokens = "text") -> None:
        """Take over a tokenizer.

        Args:
            tokenizer: of transformers.
            control_tokens: ``text``: a text that spells a control token is read as its letters; ``tokens``: as the
                token.
        """
        self.tokenizer: Any = tokenizer
        self._plain = control_tokens == "text"
        self._options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if self._plain and _takes_split_special_tokens(tokenizer):
            self._options["split_special_tokens"] = True
        self._control = _control_tokens(tokenizer) if self._plain else {}
        self._begins: list[int] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer | Self) -> Self:
        """Return a tokenizer's reader with the default settings; a reader itself."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)  # type: ignore[arg-type]

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text alone, without special tokens around it, whatever its length."""
        ids = list(self.tokenizer(text, **self._options)["input_ids"])
        return ids if self._control.keys().isdisjoint(ids) else self._spelled(ids, None)[0]

    def tokenized(self, text: str) -> TokenizedText:
        """Return what `ids` does, and where each token lies in the text."""
        if not getattr(self.tokenizer, "is_fast", False):
            return TokenizedText(self.ids(text), None)
        encoding = self.tokenizer(text, return_offsets_mapping=True, **self._options)
        ids, offsets = list(encoding["input_ids"]), [(begin, end) for begin, end in encoding["offset_mapping"]]
        if not self._control.keys().isdisjoint(ids):
            ids, offsets = self._spelled(ids, offsets)
        return TokenizedText(ids, offsets)

    def last_ids(self, text: str, room: int) -> list[int]:
        """Return the tokens of a text, or of its end, where the last `room` of them are wanted.

        A text is cut that has 64 characters and more for each of these tokens. What is left has more tokens than
        `room`, unless its words are that long.
        """
        most = _CHARACTERS_PER_TOKEN * room
        if len(text) <= most:
            return self.ids(text)
        _log.warning("a text of %d characters is read from its last %d on: %d tokens are wanted", len(text), most, room)
        return self.ids(text[-most:])[1:]  # the first is a fragment

    def prompt(self, text: str, room: int) -> tuple[list[int], int]:
        """Return the tokens of a text to continue, and how many at their beginning are the tokenizer's own (`bos`).

        Args:
            text: of any length; see `last_ids`.
            room: tokens that the model reads at once.
        """
        if self._begins is None:
            self._begins = _begins(self.tokenizer)
        ids = self.last_ids(text, room)
        # Where control tokens may be written in the text, its own bos is not repeated.
        ids = ids if self._begins and ids[: len(self._begins)] == self._begins else [*self._begins, *ids]
        return ids, len(self._begins)

    def prefix(self) -> int:
        """Return the token that stands before a text's first: the model's `bos`, else its `eos`.

        Raises:
            ValueError: the tokenizer has neither.
        """
        return prefix_token(self.tokenizer)

    def is_control(self, token: int) -> bool:
        """Return whether a token is one that no text is read as."""
        return token in self._control

    def _spelled(
        self, ids: list[int], offsets: list[tuple[int, int]] | None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Write each control token as its characters: some tokenizers find it among their words all the same."""
        spelled: list[int] = []
        spans: list[tuple[int, int]] = []
        for i, token in enumerate(ids):
            begin, end = (0, 0) if offsets is None else offsets[i]
            pieces = self._control.get(token)
            if pieces is None:
                spelled.append(token)
                spans.append((begin, end))
            else:
                spelled += pieces
                first = end - len(pieces)  # a mark of a space before it may belong to the word
                spans += [(first + j, first + j + 1) for j in range(len(pieces))]
        return spelled, spans


def token_ids(tokenizer: Tokenizer | TextTokens, text: str) -> list[int]:
    """Return the tokens of one text alone; see `TextTokens.ids`."""
    return TextTokens.of(tokenizer).ids(text)


def prefix_token(tokenizer: Tokenizer) -> int:
    """Return the token that stands before a text's first: the model's `bos`, else its `eos`."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "tokenizer must have a bos or an eos token, to stand before the first token of a text; it has none"
    )


def _takes_split_special_tokens(tokenizer: Tokenizer) -> bool:
    try:
        tokenizer("a", add_special_tokens=False, verbose=False, split_special_tokens=True)
    except (TypeError, ValueError):
        return False
    return True


def _control_tokens(tokenizer: Any) -> dict[int, list[int]]:
    """Return each control token with the tokens of its characters. The unknown token is none: any text may need it."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = {token for token, entry in added.items() if getattr(entry, "special", False)}
    special |= set(getattr(tokenizer, "all_special_ids", None) or ())
    special.discard(getattr(tokenizer, "unk_token_id", None))
    if not special:
        return {}
    number: Callable[[str], int | None] = tokenizer.convert_tokens_to_ids
    unknown = getattr(tokenizer, "unk_token_id", None)
    control = {}
    for token in special:
        pieces = [number(character) for character in str(tokenizer.convert_ids_to_tokens(token))]
        control[token] = [piece for piece in (unknown if p is None else p for p in pieces) if piece is not None]
    return control


def _begins(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before any text."""
    plain = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer("a", verbose=False)["input_ids"])
    for begin in range(len(whole) - len(plain) + 1):
        if plain and whole[begin : begin + len(plain)] == plain:
            return whole[:begin]
    return []
