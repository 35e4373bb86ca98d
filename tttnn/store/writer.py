"""Writes text stores: document by document, or a whole corpus, so that a crash costs little.

Knows dictionaries and the core's writer. Does not read stores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tttnn._core as _core

from ..config import Progress, StoreConfig
from ..files import PARTIAL, check_target, require_regular, warn_unlocked
from .corpus import Corpus, no_documents
from .document import SOURCE_FIELD, Document, packed_meta, text_fault

# A crash costs at most this much of compressed text.
_COMMIT_BYTES = 64 << 20
# Training texts: zstd's advice is a hundred times the dictionary's size; a long text adds nothing after its beginning.
_TRAINING_FACTOR = 100
_TRAINING_CHARACTERS = 1 << 16


# A frame that zstd skips, 120 bytes, and the name of the format.
_BEGIN = b"\x53\x2a\x4d\x18\x78\0\0\0TTTNNSTO"


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a finished writer wrote."""

    documents: int
    text_bytes: int
    file_bytes: int
    store_id: str


class TextStoreWriter:
    """Writes a text store; a context manager.

    Bytes go to ``PATH.partial``. Leaving the block normally finishes: the file is synced and renamed to ``PATH`` at
    once. Leaving it by an exception, or the death of the process, leaves ``PATH`` as it was; ``PATH.partial`` holds
    what was committed (every 64 MiB of compressed text) and can be resumed.

    With ``resume=True`` append the same documents again, from the first: those that were committed are recognised,
    compared and not written again (`committed` says how many). The finished file is the same, byte for byte, as one
    that was written without an interruption and with any number of threads.

    Args:
        path: The file to write; a store that is there is replaced when the new one is finished.
        config: How texts are compressed. None: the defaults.
        resume: Go on with ``PATH.partial`` where there is one.
        dictionary: A dictionary from `train_dictionary`; None: one is trained on the first documents.

    Raises:
        FileExistsError: What stands at `path` is no regular file, or what stands at ``PATH.partial`` is no store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: StoreConfig | None = None,
        resume: bool = False,
        dictionary: bytes | None = None,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        if self.path.exists():
            check_target(self.path, force=True)
        check_begun(self.path)
        self.config = config or StoreConfig()
        self.summary: StoreSummary | None = None
        self._writer: _core.StoreWriter | None = _core.StoreWriter(
            os.fspath(self.path),
            level=self.config.level,
            dictionary_bytes=self.config.dictionary_bytes,
            threads=self.config.threads or len(os.sched_getaffinity(0)),
            resume=resume,
            commit_bytes=_COMMIT_BYTES,
            dictionary=dictionary or b"",
        )
        if not self._writer.locked:
            warn_unlocked(self.path)

    def _open_writer(self) -> _core.StoreWriter:
        if self._writer is None:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._writer

    @property
    def documents(self) -> int:
        """Documents appended so far."""
        return self._open_writer().documents

    @property
    def committed(self) -> int:
        """Documents that the resumed partial file already held; they must be appended again and are compared."""
        return self._open_writer().committed

    def append(self, text: str, meta: dict[str, Any] | None = None) -> int:
        """Append one document.

        Args:
            text: Any text that UTF-8 can hold, so none with a lone surrogate; at most 2^30 bytes.
            meta: What JSON can hold: finite numbers, texts without lone surrogates, nested at most 64 deep.
                ``pile_set_name`` becomes the document's source.

        Returns:
            The document's id: 0 for the first.

        Raises:
            TypeError: The text is none, or the metadata hold what JSON cannot.
            ValueError: The text or the metadata are not as described, or a resumed corpus gives other documents.
        """
        writer = self._open_writer()
        if not isinstance(text, str):
            raise TypeError(f"text of document {writer.documents} must be str, got {type(text).__name__}")
        try:
            packed = packed_meta(meta)
        except (TypeError, ValueError) as error:
            raise type(error)(f"metadata of document {writer.documents} must be what JSON can hold: {error}") from None
        source = meta.get(SOURCE_FIELD) if meta else None
        try:
            return writer.append(text, packed, source if isinstance(source, str) else "")
        except UnicodeEncodeError:
            raise ValueError(f"document {writer.documents} cannot be written as UTF-8: {text_fault(text)}") from None

    def finish(self) -> StoreSummary:
        """Write the tables, sync, and rename the file into its place."""
        writer = self._open_writer()
        try:
            self.summary = StoreSummary(**writer.finish())
        finally:
            self._writer = None
        return self.summary

    def close(self) -> None:
        """Stop without finishing; ``PATH.partial`` stays for a resume. Does nothing after `finish`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._writer is not None:
            self.finish()
        self.close()


