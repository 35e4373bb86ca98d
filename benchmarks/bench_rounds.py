"""Adapt and restore, over and over: the digest of the weights unchanged, and resident memory flat.

    python benchmarks/bench_rounds.py [--rounds 1000] [--real-rounds 50] [--guard] [--trainable lora]

A small random model and SmolLM2-135M. Memory is compared after a tenth of the rounds, when every buffer that stays has
been made, and at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench_deadline import pieces
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tttnn
from tttnn.retrieval.neighbors import Neighbor

_GROWTH = {"small": 16 << 20, "smollm2-135m": 64 << 20}
"""Bytes that resident memory may grow: what the allocator's rounding and Python's caches came to, with room."""


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def small_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, **shape)).eval()


def run(name: str, trainer: tttnn.TestTimeTrainer, rounds: int) -> dict[str, Any]:
    """Adapt `rounds` times, each to other neighbors, and check digest and memory."""
    texts = pieces(1500)
    digest, settled = trainer.fingerprint, 0
    started = time.perf_counter()
    for i in range(rounds):
        if i == rounds // 10:
            gc.collect()
            settled = resident_bytes()
        neighbors = [Neighbor(k, float(k), texts[(i + k) % len(texts)]) for k in range(2)]
        with trainer.adapt(texts[i % len(texts)], neighbors=neighbors) as adapted:
            assert adapted.report.steps == 2
    seconds = time.perf_counter() - started
    gc.collect()
    grown = resident_bytes() - settled
    trainer.verify()
    assert digest == trainer.digest(), "the weights are not what they were"
    assert grown <= _GROWTH[name], f"memory grew by {grown:,} bytes in {rounds} rounds"
    trainer.release()
    return {"model": name, "rounds": rounds, "grown_bytes": grown, "seconds_per_round": round(seconds / rounds, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="on the small model; 0 for none")
    parser.add_argument("--real-rounds", type=int, default=50, help="on SmolLM2-135M; 0 for none")
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--trainable", choices=["all", "no-embeddings", "last-layers", "lora"], default="all")
    arguments = parser.parse_args()
    config = tttnn.AdaptConfig(
        max_neighbor_tokens=64,
        trainable=arguments.trainable,
        last_layers=2,
        guard="query" if arguments.guard else "none",
    )
    if arguments.rounds:
        tokenizer = AutoTokenizer.from_pretrained(tttnn.models.resolve("smollm2-135m"))
        trainer = tttnn.TestTimeTrainer(small_model(), tokenizer, None, config)
        print(json.dumps(run("small", trainer, arguments.rounds)))
    if arguments.real_rounds:
        trainer = tttnn.TestTimeTrainer.load("smollm2-135m", None, config)
        print(json.dumps(run("smollm2-135m", trainer, arguments.real_rounds)))


if __name__ == "__main__":
    main()
