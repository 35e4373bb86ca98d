"""What a cluster costs: per query by number of shards, what Ray adds, and the corpus of the paper by simulation.

    PYTHONPATH=. python benchmarks/bench_cluster.py measure OUT.json [--documents 8000] [--queries 200]
    PYTHONPATH=. python benchmarks/bench_cluster.py simulate OUT.json [--plot PLOT.png]
    PYTHONPATH=. python benchmarks/bench_cluster.py --smoke

`measure` makes one datastore of random vectors of 384 dimensions around as many centers as their number's square root,
and the same in 1, 2, 4 and 8 shards; each is searched in this process and by actors of a Ray that starts here, one
replica a shard. Distances are compared with the best of every shard. `simulate` fits the model of cluster_model.py to 1
and 8 shards, checks it at 2 and 4, and computes 210 million documents on ten machines. It takes the 10th percentile
of the times: other work on a shared machine only adds to them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
from cluster_model import Cluster, fitted, quantile, simulate

import tttnn
from tttnn.cluster.manifest import add_shards

DIM = 384
SHARDS = (1, 2, 4, 8)
PAPER_DOCUMENTS = 210_000_000
PAPER_FILES = 30
# Of records/retrieval.md: MiniLM-L6 on two cores, and how the graph grows.
GRAPH_DOCUMENTS, GRAPH_SECONDS, GRAPH_EXPONENT = 160_000, 259e-6, 0.22
INDEX_SECONDS, INDEX_EXPONENT = 84.1, 1.29
TOKENS, TOKENS_PER_CORE_SECOND = 4_867_553 / 20_578, 12_440 / 2


class Vectors:
    """Stands where an embedder stands; the text of a query is the number of its vector."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors
        self.dim = vectors.shape[1]
        self.name = "vectors"
        self.config = None
        self.identity: dict[str, Any] = {"dim": self.dim}

    def embed(self, texts: list[str], report: Any = None) -> np.ndarray:
        return self.vectors[[int(text) for text in texts]]


