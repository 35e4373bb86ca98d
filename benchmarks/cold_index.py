"""An index larger than what is in memory: building, warm and cold queries, pages that a query reads.

Run: python benchmarks/cold_index.py VECTORS.npy FOLDER [--vectors-in-all 200000] [--segments 2] [--kind int8]

VECTORS: (n, dim) of float32, unit vectors, different rows. The index holds noisy copies of them, which lie as far from
one another as real ones do from theirs: the printed quantiles of the distances to the nearest neighbors say how well.
Queries are held-out rows. Segments are built one after another and searched in turn. Cold: the system is asked to
drop the files from memory before each query (a machine that does not gives warm times: see the major faults). What was
built is kept in FOLDER and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from tttnn import NeighborIndex
from tttnn.config import IndexConfig

K, EF = 20, 128


def noisy(rows: np.ndarray, count: int, spread: float, seed: int) -> np.ndarray:
    """Return unit vectors, each a row plus noise of `spread` times its length."""
    rng = np.random.default_rng(seed)
    made = rows[rng.integers(0, len(rows), count)]
    made += spread / np.sqrt(rows.shape[1]) * rng.standard_normal(made.shape, np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def drop(index: NeighborIndex) -> None:
    """Ask the system to forget the files' pages."""
    for path in index.mapped_paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def ask(indexes: list[NeighborIndex], query: np.ndarray, method: Any = "graph") -> tuple[np.ndarray, np.ndarray]:
    """Return the segment and id, as one number, and the distance of the nearest of all segments."""
    parts = [index.search(query, K, ef=EF, method=method, threads=1) for index in indexes]
    ids = np.concatenate([ids + number * 10**9 for number, (ids, _) in enumerate(parts)], axis=1)
    distances = np.concatenate([distances for _, distances in parts], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)


def main() -> None:
    """Build, ask, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vectors-in-all", type=int, default=200_000)
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--kind", default="int8")
    parser.add_argument("--spread", type=float, default=0.6)
    parser.add_argument("--cold", type=int, default=50)
    given = parser.parse_args()
    rows = np.load(given.vectors).astype(np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    queries, rows = np.ascontiguousarray(rows[:200]), np.ascontiguousarray(rows[200:])
    each = given.vectors_in_all // given.segments
    built: list[float] = []
    folders = [given.folder / f"{given.kind}-{each}-{number}" for number in range(given.segments)]
    for number, folder in enumerate(folders):
        if not (folder / "index.json").exists():
            vectors = noisy(rows, each, given.spread, number)
            started = time.thread_time()
            NeighborIndex.build(folder, vectors, IndexConfig(vectors=given.kind), seed=number)
            built.append(round((time.thread_time() - started) / each * 1e6, 1))
            del vectors
    indexes = [NeighborIndex.open(folder) for folder in folders]
    truth, far = ask(indexes, queries, "scan")
    real = np.sort(2 - 2 * queries @ rows.T, axis=1)[:, :K]
    told: dict[str, Any] = {
        "vectors": each * given.segments,
        "segments": given.segments,
        "kind": given.kind,
        "build_us_per_vector": built,
        "distance_quantiles_real": np.round(np.quantile(real, [0.05, 0.25, 0.5, 0.75, 0.95]), 3).tolist(),
        "distance_quantiles_here": np.round(np.quantile(far, [0.05, 0.25, 0.5, 0.75, 0.95]), 3).tolist(),
    }
    found = np.concatenate([ask(indexes, queries[i : i + 1])[0] for i in range(len(queries))])
    told["recall"] = round(float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)])), 4)
    told["warm"] = timed(indexes, queries)
    told["mapped_mb"] = round(sum(index.mapped_bytes for index in indexes) / 1e6, 1)
    told["files_mb"] = round(sum(path.stat().st_size for index in indexes for path in index.mapped_paths) / 1e6, 1)
    del indexes
    cold = []
    for i in range(given.cold):
        opened = [NeighborIndex.open(folder) for folder in folders]
        for index in opened:
            drop(index)
        cold.append(once(opened, queries[i : i + 1]))
    told["cold"] = {
        "p50_ms": round(float(np.median([c[0] for c in cold])) * 1e3, 2),
        "p99_ms": round(float(np.percentile([c[0] for c in cold], 99)) * 1e3, 2),
        "major_faults": float(np.median([c[1] for c in cold])),
        "minor_faults": float(np.median([c[2] for c in cold])),
        "distances": float(np.median([c[3] for c in cold])),
    }
    told["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(told))


def once(indexes: list[NeighborIndex], query: np.ndarray) -> tuple[float, int, int, int]:
    """Return the seconds, major faults, minor faults and distances of one query."""
    from tttnn.datastore.index import SearchWork

    before, started, work = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), SearchWork()
    for index in indexes:
        index.search(query, K, ef=EF, method="graph", threads=1, work=work)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - started
    return seconds, after.ru_majflt - before.ru_majflt, after.ru_minflt - before.ru_minflt, work.distances


def timed(indexes: list[NeighborIndex], queries: np.ndarray) -> dict[str, float]:
    """Return p50 and p99 of one query, in milliseconds of the thread's processor time."""
    took = []
    for i in range(3 * len(queries)):
        at = i % len(queries)
        started = time.thread_time()
        ask(indexes, queries[at : at + 1])
        took.append(time.thread_time() - started)
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


if __name__ == "__main__":
    main()
