"""What the graph's misses cost in bits per byte: neighbors by HNSW beside exact ones.

    python benchmarks/compare_search.py DATASTORE val.jsonl.zst OUT.jsonl [--neighbors 10] [--adapt 10]

Every document's query (protocol `split`, 512 tokens) is searched twice: by the graph at its default width, and by a
scan of all vectors. Printed: how many of the exact neighbors the graph found, how many queries have another list. Of
those, the first --adapt (drawn in the order of the sample, so over all groups) are adapted with either list, and the
scored text's bits per byte stand beside each other; queries with equal lists have equal bits per byte, because an
adaptation depends on its neighbors alone. One line of ids, digests and numbers for each of the adapted documents.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

import tttnn
from tttnn.evaluation.protocols import split_task
from tttnn.evaluation.sampling import group_of, sampled
from tttnn.store.document import text_digest

SCAN = 1_000_000
"""A width at which the index compares every vector instead of walking."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("documents")
    parser.add_argument("out", type=Path)
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("--adapt", type=int, default=10, help="documents with unequal lists to adapt")
    parser.add_argument("--limit", type=int, help="documents of each group; none: all")
    options = parser.parse_args()
    datastore = tttnn.Datastore.open(options.datastore, tttnn.Embedder.load("minilm-l6"))
    config = tttnn.AdaptConfig(num_neighbors=options.neighbors)
    trainer = tttnn.TestTimeTrainer.load("smollm2-135m", datastore, config)
    evaluation = tttnn.EvalConfig(query_tokens=512, scored_tokens=512, limit=options.limit)
    found = total = 0
    unequal = []
    tasks = []
    for position, document in sampled(tttnn.iter_jsonl(options.documents), evaluation):
        task = split_task(trainer.tokenizer, document.text, evaluation)
        if task is None:
            continue
        tasks.append(position)
        graph = datastore.search(task.query, options.neighbors)
        exact = datastore.search(task.query, options.neighbors, ef=SCAN)
        # Distances, not ids: of several documents at one distance any may be the answer.
        found += sum(neighbor.distance <= exact[-1].distance + 1e-6 for neighbor in graph)
        total += len(exact)
        if not np.allclose([n.distance for n in graph], [n.distance for n in exact], rtol=0, atol=1e-6):
            unequal.append((position, document, task, graph, exact))
    print(
        f"{len(tasks)} queries: recall@{options.neighbors} {found / total:.5f}; {len(unequal)} have other neighbors, "
        f"in the groups {sorted({group_of(row[1], evaluation.group_field) for row in unequal})}",
        flush=True,
    )
    changes = []
    with options.out.open("w") as file:
        for position, document, task, graph, exact in unequal[: options.adapt]:
            line = {"document": position, "digest": text_digest(document.text)}
            line |= {"group": group_of(document, evaluation.group_field)}
            line["base"] = trainer.scorer.score(task.scored, context=task.context).bits_per_byte
            for name, neighbors in (("graph", graph), ("exact", exact)):
                with trainer.adapt(task.query, neighbors=neighbors) as adapted:
                    line[name] = adapted.bits_per_byte(task.scored, context=task.context)
                line[f"{name}_neighbors"] = [neighbor.id for neighbor in neighbors]
            print(json.dumps(line), file=file, flush=True)
            print(line["group"], *(f"{name} {line[name]:.5f}" for name in ("base", "graph", "exact")), flush=True)
            changes.append([line["base"], line["graph"], line["exact"]])
    if changes:
        base, graph, exact = np.array(changes).T
        print(
            f"{len(changes)} of them adapted: gain by the graph {np.mean(base - graph):.5f} bits per byte, by exact "
            f"search {np.mean(base - exact):.5f}; share {np.mean(base - graph) / np.mean(base - exact):.4f}"
        )


if __name__ == "__main__":
    main()
