"""What experts of clusters are worth beyond the root, over the documents and the root of `instant_study.py`.

    python benchmarks/instant_leaves.py DATASTORE val.jsonl.zst OUT --study FOLDER --states FOLDER [--work FOLDER]

FOLDER of --study has the lines of `instant_study.py`, --states what it trained. From a copy of the datastore every
document is deleted that holds scored text of any document of the file, by evaluation's own rule; the product then
clusters what is left, and trains leaves from the study's last root in 4 bits (`instant.leaf_training`), writes them
into the copy (`instant.rows`, `instant.manifest`), and chooses and merges them (`instant.experts`). Beside them, as
rows that are near no query, and merged by the same code, stand the controls: as many documents of the same component,
drawn at random and without those of the nearest cluster's leaf, and as many of any, which is a longer root.

Measured in this order, each over all documents before the next one begins:

1. `root`, `leaves 1`, `any-0`; `half`: the nearest leaf at half its weight.
2. `leaves1+context` behind 4 neighbors.
3. `component`; `any-0+context` behind 4 neighbors.
4. `leaves 2`, and behind 2 and 4 neighbors `leaves2+context`; `any-1`, and `any-both`: the two at half each.
5. exact training on 5 documents of the component and of any, from base and from the root (`root+exact-...`).
6. The same on 10 documents.
7. `leaves 3`, `leaves 4`.

The learning rate is the one of --rates under which the leaves of two clusters (nearest to the documents of turns 0 and
6) have the lower mean loss on documents of those clusters that they were not trained on: no document that is measured
decides it.

OUT gets `settings.json`, `leaves.jsonl` (a line for each expert: digests of its documents, losses) and `lines.jsonl`
(a line for each measurement). Interrupted anywhere, the same command goes on. `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from instant_study import ScoredTexts, line_of, lines_of, ratio

import tttnn
from tttnn.config import ExpertConfig
from tttnn.evaluation.case import Case
from tttnn.evaluation.lab import Lab
from tttnn.evaluation.overlap import MAX_SHARE
from tttnn.evaluation.protocols import Task, split_task
from tttnn.evaluation.records import UsedNeighbor
from tttnn.evaluation.sampling import group_of, sampled
from tttnn.instant.centers import write_centers
from tttnn.instant.clusters import distances_to
from tttnn.instant.experts import Experts
from tttnn.instant.leaf_training import LeafJob, train_leaves
from tttnn.instant.manifest import (
    MANIFEST,
    ROOT,
    ExpertEntry,
    ExpertsManifest,
    LayerEntry,
    folder_of,
    leaf_name,
    read_experts,
    write_experts,
)
from tttnn.instant.members import members_digest, read_members, write_members
from tttnn.instant.plan import LEAF_PROBES, DocumentTokens, plan_leaves
from tttnn.instant.rows import ExpertRows, begin_rows, numbers_of, put_row, row_of
from tttnn.lm.loading import load_model
from tttnn.lm.tokenizer_digest import digest_of_tokenizer
from tttnn.lm.tokens import TextTokens
from tttnn.recipe import open_datastore
from tttnn.retrieval.neighbors import Neighbor
from tttnn.store.document import text_digest
from tttnn.training.experts import ChosenExperts, ExpertSource, ExpertsReport, Member, UsedExpert
from tttnn.training.trainer import TestTimeTrainer
from tttnn.weights.lora import chosen_layers, shape_of
from tttnn.weights.low_rank_update import digest_of_matrices, shared_a

_FAR = 100.0  # each coordinate of a control's center: nearest to no query
_NO_DEADLINE = 1e12
_RATE_TURNS = (0, 6)
_ANY = 2  # draws of any documents


class NamedExperts:
    """Gives the experts that were named last instead of the nearest ones; merged by the product all the same."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        self.used: list[UsedExpert] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experts, name)

    def choose(self, *_: Any, **options: Any) -> ChosenExperts:
        return ChosenExperts(ExpertsReport(list(self.used)), self._experts.named(self.used))


