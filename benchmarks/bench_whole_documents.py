"""A budget of passages beside the paper's loop over whole neighbors: seconds and bits per byte of the same documents.

    python benchmarks/bench_whole_documents.py DATASTORE val.jsonl.zst OUT.jsonl [--neighbors 5] [--limit 1]

For each document (drawn by seed 0 from each group, protocol `split`, query and scored text of 512 tokens) the same
nearest neighbors go to both: tttnn trains on at most 512 tokens of each, with its defaults (and on those of further
neighbors, --budgets); the rival, `plain_loop.plain_query`, on every window of 1,024 tokens of every neighbor. Retrieval
and scoring are the same for both and left out of the times. A document whose neighbors hold more than --most-tokens is
left to neither and counted: books would take the rival hours. Resumable; one line of ids, digests and numbers for each
document. Processor seconds stand beside elapsed ones, because they suffer less from other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import tttnn
from benchmarks.plain_loop import plain_query
from tttnn.evaluation.bootstrap import paired_bootstrap
from tttnn.evaluation.protocols import Task, split_task
from tttnn.evaluation.sampling import group_of, sampled
from tttnn.lm.score import Scorer
from tttnn.lm.tokens import token_ids
from tttnn.store.document import text_digest

WINDOW = 1024


class Watch:
    """Elapsed and processor seconds of blocks, those inside a `paused` block left out."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        elapsed, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds += sign * (time.perf_counter() - elapsed)
        self.processor += sign * (time.process_time() - processor)

    def paused(self) -> AbstractContextManager[None]:
        return self.running(-1)

    def line(self, bits_per_byte: float, tokens: int) -> dict[str, float]:
        return {
            "bits_per_byte": bits_per_byte,
            "tokens": tokens,
            "seconds": round(self.seconds, 3),
            "processor": round(self.processor, 3),
        }


def budgeted(trainer: tttnn.TestTimeTrainer, neighbors: list[tttnn.Neighbor], task: Task) -> dict[str, float]:
    """Adapt with tttnn's defaults, score, put back."""
    watch = Watch()
    with watch.running(), trainer.adapt(task.query, neighbors=neighbors) as adapted:
        with watch.paused():
            bits = adapted.bits_per_byte(task.scored, context=task.context)
        tokens = adapted.report.tokens
    return watch.line(bits, tokens)


def whole(model: Any, scorer: Scorer, windows: list[list[int]], task: Task, rate: float) -> dict[str, float]:
    """Adapt with the plain loop, score, put back."""
    watch = Watch()

    def answer() -> float:
        with watch.paused():
            return scorer.score(task.scored, context=task.context).bits_per_byte

    with watch.running():
        bits = plain_query(model, windows, answer, rate=rate)
    return watch.line(bits, sum(map(len, windows)))


def windows_of(ids: list[int]) -> list[list[int]]:
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW) if len(ids[i : i + WINDOW]) > 1]


def summary(lines: list[dict[str, Any]]) -> str:
    """Return ratios of sums over the documents that were measured, with bootstrap intervals of bits per byte."""
    measured = [line for line in lines if "base" in line]
    out = [f"{len(measured)} documents, {len(lines) - len(measured)} left out for the tokens of their neighbors"]
    if not measured:
        return out[0]
    num_bytes = np.array([line["num_bytes"] for line in measured], float)
    for rate in measured[0]["plain"]:
        plain = [line["plain"][rate] for line in measured]
        for count in measured[0]["tttnn"]:
            ours = [line["tttnn"][count] for line in measured]
            seconds, processor = (
                sum(row[name] for row in plain) / sum(row[name] for row in ours) for name in ("seconds", "processor")
            )
            ratios = [theirs["seconds"] / row["seconds"] for theirs, row in zip(plain, ours, strict=True)]
            before, after = (np.array([row["bits_per_byte"] for row in rows]) * num_bytes for rows in (plain, ours))
            paired = paired_bootstrap([(before, after, num_bytes)], [1.0])
            per_base = [
                np.mean([row["bits_per_byte"] / line["base"] for row, line in zip(rows, measured, strict=True)])
                for rows in (plain, ours)
            ]
            out.append(
                f"plain {rate} on {sum(row['tokens'] for row in plain)} tokens, tttnn with {count} neighbors on "
                f"{sum(row['tokens'] for row in ours)}: {seconds:.2f} times as fast (processor {processor:.2f}, "
                f"median document {np.median(ratios):.2f}); mean of adapted over base {per_base[1]:.4f}, plain "
                f"{per_base[0]:.4f}; bits per byte over plain's {paired.ratio.value:.4f} "
                f"[{paired.ratio.low:.4f}, {paired.ratio.high:.4f}]"
            )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("documents")
    parser.add_argument("out", type=Path)
    parser.add_argument("--neighbors", type=int, default=5, help="neighbors of the rival")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10], help="neighbors of tttnn")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5], help="learning rates of the rival")
    parser.add_argument("--most-tokens", type=int, default=16384, help="of the rival's neighbors")
    parser.add_argument("--limit", type=int, default=1, help="documents of each group")
    options = parser.parse_args()
    datastore = tttnn.Datastore.open(options.datastore, tttnn.Embedder.load("minilm-l6"))
    trainer = tttnn.TestTimeTrainer.load("smollm2-135m", datastore)
    model = AutoModelForCausalLM.from_pretrained(tttnn.models.resolve("smollm2-135m"), dtype=torch.float32).eval()
    rival = Scorer(model, trainer.tokenizer)
    evaluation = tttnn.EvalConfig(query_tokens=512, scored_tokens=512, limit=options.limit)
    held = options.out.read_text() if options.out.exists() else ""
    held = held[: held.rfind("\n") + 1]  # an interrupted run may have left a part of a line
    options.out.write_text(held)
    lines = [json.loads(line) for line in held.splitlines()]
    known = {line["document"] for line in lines}
    with options.out.open("a") as file:
        for position, document in sampled(tttnn.iter_jsonl(options.documents), evaluation):
            task = split_task(trainer.tokenizer, document.text, evaluation)
            if position in known or task is None:
                continue
            found = datastore.search(task.query, max([options.neighbors, *options.budgets]))
            line = {
                "document": position,
                "digest": text_digest(document.text),
                "group": group_of(document, evaluation.group_field),
                "neighbors": [neighbor.id for neighbor in found],
                "num_bytes": len(task.scored.encode()),
            }
            texts = [neighbor.text for neighbor in found[: options.neighbors]]
            windows = [window for text in texts for window in windows_of(token_ids(trainer.texts, text))]
            line["tokens"] = sum(map(len, windows))
            if line["tokens"] <= options.most_tokens:
                line |= {
                    "base": trainer.scorer.score(task.scored, context=task.context).bits_per_byte,
                    "tttnn": {str(n): budgeted(trainer, found[:n], task) for n in options.budgets},
                    "plain": {str(rate): whole(model, rival, windows, task, rate) for rate in options.rates},
                }
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)
            print(json.dumps(line), flush=True)
    trainer.verify()
    print(summary(lines))


if __name__ == "__main__":
    main()
