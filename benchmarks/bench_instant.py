"""A query's experts: read, merge, apply, undo beside torch's own way and peft's, and whole queries, cold and warm.

Run: PYTHONPATH=. python benchmarks/bench_instant.py [--model smollm2|small] [--threads 2] [--repeats 9] [--json FILE]
     [--clock cpu]

The model has SmolLM2-135M's shape and random weights: no product depends on their values. Its experts, a root and the
leaves of four clusters, are trained for one short step each, so that all files are there as `tttnn precompute` writes
them. Every rival does its work once per round, in turn; answers are asserted each time: the changed weights are those
of float64, and after ours the model is what it was, bit for bit. Subtracting what was added, as torch and peft undo,
is not exact: the table says by how much. With --clock cpu the seconds are those of all processors, which other work
on the machine changes less than those of the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_arena import Rival, measure, smollm2, table
from transformers import LlamaConfig, LlamaForCausalLM

import tttnn
from tests.encoders import byte_tokenizer, tiny_embedder
from tttnn.config import ExpertConfig
from tttnn.instant.experts import Experts
from tttnn.instant.int4 import groups_of
from tttnn.instant.manifest import read_experts
from tttnn.instant.precompute import Precompute
from tttnn.instant.rows import ExpertRows, numbers_of, row_bytes
from tttnn.recipe import give_experts
from tttnn.stages import Stages
from tttnn.training.transaction import Transaction
from tttnn.weights.low_rank_update import LowRankUpdate

CONFIG = ExpertConfig(documents=1, leaf_documents=1, cluster_size=6, max_length=16)
TEXTS = [f"Document {number} about subject {number % 4}: " + "abcd"[number % 4] * 40 for number in range(24)]
QUERY = "What is said about subject 2: ccc"


def small() -> Any:
    """Return a model that takes no time."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=257, **sizes))


MODELS = {"smollm2": smollm2, "small": small}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = MODELS[args.model]()
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), model, args.repeats, CLOCKS[args.clock]) as bench:
        found = {
            "read": bench.read(),
            "merge": bench.merge(),
            "apply": bench.apply(),
            "undo": bench.undo(),
            "queries": bench.queries(),
        }
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


