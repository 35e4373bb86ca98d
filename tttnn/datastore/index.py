"""NeighborIndex: the nearest vectors to a query, by an HNSW graph or exactly. Knows vectors and ids, not texts.

An index is a directory: index.json (the manifest), vectors.hnsw, vectors.f32 or the files of compact_vectors.py, and
copies.bin, which lists vectors that are equal to an earlier one: HNSW loses reachability on duplicates, so equal
vectors are one node.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

import tttnn._core as _core

from ..config import IndexConfig, Progress
from ..errors import EmbeddingError, IndexCorruptError
from ..files import (
    check_file,
    check_size,
    describe_file,
    finish_file,
    new_beside,
    read_manifest,
    require_regular,
    write_file,
    write_manifest,
)
from .compact_vectors import build_compact, names_of
from .graph_building import insert_all

FORMAT = 2
MANIFEST = "index.json"
COPIES = "copies.bin"

Method = Literal["auto", "graph", "scan"]

_CHUNK = 4096  # vectors read from the caller's array at a time


@dataclass
class SearchWork:
    """What searching has cost so far; filled by `NeighborIndex.search`."""

    ef: int = 0
    """The largest `ef` that a search used."""
    walked: int = 0
    """Queries answered by a walk through the graph."""
    scanned: int = 0
    """Queries answered by comparing with every allowed vector."""
    distances: int = 0
    """Distances computed: in a walk the vectors visited."""


class NeighborIndex:
    """The nearest of n vectors, by id = position.

    >>> import numpy as np, tempfile
    >>> vectors = np.eye(4, dtype=np.float32)
    >>> index = NeighborIndex.build(tempfile.mkdtemp() + "/index", vectors)
    >>> ids, distances = index.search(vectors[:1], k=2)
    >>> ids.tolist(), distances.tolist()
    ([[0, 1]], [[0.0, 2.0]])
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], file: _core.MappedFile | None, copies: NDArray[np.int64]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.dim: int = manifest["dim"]
        self._count: int = manifest["vectors"]
        self._copies = copies
        self._file = file
        self._graph: _core.HnswIndex | _core.CompactIndex | None = None
        self._vectors: NDArray[np.float32] | None = None
        if file is None:
            self._graph = _core.CompactIndex(
                str(path),
                copies,
                dim=self.dim,
                vectors=manifest["walks"],
                metric=manifest["metric"],
                ids=self._count,
            )
        elif manifest["backend"] == "hnsw":
            self._graph = _core.HnswIndex(
                file.bytes,
                copies,
                dim=self.dim,
                metric=manifest["metric"],
                ids=self._count,
                name=str(path / "vectors.hnsw"),
            )
            if self._graph.nodes + len(copies) != self._count:
                raise IndexCorruptError(
                    f"{path / 'vectors.hnsw'}: holds {self._graph.nodes} vectors, expected {self._count - len(copies)}"
                )
        else:
            self._vectors = file.bytes.view(np.float32).reshape(self._count, self.dim)

    @classmethod
    def build(
        cls,
        path: str | Path,
        vectors: NDArray[np.float32],
        config: IndexConfig | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> NeighborIndex:
        """Build an index in a directory, on one thread, and open it; the same arguments give the same files.

        Args:
            path: The directory; made if it is missing.
            vectors: (n, dim) float32; may be a memory map.
            config: Backend, metric, the HNSW settings, and how the vectors are kept that a search reads.
            seed: Seed of the nodes' levels.
            progress: Called with the stage "index", vectors done and n.

        Raises:
            ValueError: `vectors` is not (n, dim) with n, dim >= 1; or compact vectors are asked for without a graph.
            EmbeddingError: A vector is not finite, or too large for compact vectors.
        """
        config = config or IndexConfig()
        require_graph(config)
        compact = config.vectors != "float32"
        path = Path(path)
        if vectors.ndim != 2 or vectors.shape[0] < 1 or vectors.shape[1] < 1:
            raise ValueError(f"vectors must be (n, dim) with n and dim at least 1, got shape {vectors.shape}")
        path.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, COPIES, "vectors.hnsw", "vectors.f32", *names_of("float16"), *names_of("int8")):
            require_regular(path / name)
        (path / MANIFEST).unlink(missing_ok=True)
        count, dim = vectors.shape
        files: dict[str, Any] = {}
        copies = np.zeros((0, 2), np.int64)
        names = _names_of_files(config.backend, config.vectors)
        partials = [new_beside(path / name) for name in names]
        if config.backend == "hnsw":
            copies = _find_copies(vectors)
            first = np.ones(count, np.bool_)
            first[copies[:, 0]] = False
            if compact:
                build_compact(partials, vectors, first, config, seed, progress)
            else:
                _build_graph(partials[0], vectors, first, config, seed, progress)
        else:
            with open(partials[0], "wb") as file:
                for begin in range(0, count, _CHUNK):
                    file.write(_finite(vectors, begin).astype("<f4", copy=False).tobytes())
                    if progress is not None:
                        progress("index", min(count, begin + _CHUNK), count)
        for name, partial in zip(names, partials, strict=True):
            files[name] = describe_file(partial)
            finish_file(partial, path / name)
        write_file(path / COPIES, copies.astype("<i8").tobytes())
        files[COPIES] = describe_file(path / COPIES)
        write_manifest(
            path / MANIFEST,
            {
                # What earlier versions can open says so.
                **({"format": FORMAT, "walks": config.vectors} if compact else {"format": 1}),
                "backend": config.backend,
                "metric": config.metric,
                "dim": dim,
                "vectors": count,
                "M": config.M,
                "ef_construction": config.ef_construction,
                "ef_search": config.ef_search,
                "seed": seed,
                "files": files,
            },
        )
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> NeighborIndex:
        """Map an index, after checking the size and digest of every file and every link of the graph.

        Of one with compact vectors the sizes and headers are checked, and of vectors and links each when a search first
        needs it: it may be larger than memory. `verify` checks all of it.

        Raises:
            FileNotFoundError: The directory or one of its files is missing.
            IndexCorruptError: A file disagrees with the manifest, or the manifest with its digest; later from any
                search that meets what is damaged or was cut off meanwhile.
        """
        path = Path(path)
        manifest = read_manifest(path / MANIFEST, format_version=FORMAT)
        check_file(path / COPIES, manifest["files"][COPIES], error=IndexCorruptError)
        copies = np.fromfile(path / COPIES, "<i8").astype(np.int64).reshape(-1, 2)
        names = _names_of_files(manifest["backend"], manifest.get("walks", "float32"))
        if "walks" in manifest:
            for name in names:
                check_size(path / name, manifest["files"][name], error=IndexCorruptError)
            return cls(path, manifest, None, copies)
        (name,) = names
        file = _core.MappedFile(str(path / name))
        check_file(path / name, manifest["files"][name], content=file.bytes, error=IndexCorruptError)
        return cls(path, manifest, file, copies)

    def verify(self) -> None:
        """Check what opening left unread: of compact vectors every record, every link and every digest.

        Raises:
            IndexCorruptError: Something is damaged.
        """
        if isinstance(self._graph, _core.CompactIndex):
            self._graph.verify()
            for name in names_of(self.manifest["walks"]):
                check_file(self.path / name, self.manifest["files"][name], error=IndexCorruptError)

    def __len__(self) -> int:
        return self._count

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        ef: int | None = None,
        where: ArrayLike | None = None,
        method: Method = "auto",
        threads: int = 0,
        work: SearchWork | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the k nearest vectors to each query, nearest first.

        Args:
            queries: (n, dim) float32.
            k: Neighbors of each query, at least 1.
            ef: Width of the graph search; None for the index's own. At least k is used.
            where: (len(self),) of bool: which ids may be answers; None for all.
            method: "auto" walks the graph or compares with every allowed vector, whichever is less work; "graph" and
                "scan" insist. With "auto" a query for which the walk reaches fewer than k allowed vectors, though
                there are more, is answered by comparing with all of them.
            threads: At most so many; 0 for one per core.
            work: What the search costs is added to it.

        Returns:
            ids (n, k) int64 and distances (n, k) float32: squared L2, or 1 - inner product. Where fewer than k are
            found, ids end in -1 and distances in infinity.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if ef is not None and ef < 1:
            raise ValueError(f"ef must be at least 1, got {ef}")
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be (n, {self.dim}) as the index, got shape {queries.shape}")
        allowed = None
        if where is not None:
            allowed = np.ascontiguousarray(where, np.bool_).view(np.uint8)
            if allowed.shape != (self._count,):
                raise ValueError(f"where must be ({self._count},), one value for each id, got shape {allowed.shape}")
        # No more columns than vectors are computed: k may be any number.
        width = min(k, self._count)
        work = work if work is not None else SearchWork()
        if self._graph is not None:
            ids, distances = self._search_graph(
                queries, width, max(ef or self.default_ef(k), width), allowed, method, threads, work
            )
        else:
            assert self._vectors is not None
            ids, distances = _core.scan(
                self._vectors, queries, width, metric=self.manifest["metric"], allowed=allowed, threads=threads
            )
            work.scanned += len(queries)
            work.distances += len(queries) * (self._count if allowed is None else int(np.count_nonzero(allowed)))
        self._require_whole()
        if width < k:
            ids = np.pad(ids, ((0, 0), (0, k - width)), constant_values=-1)
            distances = np.pad(distances, ((0, 0), (0, k - width)), constant_values=np.inf)
        return ids, distances

    def _search_graph(
        self,
        queries: NDArray[np.float32],
        width: int,
        ef: int,
        allowed: NDArray[np.uint8] | None,
        method: Method,
        threads: int,
        work: SearchWork,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert self._graph is not None
        ids, distances, computed, scanned = self._graph.search(
            queries, width, ef=ef, allowed=allowed, method=method, threads=threads
        )
        work.distances += int(computed.sum())
        work.scanned += scanned
        if scanned == 0 and len(queries):
            work.walked += len(queries)
            work.ef = max(work.ef, min(ef, self._graph.nodes))
        if method == "auto" and scanned == 0:
            # A walk that ends with fewer has seen all that its links reach: a wider one would find no more.
            present = width if allowed is None else min(width, int(np.count_nonzero(allowed)))
            short = np.flatnonzero((ids >= 0).sum(axis=1) < present)
            if len(short):
                ids[short], distances[short], computed, scanned = self._graph.search(
                    queries[short], width, ef=ef, allowed=allowed, method="scan", threads=threads
                )
                work.distances += int(computed.sum())
                work.scanned += scanned
        return ids, distances

    @property
    def walks_on(self) -> str:
        """What a walk reads of a vector: float32, float16 or int8."""
        return str(self.manifest.get("walks", "float32"))

    @property
    def mapped_bytes(self) -> int:
        """Bytes of vectors and links, which are read through a memory map: what searches want to find in memory.

        Of compact vectors the full ones are not among them: a search reads a few for each neighbor.
        """
        if isinstance(self._graph, _core.CompactIndex):
            return self._graph.walked_bytes
        return sum(int(described["size"]) for name, described in self.manifest["files"].items() if name != COPIES)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tables that are in this process's own memory while the index is open."""
        return self._copies.nbytes + (self._graph.held_bytes if self._graph is not None else 0)

    @property
    def vectors_path(self) -> Path:
        """The file that holds the float32 vectors."""
        names = {"hnsw": "vectors.full" if "walks" in self.manifest else "vectors.hnsw", "exact": "vectors.f32"}
        return self.path / names[self.manifest["backend"]]

    @property
    def mapped_paths(self) -> list[Path]:
        """The files that are read through maps."""
        return [self.path / name for name in self.manifest["files"] if name != COPIES]

    def default_ef(self, k: int) -> int:
        """Return the width of a graph search for k neighbors where the caller names none."""
        return max(int(self.manifest["ef_search"]), 2 * k)

    def vectors(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the vectors of ids, (n, dim)."""
        wanted = np.asarray(ids, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"id must be between 0 and {self._count - 1}, got {wanted.tolist()}")
        if self._vectors is not None:
            vectors = np.array(self._vectors[wanted])
            self._require_whole()
            return vectors
        assert self._graph is not None
        if len(self._copies):
            row = np.minimum(np.searchsorted(self._copies[:, 0], wanted), len(self._copies) - 1)
            is_copy = self._copies[row, 0] == wanted
            wanted = np.where(is_copy, self._copies[row, 1], wanted)
        if isinstance(self._graph, _core.CompactIndex):
            # Nodes are numbered in the order of their ids.
            return self._graph.read(wanted - np.searchsorted(self._copies[:, 0], wanted))
        vectors = np.array(self._graph.vectors[np.searchsorted(self._graph.node_ids, wanted)])
        self._require_whole()
        return vectors

    def _require_whole(self) -> None:
        """Refuse what was read where the file was cut short since it was opened: zeros stand in the row of bytes."""
        if isinstance(self._graph, _core.CompactIndex):
            self._graph.require_whole()
        elif self._file is not None and self._file.broken:
            raise IndexCorruptError(
                f"{self.vectors_path}: was cut short while it was open, or its disk cannot be read. "
                "Restore the file or rebuild the datastore."
            )

    def estimate_recall(self, k: int = 20, *, ef: int | None = None, sample: int = 100, seed: int = 0) -> float:
        """Return the share of the true k nearest that a search finds, over vectors of the index as queries."""
        rng = np.random.default_rng(seed)
        ids = np.sort(rng.choice(self._count, size=min(sample, self._count), replace=False))
        queries = self.vectors(ids)
        found, got = self.search(queries, k, ef=ef)
        # Distances, not ids: of several vectors at one distance any may be the answer.
        _, true = self.search(queries, k, method="scan")
        return float(np.mean(got[found >= 0] <= np.broadcast_to(true[:, -1:], got.shape)[found >= 0]))


def _names_of_files(backend: str, vectors: str) -> list[str]:
    """Return the names of the files that hold vectors and links."""
    if backend == "exact":
        return ["vectors.f32"]
    return ["vectors.hnsw"] if vectors == "float32" else names_of(vectors)


def require_graph(config: IndexConfig) -> None:
    """Refuse compact vectors without a graph: exact search compares with the vectors as they are.

    Raises:
        ValueError: The backend is exact and the vectors are not float32.
    """
    if config.backend != "hnsw" and config.vectors != "float32":
        raise ValueError(f"vectors must be float32 where backend is {config.backend}, got {config.vectors}")


def _finite(vectors: NDArray[np.float32], begin: int) -> NDArray[np.float32]:
    chunk = np.ascontiguousarray(vectors[begin : begin + _CHUNK], np.float32)
    good = np.isfinite(chunk).all(axis=1)
    if not good.all():
        raise EmbeddingError(f"vector {begin + int(np.argmin(good))}: every element must be finite")
    return chunk


def _find_copies(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (id, first id with the same bytes) for every vector that is not the first of its kind, by id."""
    count, dim = vectors.shape
    # A hash of each row's bits brings equal rows together; rows are then compared themselves.
    factors = np.random.default_rng(0).integers(0, 2**63, size=dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(count, np.uint64)
    for begin in range(0, count, _CHUNK):
        chunk = _finite(vectors, begin).view(np.uint32).astype(np.uint64)
        with np.errstate(over="ignore"):
            mixed = (chunk + np.uint64(0x9E3779B97F4A7C15)) * factors
            hashes[begin : begin + _CHUNK] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    pairs: list[tuple[int, int]] = []
    firsts: list[int] = []  # distinct vectors that share the hash of the current run
    last = -2
    for row in equal.tolist():
        if row != last + 1:
            firsts = [int(order[row - 1])]
        last = row
        vector = int(order[row])
        for first in firsts:
            if np.array_equal(vectors[first].view(np.uint32), vectors[vector].view(np.uint32)):
                pairs.append((vector, first))
                break
        else:
            firsts.append(vector)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _build_graph(
    path: Path,
    vectors: NDArray[np.float32],
    first: NDArray[np.bool_],
    config: IndexConfig,
    seed: int,
    progress: Progress | None,
) -> None:
    dim = vectors.shape[1]
    builder = _core.HnswBuilder(
        dim=dim,
        metric=config.metric,
        capacity=int(first.sum()),
        M=config.M,
        ef_construction=config.ef_construction,
        seed=seed,
    )
    insert_all(builder, vectors, first, progress)
    builder.save(str(path))