class Study:
    """All of one run: opens what the settings name, and goes on where OUT ends."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        args.work.mkdir(parents=True, exist_ok=True)
        self.datastore = open_datastore(args.datastore, threads=args.threads)
        model, tokenizer = load_model(args.model)
        self.learner = copy.deepcopy(model)
        self.texts = TextTokens(tokenizer)
        config = tttnn.AdaptConfig(num_neighbors=10, max_neighbor_tokens=args.tokens, precision="float32")
        self.trainer = TestTimeTrainer(model, tokenizer, self.datastore, config)
        self.settings = tttnn.EvalConfig(
            query_tokens=args.tokens, scored_tokens=args.tokens, max_overlap=MAX_SHARE, curve=(10,)
        )
        documents = sampled(tttnn.iter_corpus(args.documents), self.settings)
        tasks = [(p, d, split_task(self.texts, d.text, self.settings)) for p, d in documents]
        whole = [(p, d, task) for p, d, task in tasks if task is not None]
        self.copy = self._without([task for _, _, task in whole])
        self.copy.attach(self.datastore.embedder)
        self.lab = Lab(self.trainer, self.settings, [])
        self.cases = [(p, d, Case(self.lab, d, task)) for p, d, task in whole[: args.limit]]
        self.config = ExpertConfig(
            documents=args.root_steps,
            max_length=args.tokens,
            cluster_size=args.cluster_size,
            leaf_documents=args.leaf_documents,
            seed=0,
        )
        self.experts = self._experts(tokenizer)
        self.named = NamedExperts(self.experts)
        self._head(whole)

    def _without(self, tasks: list[Task]) -> tttnn.Datastore:
        """A copy of the datastore without the documents that hold scored text."""
        place = self.args.work / "datastore"
        if not place.exists():
            partial = self.args.work / "datastore.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.args.datastore, partial)
            tokens, scored = DocumentTokens(self.datastore, self.texts, self.args.tokens), ScoredTexts(tasks, MAX_SHARE)
            gone = []
            for number in map(int, self.datastore.ids):
                passage = self.texts.tokenizer.decode(tokens.read(number)[1])
                if scored.stand_in(self.datastore.documents[number].text, passage):
                    gone.append(number)
            with tttnn.Datastore.open(partial) as opened:
                opened.delete(gone)
            partial.rename(place)
        return tttnn.Datastore.open(place)

    def _head(self, whole: Sequence[Any]) -> None:
        kept = ("model", "tokens", "cluster_size", "leaf_documents", "root_steps", "rates", "threads")
        head = {name: getattr(self.args, name) for name in kept} | {
            "experts": json.loads(json.dumps(self.config.to_dict())),
            "model_digest": self.trainer.fingerprint,
            "datastore_id": self.datastore.id,
            "datastore_documents": len(self.datastore),
            "documents_that_hold_no_scored_text": len(self.copy),
            "clusters": len(self.plan.members),
            "documents_digest": text_digest("".join(text_digest(d.text) for _, d, _ in whole)),
            "torch": str(torch.__version__),
        }
        path = self.out / "settings.json"
        if path.exists():
            there = json.loads(path.read_text())
            differing = [name for name in head if head[name] != there.get(name)]
            if differing:
                raise SystemExit(f"{path}: settings must be those of the run to go on with, differ: {differing}")
        else:
            path.write_text(json.dumps(head, indent=2, sort_keys=True) + "\n")

    # ---- the experts: planned once, trained as they are wanted

    def _experts(self, tokenizer: Any) -> Experts:
        """The product's experts of the copy, with rows for the controls, planned where they are not."""
        self.plan = plan_leaves(self.copy, self.config)
        self.folder = folder_of(self.copy.path, self.trainer.fingerprint)
        self.component_of = {i: group_of(self.copy.documents[i], "pile_set_name") for i in map(int, self.copy.ids)}
        clusters = len(self.plan.members)
        self.control_row: dict[str, int] = {}
        controls: list[list[int]] = []
        for turn, (_, document, case) in enumerate(self.cases):
            near = {member.id for member in self.plan.members[self.nearest(case)[0]]}
            component = group_of(document, "pile_set_name")
            among = [i for i, name in self.component_of.items() if name == component and i not in near]
            self.control_row[f"component {turn}"] = clusters + len(controls)
            controls.append(self._drawn(f"component {turn}", among, self.args.leaf_documents))
        for draw in range(_ANY):
            self.control_row[f"any-{draw}"] = clusters + len(controls)
            controls.append(self._drawn(f"any {draw}", list(self.component_of), self.args.leaf_documents))
        lists = [*self.plan.members, *([self._member(i) for i in ids] for ids in controls)]
        if not (self.folder / MANIFEST).exists():
            self._begin(tokenizer, lists)
        self.manifest = read_experts(self.folder, model=self.trainer.fingerprint)
        assert read_members(self.folder, self.manifest)[1:] == lists, "the plan is another one now"
        self.root = ExpertRows(self.folder, self.manifest).read(0)
        self.probes = [*self.plan.probes, *([] for _ in controls)]
        return Experts(self.copy, model=self.trainer.fingerprint, tokenizer=tokenizer)

    def _begin(self, tokenizer: Any, lists: list[list[Member]]) -> None:
        """Write the study's root as row 0, and room for all other experts."""
        shapes = {name: shape_of(self.learner.get_submodule(name)) for name in chosen_layers(self.learner, ())}
        state = torch.load(self.args.states / f"root-{self.args.root_rate:g}-{self.args.root_steps}.pt")["b"]
        assert [tuple(b.shape) for b in state] == [(outputs, 16) for outputs, _ in shapes.values()]
        numbers = np.concatenate([b.numpy().reshape(-1) for b in state]).astype(np.float32)
        lines = [line for line in lines_of(self.args.study / "roots.jsonl") if line["rate"] == self.args.root_rate]
        root = [Member(line["id"], line["digest"]) for line in lines[: self.args.root_steps]]
        assert all(self.copy.documents[member.id].text for member in root)
        entry = ExpertEntry(ROOT, 0, len(root), members_digest(root), len(root), 0.0, 0.0)
        manifest = ExpertsManifest(
            model=self.trainer.fingerprint,
            model_name=self.args.model,
            tokenizer=digest_of_tokenizer(tokenizer),
            layers=tuple(LayerEntry(name, *shape) for name, shape in shapes.items()),
            rank=self.config.rank,
            scale=self.config.scale,
            seed=self.config.seed,
            a_digest=digest_of_matrices(shared_a(shapes, rank=self.config.rank, seed=self.config.seed)),
            settings=json.loads(json.dumps(self.config.to_dict())),
            threads=self.args.threads,
            versions={"torch": str(torch.__version__)},
            experts=(entry,),
            next_id=self.copy.manifest.next_id,
            number=1,
            clusters=len(lists),
            listed=len(root) + sum(map(len, lists)),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        far = np.full((len(lists) - len(self.plan.centers), self.plan.centers.shape[1]), _FAR, np.float32)
        write_members(self.folder / manifest.members_file, manifest.model, [root, *lists])
        write_centers(self.folder / manifest.centers_file, manifest.model, np.concatenate([self.plan.centers, far]))
        begin_rows(
            self.folder / manifest.rows_file, manifest.model, manifest.rows, manifest.numbers, {0: row_of(numbers)}
        )
        write_experts(self.folder, manifest)

    def _member(self, number: int) -> Member:
        return Member(number, text_digest(self.copy.documents[number].text))

    def _drawn(self, seed: str, among: list[int], count: int) -> list[int]:
        """So many documents of two words or more, drawn at random."""
        order = sorted(among)
        random.Random(f"{self.args.seed} {seed}").shuffle(order)
        return [i for i in order if len(self.copy.documents[i].text.split()) > 1][:count]

    def nearest(self, case: Case) -> list[int]:
        """The clusters in the order of their nearness to a query."""
        vector = self.datastore.embedder.embed([case.task.query])[0]
        return [int(c) for c in np.argsort(distances_to(vector, self.plan.centers), kind="stable")[:4]]

    def rate(self) -> float:
        """The rate of --rates under which two leaves have the lower loss on other documents of their clusters."""
        clusters = [self.nearest(self.cases[turn][2])[0] for turn in _RATE_TURNS]
        losses = {}
        for rate in self.args.rates:
            lines = [self._trained(cluster, rate, probes=LEAF_PROBES)[1] for cluster in clusters]
            losses[rate] = sum(line["loss_after"] - line["loss_before"] for line in lines)
        return min(losses, key=lambda rate: losses[rate])

    def _trained(self, cluster: int, rate: float, *, probes: int = 1) -> tuple[bytes, dict[str, Any]]:
        """The row of an expert and its line; trained where it is not in the work folder.

        Its loss on other documents of its cluster is of so many of them; of a control, on some that it saw.
        """
        place = self.args.work / f"row-{cluster}-{rate:g}.bin"
        lines = {(line["cluster"], line["rate"]): line for line in lines_of(self.out / "leaves.jsonl")}
        if place.exists() and (cluster, rate) in lines:
            return place.read_bytes(), lines[cluster, rate]
        members = self.lists()[cluster]
        job = LeafJob(cluster, tuple(member.id for member in members), tuple(self.probes[cluster][:probes]))
        tokens = DocumentTokens(self.copy, self.texts, self.args.tokens)
        started = time.perf_counter()
        with torch.enable_grad():
            config = self.config.with_(leaf_learning_rate=rate)
            (leaf,) = train_leaves(self.learner, tokens, config, self.root, [job])
        partial = place.with_suffix(".partial")
        partial.write_bytes(leaf.row)
        partial.replace(place)
        line = {
            "cluster": cluster,
            "kind": next((name for name, row in self.control_row.items() if row == cluster), "leaf"),
            "rate": rate,
            "documents": len(members),
            "members": members_digest(members),
            "probes": len(job.probes),
            "steps": leaf.steps,
            "loss_before": leaf.loss_before,
            "loss_after": leaf.loss_after,
            "change": float(np.sqrt(np.mean(numbers_of(leaf.row, len(self.root)) ** 2))),
            "seconds": round(time.perf_counter() - started, 1),
        }
        if (cluster, rate) not in lines:
            with open(self.out / "leaves.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return leaf.row, line

    def lists(self) -> list[list[Member]]:
        """The documents of all experts but the root."""
        return read_members(self.folder, self.manifest)[1:]

    def want(self, cluster: int) -> UsedExpert:
        """Train an expert, put it among the product's where it is not, and name it."""
        members = self.lists()[cluster]
        if cluster + 1 not in {entry.row for entry in self.manifest.experts}:
            row, line = self._trained(cluster, self.chosen_rate)
            put_row(self.folder / self.manifest.rows_file, cluster + 1, row)
            entry = ExpertEntry(
                leaf_name(cluster),
                cluster + 1,
                len(members),
                members_digest(members),
                line["steps"],
                line["loss_before"],
                line["loss_after"],
            )
            entries = sorted([*self.manifest.experts, entry], key=lambda entry: entry.row)
            self.manifest = replace(self.manifest, experts=tuple(entries))
            write_experts(self.folder, self.manifest)
        return UsedExpert(leaf_name(cluster), 1.0, len(members), members_digest(members))

    # ---- what is measured

    def run(self) -> None:
        self.chosen_rate = self.rate()
        rounds = (
            self.one_leaf,
            self.one_leaf_and_context,
            self.component,
            self.two_leaves,
            self.exact_on_five,
            self.exact_on_ten,
            self.more_leaves,
        )
        for measured in rounds:
            for turn, (position, document, case) in enumerate(self.cases):
                there = lines_of(self.out / "lines.jsonl")
                done = {(line["method"], line["k"]) for line in there if line["document"] == position}
                with open(self.out / "lines.jsonl", "a", encoding="utf-8") as file:
                    for line in measured(turn, case, done):
                        head = {
                            "document": position,
                            "turn": turn,
                            "digest": text_digest(document.text),
                            "component": group_of(document, self.settings.group_field),
                            "bytes": len(case.task.scored.encode()),
                        }
                        file.write(json.dumps(head | line) + "\n")
                        file.flush()

    def one_leaf(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        if {("root", 0), ("leaves", 1), ("half", 0), ("any-0", 0)} <= done:
            return  # before a leaf is trained that nothing is left to be measured with
        leaf = self.want(self.nearest(case)[0])
        yield from self._nearest(case, 0, {"root": []}, done)
        yield from self._nearest(case, 1, {"leaves": []}, done)
        yield from self._merged(case, [replace(leaf, weight=0.5)], {"half": []}, done)
        yield from self._merged(case, [self.want(self.control_row["any-0"])], {"any-0": []}, done)

    def one_leaf_and_context(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        self.want(self.nearest(case)[0])
        yield from self._nearest(case, 1, {"leaves1+context": [4]}, done)

    def component(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        component = self.want(self.control_row[f"component {turn}"])
        yield from self._merged(case, [component], {"component": []}, done)
        yield from self._merged(case, [self.want(self.control_row["any-0"])], {"any-0+context": [4]}, done)

    def two_leaves(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        for cluster in self.nearest(case)[:2]:
            self.want(cluster)
        draws = [self.want(self.control_row[f"any-{draw}"]) for draw in range(_ANY)]
        halves = [replace(draw, weight=1 / _ANY) for draw in draws]
        yield from self._nearest(case, 2, {"leaves": [], "leaves2+context": [2, 4]}, done)
        yield from self._merged(case, draws[1:2], {"any-1": []}, done)
        yield from self._merged(case, halves, {"any-both": []}, done)

    def more_leaves(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        for count in (3, 4):
            self.want(self.nearest(case)[count - 1])
            yield from self._nearest(case, count, {"leaves": []}, done)

    def exact_on_five(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        yield from self._exact(turn, case, 5, done)

    def exact_on_ten(self, turn: int, case: Case, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        yield from self._exact(turn, case, 10, done)

    def _nearest(
        self, case: Case, leaves: int, wanted: dict[str, list[int]], done: set[tuple[str, int]]
    ) -> Iterator[dict[str, Any]]:
        """The experts that the product chooses, by the product's and evaluation's rules."""
        yield from self._scored(case, self.experts, leaves, wanted, done)

    def _merged(
        self, case: Case, used: list[UsedExpert], wanted: dict[str, list[int]], done: set[tuple[str, int]]
    ) -> Iterator[dict[str, Any]]:
        """The root and experts that are named."""
        root = self.manifest.experts[0]
        self.named.used = [UsedExpert(root.name, 1.0, root.documents, root.members), *used]
        yield from self._scored(case, self.named, 0, wanted, done)

    def _scored(
        self,
        case: Case,
        source: ExpertSource,
        leaves: int,
        wanted: dict[str, list[int]],
        done: set[tuple[str, int]],
    ) -> Iterator[dict[str, Any]]:
        """A line for each name of `wanted`: at `leaves` where its list is empty, else behind so many neighbors."""
        points = [(name, k, k) for name, ks in wanted.items() for k in ks]
        points += [(name, 0, leaves) for name, ks in wanted.items() if not ks]
        points = [point for point in points if (point[0], point[2]) not in done]
        if not points:
            return
        config = self.trainer.config.with_(mode="instant", context_neighbors=0, leaves=leaves)
        self.trainer.experts = self.experts
        excluded = case.seen_and_scored(config)
        self.trainer.experts = source
        found = case.found()
        lines = []
        with self.trainer.adapt(case.task.query, config=config, neighbors=[], exclude_digests=excluded) as adapted:
            report = adapted.report
            assert report.experts is not None
            assert not report.experts.left_out, report.experts
            for name, neighbors, k in sorted(points, key=lambda point: point[1]):
                tokens, used = case.neighbors_in_context(found, neighbors) if neighbors else ([], None)
                line = line_of(name, k, case.scored(self.trainer, tokens), used, found if neighbors else None)
                experts = [[e.name, round(e.weight, 6), e.distance] for e in report.experts.used]
                lines.append(line | {"experts": experts, "expert_seconds": round(report.seconds["experts"], 3)})
        yield from lines

    def _exact(self, turn: int, case: Case, k: int, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """Training on documents that are not near, from the base model and from the root."""
        near = {neighbor.id for neighbor in case.found().neighbors}
        component = group_of(case.document, "pile_set_name")
        of = {
            "component": [i for i, name in self.component_of.items() if name == component and i not in near],
            "any": [i for i in self.component_of if i not in near],
        }
        self.trainer.experts = self.experts
        root = self.trainer.config.with_(mode="auto", deadline_ms=_NO_DEADLINE, context_neighbors=0, leaves=0)
        for prefix, config in (("", None), ("root+", root)):
            for name, among in of.items():
                method = f"{prefix}exact-{name}"
                if (method, k) in done:
                    continue
                ids = self._drawn(f"exact {name} {turn}", among, k)
                given = [Neighbor(i, 0.0, self.copy.documents[i].text) for i in ids]
                with self.trainer.adapt(case.task.query, config=config, neighbors=given) as adapted:
                    scored, report = case.scored(self.trainer), adapted.report
                assert report.steps == k, report.steps
                rows = [UsedNeighbor(n.id, n.digest, n.distance, n.tokens, n.span) for n in report.neighbors]
                yield line_of(method, k, scored, rows) | {"train_seconds": round(report.seconds["train"], 3)}


def print_table(args: argparse.Namespace) -> None:
    """Print each method's bits per byte over base, over the root, and over the control of equal steps."""
    of: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for folder in (args.study, args.out):
        for line in lines_of(folder / "lines.jsonl"):
            if line["turn"] < args.limit:
                of.setdefault((line["method"], line["k"]), {})[line["document"]] = line
    rivals = [("base", 0), ("root", 0), ("any-0", 0)]
    print("| method | documents | over base | over root | over any-0 |\n|---|---:|---:|---:|---:|")
    for key, lines in of.items():
        cells = []
        for rival in rivals:
            both = sorted(lines.keys() & of.get(rival, {}).keys())
            cells.append(ratio(lines, of[rival], both) if both and rival != key else "")
        print(f"| {key[0]} {key[1]} | {len(lines)} | {' | '.join(cells)} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, required=True, help="OUT of instant_study.py")
    parser.add_argument("--states", type=Path, default=Path("instant-study"), help="its --work")
    parser.add_argument("--work", type=Path, default=Path("instant-leaves"), help="datastore and experts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=19, help="documents to measure")
    parser.add_argument("--tokens", type=int, default=256, help="of a query, a scored text, a document or a neighbor")
    parser.add_argument("--root-rate", type=float, default=3e-4)
    parser.add_argument("--root-steps", type=int, default=100)
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[3e-4, 1e-3])
    parser.add_argument("--cluster-size", type=int, default=30)
    parser.add_argument("--leaf-documents", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what OUT holds, and measure nothing")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.table:
        print_table(args)
        return
    torch.set_num_threads(args.threads)
    Study(args).run()


if __name__ == "__main__":
    main()
