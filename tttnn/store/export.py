"""Writes documents as JSON lines, which `iter_jsonl` reads back unchanged.

Knows documents. Does not know how they are stored.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from ..config import Progress
from ..files import check_target, replacing, strict_json
from .document import Document


def export_jsonl(
    documents: Collection[Document],
    path: str | os.PathLike[str],
    *,
    level: int = 6,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write documents as JSON lines, ``{"text": ..., "meta": ...}``; `iter_jsonl` reads them back unchanged.

    Args:
        documents: A `TextStore`, or `Datastore.store`: of a datastore its live documents.
        path: The file to write, compressed where its name ends in ``.zst``, ``.gz``, ``.xz`` or ``.bz2``; it appears
            when it is complete.
        level: Level of the compression.
        force: Replace a file that is there.
        progress: Called as ``progress("export", done, total)`` in documents.

    Returns:
        The number of documents written.

    Raises:
        FileExistsError: A file is there and `force` is not given; or it is no regular file, or the store that is read.
    """
    inputs = [source] if isinstance(source := getattr(documents, "path", None), Path) else []
    check_target(Path(path), force=force, inputs=inputs)
    path = Path(os.path.realpath(path))  # what a link names is replaced, not the link
    with replacing(path) as file, _compressed(file, path.suffix.lower(), level) as stream:
        write_lines(documents, stream.write, progress)
    return len(documents)


def _compressed(file: IO[bytes], suffix: str, level: int) -> AbstractContextManager[Any]:
    """Return what compresses into a file, by the suffix of its name."""
    if suffix == ".zst":
        import zstandard

        compressor: AbstractContextManager[Any] = zstandard.ZstdCompressor(
            level=level, write_checksum=True
        ).stream_writer(file, closefd=False)
        return compressor
    if suffix == ".gz":
        return gzip.GzipFile("", "wb", min(level, 9), file, mtime=0)  # no name and no time: the same bytes each time
    if suffix == ".xz":
        return lzma.LZMAFile(file, "wb", preset=min(level, 9))
    if suffix == ".bz2":
        return bz2.BZ2File(file, "wb", compresslevel=min(level, 9))
    return nullcontext(file)


def write_lines(
    documents: Collection[Document], write: Callable[[bytes], object], progress: Progress | None = None
) -> None:
    """Hand each document to a function as one line of strict JSON in UTF-8.

    Args:
        documents: The documents.
        write: Called with each line.
        progress: Called as ``progress("export", done, total)`` in documents.
    """
    total = len(documents)
    for done, document in enumerate(documents, 1):
        write(strict_json({"text": document.text, "meta": document.meta}).encode() + b"\n")
        if progress is not None and (done % 1000 == 0 or done == total):
            progress("export", done, total)
