"""The texts that are embedded: the beginnings of documents, or their passages, and what names each in a message.

Knows a segment's store and its table of passages. Does not know embedders or stages.
"""

from __future__ import annotations

from ..store.text_store import TextStore
from .passages import PassageTable
from .vector_source import Units

DOCUMENT_CHARACTERS = 1_000_000
"""Characters of a document that are looked at when its beginning is embedded."""

_READ_DOCUMENTS = 64  # long documents are cut before the next ones are read


def read_units(store: TextStore, table: PassageTable | None, begin: int, end: int, base: int) -> Units:
    """Return the texts of units [begin, end) and what names them in messages."""
    if table is None:
        texts = []
        for first in range(begin, end, _READ_DOCUMENTS):
            ids = range(first, min(end, first + _READ_DOCUMENTS))
            texts += [text[:DOCUMENT_CHARACTERS] for text in store.read_many(ids, texts_only=True)]
        return Units(texts, lambda i: f"document {base + begin + i}")
    texts = []
    document, content = -1, b""
    for i in range(begin, end):
        passage = table[i]
        if passage.document != document:
            document, content = passage.document, store.read_text(passage.document).encode()
        texts.append(content[passage.begin : passage.end].decode())
    return Units(texts, lambda i: f"document {base + table[begin + i].document} (passage {begin + i})")
