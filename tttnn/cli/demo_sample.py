"""What the demo measures on: whole documents held out by seed, and windows of the others as the corpus.

Knows where every Python installation keeps real text: its own standard library. Does not know models but by their
tokens.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Progress
from ..errors import TttnnError
from ..evaluation.overlap import ngrams_of, shared
from ..lm.tokens import token_ids
from ..store.document import Document, text_digest

SAMPLE_BYTES = 2_000_000
WINDOW_TOKENS = 512
HELD_OUT = 5
MAX_OVERLAP = 0.05
"""Largest share of the 8-grams of words that a window and a held-out document may have in common, seen from either."""

MIN_TOKENS = 1024
"""Tokens that a held-out document has at least: a query and a scored text of 512 each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A corpus of windows, and whole documents that are not in it."""

    windows: list[Document]
    held_out: list[Document]
    num_bytes: int
    left_out: int = 0
    """Windows that share text with a held-out document."""

    @property
    def digest(self) -> str:
        """Digest of all windows, which names the datastore made of them."""
        state = hashlib.blake2b(digest_size=6)
        for window in self.windows:
            state.update(text_digest(window.text).encode())
        return state.hexdigest()


def draw_sample(documents: list[Document], tokenizer: Any, seed: int, progress: Progress | None = None) -> Sample:
    """Hold whole documents out by seed, and cut a sample of the others into windows of 512 tokens.

    A document whose text equals a held-out one's is left out of the corpus, as is every second copy of a text and every
    window that shares more than `MAX_OVERLAP` with a held-out document.
    """
    order = sorted(documents, key=name_of)
    random.Random(seed).shuffle(order)
    held_out: list[Document] = []
    rest: list[Document] = []
    seen: set[str] = set()
    for document in order:
        digest = text_digest(document.text)
        if digest in seen:
            continue
        seen.add(digest)
        # Sixteen characters a token is more than any text needs, so a longer piece holds MIN_TOKENS if the text does.
        wanted = len(held_out) < HELD_OUT and len(document.text) >= 2 * MIN_TOKENS
        if wanted and len(token_ids(tokenizer, document.text[: 16 * MIN_TOKENS])) >= MIN_TOKENS:
            held_out.append(document)
        else:
            rest.append(document)
    if len(held_out) < HELD_OUT or not rest:
        raise TttnnError(
            f"corpus must hold at least {HELD_OUT + 1} different documents, {HELD_OUT} of them of at least "
            f"{MIN_TOKENS} tokens, got {len(seen)} and {len(held_out)}"
        )
    grams = [ngrams_of(document.text) for document in held_out]
    windows: list[Document] = []
    size = left_out = 0
    for document in rest:
        for window in _windows(document, tokenizer):
            ngrams = ngrams_of(window.text)
            if any(max(shared(others, ngrams)) > MAX_OVERLAP for others in grams):
                left_out += 1
                continue
            length = len(window.text.encode())
            if size + length > SAMPLE_BYTES:
                break
            size += length
            windows.append(window)
        else:
            if progress is not None:
                progress("cut corpus (bytes)", size, SAMPLE_BYTES)
            continue
        break
    if progress is not None:
        progress("cut corpus (bytes)", size, size)
    return Sample(windows, held_out, size, left_out)


def _windows(document: Document, tokenizer: Any) -> Iterator[Document]:
    text = document.text[:SAMPLE_BYTES]
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in out["offset_mapping"]]
    begin = 0
    for i, last in enumerate(range(WINDOW_TOKENS - 1, len(ends) + WINDOW_TOKENS - 1, WINDOW_TOKENS)):
        end = ends[min(last, len(ends) - 1)]
        if text[begin:end].strip():
            yield Document(text[begin:end], {"name": name_of(document), "window": i})
        begin = end


def name_of(document: Document) -> str:
    """Return what a document is called in tables."""
    return str(document.meta.get("path") or document.source or text_digest(document.text)[:12])


def standard_library() -> list[Document]:
    """Read the Python files of the standard library of this interpreter; those that are not UTF-8 are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            documents.append(Document(text, {"path": str(path.relative_to(root))}))
    return documents
