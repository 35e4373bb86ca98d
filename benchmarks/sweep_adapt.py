"""Choose the defaults of AdaptConfig: the same documents under several settings, adapted over base bits per byte.

    python benchmarks/sweep_adapt.py DATASTORE val.jsonl.zst OUT --limit 1 [--only NAME ...]

One result file per setting in OUT, resumable; then a table of the mean ratio over the groups, and how many got worse.
Tune on `val`; `test` is for reporting.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tttnn
from tttnn.evaluation.results import ALL, PILE_ALL, Summary

_BASE = tttnn.AdaptConfig(num_neighbors=10, max_neighbor_tokens=512)

SETTINGS = {
    "default": _BASE,
    "float32": _BASE.with_(precision="float32"),
    "constant-1e-4": _BASE.with_(learning_rate=1e-4),
    "constant-2e-4": _BASE.with_(learning_rate=2e-4),
    "sqrt-1e-4": _BASE.with_(learning_rate=1e-4, schedule="inverse_sqrt"),
    "sqrt-2e-4": _BASE.with_(learning_rate=2e-4, schedule="inverse_sqrt"),
    "distance-1e-4": _BASE.with_(learning_rate=1e-4, schedule="distance"),
    "no-embeddings": _BASE.with_(trainable="no-embeddings"),
    "last-10-layers": _BASE.with_(trainable="last-layers", last_layers=10),
    "lora-5e-4": _BASE.with_(trainable="lora", lora_rank=16, lora_alpha=32.0, learning_rate=5e-4),
    "lora-2e-3": _BASE.with_(trainable="lora", lora_rank=16, lora_alpha=32.0, learning_rate=2e-3),
    "sgd-0.03": _BASE.with_(optimizer="sgd", learning_rate=0.03),
    "sgd-0.1": _BASE.with_(optimizer="sgd", learning_rate=0.1),
    "sgd-0.3": _BASE.with_(optimizer="sgd", learning_rate=0.3),
    "mlp-weights": _BASE.with_(trainable="patterns", trainable_patterns=("*.mlp.*",)),
    "1024-tokens": _BASE.with_(max_neighbor_tokens=1024),
    "up-to-4096-tokens": _BASE.with_(num_neighbors=5, max_neighbor_tokens=4096),
}
METHODS = ("ttt-nn", "ttt-nn-guard")


def table(summaries: dict[str, Summary]) -> str:
    """One line per setting, method and k: mean ratio over the groups, total ratio, seconds, groups above base."""
    lines = [
        "| setting | method | k | mean ratio | total ratio [95 %] | s/query | worst group | groups above base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, summary in summaries.items():
        for method in [method for method in METHODS if any(row.method == method for row in summary.rows)]:
            for k in sorted({row.k for row in summary.rows} - {0}):
                rows = [row for row in summary.rows if row.k == k and row.method == method]
                groups = [row for row in rows if row.group not in (ALL, PILE_ALL)]
                total = summary.total(k, method=method)
                worst = max(groups, key=lambda row: row.ratio.value)
                mean = sum(row.ratio.value for row in groups) / len(groups)
                lines.append(
                    f"| {name} | {method} | {k} | {mean:.4f} "
                    f"| {total.ratio.value:.4f} [{total.ratio.low:.4f}, {total.ratio.high:.4f}] "
                    f"| {total.seconds or 0:.1f} | {worst.group} {worst.ratio.value:.3f} "
                    f"| {sum(row.ratio.value > 1 for row in groups)} of {len(groups)} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("documents")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=1, help="documents of each group")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    embedder = tttnn.Embedder.load("minilm-l6")
    datastore = tttnn.Datastore.open(arguments.datastore, embedder)
    config = tttnn.EvalConfig(query_tokens=512, scored_tokens=512, curve=(0, 1, 5, 10), limit=arguments.limit)
    documents = list(tttnn.iter_jsonl(arguments.documents))
    summaries = {}
    for name in arguments.only:
        trainer = tttnn.TestTimeTrainer.load("smollm2-135m", datastore, SETTINGS[name])
        out = arguments.out / f"{name}.jsonl"
        result = tttnn.evaluate(trainer, documents, out=out, config=config, methods=arguments.methods)
        trainer.release()
        summaries[name] = result.summary()
        print(table({name: summaries[name]}), flush=True)
    print(table(summaries))


if __name__ == "__main__":
    main()
