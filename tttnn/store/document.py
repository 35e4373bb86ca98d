"""A document: one text with its metadata, and the digest that names a text.

Knows texts and metadata. Does not know files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

SOURCE_FIELD = "pile_set_name"
"""The metadata field that names a document's source, as in the Pile."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its metadata.

    Example:
        >>> Document("def f(): ...", {"pile_set_name": "Github"}).source
        'Github'
    """

    text: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """The part of the corpus that the document came from; None where its metadata do not say."""
        source = self.meta.get(SOURCE_FIELD)
        return source if isinstance(source, str) and source else None


def text_digest(text: str) -> str:
    """Return 32 hex digits that identify a text: BLAKE2b, 16 bytes, of its UTF-8."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
