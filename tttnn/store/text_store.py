"""The text store: millions of documents in one file, each read by its id in microseconds.

A TextStore is a Sequence of documents over one memory-mapped file; a TextStoreWriter makes such a file. csrc/FORMAT.md
describes it byte by byte. Knows nothing of embeddings and indexes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

import tttnn._core as _core

from ..config import Progress
from ..errors import StoreCorruptError
from ..files import mended
from .document import DEEPEST, Document

StoreIO = Literal["mmap", "pread"]

# Documents read at once when a whole store is walked: whole groups of the file, so that metadata are decoded once.
_WALK_DOCUMENTS = 256
# Older versions kept numbers that are not finite, lone surrogates and any depth: they are read as text that JSON has.
_DECODER = json.JSONDecoder(parse_constant=str)


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
        # Absolute: another process opens it by this name, and so does this one in another working directory.
        self._path = Path(os.path.abspath(path))
        self._io: StoreIO = io
        self._length = 0
        self._open_reader: _core.StoreReader | None = _core.StoreReader(os.fspath(self._path), io == "pread")
        self._length = len(self._open_reader)
        self._sources: list[str] | None = None
        self._source_codes: npt.NDArray[np.int32] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, io: StoreIO = "mmap") -> Self:
        """Open a finished store.

        Args:
            path: The file.
            io: ``"mmap"`` maps the file and holds no descriptor; ``"pread"`` reads it, which is slower, and holds one.
                Either way a file that is cut short later is a StoreCorruptError where its lost part is read.

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
        """The file, as an absolute path."""
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
        return _reopen, (str(self._path), self._io)

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
            meta = _DECODER.decode(raw.decode())
        except ValueError:
            meta = None
        except RecursionError:
            meta = {"unreadable": "nested too deeply"}
        if b"\\ud" in raw or raw.count(b"[") + raw.count(b"{") > DEEPEST:
            meta = mended(meta, levels=DEEPEST)
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
