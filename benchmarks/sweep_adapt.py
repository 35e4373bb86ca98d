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
from tttnn.results import ALL, PILE_ALL, Summary

_BASE = tttnn.AdaptConfig(num_neighbors=10, max_neighbor_tokens=512)

SETTINGS = {
    "constant-5e-5": _BASE.with_(learning_rate=5e-5, schedule="constant"),
    "constant-1e-4": _BASE.with_(learning_rate=1e-4, schedule="constant"),
    "constant-2e-4": _BASE.with_(learning_rate=2e-4, schedule="constant"),
    "sqrt-1e-4": _BASE.with_(learning_rate=1e-4, schedule="inverse_sqrt"),
    "sqrt-2e-4": _BASE.with_(learning_rate=2e-4, schedule="inverse_sqrt"),
    "sqrt-3e-4": _BASE.with_(learning_rate=3e-4, schedule="inverse_sqrt"),
    "sqrt-5e-4": _BASE.with_(learning_rate=5e-4, schedule="inverse_sqrt"),
    "sqrt-2e-4-float32": _BASE.with_(learning_rate=2e-4, schedule="inverse_sqrt", precision="float32"),
}


def table(summaries: dict[str, Summary]) -> str:
    """One line per setting and k: mean ratio over the groups, total ratio with its interval, groups above base."""
    lines = [
        "| setting | k | mean ratio | total ratio [95 %] | worst group | groups above base |",
        "|---|---|---|---|---|---|",
    ]
    for name, summary in summaries.items():
        for k in sorted({row.k for row in summary.rows} - {0}):
            rows = [row for row in summary.rows if row.k == k and row.group not in (ALL, PILE_ALL)]
            total = summary.total(k).ratio
            worst = max(rows, key=lambda row: row.ratio.value)
            mean = sum(row.ratio.value for row in rows) / len(rows)
            lines.append(
                f"| {name} | {k} | {mean:.4f} | {total.value:.4f} [{total.low:.4f}, {total.high:.4f}] "
                f"| {worst.group} {worst.ratio.value:.3f} | {sum(row.ratio.value > 1 for row in rows)} of {len(rows)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("documents")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=1, help="documents of each group")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    embedder = tttnn.Embedder.load("minilm-l6")
    datastore = tttnn.Datastore.open(arguments.datastore, embedder)
    config = tttnn.EvalConfig(query_tokens=512, scored_tokens=512, curve=(0, 5, 10), limit=arguments.limit)
    documents = list(tttnn.iter_jsonl(arguments.documents))
    summaries = {}
    for name in arguments.only:
        trainer = tttnn.TestTimeTrainer.load("smollm2-135m", datastore, SETTINGS[name])
        out = arguments.out / f"{name}.jsonl"
        result = tttnn.evaluate(trainer, documents, out=out, config=config)
        trainer.release()
        summaries[name] = result.summary()
        print(table({name: summaries[name]}), flush=True)
    print(table(summaries))


if __name__ == "__main__":
    main()
