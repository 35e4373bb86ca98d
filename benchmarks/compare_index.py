"""The index on float32, float16 and int8 vectors beside hnswlib, faiss and usearch: recall, time, memory, files.

Run: python benchmarks/compare_index.py VECTORS.npy [--queries 300] [--k 20] [--ef 128] [--repeats 7]

VECTORS: (n, dim) of float32, different rows, such as `Datastore.vectors` gives; a part of them, chosen at random, are
the queries and stay out of the indexes. All graphs have M = 16 and ef_construction = 200. One query at a time on one
thread, as a trainer asks, in turn: every rival answers all queries before the next round begins. Times are processor
time of the thread; p99 is of single queries over all rounds. Recall is against exact search in float64. Rivals that are
not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tttnn import NeighborIndex
from tttnn.config import IndexConfig

M, EF_CONSTRUCTION = 16, 200

Search = Callable[[np.ndarray], np.ndarray]


class Made:
    """An index that was built: how it is searched, what its files hold, and how long opening them takes."""

    def __init__(self, search: Search, files: int, walked: int, build: float, opening: Callable[[], Any]) -> None:
        self.search, self.files, self.walked, self.build = search, files, walked, build
        started = time.perf_counter()
        opening()
        self.opening = time.perf_counter() - started


def ours(kind: Any, vectors: np.ndarray, k: int, ef: int, folder: Path) -> Made:
    """Build one of ours."""
    started = time.thread_time()
    index = NeighborIndex.build(folder, vectors, IndexConfig(M=M, ef_construction=EF_CONSTRUCTION, vectors=kind))
    built = time.thread_time() - started
    return Made(
        lambda query: index.search(query, k, ef=ef, method="graph", threads=1)[0],
        sum(file["size"] for file in index.manifest["files"].values()),
        index.mapped_bytes + index.held_bytes,
        built,
        lambda: NeighborIndex.open(folder),
    )


def of_hnswlib(vectors: np.ndarray, k: int, ef: int, folder: Path) -> Made:
    """Build hnswlib's."""
    hnswlib = importlib.import_module("hnswlib")
    started = time.thread_time()
    index = hnswlib.Index("l2", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=EF_CONSTRUCTION, M=M)
    index.add_items(vectors, num_threads=1)
    built = time.thread_time() - started
    index.set_ef(ef)
    path = str(folder)
    index.save_index(path)

    def opening() -> None:
        hnswlib.Index("l2", vectors.shape[1]).load_index(path)

    size = Path(path).stat().st_size
    return Made(lambda query: index.knn_query(query, k, num_threads=1)[0], size, size, built, opening)


def of_faiss(name: str, vectors: np.ndarray, k: int, ef: int, folder: Path) -> Made:
    """Build one of faiss's."""
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(1)
    dim = vectors.shape[1]
    started = time.thread_time()
    if name == "Flat":
        index = faiss.IndexFlatL2(dim)
    elif name == "HNSWFlat":
        index = faiss.IndexHNSWFlat(dim, M)
    else:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, M)
    if name != "Flat":
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.hnsw.efSearch = ef
    index.train(vectors)
    index.add(vectors)
    built = time.thread_time() - started
    faiss.write_index(index, str(folder))
    size = folder.stat().st_size
    return Made(lambda query: index.search(query, k)[1], size, size, built, lambda: faiss.read_index(str(folder)))


def of_usearch(dtype: str, vectors: np.ndarray, k: int, ef: int, folder: Path) -> Made:
    """Build one of usearch's."""
    usearch = importlib.import_module("usearch.index")
    started = time.thread_time()
    # "cos" of unit vectors: squared Euclidean distance over two; its i8 takes no other.
    index = usearch.Index(
        ndim=vectors.shape[1],
        metric="cos",
        dtype=dtype,
        connectivity=M,
        expansion_add=EF_CONSTRUCTION,
        expansion_search=ef,
    )
    index.add(np.arange(len(vectors)), vectors, threads=1)
    built = time.thread_time() - started
    index.save(str(folder))
    size = folder.stat().st_size
    return Made(
        lambda query: np.atleast_2d(index.search(query, k, threads=1).keys),
        size,
        size,
        built,
        lambda: usearch.Index.restore(str(folder), view=True),
    )


def main() -> None:
    """Measure, and print a table and its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--ef", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    rows = np.load(given.vectors).astype(np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    queries, vectors = np.ascontiguousarray(rows[: given.queries]), np.ascontiguousarray(rows[given.queries :])
    far = -2 * queries.astype(np.float64) @ vectors.T.astype(np.float64) + (vectors.astype(np.float64) ** 2).sum(1)
    truth = [set(row) for row in np.argsort(far, axis=1, kind="stable")[:, : given.k].tolist()]
    makers: dict[str, Callable[[Path], Made]] = {
        **{f"tttnn {kind}": _bound(ours, kind, vectors, given) for kind in ("float32", "float16", "int8")},
        "hnswlib": lambda folder: of_hnswlib(vectors, given.k, given.ef, folder),
        **{f"faiss {kind}": _bound(of_faiss, kind, vectors, given) for kind in ("HNSWFlat", "HNSWSQ 8 bit", "Flat")},
        **{f"usearch {kind}": _bound(of_usearch, kind, vectors, given) for kind in ("f32", "f16", "i8")},
    }
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Made] = {}
        for name, maker in makers.items():
            try:
                made[name] = maker(Path(folder, name.replace(" ", "-")))
            except ImportError:
                print(f"{name}: not installed")
        took: dict[str, list[float]] = {name: [] for name in made}
        recall = dict.fromkeys(made, 0.0)
        for round_number in range(given.repeats):
            for name, index in made.items():
                for i in range(len(queries)):
                    started = time.thread_time()
                    found = index.search(queries[i : i + 1])
                    took[name].append(time.thread_time() - started)
                    if round_number == 0:
                        recall[name] += len(truth[i] & set(np.asarray(found)[0].tolist())) / given.k / len(queries)
    table = []
    for name, index in made.items():
        rounds = np.array(took[name]).reshape(given.repeats, -1)
        table.append(
            {
                "index": name,
                "recall": round(recall[name], 4),
                "mean_us": round(float(np.median(rounds.mean(axis=1))) * 1e6, 1),
                "p50_us": round(float(np.percentile(rounds, 50)) * 1e6, 1),
                "p99_us": round(float(np.percentile(rounds, 99)) * 1e6, 1),
                "queries_per_second": round(1 / float(np.median(rounds.mean(axis=1)))),
                "memory_per_vector": round(index.walked / len(vectors), 1),
                "disk_per_vector": round(index.files / len(vectors), 1),
                "open_ms": round(index.opening * 1e3, 2),
                "build_us_per_vector": round(index.build / len(vectors) * 1e6, 1),
            }
        )
    head = list(table[0])
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in table:
        print("| " + " | ".join(str(row[column]) for column in head) + " |")
    print(json.dumps({"vectors": len(vectors), "k": given.k, "ef": given.ef, "rows": table}))


def _bound(
    maker: Callable[..., Made], kind: str, vectors: np.ndarray, given: argparse.Namespace
) -> Callable[[Path], Made]:
    return lambda folder: maker(kind, vectors, given.k, given.ef, folder)


if __name__ == "__main__":
    main()
