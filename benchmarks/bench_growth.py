"""How the index grows: cost of building and of a query at several sizes, with fitted exponents.

Run: python benchmarks/bench_growth.py DATASTORE [--sizes 10000,40000,160000] [--out growth.json]

The vectors are those of the datastore's first segments, 200 of them held out as queries. Where a size asks for more
than there are, copies with noise of a tenth of a vector's length, scaled to the length of the original, make up the
rest: the output says how many were real. M = 16, ef_construction = 200, ef = 128, k = 20; a graph is built by one
thread, queries are searched one by one by one thread. Exponents are slopes of log(cost) over log(size), by least
squares: building n vectors costs about n^e, a query about n^e.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tttnn
from tttnn.config import IndexConfig
from tttnn.datastore.index import NeighborIndex, SearchWork

K, EF, QUERIES, REPEATS, NOISE = 20, 128, 200, 7, 0.1


def real_vectors(datastore: str, most: int) -> np.ndarray:
    """Return vectors of a datastore, at most so many."""
    parts: list[np.ndarray] = []
    for folder in sorted(Path(datastore, "segments").iterdir()):
        index = NeighborIndex.open(folder)
        parts.append(index.vectors(np.arange(min(len(index), most - sum(map(len, parts))))))
        if sum(map(len, parts)) >= most:
            break
    return np.concatenate(parts)


def enlarged(vectors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return `size` vectors: the given ones, then noisy copies of them."""
    if size <= len(vectors):
        return np.ascontiguousarray(vectors[:size])
    out = np.empty((size, vectors.shape[1]), np.float32)
    out[: len(vectors)] = vectors
    for begin in range(len(vectors), size, 65536):
        end = min(size, begin + 65536)
        rows = vectors[rng.integers(0, len(vectors), end - begin)]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        noisy = rows + NOISE * lengths / np.sqrt(rows.shape[1]) * rng.standard_normal(rows.shape, np.float32)
        out[begin:end] = noisy * (lengths / np.linalg.norm(noisy, axis=1, keepdims=True))
    return out


def seconds_a_query(index: NeighborIndex, queries: np.ndarray, method: Any, repeats: int) -> tuple[float, SearchWork]:
    """Return the median over repeats of the mean time of a query, and the work of all of them."""
    times, work = [], SearchWork()
    for _ in range(repeats):
        started = time.perf_counter()
        for query in queries:
            index.search(query[None], K, ef=EF, method=method, threads=1, work=work)
        times.append((time.perf_counter() - started) / len(queries))
    return float(np.median(times)), work


def measure(vectors: np.ndarray, queries: np.ndarray, real: int) -> dict[str, Any]:
    """Build one index and search it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        NeighborIndex.build(Path(folder), vectors, IndexConfig())
        building = time.perf_counter() - started
        started = time.perf_counter()
        index = NeighborIndex.open(folder)
        opening = time.perf_counter() - started
        walk, work = seconds_a_query(index, queries, "graph", REPEATS)
        scan, _ = seconds_a_query(index, queries[:50], "scan", 1)
        found, _ = index.search(queries, K, ef=EF, method="graph")
        best, _ = index.search(queries, K, method="scan")
        recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), best.tolist(), strict=True)])
        size = sum(described["size"] for described in index.manifest["files"].values())
    assert recall >= 0.9, recall
    return {
        "vectors": len(vectors),
        "real": min(real, len(vectors)),
        "build_seconds": round(building, 2),
        "open_seconds": round(opening, 3),
        "file_bytes": size,
        "walk_microseconds": round(walk * 1e6, 1),
        "scan_microseconds": round(scan * 1e6, 1),
        "distances_per_walk": round(work.distances / work.walked),
        "recall_at_20": round(float(recall), 4),
    }


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Fit cost = a * vectors^e for every cost."""
    sizes = np.log([row["vectors"] for row in rows])
    names = ("build_seconds", "open_seconds", "walk_microseconds", "scan_microseconds", "distances_per_walk")
    return {name: round(float(np.polyfit(sizes, np.log([row[name] for row in rows]), 1)[0]), 3) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("--sizes", default="10000,40000,160000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.sizes.split(","))
    rng = np.random.default_rng(options.seed)
    every = real_vectors(options.datastore, sizes[-1] + QUERIES)
    every = every[rng.permutation(len(every))]
    queries, vectors = every[:QUERIES], every[QUERIES:]
    rows = []
    for size in sizes:
        rows.append(measure(enlarged(vectors, size, np.random.default_rng(options.seed)), queries, len(vectors)))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "tttnn": tttnn.__version__,
        "machine": platform.platform(),
        "dim": int(vectors.shape[1]),
        "queries": QUERIES,
        "sizes": rows,
        "exponents": exponents(rows) if len(rows) > 1 else {},
    }
    print(json.dumps(result["exponents"]))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
