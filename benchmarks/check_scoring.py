"""Check bits per byte against two other ways of computing them: lm-evaluation-harness, and float64 from the definition.

    python benchmarks/check_scoring.py DOCS [--model smollm2-135m] [--per-group 10] [--out scoring.json]

The first documents of each group that have text enough, cut to --tokens tokens, are scored three times in windows of
each --windows length: by `Scorer` of `tttnn.lm.score`, by the harness's model ``hf`` (its rolling log-likelihood, a
model and tokenizer of its own), and in float64 (weights and arithmetic), one window after another, as the definition
says.
Printed: the largest absolute difference of bits per byte in each group. The file holds ids, digests and numbers, no
text. Exit code 1 where a difference is above --tolerance.

What to expect: torch's log_softmax in float32 over 49,152 words gives 8e-6 nats a token too little on the CPU (it sums
49,152 exponentials), the same for tttnn and the harness, so both differ from float64 by some 3e-6 bits per byte and
hardly from each other. What transformers keeps in float32 inside its layers (norms, rotary angles) stays so in the
float64 model: below 1e-7 nats a token in the mean.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import tttnn
from tttnn.lm.score import Scorer
from tttnn.store.document import text_digest


@dataclass(frozen=True)
class Row:
    """One document in one length of window; bits per byte three times."""

    document: int
    digest: str
    group: str
    tokens: int
    num_bytes: int
    window: int
    tttnn: float
    harness: float
    float64: float

    @property
    def from_harness(self) -> float:
        return abs(self.tttnn - self.harness)

    @property
    def from_float64(self) -> float:
        return abs(self.tttnn - self.float64)


def float64_nats(model: Any, sequence: list[int], window: int) -> float:
    """Return minus the log-likelihood of every token but the first, in nats.

    The definition: tokens are predicted `window` at a time; the model reads as many tokens before the last of them as
    it may, which is `window`. So the last block, where it is shorter, has earlier tokens before it.

    Args:
        model: with weights in float64.
        sequence: tokens, the first of which stands before the text.
        window: tokens that the model reads at once.
    """
    total = 0.0
    for begin in range(1, len(sequence), window):
        end = min(begin + window, len(sequence))
        read_from = max(0, end - 1 - window)
        with torch.no_grad():
            logits = model(torch.tensor([sequence[read_from : end - 1]])).logits[0]
        assert logits.dtype == torch.float64
        log_probs = torch.log_softmax(logits, dim=-1)
        for position in range(begin, end):
            total -= log_probs[position - 1 - read_from, sequence[position]].item()
    return total


def harness_nats(model: str | Any, tokenizer: Any, window: int) -> Callable[[str], float]:
    """Return the harness's own rolling log-likelihood in float32, with its sign turned, as a function of a text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=model, tokenizer=tokenizer, dtype="float32", device="cpu", max_length=window, batch_size=1)

    def nats(text: str) -> float:
        request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every window, whatever is asked
            return -float(hf.loglikelihood_rolling([request], disable_tqdm=True)[0])

    return nats


def chosen(documents: Iterable[Any], tokenizer: Any, *, per_group: int, tokens: int) -> Iterator[tuple[int, str, str]]:
    """Yield (position, group, text): the first documents of each group, cut between characters to `tokens` tokens."""
    taken: dict[str, int] = defaultdict(int)
    for position, document in enumerate(documents):
        group = document.source or "documents"
        if taken[group] == per_group or not document.text.strip():
            continue
        text = document.text[: 16 * tokens]
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in out["offset_mapping"]]
        if not ends:
            continue
        taken[group] += 1
        yield position, group, text[: ends[min(tokens, len(ends)) - 1]]


def compare(
    documents: Iterable[tuple[int, str, str]],
    model: Any,
    tokenizer: Any,
    precise: Any,
    *,
    windows: list[int],
    harness_of: Callable[[int], Callable[[str], float]],
) -> Iterator[Row]:
    """Score documents in each length of window, three times.

    Args:
        documents: (position, group, text).
        model: in float32, for tttnn.
        tokenizer: of both.
        precise: the same model in float64.
        windows: lengths.
        harness_of: gives the harness's way to score for a length.
    """
    scorers = {window: Scorer(model, tokenizer, tttnn.ScoreConfig(max_length=window)) for window in windows}
    harnesses = {window: harness_of(window) for window in windows}
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for position, group, text in documents:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        size = len(text.encode())
        for window in windows:
            values = [
                scorers[window].score(text).bits_per_byte,
                harnesses[window](text) / math.log(2) / size,
                float64_nats(precise, [first, *ids], window) / math.log(2) / size,
            ]
            yield Row(position, text_digest(text), group, len(ids), size, window, *values)


def table(rows: list[Row]) -> str:
    """One line per group: the largest differences of its documents, in bits per byte."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
        groups["all"].append(row)
    lines = ["| group | documents | bits per byte | from lm-eval | from float64 |", "|---|---|---|---|---|"]
    for group in sorted(groups, key=lambda name: (name == "all", name)):
        held = groups[group]
        lines.append(
            f"| {group} | {len({row.document for row in held})} | {sum(row.tttnn for row in held) / len(held):.4f} "
            f"| {max(row.from_harness for row in held):.1e} | {max(row.from_float64 for row in held):.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--per-group", type=int, default=10)
    parser.add_argument("--groups", nargs="*", help="only these; else all")
    parser.add_argument("--tokens", type=int, default=512, help="a document is cut to as many")
    parser.add_argument("--windows", type=int, nargs="+", default=[1024, 200], help="tokens that are read at once")
    parser.add_argument("--tolerance", type=float, default=2e-5, help="largest difference in bits per byte")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = tttnn.models.resolve(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    precise = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64).eval()
    documents = [
        found
        for found in chosen(
            tttnn.iter_jsonl(arguments.documents), tokenizer, per_group=arguments.per_group, tokens=arguments.tokens
        )
        if not arguments.groups or found[1] in arguments.groups
    ]
    shared = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    rows: list[Row] = []
    for row in compare(
        documents,
        model,
        tokenizer,
        precise,
        windows=arguments.windows,
        harness_of=lambda window: harness_nats(shared, AutoTokenizer.from_pretrained(place), window),
    ):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} of {len(documents) * len(arguments.windows)}", end="", file=sys.stderr, flush=True)
    print(table(rows))
    worst = max((max(row.from_harness, row.from_float64) for row in rows), default=math.nan)
    if arguments.out is not None:
        held = {
            "model": arguments.model,
            "documents": Path(arguments.documents).name,
            "tokens": arguments.tokens,
            "windows": arguments.windows,
            "versions": {"tttnn": tttnn.__version__}
            | {name: version(name) for name in ("lm_eval", "torch", "transformers")},
            "largest_difference": worst,
            "rows": [asdict(row) for row in rows],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(held, indent=1) + "\n")
    if not worst <= arguments.tolerance:
        sys.exit(f"largest difference is {worst:.1e} bits per byte, above the tolerance of {arguments.tolerance:.1e}")


if __name__ == "__main__":
    main()
