"""Writes the documents of a store as JSON lines, which `iter_jsonl` reads back unchanged.

Knows documents. Does not know how they are stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..config import Progress
from ..files import strict_json
from .text_store import TextStore


def export_jsonl(
    store: TextStore, path: str | os.PathLike[str], *, level: int = 6, progress: Progress | None = None
) -> int:
    """Write all documents as JSON lines, ``{"text": ..., "meta": ...}``; `iter_jsonl` reads them back unchanged.

    Args:
        store: The store.
        path: The file to write, compressed where its name ends in ``.zst``; it appears when it is complete.
        level: zstd compression level.
        progress: Called as ``progress("export", done, total)`` in documents.

    Returns:
        The number of documents written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        if path.suffix == ".zst":
            import zstandard

            compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
            with compressor.stream_writer(file, closefd=False) as stream:
                _write_lines(store, stream.write, progress)
        else:
            _write_lines(store, file.write, progress)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return len(store)


def _write_lines(store: TextStore, write: Callable[[bytes], object], progress: Progress | None) -> None:
    for done, document in enumerate(store, 1):
        write(strict_json({"text": document.text, "meta": document.meta}).encode() + b"\n")
        if progress is not None and (done % 1000 == 0 or done == len(store)):
            progress("export", done, len(store))
