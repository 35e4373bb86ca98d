"""Counting tokens before a request waits: with the engine's own tokenizer, where that can be told as text.

Knows the tokenizers library. Does not know models.
"""

from __future__ import annotations

import asyncio
from typing import Any

_AT_ONCE = 20_000
"""Characters that are counted in the event loop; longer texts are counted beside it."""


class TokenCounter:
    """Counts tokens; an upper bound of none where the engine's tokenizer cannot be told as text."""

    def __init__(self, described: str | None) -> None:
        """Take a tokenizer as the tokenizers library writes it; None: it has no such form."""
        self._tokenizer: Any = None
        if described is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(described)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    async def count(self, text: str) -> int | None:
        """Return the number of tokens that a text has with what the tokenizer puts before it; None: not known."""
        if self._tokenizer is None:
            return None
        if len(text) <= _AT_ONCE:
            return len(self._tokenizer.encode(text).ids)
        return await asyncio.to_thread(lambda: len(self._tokenizer.encode(text).ids))
