"""The experts of a datastore for one model, as a query uses them: chosen, left out, read, described.

Knows files, members and which documents are there. Does not know how a change of weights is applied or undone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import AdaptConfig
from ..datastore.datastore import Datastore
from ..errors import AdaptError, DatastoreMismatchError
from ..files import digest_of
from ..lm.tokenizer_digest import digest_of_tokenizer
from ..training.experts import ChosenExperts, ExpertsReport, Member, UsedExpert
from ..weights.low_rank_update import LowRankUpdate, digest_of_matrices, shared_a
from .asked import ask
from .centers import read_centers
from .clusters import distances_to
from .manifest import FOLDER, MANIFEST, ExpertEntry, ExpertsManifest, folder_of, read_experts, remedy
from .members import check_members, read_members
from .rows import ExpertRows


@dataclass(frozen=True)
class _Opened:
    stamp: tuple[int, ...]
    manifest: ExpertsManifest
    entry_of: dict[int, ExpertEntry]
    """By row."""
    members: list[list[Member]]
    """By row, of experts still to be trained too."""
    centers: NDArray[np.float32]
    rows: ExpertRows
    a: dict[str, torch.Tensor]


class Experts:
    """Gives a trainer the experts of its datastore for its model; nothing is opened before a query wants one."""

    def __init__(self, datastore: Datastore, *, model: str, tokenizer: Any) -> None:
        """Stand ready.

        Args:
            datastore: whose experts are used; deletions in it count at once.
            model: fingerprint of the model's weights.
            tokenizer: of the model.
        """
        self._datastore = datastore
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder_of(datastore.path, model)
        self._open: _Opened | None = None
        self._alive: tuple[str, set[int]] = "", set()
        self._last_update: tuple[tuple[tuple[str, float], ...], LowRankUpdate] | None = None

    def choose(
        self, query: str, config: AdaptConfig, excluded: Collection[str], *, distance: float | None
    ) -> ChosenExperts:
        """Return the experts for a query; see `training.experts.ExpertSource`."""
        opened = self._opened()
        report = ExpertsReport(distance=distance)
        limit = config.expert_distance
        reason = self._reason(opened, 0, excluded)
        if reason is None and limit is not None and (distance is None or distance > limit):
            reason = "far"
        if reason is not None:
            report.left_out[reason] = 1
            return ChosenExperts(report, None)
        root = opened.entry_of[0]
        report.used.append(UsedExpert(root.name, 1.0, root.documents, root.members))
        missed = []
        for cluster, away, weight in self._near(opened, query, config):
            reason = self._reason(opened, cluster + 1, excluded)
            if reason is None and config.leaf_distance is not None and away > config.leaf_distance:
                reason = "far"
            if reason is not None:
                report.left_out[reason] = report.left_out.get(reason, 0) + 1
                missed += [cluster] if reason == "untrained" else []
                continue
            entry = opened.entry_of[cluster + 1]
            report.used.append(UsedExpert(entry.name, weight, entry.documents, entry.members, away))
        if missed:
            ask(self._folder / opened.manifest.asked_file, missed)
        return ChosenExperts(report, self._update(opened, report.used))

    def near(self, query: str, config: AdaptConfig) -> dict[str, list[Member]]:
        """Return what the experts that a query may use have seen; see `training.experts.ExpertSource`."""
        opened = self._opened()
        rows = [0, *(cluster + 1 for cluster, _, _ in self._near(opened, query, config))]
        return {opened.entry_of[row].name: opened.members[row] for row in rows if row in opened.entry_of}

    def _near(self, opened: _Opened, query: str, config: AdaptConfig) -> list[tuple[int, float, float]]:
        """Return the clusters nearest to a query, nearest first: number, squared distance, weight.

        Weights are shares of one among these, whether their experts can be used or not: what one of them leaves stays
        with the root, from which all were trained.
        """
        if config.leaves == 0 or len(opened.centers) == 0:
            return []
        distances = distances_to(self._datastore.embedder.embed([query])[0], opened.centers)
        clusters = np.argsort(distances, kind="stable")[: config.leaves]
        logits = -distances[clusters] / 2 / config.leaf_temperature
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        return [(int(c), float(distances[c]), float(share)) for c, share in zip(clusters, shares, strict=True)]

    def _reason(self, opened: _Opened, row: int, excluded: Collection[str]) -> str | None:
        """Return why an expert cannot be used; None where it can."""
        if row not in opened.entry_of:
            return "untrained"
        alive, members = self._ids(), opened.members[row]
        if any(member.id not in alive for member in members):
            return "deleted"
        if any(member.digest in excluded for member in members):
            return "excluded"
        return None

    def named(self, used: Sequence[UsedExpert]) -> LowRankUpdate | None:
        """Return the update of experts that a report names, which must be the same ones.

        Raises:
            AdaptError: an expert was trained anew since, or saw a document that was deleted.
        """
        if not used:
            return None
        opened = self._opened()
        of = {entry.name: entry for entry in opened.manifest.experts}
        for expert in used:
            entry = of.get(expert.name)
            if entry is None or entry.members != expert.members:
                raise AdaptError(f"expert {expert.name} of the report must be the one of the datastore; it is another")
            if self._reason(opened, entry.row, ()) is not None:
                raise AdaptError(f"expert {expert.name} of the report saw a document that was deleted since")
        return self._update(opened, used)

    def max_length(self) -> int:
        """Return how many tokens of a document experts are trained on."""
        return self._opened().manifest.config.max_length

    def digest(self) -> str:
        """Return what tells these experts from others: models, settings, documents and losses."""
        return digest_of(json.loads(json.dumps(asdict(self._opened().manifest))))

    def members(self) -> dict[str, list[Member]]:
        """Return the documents that each expert saw, by the expert's name."""
        opened = self._opened()
        return {entry.name: opened.members[entry.row] for entry in opened.manifest.experts}

    def _ids(self) -> set[int]:
        """Return the ids of the documents that are there now."""
        self._datastore.refresh()
        if self._alive[0] != self._datastore.id:
            self._alive = self._datastore.id, set(map(int, self._datastore.ids))
        return self._alive[1]

    def _opened(self) -> _Opened:
        try:
            status = (self._folder / MANIFEST).stat()
        except FileNotFoundError:
            raise _nothing_there(self._datastore.path, self._model) from None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._open is None or self._open.stamp != stamp:
            manifest = read_experts(self._folder, model=self._model)
            tokenizer = digest_of_tokenizer(self._tokenizer)
            if tokenizer != manifest.tokenizer:
                raise DatastoreMismatchError(
                    f"{self._folder}: was trained with the tokenizer {manifest.tokenizer}, got {tokenizer}. Load the "
                    "model with its own tokenizer."
                )
            self._open = self._read(stamp, manifest)
        return self._open

    def _read(self, stamp: tuple[int, ...], manifest: ExpertsManifest) -> _Opened:
        """Open the files that a manifest names; what an expert more leaves as it was is taken over."""
        before, entry_of = self._open, {entry.row: entry for entry in manifest.experts}
        if before is not None and before.manifest.number == manifest.number:
            check_members(self._folder, manifest, before.members)
            return replace(before, stamp=stamp, manifest=manifest, entry_of=entry_of)
        a = shared_a(
            {layer.name: (layer.outputs, layer.inputs) for layer in manifest.layers},
            rank=manifest.rank,
            seed=manifest.seed,
        )
        if digest_of_matrices(a) != manifest.a_digest:
            raise DatastoreMismatchError(
                f"{self._folder}: the fixed matrices drawn here are not those of training (torch "
                f"{manifest.versions.get('torch')}, here {torch.__version__}). {remedy()}"
            )
        self._last_update = None
        members = read_members(self._folder, manifest)
        check_members(self._folder, manifest, members)
        centers = read_centers(self._folder, manifest, self._datastore.manifest.dim)
        return _Opened(stamp, manifest, entry_of, members, centers, ExpertRows(self._folder, manifest), a)

    def _update(self, opened: _Opened, used: Sequence[UsedExpert]) -> LowRankUpdate | None:
        """Return W + scale (sum of w B) A of experts, added in the order of their rows."""
        if not used:
            return None
        weights = {expert.name: expert.weight for expert in used}
        key = tuple(sorted(weights.items()))
        if self._last_update is None or self._last_update[0] != key:
            first, *others = [entry for entry in opened.manifest.experts if entry.name in weights]
            total: NDArray[np.float32] = opened.rows.read(first.row) * np.float32(weights[first.name])
            product = np.empty_like(total)
            for entry in others:
                total += np.multiply(opened.rows.read(entry.row), np.float32(weights[entry.name]), out=product)
            self._last_update = key, LowRankUpdate(_layers(opened, total), opened.manifest.scale)
        return self._last_update[1]


def _layers(opened: _Opened, numbers: NDArray[np.float32]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    layers, begin = {}, 0
    for layer in opened.manifest.layers:
        end = begin + layer.outputs * opened.manifest.rank
        b = torch.from_numpy(numbers[begin:end].reshape(layer.outputs, opened.manifest.rank))
        layers[layer.name] = opened.a[layer.name], b
        begin = end
    return layers


def _nothing_there(datastore: Path, model: str) -> Exception:
    """Return the error for a datastore without experts of a model: of other models alone, or of none."""
    others = [folder.name for folder in sorted((datastore / FOLDER).glob("*")) if (folder / MANIFEST).exists()]
    if others:
        return DatastoreMismatchError(
            f"{datastore / FOLDER}: must hold experts of the model {model[:16]}, got those of "
            f"{', '.join(name[:16] for name in others)}. Train its own with: tttnn precompute"
        )
    return FileNotFoundError(f"{datastore / FOLDER}: there are no experts. Train them with: tttnn precompute")
