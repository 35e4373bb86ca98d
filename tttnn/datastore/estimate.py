"""What a build would cost, before it is begun, in time, disk and memory: from one reading of the corpus and a sample.

Knows what the stages of a build do; writes nothing that stays.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import DatastoreConfig, IndexConfig, Progress, StoreConfig
from ..embedding.embed_report import EmbedReport
from ..stages import Stages
from ..store.corpus import iter_corpus, no_documents
from ..store.document import Document
from ..store.text_store import TextStore
from ..store.writer import write_store
from .compact_vectors import bytes_per_vector
from .corpus_documents import Corpus, documents_of
from .index import NeighborIndex
from .passages import RECORD_BYTES, byte_spans, cut_passages
from .units import DOCUMENT_CHARACTERS

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder

_SAMPLE = 256  # documents: embedding them takes seconds, and their mean length is known to some percent
_UNITS = 512  # passages of them that are embedded
_BUILDER_BYTES = 130  # hnswlib's lock, table of labels, level and marks of a node, and what finding copies holds of it
_SAMPLE_CHARACTERS = 1 << 16  # of each document; all are counted, the rest is scaled


@dataclass(frozen=True)
class BuildEstimate:
    """What a build would cost on this machine."""

    documents: int
    """Number of documents; all are counted."""
    text_bytes: int
    """Bytes of the texts in UTF-8; all are counted."""
    vectors: int
    """Documents, or an estimate of their passages."""
    tokens: int
    """An estimate of those that are embedded."""
    seconds: dict[str, float]
    """Seconds of each stage. Those of the index are rough: the cost for one vector is taken to grow with the square of
    the logarithm of their number."""
    disk_bytes: dict[str, int]
    """texts, index, passages; and vectors, which are there until the index is built."""
    memory_bytes: int
    """What indexing holds: the graphs of the segments that are built side by side, and the vectors that walks read."""
    sample_documents: int
    """Documents, spread evenly over the corpus, from which everything else is estimated."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the sum of the stages' seconds."""
        return asdict(self) | {"total_seconds": round(sum(self.seconds.values()), 1)}


