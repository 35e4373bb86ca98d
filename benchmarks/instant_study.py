"""What the corpus can teach before the query comes: a root adapter beside, under and over neighbors.

    python benchmarks/instant_study.py DATASTORE val.jsonl.zst OUT [--work FOLDER] [--limit 40] [--threads 1]

Over the same documents (evaluation's order: the components take turns, so that the first n are balanced; protocol
`split`) these are measured, over the base model and over the model with a root merged in:

- `root`: low-rank matrices trained on documents drawn at random from the datastore, one step each: A is random and
  frozen, B alone is trained. One run for each --rate; its state after each of --root-steps is scored.
- `context`: neighbors read before the query; `exact`: trained on, one after another. Both beside base and the last
  root of the first rate ("root+context", "root+exact"); and both at once, with the most neighbors of --context.
- `leaf` (--leaves): the cluster whose center is nearest to the query, trained from the root's state on its documents.

No text that holds scored text takes part, by evaluation's own rule (--max-overlap): roots see no document that holds
text of any document of the file; leaves and neighbors none that holds this document's.

OUT gets `settings.json`, `roots.jsonl` (a line for each step: which document, its loss) and `lines.jsonl` (a line for
each measurement: ids, digests, numbers; no text). States of training go to --work. Interrupted anywhere, the same
command goes on; other settings in OUT are refused. `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import tttnn
from tttnn.evaluation.case import Case, Found, Scored
from tttnn.evaluation.lab import Lab
from tttnn.evaluation.overlap import MAX_SHARE, ngrams_of, shared
from tttnn.evaluation.protocols import Task, split_task
from tttnn.evaluation.records import UsedNeighbor
from tttnn.evaluation.sampling import group_of, sampled
from tttnn.lm.loading import load_model
from tttnn.lm.loss import loss_of
from tttnn.lm.neighbor_tokens import portion_of
from tttnn.lm.score import Scorer
from tttnn.lm.tokens import TextTokens
from tttnn.recipe import open_datastore
from tttnn.retrieval.neighbors import Neighbor
from tttnn.store.document import text_digest
from tttnn.training.adapted_model import AdaptedModel
from tttnn.training.trainer import TestTimeTrainer
from tttnn.weights.lora import LowRankLayers


class ScoredTexts:
    """The n-grams of all scored texts, to keep what holds them out of every root."""

    def __init__(self, tasks: Iterable[Task], limit: float) -> None:
        self._limit = limit
        self._held = [ngrams_of(task.scored) for task in tasks]
        self._in: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, grams in enumerate(self._held):
            for gram in grams:
                self._in[gram].append(number)

    def stand_in(self, text: str, passage: str) -> bool:
        """Whether a text, or the passage of it that is trained on, holds too much of a scored text, or it of it."""
        whole, used = ngrams_of(text), ngrams_of(passage)
        touched = {number for gram in whole | used for number in self._in.get(gram, ())}
        return any(
            shared(self._held[number], whole)[0] > self._limit or max(shared(self._held[number], used)) > self._limit
            for number in touched
        )


class LowRankModel:
    """A model with low-rank matrices, of which B alone is trained."""

    def __init__(self, model: Any, texts: TextTokens, args: argparse.Namespace) -> None:
        self.model = model
        self.texts = texts
        self.layers = LowRankLayers(model, rank=args.rank, alpha=args.scale * args.rank, seed=args.seed).insert()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("lora_B"))
        self.b = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scorer = Scorer(model, texts)
        self._objective = loss_of(model)
        self._optimizer: torch.optim.AdamW | None = None

    def begin(self, state: list[torch.Tensor] | None, rate: float) -> None:
        """Start training from a state of B; None: zero."""
        self.put(state)
        self._optimizer = torch.optim.AdamW(self.b, lr=rate, betas=(0.9, 0.999), weight_decay=0.0)

    def put(self, state: list[torch.Tensor] | None) -> None:
        with torch.no_grad():
            for number, parameter in enumerate(self.b):
                parameter.zero_() if state is None else parameter.copy_(state[number])

    def state(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.b]

    def step(self, tokens: list[int]) -> float:
        assert self._optimizer is not None
        loss = self._objective(torch.tensor([tokens]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.b, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def saved(self) -> dict[str, Any]:
        assert self._optimizer is not None
        return {"b": self.state(), "optimizer": self._optimizer.state_dict()}

    def resume(self, saved: dict[str, Any], rate: float) -> None:
        self.begin(saved["b"], rate)
        assert self._optimizer is not None
        self._optimizer.load_state_dict(saved["optimizer"])


@dataclass(frozen=True)
class Judged:
    """Stands where evaluation's case wants a trainer to score with: a scorer and how it reads texts."""

    scorer: Scorer
    texts: TextTokens