def clustered(count: int, seed: int) -> np.ndarray:
    centers = np.random.default_rng(0).standard_normal((int(math.sqrt(8000)), DIM))
    draw = np.random.default_rng(seed)
    points = centers[draw.integers(len(centers), size=count)] + 0.7 * draw.standard_normal((count, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def build(path: Path, vectors: np.ndarray, first: int) -> Path:
    """Build a datastore of vectors, whose documents are their numbers."""
    flat, texts = path.with_suffix(".index"), path.with_suffix(".jsonl")
    header = b"IxF2" + struct.pack("<iqqqBi", DIM, len(vectors), 1 << 20, 1 << 20, 1, 1)
    flat.write_bytes(header + struct.pack("<Q", vectors.size) + vectors.tobytes())
    texts.write_text("".join(json.dumps({"text": f"document {first + i} " * 40}) + "\n" for i in range(len(vectors))))
    tttnn.Datastore.import_faiss(path, [flat], [texts], embedder_name="vectors").close()
    return path


def timed(search: Callable[[str], Any], queries: int) -> tuple[dict[str, float], list[list[float]]]:
    """Return milliseconds of a query (10th, 50th, 99th percentile) and its stages (10th), and the distances."""
    for i in range(10):
        search(str(i))
    whole, stages, found = [], [], []
    for i in range(queries):
        began = time.perf_counter()
        result = search(str(i))
        whole.append(time.perf_counter() - began)
        stages.append(result.seconds)
        found.append([n.distance for n in result])
    told = {"p10": quantile(whole, 0.1), "p50": statistics.median(whole), "p99": quantile(whole, 0.99)}
    told |= {name: quantile([s[name] for s in stages], 0.1) for name in ("search", "read")}
    return {name: 1000 * value for name, value in told.items()}, found


def measure(out: Path, documents: int, queries: int) -> dict[str, Any]:
    import ray

    from tttnn.cluster.ray_session import LOCAL, joined
    from tttnn.cluster.running import describe_cluster, start_cluster, stop_cluster

    vectors, asked = clustered(documents, 1), Vectors(clustered(queries, 2))
    embedder: Any = asked
    rows: list[dict[str, Any]] = []
    joined(LOCAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = tttnn.Datastore.open(build(folder / "whole", vectors, 0), embedder)
        one, truth = timed(lambda q: whole.search(q, 10), queries)
        info = whole.info()
        rows.append({"what": "one datastore", "shards": 0, **one})
        sizes = {}
        for shards in SHARDS:
            cuts = [documents * i // shards for i in range(shards + 1)]
            parts = [build(folder / f"{shards}-{i}", vectors[cuts[i] : cuts[i + 1]], cuts[i]) for i in range(shards)]
            place = folder / f"cluster{shards}"
            add_shards(place, parts)
            with tttnn.Datastore.open(parts[0], embedder) as part:
                sizes[cuts[1]] = timed(lambda q, part=part: part.search(q, 10), queries)[0]["search"]
            with tttnn.ClusterDatastore.open(place, embedder) as cluster:
                here, found = timed(lambda q, c=cluster: c.search(q, 10), queries)
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
            rows.append({"what": "in one process", "shards": shards, **here, "same_as_one": float(recall)})
            start_cluster(place, "bench", replicas=1, address=LOCAL)
            with tttnn.ClusterDatastore.connect("bench", embedder, address=LOCAL) as cluster:
                there, same = timed(lambda q, c=cluster: c.search(q, 10), queries)
            assert same == found, "actors must answer as the shards in one process do"
            memory = [
                r["memory_bytes"] for s in describe_cluster("bench", address=LOCAL)["shards"] for r in s["replicas"]
            ]
            stop_cluster("bench", address=LOCAL)
            rows.append({"what": "on Ray", "shards": shards, **there, "actor_mb": statistics.mean(memory) / 1e6})
        whole.close()
    ray.shutdown()
    measured = {
        "machine": f"{os.cpu_count()} cores, ray {ray.__version__}, Python {platform.python_version()}",
        "documents": documents,
        "queries": queries,
        "index_bytes_per_vector": info["index_bytes"] / documents,
        "search_ms_by_documents": sizes,
        "rows": rows,
    }
    out.write_text(json.dumps(measured, indent=1) + "\n")
    for row in rows:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    return measured


def model_of(measured: dict[str, Any], cores: int) -> tuple[Cluster, list[SimpleNamespace]]:
    """Fit what the client and the way cost to 1 and 8 shards; return it, and how it does at all of them."""
    ray = {row["shards"]: row for row in measured["rows"] if row["what"] == "on Ray"}
    here = {row["shards"]: row for row in measured["rows"] if row["what"] == "in one process"}
    by_size = {int(n): ms / 1000 for n, ms in measured["search_ms_by_documents"].items()}
    small = {shards: by_size[measured["documents"] // shards] for shards in SHARDS}
    read = here[1]["read"] / 1000

    def predicted(shards: int, client: float, carry: float) -> float:
        cluster = Cluster(
            1, cores, shards, 1, 0.0, client, small[shards], read / min(10, shards), carry=carry, spread=0.1
        )
        return quantile(simulate(cluster, queries=300, rate=0, seed=1), 0.1)

    client, carry = 1e-3, 1e-3
    for _ in range(6):
        carry = fitted(lambda c, client=client: predicted(1, client, c), ray[1]["p10"] / 1000, 0.0, 0.2)
        client = fitted(lambda c, carry=carry: predicted(8, c, carry), ray[8]["p10"] / 1000, 0.0, 0.2)
    checks = [
        SimpleNamespace(shards=s, measured=ray[s]["p10"], predicted=1000 * predicted(s, client, carry)) for s in SHARDS
    ]
    return Cluster(1, cores, 1, 1, 0.0, client, small[1], read, carry=carry), checks


def paper(measured: dict[str, Any], cores: int, plot: Path | None) -> None:
    """Compute the paper's corpus: memory, and seconds of a query by machines, stragglers and a lost machine."""
    small, checks = model_of(measured, cores)
    print(
        "the model, fitted at 1 and 8 shards: client and way", f"{1000 * small.client:.2f}, {1000 * small.carry:.2f} ms"
    )
    for check in checks:
        off = check.predicted / check.measured - 1
        print(f"{check.shards} shards: measured {check.measured:.2f} ms, model {check.predicted:.2f} ms ({off:+.0%})")
    links = measured["index_bytes_per_vector"] - 4 * DIM
    for kind, size in (("float32", 4), ("int8", 1)):
        replica = PAPER_DOCUMENTS * (size * DIM + links) / 1e9
        print(
            f"{kind}: {replica:.0f} GB a replica of everything, {2 * replica:.0f} GB two; machines of 128 GB, of which "
            f"110 GB hold vectors: {math.ceil(2 * replica / 110)}"
        )
    each = PAPER_DOCUMENTS // PAPER_FILES
    # What was measured fits the caches; a shard of gigabytes does not, for which four times as much is taken.
    search = 4 * GRAPH_SECONDS * (each / GRAPH_DOCUMENTS) ** GRAPH_EXPONENT
    print(f"a shard of {each:,} documents: {1000 * search:.1f} ms on one core (extrapolated, times 4)")
    embed = PAPER_DOCUMENTS * TOKENS / TOKENS_PER_CORE_SECOND / 3600
    index = INDEX_SECONDS * (each / GRAPH_DOCUMENTS) ** INDEX_EXPONENT / 3600
    print(
        f"build: {embed:,.0f} core hours of embedding, {embed / 160:.1f} h on 10 machines of 16 cores; "
        f"then {index:.1f} h for the graph of each shard, 3 on a machine side by side, 2 cores each"
    )
    curves = {}
    for name, change, lose in (
        ("calm", {}, None),
        ("1 % of questions take 10 times as long", {"straggle": 0.01}, None),
        ("and a machine is lost half way", {"straggle": 0.01}, 0.5),
    ):
        for rate in (1.0, 5.0, 10.0):
            cluster = Cluster(
                10, 16, PAPER_FILES, 2, 0.005, small.client, search, 0.001, carry=small.carry + 0.0005, **change
            )
            queries = 3000
            waits = simulate(
                cluster, queries=queries, rate=rate, seed=3, lose=None if lose is None else lose * queries / rate
            )
            curves[name, rate] = waits
            print(
                f"{name}, {rate:.0f} queries/s: p50 {1000 * quantile(waits, 0.5):.0f} ms, p99 "
                f"{1000 * quantile(waits, 0.99):.0f} ms, longest {1000 * max(waits):.0f} ms"
            )
    if plot is not None:
        draw(plot, checks, curves)


def draw(plot: Path, checks: list[SimpleNamespace], curves: dict[tuple[str, float], list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    shards = [check.shards for check in checks]
    left.plot(shards, [check.measured for check in checks], "o-", color="#1f5fa8", label="measured on Ray")
    left.plot(shards, [check.predicted for check in checks], "x--", color="#888888", label="model")
    left.set(xlabel="shards on one machine", ylabel="ms a query (10th percentile)", ylim=(0, None), xticks=shards)
    left.legend(frameon=False)
    colors = ("#1f5fa8", "#c9822b", "#a83232")
    for color, name in zip(colors, dict.fromkeys(name for name, _ in curves), strict=True):
        waits = sorted(1000 * wait for wait in curves[name, 5.0])
        right.plot(waits, [1 - i / len(waits) for i in range(len(waits))], color=color, label=name)
    right.set(xscale="log", yscale="log", xlabel="ms a query", ylabel="share that takes longer", ylim=(1e-3, 1))
    right.axvline(100, color="#bbbbbb", linewidth=0.8)
    right.legend(frameon=False, fontsize=8)
    right.set_title("210 million documents, 30 shards twice on 10 machines, 5 queries/s", fontsize=8)
    figure.savefig(plot, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["measure", "simulate"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--cores", type=int, default=2, help="of the machine that was measured")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        with tempfile.TemporaryDirectory() as scratch:
            paper(measure(Path(scratch) / "m.json", 400, 20), given.cores, Path(scratch) / "plot.png")
    elif given.what == "measure":
        measure(given.file, given.documents, given.queries)
    elif given.what == "simulate":
        paper(json.loads(given.file.read_text()), given.cores, given.plot)
    else:
        parser.error("name measure or simulate, or --smoke")