def estimate_build(
    documents: Corpus,
    embedder: Embedder,
    *,
    config: DatastoreConfig | None = None,
    index: IndexConfig | None = None,
    store: StoreConfig | None = None,
    progress: Progress | None = None,
) -> BuildEstimate:
    """Estimate what `Datastore.build` would take; the arguments are its own.

    Args:
        documents: Read once, to the end.
        embedder: Embeds a sample.
        config: What is embedded.
        index: How vectors are indexed.
        store: How texts are compressed.
        progress: Called with the stage "count" and documents.

    Raises:
        ValueError: The corpus is empty.
    """
    config, index, store = config or DatastoreConfig(), index or IndexConfig(), store or StoreConfig()
    documents = iter_corpus(documents) if isinstance(documents, str | os.PathLike) else documents
    counted = _Count()
    started = time.perf_counter()
    sample = _spread(_counting(documents_of(documents), counted, progress))
    reading = time.perf_counter() - started
    if not sample:
        raise no_documents(documents)
    built = _build(sample, embedder, config, index, store)
    # Only the beginning of a long document is in the sample: passages go by bytes, whole documents by number.
    growth = counted.text_bytes / max(1, sum(len(document.text.encode()) for document in sample))
    passages = config.unit == "passage"
    count = max(1, round(built.units * growth)) if passages else counted.documents
    each = count / built.vectors
    deeper = (math.log2(max(2, count)) / math.log2(max(2, built.vectors))) ** 2 if index.backend == "hnsw" else 1.0
    segments = math.ceil(counted.documents / config.segment_documents)
    dictionaries = segments * min(store.dictionary_bytes, counted.text_bytes // segments // 16)
    return BuildEstimate(
        documents=counted.documents,
        text_bytes=counted.text_bytes,
        vectors=count,
        tokens=round(built.tokens * each),
        seconds={
            "dictionary": round(reading, 1),
            "ingest": round(reading + built.seconds["ingest"] * growth, 1),
            **({"passages": round(built.seconds["passages"] * growth, 1)} if passages else {}),
            "embed": round(built.seconds["embed"] * each, 1),
            "index": round(built.seconds["index"] * each * max(1.0, deeper), 1),
        },
        disk_bytes={
            "texts": round(built.text_bytes * growth) + dictionaries,
            "index": round(built.index_bytes * each),
            **({"passages": RECORD_BYTES * count} if passages else {}),
            "vectors": 4 * embedder.dim * count,
        },
        memory_bytes=_index_memory(math.ceil(count / segments), segments, embedder.dim, index),
        sample_documents=len(sample),
    )


def _index_memory(vectors: int, segments: int, dim: int, index: IndexConfig) -> int:
    """Return the bytes that building the index holds, of segments with so many vectors each."""
    if index.backend == "exact":
        return 0
    each = bytes_per_vector(dim, index.vectors, index.M) + _BUILDER_BYTES
    return min(segments, len(os.sched_getaffinity(0))) * vectors * each


@dataclass(frozen=True)
class _Built:
    """What the stages took for a sample: of its texts all, of its units those that were embedded."""

    units: int
    """Documents or passages of the sample."""
    vectors: int
    """Number of units that were embedded and indexed."""
    tokens: int
    text_bytes: int
    """Bytes of the compressed texts on disk, without the dictionary."""
    index_bytes: int
    """Bytes of the index on disk."""
    seconds: dict[str, float]


def _build(
    sample: list[Document], embedder: Embedder, config: DatastoreConfig, index: IndexConfig, store: StoreConfig
) -> _Built:
    """Take a sample through every stage of a build, in a folder that goes again."""
    seconds = Stages()
    report = EmbedReport()
    with tempfile.TemporaryDirectory() as folder:
        with seconds("ingest"):
            write_store(Path(folder, "texts.zst"), sample, config=store)
        with TextStore.open(Path(folder, "texts.zst")) as written:
            text_bytes = written.nbytes - len(written.dictionary())
        with seconds("passages"):
            units = _units(sample, embedder, config)
        chosen = [units[i] for i in np.unique(np.linspace(0, len(units) - 1, min(_UNITS, len(units))).astype(int))]
        with seconds("embed"):
            vectors = embedder.embed(chosen, report=report)
        with seconds("index"):
            built = NeighborIndex.build(Path(folder, "index"), vectors, index)
        index_bytes = sum(described["size"] for described in built.manifest["files"].values())
    return _Built(len(units), len(chosen), report.tokens, text_bytes, index_bytes, seconds)


@dataclass
class _Count:
    documents: int = 0
    text_bytes: int = 0


def _counting(documents: Iterable[Document], counted: _Count, progress: Progress | None) -> Iterator[Document]:
    for document in documents:
        counted.documents += 1
        counted.text_bytes += len(document.text) if document.text.isascii() else len(document.text.encode())
        if progress is not None and counted.documents % 256 == 0:
            progress("count", counted.documents, None)
        yield document
    if progress is not None:
        progress("count", counted.documents, counted.documents)


def _spread(documents: Iterable[Document]) -> list[Document]:
    """Return the beginnings of every n-th document, so that there are at most _SAMPLE."""
    kept: list[Document] = []
    stride = 1
    for number, document in enumerate(documents):
        if number % stride:
            continue
        kept.append(Document(document.text[:_SAMPLE_CHARACTERS], document.meta))
        if len(kept) > _SAMPLE:
            kept = kept[::2]
            stride *= 2
    return kept


def _units(sample: list[Document], embedder: Embedder, config: DatastoreConfig) -> list[str]:
    """Return what of the sample would be embedded."""
    if config.unit == "document":
        return [document.text[:DOCUMENT_CHARACTERS] for document in sample]
    texts: list[str] = []
    for document in sample:
        tokens = embedder.token_spans(document.text)
        cuts = cut_passages(document.text, tokens, length=embedder.passage_length, overlap=config.passage_overlap)
        content = document.text.encode()
        texts += [content[begin:end].decode() for begin, end in byte_spans(document.text, cuts)]
    return texts