def main() -> None:
    args = arguments()
    if args.table:
        print_table(args.out)
        return
    torch.set_num_threads(args.threads)
    Study(args).run()


class Study:
    """All of one run: opens what the settings name, and goes on where OUT ends."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.work: Path = args.work
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.datastore = open_datastore(args.datastore, threads=args.threads)
        model, tokenizer = load_model(args.model)
        self.texts = TextTokens(tokenizer)
        config = tttnn.AdaptConfig(
            num_neighbors=max([*args.context, *args.exact, *args.root_exact, 1]),
            max_neighbor_tokens=args.tokens,
            precision="float32",
        )
        self.low = LowRankModel(copy.deepcopy(model), self.texts, args)
        self.base = TestTimeTrainer(model, tokenizer, self.datastore, config)
        self.rooted: TestTimeTrainer | None = None
        self.settings = tttnn.EvalConfig(
            query_tokens=args.tokens,
            scored_tokens=args.tokens,
            max_overlap=args.max_overlap,
            curve=(max(args.context, default=0),),
        )
        self.lab = Lab(self.base, self.settings, [])
        self.documents = sampled(tttnn.iter_corpus(args.documents), self.settings.with_(limit=args.per_component))
        tasks = [
            (position, document, split_task(self.texts, document.text, self.settings))
            for position, document in self.documents
        ]
        self.tasks = [(position, document, task) for position, document, task in tasks if task is not None]
        self._head()

    def _head(self) -> None:
        plain = {
            name: value
            for name, value in sorted(vars(self.args).items())
            if name not in ("out", "work", "limit", "table", "datastore", "documents", "leaves")
        }
        head = plain | {
            "model_digest": self.base.fingerprint,
            "datastore_id": self.datastore.id,
            "datastore_documents": len(self.datastore),
            "documents_digest": text_digest("".join(text_digest(d.text) for _, d in self.documents)),
            "torch": str(torch.__version__),
        }
        path = self.out / "settings.json"
        if path.exists():
            held = json.loads(path.read_text())
            differing = [name for name in head if head[name] != held.get(name)]
            if differing:
                raise SystemExit(
                    f"{path}: settings must be those of the run to go on with, but these differ: {differing}"
                )
        else:
            path.write_text(json.dumps(head, indent=2, sort_keys=True) + "\n")

    def run(self) -> None:
        scored = ScoredTexts((task for _, _, task in self.tasks), self.args.max_overlap)
        self.root_documents = self._root_documents(scored)
        for rate in self.args.rate:
            self._train_root(rate)
        done = {(line["document"], line["method"], line["k"]) for line in lines_of(self.out / "lines.jsonl")}
        for turn, (position, document, task) in enumerate(self.tasks[: self.args.limit]):
            case = Case(self.lab, document, task)
            with open(self.out / "lines.jsonl", "a", encoding="utf-8") as file:
                for line in self._measured(case, {(m, k) for p, m, k in done if p == position}):
                    head = {
                        "document": position,
                        "turn": turn,
                        "digest": text_digest(document.text),
                        "component": group_of(document, self.settings.group_field),
                        "bytes": len(task.scored.encode()),
                    }
                    file.write(json.dumps(head | line) + "\n")
                    file.flush()

    def _root_documents(self, scored: ScoredTexts) -> list[int]:
        """The documents of all roots, in their order: drawn at random, without those that hold scored text."""
        order = list(range(len(self.datastore)))
        random.Random(f"{self.args.seed} root").shuffle(order)
        chosen: list[int] = []
        for number in order:
            text = self.datastore.documents[number].text
            tokens = self._tokens(number)
            if len(tokens) >= 2 and not scored.stand_in(text, self.texts.tokenizer.decode(tokens)):
                chosen.append(number)
            if len(chosen) == max(self.args.root_steps):
                return chosen
        raise SystemExit(
            f"the datastore must have {max(self.args.root_steps)} documents to train on, got {len(chosen)}"
        )

    def _tokens(self, number: int) -> list[int]:
        document = self.datastore.documents[number]
        return list(portion_of(self.texts, Neighbor(number, 0.0, document.text), self.args.tokens).tokens)

    def _state_path(self, rate: float, steps: int) -> Path:
        return self.work / f"root-{rate:g}-{steps}.pt"

    def _train_root(self, rate: float) -> None:
        """Train one root, or go on with it from its last state."""
        wanted = sorted(self.args.root_steps)
        kept = [steps for steps in range(max(wanted) + 1) if self._state_path(rate, steps).exists()]
        if kept and kept[-1] == wanted[-1]:
            return
        if kept:
            self.low.resume(torch.load(self._state_path(rate, kept[-1])), rate)
        else:
            self.low.begin(None, rate)
        seen = {(line["rate"], line["step"]) for line in lines_of(self.out / "roots.jsonl")}
        with open(self.out / "roots.jsonl", "a", encoding="utf-8") as file:
            for step, number in list(enumerate(self.root_documents, 1))[kept[-1] if kept else 0 :]:
                started = time.perf_counter()
                loss = self.low.step(self._tokens(number))
                if (rate, step) not in seen:
                    digest = text_digest(self.datastore.documents[number].text)
                    line = {"rate": rate, "step": step, "id": number, "digest": digest, "loss": loss}
                    file.write(json.dumps(line | {"seconds": round(time.perf_counter() - started, 3)}) + "\n")
                    file.flush()
                if step in wanted:
                    partial = self._state_path(rate, step).with_suffix(".partial")
                    torch.save(self.low.saved(), partial)
                    partial.replace(self._state_path(rate, step))

    def _root(self, rate: float, steps: int) -> list[torch.Tensor]:
        state: list[torch.Tensor] = torch.load(self._state_path(rate, steps))["b"]
        return state

    def _over_root(self) -> TestTimeTrainer:
        """The model with the last root of the first rate merged in."""
        if self.rooted is None:
            self.low.put(self._root(self.args.rate[0], max(self.args.root_steps)))
            model, tokenizer = load_model(self.args.model)
            model.load_state_dict(self.low.layers.merged(), strict=False)
            self.rooted = TestTimeTrainer(model, tokenizer, None, self.base.config)
        return self.rooted

    def _measured(self, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """Every measurement of one document that is not there yet."""
        args = self.args
        if ("base", 0) not in done:
            yield line_of("base", 0, case.base())
        for rate in args.rate:
            for steps in sorted(args.root_steps):
                name = f"root@{rate:g}"
                if (name, steps) not in done:
                    self.low.put(self._root(rate, steps))
                    yield line_of(name, steps, case.scored(Judged(self.low.scorer, self.texts)))  # type: ignore[arg-type]
        found = case.found()
        for name, trainer in (("context", self.base), ("root+context", None)):
            for k in args.context:
                if (name, k) not in done:
                    tokens, used = case.neighbors_in_context(found, k)
                    yield line_of(name, k, case.scored(trainer or self._over_root(), tokens), used, found)
        for name, ks in (("exact", args.exact), ("root+exact", args.root_exact)):
            if any((name, k) not in done for k in ks):
                trainer = self.base if name == "exact" else self._over_root()
                for line in trained(case, trainer, found, name, ks):
                    if (line["method"], line["k"]) not in done:
                        yield line
        if args.leaves and ("leaf", args.leaves) not in done:
            yield self._leaf(case)

    def _leaf(self, case: Case) -> dict[str, Any]:
        """The cluster nearest to the query, trained from the root on those of its documents that are nearest to it."""
        started = time.perf_counter()
        vectors = self.datastore.vectors(range(len(self.datastore)))
        centers, cluster_of = clusters(vectors, max(1, len(vectors) // self.args.cluster_size), self.args.seed)
        query = self.datastore.search(case.task.query, 1, with_vectors=True).query_vector
        cluster = int(np.argmin(((centers - query) ** 2).sum(1)))
        members = np.flatnonzero(cluster_of == cluster)
        members = members[np.argsort(((vectors[members] - centers[cluster]) ** 2).sum(1), kind="stable")]
        scored = ScoredTexts([case.task], self.args.max_overlap)
        root = self._root(self.args.rate[0], max(self.args.root_steps))
        self.low.begin(root, self.args.leaf_rate)
        used = []
        for number in map(int, members):
            text, tokens = self.datastore.documents[number].text, self._tokens(number)
            if len(tokens) < 2 or scored.stand_in(text, self.texts.tokenizer.decode(tokens)):
                continue
            self.low.step(tokens)
            used.append(UsedNeighbor(number, text_digest(text), 0.0, len(tokens), None))
            if len(used) == self.args.leaves:
                break
        seconds = time.perf_counter() - started
        line = line_of("leaf", self.args.leaves, case.scored(Judged(self.low.scorer, self.texts)), used)  # type: ignore[arg-type]
        return line | {"cluster": cluster, "build_seconds": round(seconds, 3)}


def trained(case: Case, trainer: TestTimeTrainer, found: Found, name: str, ks: list[int]) -> Iterator[dict[str, Any]]:
    """Train on the nearest neighbors, and score after each number of them."""
    measured: dict[int, tuple[Scored, Scored, float]] = {}

    def observe(adapted: AdaptedModel, k: int) -> None:
        if k in ks:
            seconds = adapted.report.seconds
            behind = case.neighbors_in_context(found, max(case.lab.config.curve))[0]
            measured[k] = case.scored(trainer), case.scored(trainer, behind), seconds["tokenize"] + seconds["train"]

    with trainer.adapt(case.task.query, neighbors=found.neighbors[: max(ks)], observe=observe) as adapted:
        rows = adapted.report.neighbors
    used = [UsedNeighbor(n.id, n.digest, n.distance, n.tokens, n.span) for n in rows]
    for k, (scored, behind, seconds) in measured.items():
        yield line_of(name, k, scored, used[:k], found) | {"train_seconds": round(seconds, 3)}
        yield line_of(f"{name}+context", k, behind, used[:k], found) | {"train_seconds": round(seconds, 3)}


def clusters(vectors: np.ndarray[Any, Any], count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """K-means of 20 rounds from centers drawn by a seed: centers, and the cluster of each vector."""
    generator = np.random.default_rng(seed)
    centers = vectors[np.sort(generator.choice(len(vectors), count, replace=False))].astype(np.float64)
    for _ in range(20):
        squares = (centers**2).sum(1) - 2 * vectors @ centers.T
        nearest = squares.argmin(1)
        for cluster in range(count):
            members = vectors[nearest == cluster]
            if len(members):
                centers[cluster] = members.mean(0)
    return centers, nearest


def line_of(
    method: str, k: int, scored: Scored, used: list[UsedNeighbor] | None = None, found: Found | None = None
) -> dict[str, Any]:
    line: dict[str, Any] = {"method": method, "k": k, "nats": scored.nats, "tokens": len(scored.token_nats)}
    line["score_seconds"] = round(scored.seconds, 3)
    if used is not None:
        line["neighbors"] = [[n.id, n.digest, round(n.distance, 6), n.tokens] for n in used]
    if found is not None:
        line |= {"left_out": found.left_out, "search_seconds": round(found.total, 3)}
    return line


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a last one that an interruption cut is taken off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def print_table(out: Path) -> None:
    """Print each method's bits per byte over base and over the last root, on the documents that both have."""
    of: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines_of(out / "lines.jsonl"):
        of[line["method"], line["k"]][line["document"]] = line
    roots = [key for key in of if key[0].startswith("root@")]
    first = roots[0][0] if roots else None
    last = max((key for key in roots if key[0] == first), key=lambda key: key[1], default=None)
    print("| method | documents | over base | over root | seconds |\n|---|---:|---:|---:|---:|")
    for key, held in of.items():
        cells = []
        for rival in (("base", 0), last):
            both = [] if rival is None else sorted(held.keys() & of[rival].keys())
            cells.append(ratio(held, of[rival], both) if both and rival is not None and rival != key else "")
        spent = [line["score_seconds"] + line.get("train_seconds", 0.0) for line in held.values()]
        print(f"| {key[0]} {key[1]} | {len(held)} | {cells[0]} | {cells[1]} | {np.median(spent):.1f} |")