def check_begun(path: Path) -> None:
    """Refuse to write a store where the name of its unfinished file is taken by what no writer of stores began.

    Args:
        path: The store's.

    Raises:
        FileExistsError: ``PATH.partial`` is no regular file, or begins as no store does.
    """
    partial = path.with_name(path.name + PARTIAL)
    require_regular(partial)
    try:
        with partial.open("rb") as file:
            begin = file.read(len(_BEGIN))
    except FileNotFoundError:
        return
    # A crash may leave nothing of what was written last, or zeros.
    if begin.strip(b"\0") and begin != _BEGIN[: len(begin)]:
        raise FileExistsError(
            f"{partial}: must be a store that was begun, or nothing, and begins otherwise. Move the file away, or "
            "choose another name."
        )


def train_dictionary(documents: Iterable[Document], *, config: StoreConfig | None = None) -> bytes:
    """Train a dictionary on documents spread evenly over a corpus, for `TextStoreWriter`.

    A writer left to itself trains on the first documents, which stand for all of them only where the corpus is in no
    order. This reads the whole corpus once; its memory is bounded by some 300 times the size of the dictionary.

    Args:
        documents: The corpus.
        config: The settings of the writer.

    Returns:
        The dictionary; empty where the corpus is too small for one.
    """
    config = config or StoreConfig()
    budget = _TRAINING_FACTOR * config.dictionary_bytes
    kept: list[str] = []
    stride, size = 1, 0
    for number, document in enumerate(documents):
        if number % stride:
            continue
        kept.append(document.text[:_TRAINING_CHARACTERS])
        size += len(kept[-1])
        # Every stride-th document so far: still so after every second one of them is dropped.
        while size > 2 * budget and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            size = sum(map(len, kept))
    return _core.train_dictionary(kept, config.dictionary_bytes, config.level)


def write_store(
    path: str | os.PathLike[str],
    documents: Iterable[Document],
    *,
    config: StoreConfig | None = None,
    resume: bool = False,
    dictionary: bytes | None = None,
    progress: Progress | None = None,
) -> StoreSummary:
    """Write a store that holds the documents of a corpus.

    Args:
        path: The file to write.
        documents: The corpus, from `iter_jsonl`, `iter_folder` or any iterable. To resume, it begins anew.
        config: How texts are compressed. None: the defaults.
        resume: Go on with ``PATH.partial`` where there is one.
        dictionary: A dictionary from `train_dictionary`; None: one is trained on the first documents.
        progress: Called as ``progress("import", done, None)`` in documents.

    Raises:
        ValueError: Files were read and hold no document, or a resumed corpus gives other ones.
    """
    with TextStoreWriter(path, config=config, resume=resume, dictionary=dictionary) as writer:
        done = 0
        for document in documents:
            done = writer.append(document.text, document.meta) + 1
            if progress is not None and done % 1000 == 0:
                progress("import", done, None)
        if progress is not None:
            progress("import", done, done)
        if done == 0 and isinstance(documents, Corpus):
            writer.close()
            Path(f"{os.fspath(path)}{PARTIAL}").unlink(missing_ok=True)
            raise no_documents(documents)
        return writer.finish()
