"""The text store: millions of documents in one file, each read by its id in microseconds.

A TextStore is a Sequence of documents over one memory-mapped file; a TextStoreWriter makes such a file. csrc/FORMAT.md
describes it byte by byte. Knows nothing of embeddings and indexes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

import tttnn._core as _core

from ..config import Progress, StoreConfig
from ..errors import StoreCorruptError
from .corpus import (
    SOURCE_FIELD,
    Document,
    FolderCorpus,
    JsonlCorpus,
    Rejected,
    iter_corpus,
    iter_folder,
    iter_jsonl,
    iter_parquet,
    text_digest,
)

__all__ = [
    "Document",
    "FolderCorpus",
    "JsonlCorpus",
    "Rejected",
    "RepairReport",
    "StoreSummary",
    "TextStore",
    "TextStoreWriter",
    "export_jsonl",
    "iter_corpus",
    "iter_folder",
    "iter_jsonl",
    "iter_parquet",
    "repair_store",
    "text_digest",
    "train_dictionary",
    "write_store",
]

StoreIO = Literal["mmap", "pread"]

# Documents read at once when a whole store is walked: whole groups of the file, so that metadata are decoded once.
_WALK_DOCUMENTS = 256
# A crash costs at most this much of compressed text.
_COMMIT_BYTES = 64 << 20
# Training texts: zstd's advice is a hundred times the dictionary's size; a long text adds nothing after its beginning.
_TRAINING_FACTOR = 100
_TRAINING_CHARACTERS = 1 << 16


class TextStore(Sequence[Document]):
    """A finished text store: a Sequence of `Document`.

    Opening costs the same for any number of documents. Any number of threads may read one store at once; it works in
    forked children and pickles by its path. Damage raises StoreCorruptError that names file, document and byte.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "texts.zst"
        >>> with TextStoreWriter(path) as writer:
        ...     writer.append("To be, or not to be", {"pile_set_name": "Gutenberg"})
        0
        >>> with TextStore.open(path) as store:
        ...     store[0].text, store[-1].source, store.read_many([0, 0], texts_only=True)
        ('To be, or not to be', 'Gutenberg', ['To be, or not to be', 'To be, or not to be'])
    """

    def __init__(self, path: str | os.PathLike[str], *, io: StoreIO = "mmap") -> None:
        if io not in ("mmap", "pread"):
            raise ValueError(f"io must be mmap or pread, got {io!r}")
        self._path = Path(path)
        self._io: StoreIO = io
        self._length = 0
        self._open_reader: _core.StoreReader | None = _core.StoreReader(os.fspath(path), io == "pread")
        self._length = len(self._open_reader)
        self._sources: list[str] | None = None
        self._source_codes: npt.NDArray[np.int32] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, io: StoreIO = "mmap") -> Self:
        """Open a finished store.

        Args:
            path: The file.
            io: ``"mmap"`` maps the file; ``"pread"`` reads it, which is slower, but survives another process cutting
                the file short (a StoreCorruptError instead of the end of the process).

        Raises:
            FileNotFoundError: There is no such file.
            StoreCorruptError: The file is no text store, or its header, tables or footer are damaged.
            StoreVersionError: A newer version of tttnn wrote it.
        """
        return cls(path, io=io)

    @property
    def _reader(self) -> _core.StoreReader:
        if self._open_reader is None:
            raise ValueError(f"{self._path}: the store is closed")
        return self._open_reader

    @property
    def path(self) -> Path:
        """The file, as it was given to `open`."""
        return self._path

    @property
    def store_id(self) -> str:
        """32 hex digits that depend on the documents and their order only, not on how they are compressed."""
        return str(self._reader.info()["store_id"])

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return int(self._reader.info()["file_bytes"])

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order in which they first appear; `source_codes` refers to them."""
        if self._sources is None:
            try:
                self._sources = self._reader.sources()
            except UnicodeDecodeError:
                raise StoreCorruptError(
                    f"{self._path}: a name in the table of sources is not UTF-8. Restore the file or rebuild it."
                ) from None
        return list(self._sources)

    @property
    def source_codes(self) -> npt.NDArray[np.int32]:
        """For each document, the position of its source in `sources`, or -1; read-only. Touches no text."""
        if self._source_codes is None:
            codes = self._reader.source_codes()
            codes.flags.writeable = False
            self._source_codes = codes
        return self._source_codes

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return self.read_many(range(*index.indices(self._length)))
        document = self._position(index)
        reader = self._reader
        return Document(reader.read_text(document), self._meta(document, reader.read_meta(document)))

    def __iter__(self) -> Iterator[Document]:
        for begin in range(0, self._length, _WALK_DOCUMENTS):
            yield from self.read_many(range(begin, min(begin + _WALK_DOCUMENTS, self._length)))

    def read_text(self, index: int) -> str:
        """Return the text of one document, without its metadata: the fastest single read.

        Raises:
            IndexError: There is no such document.
        """
        return self._reader.read_text(self._position(index))

    @overload
    def read_many(
        self, ids: Sequence[int] | npt.NDArray[Any], *, texts_only: Literal[False] = False
    ) -> list[Document]: ...
    @overload
    def read_many(self, ids: Sequence[int] | npt.NDArray[Any], *, texts_only: Literal[True]) -> list[str]: ...
    def read_many(
        self, ids: Sequence[int] | npt.NDArray[Any], *, texts_only: bool = False
    ) -> list[Document] | list[str]:
        """Read documents by id, in any order, with duplicates; large batches are decoded by several threads.

        Args:
            ids: Document ids, from 0; negative ids are refused, because searches pad with -1.
            texts_only: Return the texts without their metadata.

        Returns:
            One document, or text, for each id, in the order of `ids`.

        Raises:
            IndexError: An id is not in the store.
        """
        reader = self._reader
        wanted = _as_ids(ids)
        texts = reader.read_texts(wanted)
        if texts_only:
            return texts
        return [Document(text, meta) for text, meta in zip(texts, self._metas(wanted), strict=True)]

    def verify(self, *, full: bool = True, progress: Progress | None = None) -> None:
        """Check the store.

        Args:
            full: Read and check every text and all metadata; otherwise header, tables and footer only.
            progress: Called as ``progress("verify", done, total)`` in documents.

        Raises:
            StoreCorruptError: The first damage found.
        """
        report = None if progress is None else lambda done, total: progress("verify", done, total)
        self._reader.verify(full, report)

    def info(self) -> dict[str, Any]:
        """Describe the store: format, id, counts, sizes, sources."""
        return {"path": str(self._path), **self._reader.info(), "sources": self.sources}

    def dictionary(self) -> bytes:
        """Return the dictionary that the texts were compressed with, for ``zstd -dc -D``; empty where there is none."""
        return self._reader.dictionary()

    def close(self) -> None:
        """Close the store; reading from it is a ValueError from then on. Closing twice is allowed."""
        self._open_reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., TextStore], tuple[str, StoreIO]]:
        return _reopen, (os.path.abspath(self._path), self._io)

    def __repr__(self) -> str:
        return f"TextStore({str(self._path)!r}, {self._length} documents)"

    def _position(self, index: int) -> int:
        try:
            number = index.__index__()
        except AttributeError:
            raise TypeError(f"document id must be an integer or a slice, got {type(index).__name__}") from None
        position = number + self._length if number < 0 else number
        if not 0 <= position < self._length:
            raise IndexError(f"document id must be between {-self._length} and {self._length - 1}, got {number}")
        return position

    def _metas(self, ids: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        return [self._meta(int(document), raw) for document, raw in zip(ids, self._reader.read_metas(ids), strict=True)]

    def _meta(self, document: int, raw: bytes) -> dict[str, Any]:
        if not raw:
            return {}
        try:
            meta = json.loads(raw)
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            raise StoreCorruptError(
                f"{self._path}: metadata of document {document} are not a JSON object. Restore the file or rebuild it."
            )
        return meta


def _reopen(path: str, io: StoreIO) -> TextStore:
    return TextStore.open(path, io=io)


def _as_ids(ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    wanted = np.arange(ids.start, ids.stop, ids.step) if isinstance(ids, range) else np.asarray(ids)
    if wanted.ndim != 1:
        raise ValueError(f"ids must have one dimension, got shape {wanted.shape}")
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if wanted.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {wanted.dtype}")
    return np.ascontiguousarray(wanted, np.int64)


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
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: StoreConfig | None = None,
        resume: bool = False,
        dictionary: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.config = config or StoreConfig()
        self.summary: StoreSummary | None = None
        self._writer: _core.StoreWriter | None = _core.StoreWriter(
            os.fspath(path),
            level=self.config.level,
            dictionary_bytes=self.config.dictionary_bytes,
            threads=self.config.threads or len(os.sched_getaffinity(0)),
            resume=resume,
            commit_bytes=_COMMIT_BYTES,
            dictionary=dictionary or b"",
        )

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
            text: Any text that UTF-8 can hold, so none with a lone surrogate.
            meta: What JSON can hold; ``pile_set_name`` becomes the document's source.

        Returns:
            The document's id: 0 for the first.

        Raises:
            TypeError: The metadata hold what JSON cannot.
            ValueError: The text or its source has a lone surrogate, or a resumed source gives other documents.
        """
        writer = self._open_writer()
        if not isinstance(text, str):
            raise TypeError(f"text of document {writer.documents} must be str, got {type(text).__name__}")
        try:
            packed = b"" if not meta else json.dumps(meta, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise type(error)(f"metadata of document {writer.documents} must be what JSON can hold: {error}") from None
        source = meta.get(SOURCE_FIELD) if meta else None
        try:
            return writer.append(text, packed, source if isinstance(source, str) else "")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"document {writer.documents} cannot be written as UTF-8: character {error.start} is a lone surrogate, "
                f"U+{ord(error.object[error.start]):04X}"
            ) from None

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
    """
    with TextStoreWriter(path, config=config, resume=resume, dictionary=dictionary) as writer:
        done = 0
        for document in documents:
            done = writer.append(document.text, document.meta) + 1
            if progress is not None and done % 1000 == 0:
                progress("import", done, None)
        if progress is not None:
            progress("import", done, done)
        return writer.finish()


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair_store` kept and what it could not."""

    summary: StoreSummary
    lost_texts: list[int]
    """Ids of documents that are empty texts now, with the metadata ``{"lost": true}``."""
    lost_metas: list[int]
    """Ids of documents whose text was kept, but not their metadata or source."""
    header_intact: bool
    tail_known: bool
    """Whether the file still says how many documents it held; otherwise more may be lost at its end."""


def repair_store(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: Progress | None = None
) -> RepairReport:
    """Rebuild a store from what is intact in a damaged one, or in the partial file of a writer.

    Document ids stay what they were. Where nothing but tables was damaged, the new file is the old one as it was.

    Args:
        path: The damaged file; it is not changed.
        target: The file to write; another one.
        progress: Called as ``progress("repair", done, total)`` in bytes.

    Raises:
        StoreCorruptError: Nothing can be rebuilt.
    """
    if os.path.exists(target) and os.path.samefile(path, target):
        raise ValueError(f"target must be another file than {os.fspath(path)}")
    report = None if progress is None else lambda done, total: progress("repair", done, total)
    result = _core.repair_store(os.fspath(path), os.fspath(target), len(os.sched_getaffinity(0)), report)
    return RepairReport(StoreSummary(**result.pop("summary")), **result)


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
        write(json.dumps({"text": document.text, "meta": document.meta}, ensure_ascii=False).encode() + b"\n")
        if progress is not None and (done % 1000 == 0 or done == len(store)):
            progress("export", done, len(store))
