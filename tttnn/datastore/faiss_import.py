"""Datastores from vectors that others have made: flat faiss indexes beside files of texts. Needs no faiss.

Knows the layout of faiss's IndexFlat files (faiss/impl/index_write.cpp; read against faiss 1.15): little-endian fourcc
("IxF2" squared L2, "IxFI" inner product, "IxFl" as its metric says), int32 dimension, int64 vectors, two int64 that
mean nothing, uint8 trained, int32 metric, float32 metric argument where the metric is above 1, uint64 number of floats,
float32 vectors. The published code of Hardt & Sun (arXiv:2305.18466) keeps such an index for each shard of the Pile:
vector i is the embedding of line i of the shard's file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import CorpusConfig, EmbedConfig, Progress
from ..embedding.embed_report import EmbedReport
from ..errors import IndexCorruptError
from ..store.corpus import iter_corpus
from ..store.document import Document
from .manifest import EmbedderEntry
from .vector_source import Units

_HEADER = struct.Struct("<4siqqqBi")  # fourcc, dimension, vectors, unused, unused, trained, metric
_FLOATS = struct.Struct("<Q")
_CHUNK = 65536  # vectors that are copied at a time
_METRICS: dict[int, Literal["ip", "l2"]] = {0: "ip", 1: "l2"}
_MOST_DIMENSIONS = 1 << 20


@dataclass(frozen=True)
class FlatFile:
    """A flat faiss index: its header, checked against the file's size."""

    path: Path
    dim: int
    count: int
    metric: Literal["ip", "l2"]
    offset: int
    """The byte at which the first vector begins."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FlatFile:
        """Read the header.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a flat faiss index.
            IndexCorruptError: Its header disagrees with itself or with the file's size.
        """
        path = Path(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEADER.size + 4 + _FLOATS.size)
        fourcc = head[:4]
        if fourcc not in (b"IxF2", b"IxFI", b"IxFl"):
            raise ValueError(f"{path}: must be a faiss IndexFlatL2 or IndexFlatIP (IxF2, IxFI, IxFl), got {fourcc!r}")
        if len(head) < _HEADER.size + _FLOATS.size:
            raise IndexCorruptError(f"{path}: holds {size} bytes, fewer than the header of a faiss index")
        _, dim, count, _, _, trained, kind = _HEADER.unpack_from(head)
        if kind not in _METRICS or (fourcc == b"IxF2" and kind != 1) or (fourcc == b"IxFI" and kind != 0):
            raise IndexCorruptError(
                f"{path}: metric of {fourcc.decode()} must be 0 (ip) or 1 (l2) as named, got {kind}"
            )
        if not 1 <= dim <= _MOST_DIMENSIONS or count < 0 or trained not in (0, 1):
            raise IndexCorruptError(f"{path}: its header promises {count} vectors of {dim} dimensions")
        (floats,) = _FLOATS.unpack_from(head, _HEADER.size)
        offset = _HEADER.size + _FLOATS.size
        if floats != dim * count or size != offset + 4 * floats:
            raise IndexCorruptError(
                f"{path}: holds {size} bytes and {floats} numbers, expected {offset + 4 * dim * count} bytes for "
                f"{count} vectors of {dim} dimensions"
            )
        return cls(path, dim, count, _METRICS[kind], offset)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return vectors [begin, end), (n, dim)."""
        with self.path.open("rb") as file:
            file.seek(self.offset + 4 * self.dim * begin)
            content = np.fromfile(file, "<f4", (end - begin) * self.dim)
        if len(content) != (end - begin) * self.dim:
            raise IndexCorruptError(f"{self.path}: ends before vector {end - 1}")
        return content.reshape(-1, self.dim)


class FlatFiles:
    """Vectors of flat faiss indexes, one segment for each, and the documents that they stand for.

    Args:
        indexes: Flat faiss indexes of one dimension and metric.
        texts: As many corpora; document i of one belongs to vector i of the index beside it.
        embedder_name: Names what made the vectors.
        corpus: How the files of texts are read. None: the defaults.

    Raises:
        ValueError: The files do not fit each other, or one is no flat index.
        IndexCorruptError: An index is damaged.
    """

    batch = _CHUNK
    embedder = None

    def __init__(
        self,
        indexes: Sequence[str | os.PathLike[str]],
        texts: Sequence[str | os.PathLike[str]],
        *,
        embedder_name: str,
        corpus: CorpusConfig | None = None,
    ) -> None:
        if not indexes or len(indexes) != len(texts):
            raise ValueError(f"texts must be one file for each index, got {len(texts)} for {len(indexes)} indexes")
        self.shards = [FlatFile.open(index) for index in indexes]
        self._texts = [iter_corpus(path, corpus) for path in texts]
        self._embedder_name = embedder_name
        first = self.shards[0]
        for shard in self.shards:
            if (shard.dim, shard.metric) != (first.dim, first.metric) or shard.count == 0:
                raise ValueError(
                    f"{shard.path}: must hold vectors of {first.dim} dimensions with metric {first.metric} as "
                    f"{first.path}, got {shard.count} of {shard.dim} with {shard.metric}"
                )
        self.dim = first.dim
        self.metric = first.metric

    @property
    def largest(self) -> int:
        """Vectors of the largest file."""
        return max(shard.count for shard in self.shards)

    def entry(self) -> EmbedderEntry:
        """Return the name that was given: of what made the vectors no more is known."""
        return EmbedderEntry(self._embedder_name, "unknown", {"dim": self.dim}, foreign=True)

    def plan(self) -> dict[str, Any]:
        """Return the files' names and sizes."""
        return {
            "embedder": {"dim": self.dim},
            "precision": "unknown",
            "embed": EmbedConfig().to_dict(),
            "imported": [[shard.path.name, shard.count] for shard in self.shards],
        }

    def segment_documents(self, number: int, most: int) -> int:
        """Return the vectors of a file; behind the last one there may be no document."""
        return self.shards[number].count if number < len(self.shards) else 1

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all files.

        Raises:
            ValueError: A file has more or fewer than vectors.
        """
        for shard, texts in zip(self.shards, self._texts, strict=True):
            count = 0
            for count, document in enumerate(texts, 1):
                if texts.num_rejected:
                    break
                if count > shard.count:
                    break
                yield document
            if texts.num_rejected:
                where, reason = texts.rejected[0]
                raise ValueError(
                    f"{texts.paths[0]}: every line must be a document, as each belongs to a vector of {shard.path}, "
                    f"got at {where}: {reason}"
                )
            if count != shard.count:
                got = f"{count}" if count < shard.count else "more"
                raise ValueError(
                    f"{texts.paths[0]}: must hold {shard.count} documents, one for each vector of {shard.path}, "
                    f"got {got}"
                )

    def vectors(
        self, number: int, begin: int, end: int, units: Callable[[], Units], *, report: EmbedReport, progress: Progress
    ) -> tuple[NDArray[np.float32], int]:
        """Read the vectors."""
        return self.shards[number].read(begin, end), 4 * self.dim * (end - begin)