def ratio(held: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]], both: list[int]) -> str:
    """The geometric mean of the documents' ratios of bits per byte, with its 95 % interval by paired bootstrap."""
    logs = np.array([math.log(held[d]["nats"] / rival[d]["nats"]) for d in both if rival[d]["nats"] > 0])
    draws = np.random.default_rng(0).integers(0, len(logs), (10_000, len(logs)))
    low, high = np.exp(np.percentile(logs[draws].mean(1), [2.5, 97.5]))
    return f"{math.exp(logs.mean()):.3f} ({low:.3f} to {high:.3f})"


def arguments() -> argparse.Namespace:
    def listed(kind: Any) -> Any:
        return lambda text: [kind(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("instant-study"), help="states of training; may be large")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=None, help="documents to measure; none: all")
    parser.add_argument("--per-component", type=int, default=None, help="of each component at most so many")
    parser.add_argument("--tokens", type=int, default=256, help="of a query, a scored text, a document or a neighbor")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--rate", type=listed(float), default=[3e-4])
    parser.add_argument("--root-steps", type=listed(int), default=[25, 50, 100, 200, 400])
    parser.add_argument("--context", type=listed(int), default=[2, 4])
    parser.add_argument("--exact", type=listed(int), default=[1, 5])
    parser.add_argument("--root-exact", type=listed(int), default=[5])
    parser.add_argument("--leaves", type=int, default=0, help="documents of a leaf; 0: no leaf")
    parser.add_argument("--leaf-rate", type=float, default=3e-4)
    parser.add_argument("--cluster-size", type=int, default=30)
    parser.add_argument("--max-overlap", type=float, default=MAX_SHARE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what OUT holds, and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
