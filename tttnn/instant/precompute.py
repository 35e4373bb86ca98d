"""Training the experts of a datastore for a model: planned, estimated, trained, written one by one.

Knows a datastore, a model and the order of things. Does not know queries or how experts are used.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import models
from ..config import AdaptConfig, ExpertConfig, Progress
from ..datastore.datastore import Datastore
from ..datastore.lock import locked
from ..errors import AdaptError, ConfigError
from ..files import digest_of
from ..lm.limits import model_max_length
from ..lm.tokenizer_digest import digest_of_tokenizer
from ..lm.tokens import TextTokens
from ..training.experts import Member
from ..version import __version__
from ..weights.lora import chosen_layers, shape_of
from ..weights.low_rank_update import digest_of_matrices, shared_a
from .asked import asked_by, begin_asked, largest_first, watched
from .centers import read_centers, write_centers
from .fingerprint import fingerprint_of
from .int4 import pack, unpack
from .leaf_training import LeafJob, TrainedLeaf, train_leaves
from .leaf_workers import LeafRecipe, start_leaf_workers
from .low_rank_training import ExpertTraining
from .manifest import (
    FORMAT,
    MANIFEST,
    ROOT,
    STATE,
    ExpertEntry,
    ExpertsManifest,
    LayerEntry,
    bytes_of,
    folder_of,
    leaf_name,
    read_experts,
    write_experts,
)
from .members import members_digest, read_members, write_members
from .plan import DocumentTokens, LeafPlan, plan_leaves, plan_root, require_documents
from .precompute_report import PrecomputeEstimate, PrecomputeReport
from .rows import ExpertRows, begin_rows, put_row, row_bytes, row_of
from .time_limit import TimeLimit

_OF_LEAVES = ("leaf_documents", "leaf_learning_rate")
_OF_CLUSTERS = ("cluster_size",)
_NOT_OF_ROOT = _OF_LEAVES + _OF_CLUSTERS


class Precompute:
    """The experts of a datastore for one model: which documents they are trained on, and their training."""

    def __init__(
        self,
        datastore: Datastore,
        model: Any,
        tokenizer: Any,
        config: ExpertConfig | None = None,
        *,
        leaves: bool = True,
    ) -> None:
        """Plan the root.

        Args:
            datastore: whose documents are learned.
            model: a transformers causal language model in float32; afterwards it is what it was.
            tokenizer: its tokenizer.
            config: how to train.
            leaves: whether clusters have experts, too.

        Raises:
            ConfigError: `max_length` is more than the model reads at once, or clusters are asked for of passages.
            AdaptError: the weights are not float32, or the datastore has no document of two tokens.
        """
        if leaves:
            require_documents(datastore)
        self.config = config or ExpertConfig()
        self._datastore = datastore
        self._model = model
        self._with_leaves = leaves
        texts = TextTokens(tokenizer)
        window = model_max_length(model, tokenizer)
        if self.config.max_length > window:
            raise ConfigError(
                f"max_length must be at most {window} (what the model reads at once), got {self.config.max_length}"
            )
        if any(parameter.dtype is not torch.float32 for parameter in model.parameters()):
            raise AdaptError("model must be float32 to train experts. Load it with --dtype float32.")
        self.fingerprint = fingerprint_of(model)
        self.folder = folder_of(datastore.path, self.fingerprint)
        self._tokenizer = digest_of_tokenizer(tokenizer)
        self._layers = tuple(
            LayerEntry(name, *shape_of(model.get_submodule(name))) for name in chosen_layers(model, self.config.targets)
        )
        self._numbers = sum(layer.outputs for layer in self._layers) * self.config.rank
        self._tokens = DocumentTokens(datastore, texts, self.config.max_length)
        self._root = plan_root(datastore, self._tokens, self.config)
        self._steps = 0
        self._root_trained = False

    def estimate(self) -> PrecomputeEstimate:
        """Measure two steps, and say what all of them will take."""
        plan = plan_leaves(self._datastore, self.config) if self._with_leaves else None
        windows = self._root.windows
        with ExpertTraining(self._model, self.config) as training:
            longest = max(windows, key=len)
            training.run([longest])
            training.begin()
            started = time.perf_counter()
            training.run([longest])
            second_a_token = (time.perf_counter() - started) / len(longest)
        mean = sum(map(len, windows)) / len(windows)
        leaf_steps = 0 if plan is None else sum(map(len, plan.members))
        probed = 2 * (len(self._root.probes) + (0 if plan is None else sum(map(len, plan.probes))))
        tokens = mean * (len(windows) + leaf_steps + probed / 3)  # a probe is a forward alone
        leaves = 0 if plan is None else len(plan.members)
        disk = row_bytes(self._numbers) * (1 + leaves) + 64 + 80 + 32 * (len(windows) + leaf_steps)
        if plan is not None:
            disk += plan.centers.nbytes + 80
        return PrecomputeEstimate(
            len(windows), leaves, len(windows) + leaf_steps, second_a_token * tokens, disk, self._numbers
        )

    def run(
        self,
        *,
        update: bool = False,
        limit_seconds: float | None = None,
        workers: int = 1,
        recipe: LeafRecipe | None = None,
        queries: Sequence[NDArray[np.float32]] = (),
        watch: bool = False,
        progress: Progress | None = None,
    ) -> PrecomputeReport:
        """Train and write what is missing; each expert that is done is used at once. Interrupted, the same goes on.

        Args:
            update: train anew what was trained with other settings, or would be trained on other documents now.
            limit_seconds: no expert of a cluster is begun that would probably end later than so long after the call.
            workers: processes that train the experts of clusters.
            recipe: what each of these loads; needed where there are several.
            queries: vectors of queries, (dim,) each: the clusters nearest to them come first, then the largest.
            watch: train only those that queries miss, as they miss them, until all are there.
            progress: called with the stages "root" (steps) and "leaves" (experts): done, and all of them.

        Raises:
            FileExistsError: there are other experts than would be trained now, and no `update`.
            DatastoreLockedError: another process trains experts for this model.
            IndexCorruptError: a file of the experts is damaged.
            NonFiniteLossError: the learning rate is too high.
            TttnnError: a worker died.
        """
        started = time.perf_counter()
        self._steps = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            there = read_experts(self.folder, model=self.fingerprint) if (self.folder / MANIFEST).exists() else None
            manifest = self._with_root(there, update=update, progress=progress)
            before = len(manifest.experts)
            if self._with_leaves:
                manifest, plan = self._with_plan(manifest, update=update)
                before = len(manifest.experts)
                missing = set(range(len(plan.members))) - {entry.row - 1 for entry in manifest.experts}
                order: Iterable[int]
                if watch:
                    begin_asked(self.folder / manifest.asked_file)
                    order = watched(self.folder / manifest.asked_file, set(missing))
                else:
                    asked = asked_by(queries, plan.centers, AdaptConfig().leaves)
                    order = [cluster for cluster in largest_first(plan.sizes, asked) if cluster in missing]
                end = math.inf if limit_seconds is None else started + limit_seconds
                manifest = self._with_leaves_of(manifest, _jobs(plan, order), TimeLimit(end), workers, recipe, progress)
        return self._report(manifest, trained=self._root_trained, before=before, began=started)

    def _with_root(self, there: ExpertsManifest | None, *, update: bool, progress: Progress | None) -> ExpertsManifest:
        """Return the manifest with a root in it, trained where there was none that fits."""
        self._root_trained = False
        wanted = members_digest(self._root.members)
        if there is not None:
            same = _settings_without(there.config, _NOT_OF_ROOT) == _settings_without(self.config, _NOT_OF_ROOT)
            if same and (there.experts[0].members == wanted or self._is_worth_keeping(there)):
                return there
            if not update:
                raise _differ(self.folder)
        number = 1 if there is None else there.number + 1
        row, entry = self._train_root(wanted, progress)
        manifest = ExpertsManifest(
            model=self.fingerprint,
            model_name=models.name_of(getattr(self._model.config, "_name_or_path", "")),
            tokenizer=self._tokenizer,
            layers=self._layers,
            rank=self.config.rank,
            scale=self.config.scale,
            seed=self.config.seed,
            a_digest=digest_of_matrices(self._shared_a()),
            settings=json.loads(json.dumps(self.config.to_dict())),
            threads=torch.get_num_threads(),
            versions=_versions(),
            experts=(entry,),
            next_id=self._datastore.manifest.next_id,
            number=number,
        )
        write_members(self.folder / manifest.members_file, self.fingerprint, [self._root.members])
        begin_rows(self.folder / manifest.rows_file, self.fingerprint, 1, self._numbers, {0: row})
        write_experts(self.folder, manifest)
        (self.folder / STATE).unlink(missing_ok=True)
        self._root_trained = True
        return manifest

    def _is_worth_keeping(self, there: ExpertsManifest) -> bool:
        """Return whether experts of clusters were trained from a root that saw no document that is gone."""
        if len(there.experts) == 1:
            return False
        alive = set(map(int, self._datastore.ids))
        return all(member.id in alive for member in read_members(self.folder, there)[0])

    def _train_root(self, wanted: str, progress: Progress | None) -> tuple[bytes, ExpertEntry]:
        windows, probes = self._root.windows, self._root.probes

        def on_step(done: int) -> None:
            self._steps += 1
            if progress is not None:
                progress("root", done, len(windows))

        plan = digest_of(
            {
                "model": self.fingerprint,
                "settings": _settings_without(self.config, _NOT_OF_ROOT),
                "members": wanted,
                "versions": _versions(),
            }
        )
        with ExpertTraining(self._model, self.config) as training:
            before = training.mean_loss(probes)
            training.run(windows, state=self.folder / STATE, plan=plan, on_step=on_step)
            numbers = training.numbers()
            training.put(unpack(*pack(numbers), len(numbers)))
            after = training.mean_loss(probes)
        return row_of(numbers), ExpertEntry(ROOT, 0, len(windows), wanted, len(windows), before, after)

    def _shared_a(self) -> dict[str, torch.Tensor]:
        shapes = {layer.name: (layer.outputs, layer.inputs) for layer in self._layers}
        return shared_a(shapes, rank=self.config.rank, seed=self.config.seed)

    def _with_plan(self, manifest: ExpertsManifest, *, update: bool) -> tuple[ExpertsManifest, LeafPlan]:
        """Return the manifest with rows for the experts of all clusters, and the plan of what they are trained on.

        Those that are there and would be trained alike are kept.
        """
        before, config = manifest.config, self.config
        same_clusters = manifest.clusters > 0 and _settings(before, _OF_CLUSTERS) == _settings(config, _OF_CLUSTERS)
        same_leaves = same_clusters and _settings(before, _OF_LEAVES) == _settings(config, _OF_LEAVES)
        centers = None
        if same_clusters:
            centers = read_centers(self.folder, manifest, self._datastore.manifest.dim)
        plan = plan_leaves(self._datastore, config, centers)
        members = read_members(self.folder, manifest)
        if same_leaves and members[1:] == plan.members:
            return manifest, plan
        if manifest.clusters and not update:
            raise _differ(self.folder)
        rows = ExpertRows(self.folder, manifest)
        kept = [
            entry
            for entry in manifest.experts
            if entry.row == 0 or (same_leaves and members[entry.row] == plan.members[entry.row - 1])
        ]
        planned = replace(
            manifest,
            settings=json.loads(json.dumps(config.to_dict())),
            experts=tuple(kept),
            next_id=self._datastore.manifest.next_id,
            number=manifest.number + 1,
            clusters=len(plan.members),
            listed=len(members[0]) + sum(map(len, plan.members)),
            format=FORMAT,
        )
        write_members(self.folder / planned.members_file, self.fingerprint, [members[0], *plan.members])
        write_centers(self.folder / planned.centers_file, self.fingerprint, plan.centers)
        copied = {entry.row: rows.row(entry.row) for entry in kept}
        begin_rows(self.folder / planned.rows_file, self.fingerprint, planned.rows, self._numbers, copied)
        write_experts(self.folder, planned)
        return planned, plan

    def _with_leaves_of(
        self,
        manifest: ExpertsManifest,
        jobs: Iterator[LeafJob],
        limit: TimeLimit,
        workers: int,
        recipe: LeafRecipe | None,
        progress: Progress | None,
    ) -> ExpertsManifest:
        """Train the experts of jobs, each of which is written when it is done."""
        jobs = limit.begun(jobs)
        root = ExpertRows(self.folder, manifest).read(0)
        members = read_members(self.folder, manifest)
        with ExitStack() as stack:
            if workers == 1:
                here = train_leaves(self._model, self._tokens, self.config, root, jobs)
                trained: Iterator[TrainedLeaf] = stack.enter_context(closing(here))
            else:
                if recipe is None:
                    raise ConfigError(f"recipe must be given where there are several workers, got None and {workers}")
                path = str(self._datastore.path)
                pool = start_leaf_workers(workers, recipe, path, self.fingerprint, self.config, root)
                stack.callback(pool.close)
                trained = pool.answers(jobs)
            if progress is not None:
                progress("leaves", len(manifest.experts) - 1, manifest.clusters)
            for leaf in trained:
                limit.done(leaf.cluster)
                manifest = self._with_leaf(manifest, leaf, members[leaf.cluster + 1])
                self._steps += leaf.steps
                if progress is not None:
                    progress("leaves", len(manifest.experts) - 1, manifest.clusters)
        return manifest

    def _with_leaf(self, manifest: ExpertsManifest, leaf: TrainedLeaf, members: list[Member]) -> ExpertsManifest:
        row = leaf.cluster + 1
        put_row(self.folder / manifest.rows_file, row, leaf.row)
        entry = ExpertEntry(
            leaf_name(leaf.cluster),
            row,
            len(members),
            members_digest(members),
            leaf.steps,
            leaf.loss_before,
            leaf.loss_after,
        )
        there = sorted([*manifest.experts, entry], key=lambda entry: entry.row)
        manifest = replace(manifest, experts=tuple(there))
        write_experts(self.folder, manifest)
        return manifest

    def _report(self, manifest: ExpertsManifest, *, trained: bool, before: int, began: float) -> PrecomputeReport:
        root, *leaves = manifest.experts
        return PrecomputeReport(
            model=self.fingerprint,
            folder=str(self.folder),
            trained=trained,
            documents=root.documents,
            loss_before=root.loss_before,
            loss_after=root.loss_after,
            leaves=manifest.clusters,
            leaves_there=len(leaves),
            leaves_trained=len(manifest.experts) - before,
            leaf_loss_before=sum(entry.loss_before for entry in leaves) / len(leaves) if leaves else None,
            leaf_loss_after=sum(entry.loss_after for entry in leaves) / len(leaves) if leaves else None,
            steps=self._steps,
            bytes_on_disk=bytes_of(self.folder),
            seconds=time.perf_counter() - began,
        )


def _jobs(plan: LeafPlan, order: Iterable[int]) -> Iterator[LeafJob]:
    for cluster in order:
        yield LeafJob(cluster, tuple(member.id for member in plan.members[cluster]), tuple(plan.probes[cluster]))


def _settings(config: ExpertConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return some settings by their names."""
    return {name: getattr(config, name) for name in names}


def _settings_without(config: ExpertConfig, without: Sequence[str]) -> dict[str, Any]:
    """Return the other settings."""
    return {name: value for name, value in config.to_dict().items() if name not in without}


def _differ(folder: Path) -> FileExistsError:
    """Return the error for experts that are there and are not those that would be trained now."""
    return FileExistsError(
        f"{folder}: its experts were trained with other settings or on other documents. Train them anew with: tttnn "
        "precompute --update"
    )


def _versions() -> dict[str, str]:
    import transformers

    return {
        "tttnn": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