class Bench:
    """A datastore with experts, a trainer that uses them, and rivals over copies of the model."""

    def __init__(self, folder: Path, model: Any, repeats: int, clock: Callable[[], float]) -> None:
        self.repeats = repeats
        self.clock = clock
        self.tokenizer = byte_tokenizer()
        self.store = tttnn.Datastore.build(folder / "store", TEXTS, tiny_embedder(3))
        report = Precompute(self.store, model, self.tokenizer, CONFIG).run()
        self.manifest = read_experts(Path(report.folder), model=report.model)
        self.folder = Path(report.folder)
        self.plain = copy.deepcopy(model)
        config = tttnn.AdaptConfig(precision="float32", mode="instant")
        self.trainer = tttnn.TestTimeTrainer(model, self.tokenizer, self.store, config)
        give_experts(self.trainer, self.store)
        experts = Experts(self.store, model=report.model, tokenizer=self.tokenizer)
        chosen = experts.choose(QUERY, config, (), distance=None)
        assert chosen.update is not None
        self.update: LowRankUpdate = chosen.update
        self.used = chosen.report.used
        assert len(self.used) == 3
        self.before = {name: self.weight(self.plain, name).clone() for name in self.update.layers}
        self.wanted = {
            name: self.before[name].double() + self.update.scale * (b.double() @ a.double())
            for name, (a, b) in self.update.layers.items()
        }
        self.bytes_of_weights = sum(weight.numel() * 4 for weight in self.before.values())
        dense, row = self.bytes_of_weights, row_bytes(self.manifest.numbers)
        print(
            f"an expert: {self.manifest.numbers:,} numbers, {row:,} bytes on disk; as dense float32 {dense:,}; "
            f"weights changed: {dense / 4e6:.1f} M"
        )

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.release()
        self.store.close()

    @staticmethod
    def weight(model: Any, name: str) -> torch.Tensor:
        layer = model.get_submodule(name)
        return getattr(layer, "base_layer", layer).weight.data

    def read(self) -> dict[str, float]:
        """Three rows from the mapped file, 4 bits to float32, checksums compared."""
        rows = [entry.row for entry in self.manifest.experts][:3]
        mapped = ExpertRows(self.folder, self.manifest)
        numbers = self.manifest.numbers
        wanted = [numbers_of(mapped.row(row), numbers) for row in rows]
        found: dict[str, Any] = {}

        def ours() -> None:
            fresh = ExpertRows(self.folder, self.manifest)
            found["ours"] = [fresh.read(row) for row in rows]

        def torchs() -> None:
            raw = [torch.frombuffer(bytearray(mapped.row(row)), dtype=torch.uint8) for row in rows]
            found["torch"] = [_unpacked(row, numbers) for row in raw]

        def check(name: str) -> None:
            for ours_, theirs in zip(found[name], wanted, strict=True):
                assert torch.equal(torch.as_tensor(ours_), torch.from_numpy(theirs))

        rivals = [
            Rival("tttnn: map, check, unpack 3 rows", _nothing, ours, lambda: check("ours")),
            Rival("torch: shifts, and, product", _nothing, torchs, lambda: check("torch")),
        ]
        return table("read", measure(rivals, self.repeats, self.clock))

    def merge(self) -> dict[str, float]:
        """The weighted sum of three experts' numbers that are unpacked already."""
        rows = ExpertRows(self.folder, self.manifest)
        of = {entry.name: entry.row for entry in self.manifest.experts}
        numbers = [torch.from_numpy(rows.read(of[expert.name]).copy()) for expert in self.used]
        weights = [expert.weight for expert in self.used]
        flat = torch.cat([b.reshape(-1) for _, b in self.update.layers.values()])
        found: dict[str, torch.Tensor] = {}
        experts = Experts(self.store, model=self.trainer.fingerprint, tokenizer=self.tokenizer)
        experts.named(self.used)

        def ours() -> None:
            experts._last_update = None
            update = experts.named(self.used)
            assert update is not None
            found["ours"] = torch.cat([b.reshape(-1) for _, b in update.layers.values()])

        def torchs() -> None:
            total = numbers[0] * weights[0]
            for one, weight in zip(numbers[1:], weights[1:], strict=True):
                total.add_(one, alpha=weight)
            found["torch"] = total

        rivals = [
            Rival("tttnn: named experts, summed", _nothing, ours, lambda: _same(found["ours"], flat)),
            Rival("torch: mul, add_", _nothing, torchs, lambda: _near(found["torch"], flat)),
        ]
        return table("merge", measure(rivals, self.repeats, self.clock))

    def apply(self) -> dict[str, Any]:
        """W + scale B A of every layer, for one query."""
        medians = table("apply", measure(self._rivals("apply"), self.repeats, self.clock))
        ours = next(iter(medians.values()))
        source, target = torch.zeros(self.bytes_of_weights // 4), torch.empty(self.bytes_of_weights // 4)
        target.copy_(source)
        begin = self.clock()
        for _ in range(5):
            target.copy_(source)
        copied = 5 * 2 * self.bytes_of_weights / (self.clock() - begin)
        moved = 2 * self.bytes_of_weights / ours  # every weight is read once and written once
        print(f"ours moves {moved / 1e9:.2f} GB/s, {moved / copied:.0%} of a plain copy's {copied / 1e9:.2f} GB/s")
        return {**medians, "bytes_per_second": moved, "share_of_a_copy": moved / copied}

    def undo(self) -> dict[str, float]:
        """Back to the weights before; how far from them the rivals end is printed."""
        medians = table("undo", measure(self._rivals("undo"), self.repeats, self.clock))
        for name, error in self.errors.items():
            print(f"{name}: largest difference from the weights before {error:.2g}")
        assert self.errors["tttnn"] == 0
        return medians

    def _rivals(self, timed: str) -> list[Rival]:
        """All ways to apply and undo; `timed` says which of the two is measured, the other is done beside it."""
        self.errors: dict[str, float] = {}
        engine = self.trainer.engine
        open_: dict[str, Transaction] = {}
        plain, scale = copy.deepcopy(self.plain), self.update.scale

        def ours_apply() -> None:
            open_["it"].begin(0)
            engine.change(self.update, steps_follow=False)

        def ours_open() -> None:
            open_["it"] = Transaction(engine)
            open_["it"].open()

        def ours_undo() -> None:
            open_["it"].end(Stages(), verify=False)

        def torch_apply() -> None:
            for name, (a, b) in self.update.layers.items():
                self.weight(plain, name).add_(scale * (b @ a))

        def torch_undo() -> None:
            for name, (a, b) in self.update.layers.items():
                self.weight(plain, name).sub_(scale * (b @ a))

        def reset() -> None:
            for name, weight in self.before.items():
                self.weight(plain, name).copy_(weight)

        ways: list[tuple[str, Any, Any, Any, Any]] = [
            ("tttnn", self.trainer.model, ours_open, ours_apply, ours_undo),
            ("torch: matmul, add_, sub_", plain, reset, torch_apply, torch_undo),
        ]
        theirs = self._peft()
        if theirs is not None:
            ways.append(theirs)
        return [self._rival(timed, *way) for way in ways]

    def _rival(self, timed: str, name: str, model: Any, prepare: Any, apply: Any, undo: Any) -> Rival:
        def ready() -> None:
            prepare()
            if timed == "undo":
                apply()

        def check() -> None:
            if timed == "apply":
                for layer, weight in self.wanted.items():
                    # Roundings of float32; peft adds the experts' ranks up in one product.
                    changed = self.weight(model, layer).double()
                    assert torch.allclose(changed, weight, rtol=1e-5, atol=1e-6), (name, layer)
                undo()
            after = ((self.weight(model, layer), weight) for layer, weight in self.before.items())
            error = max(float((found - weight).abs().max()) for found, weight in after)
            self.errors[name] = max(error, self.errors.get(name, 0.0))
            assert error < 1e-5, name

        return Rival(name, ready, apply if timed == "apply" else undo, check)

    def _peft(self) -> tuple[str, Any, Any, Any, Any] | None:
        """Peft's way: an adapter of the three experts' ranks together, merged, unmerged; None where it is missing."""
        try:
            import peft
        except ImportError:
            print("peft is not installed: its merge is not measured")
            return None
        rank = self.manifest.rank
        names = list(self.update.layers)
        settings = peft.LoraConfig(r=rank, lora_alpha=self.manifest.scale * rank, target_modules=names)
        first, *others = [expert.name for expert in self.used]
        model = peft.get_peft_model(copy.deepcopy(self.plain), settings, adapter_name=first)
        for name in others:
            model.add_adapter(name, settings)
        experts = Experts(self.store, model=self.trainer.fingerprint, tokenizer=self.tokenizer)
        for expert in self.used:
            update = experts.named([_whole(expert)])
            assert update is not None
            for layer, (a, b) in update.layers.items():
                module = model.get_submodule(f"base_model.model.{layer}")
                module.lora_A[expert.name].weight.data.copy_(a)
                module.lora_B[expert.name].weight.data.copy_(b)
        weights = [expert.weight for expert in self.used]
        everything = [expert.name for expert in self.used]

        def apply() -> None:
            model.add_weighted_adapter(everything, weights, "merged", combination_type="cat")
            model.set_adapter("merged")
            model.merge_adapter(["merged"])

        def undo() -> None:
            model.unmerge_adapter()
            model.delete_adapter("merged")

        def reset() -> None:
            for name, weight in self.before.items():
                self.weight(model.base_model.model, name).copy_(weight)

        return "peft: add_weighted_adapter, merge, unmerge", model.base_model.model, reset, apply, undo

    def queries(self) -> dict[str, float]:
        """Whole transactions: the first one after a start, which opens the files, and later ones."""
        give_experts(self.trainer, self.store)
        before = {name: self.weight(self.trainer.model, name).clone() for name in self.update.layers}
        seconds, spent = [], []
        for number in range(1 + self.repeats):
            begin, busy = time.perf_counter(), time.process_time()
            with self.trainer.adapt(f"{QUERY}{number}") as adapted:
                report = adapted.report
            seconds.append(time.perf_counter() - begin)
            spent.append(time.process_time() - busy)
            assert report.experts is not None
            assert len(report.experts.used) == 3
            assert all(torch.equal(self.weight(self.trainer.model, name), weight) for name, weight in before.items())
        found = {
            "first": seconds[0],
            "later": median(seconds[1:]),
            "first_cpu": spent[0],
            "later_cpu": median(spent[1:]),
        }
        told = {name: f"{value * 1e3:.1f} ms" for name, value in found.items()}
        print(
            f"\na whole query in the mode instant: first {told['first']} ({told['first_cpu']} of all cores), later "
            f"{told['later']} ({told['later_cpu']})"
        )
        return found


def _whole(expert: Any) -> Any:
    return type(expert)(expert.name, 1.0, expert.documents, expert.members, expert.distance)


def _unpacked(row: torch.Tensor, numbers: int) -> torch.Tensor:
    groups = groups_of(numbers)
    packed, scales = row[: groups * 64], row[groups * 64 : groups * 68].clone().view(torch.float32)
    halves = torch.stack([packed & 15, packed >> 4], 1).float() - 8
    return (halves.view(groups, 128) * scales[:, None]).view(-1)[:numbers]


def _same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert torch.equal(found, wanted)


def _near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
