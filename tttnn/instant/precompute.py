"""Training the experts of a datastore for a model: planned, estimated, trained, written.

Knows a datastore, a model and the order of things. Does not know queries or how experts are used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from .. import models
from ..config import ExpertConfig, Progress
from ..datastore.datastore import Datastore
from ..datastore.lock import locked
from ..errors import AdaptError, ConfigError
from ..files import digest_of
from ..lm.limits import model_max_length
from ..lm.neighbor_tokens import portion_of
from ..lm.tokens import TextTokens
from ..retrieval.neighbors import Neighbor
from ..version import __version__
from ..weights.arena import WeightArena
from ..weights.lora import chosen_layers, shape_of
from ..weights.low_rank_update import digest_of_matrices, shared_a
from .int4 import pack, unpack
from .low_rank_training import ExpertTraining
from .manifest import (
    MANIFEST,
    ROOT,
    STATE,
    ExpertEntry,
    ExpertsManifest,
    LayerEntry,
    bytes_of,
    folder_of,
    read_experts,
    write_experts,
)
from .members import Member, members_digest, write_members
from .rows import row_bytes, write_rows
from .tokenizer_digest import digest_of_tokenizer

_log = logging.getLogger("tttnn")

_PROBES = 16  # documents whose loss is measured before and after


@dataclass(frozen=True, slots=True)
class PrecomputeEstimate:
    """What training will take: steps, seconds (measured on two steps), bytes on disk and in all weights of B."""

    documents: int
    steps: int
    seconds: float
    bytes_on_disk: int
    numbers: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PrecomputeReport:
    """What was done. `trained` is False where the experts were there already; losses are in nats per token."""

    model: str
    folder: str
    trained: bool
    documents: int
    steps: int
    loss_before: float
    loss_after: float
    bytes_on_disk: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


class Precompute:
    """The root expert of a datastore for one model: which documents it is trained on, and its training."""

    def __init__(self, datastore: Datastore, model: Any, tokenizer: Any, config: ExpertConfig | None = None) -> None:
        """Plan a root.

        Args:
            datastore: whose documents are learned.
            model: a transformers causal language model in float32; afterwards it is what it was.
            tokenizer: its tokenizer.
            config: how to train.

        Raises:
            ConfigError: `max_length` is more than the model reads at once.
            AdaptError: the weights are not float32, or the datastore has no document of two tokens.
        """
        self.config = config or ExpertConfig()
        self._datastore = datastore
        self._model = model
        self._texts = TextTokens(tokenizer)
        window = model_max_length(model, tokenizer)
        if self.config.max_length > window:
            raise ConfigError(
                f"max_length must be at most {window} (what the model reads at once), got {self.config.max_length}"
            )
        if any(parameter.dtype is not torch.float32 for parameter in model.parameters()):
            raise AdaptError("model must be float32 to train experts. Load it with --dtype float32.")
        self.fingerprint = fingerprint_of(model)
        self.folder = folder_of(datastore.path, self.fingerprint)
        self._layers = tuple(
            LayerEntry(name, *shape_of(model.get_submodule(name))) for name in chosen_layers(model, self.config.targets)
        )
        self._numbers = sum(layer.outputs for layer in self._layers) * self.config.rank
        chosen = self._documents()
        self._members: list[Member] = []
        self._windows: list[list[int]] = []
        probes: list[list[int]] = []
        for member, tokens in chosen:
            if len(self._members) < self.config.documents:
                self._members.append(member)
                self._windows.append(tokens)
            else:
                probes.append(tokens)
            if len(probes) == _PROBES:
                break
        if not self._members:
            raise AdaptError(f"{datastore.path}: must hold a document of two tokens to be learned from, and has none")
        self._probes = probes or self._windows[-_PROBES:]

    def _documents(self) -> Iterator[tuple[Member, list[int]]]:
        """Give documents in the order that the seed and their ids alone decide, with the tokens that are trained."""
        ids = sorted(map(int, self._datastore.ids), key=lambda number: _rank(self.config.seed, number))
        for number in ids:
            text = self._datastore.documents[number].text
            document = Neighbor(number, 0.0, text)
            tokens = list(portion_of(self._texts, document, self.config.max_length).tokens)
            if len(tokens) >= 2:
                yield Member(number, document.digest), tokens

    def estimate(self) -> PrecomputeEstimate:
        """Measure two steps, and say what all of them will take."""
        with ExpertTraining(self._model, self.config) as training:
            longest = max(self._windows, key=len)
            training.run([longest])
            training.begin()
            started = time.perf_counter()
            training.run([longest])
            step = time.perf_counter() - started
        share = sum(map(len, self._windows)) / len(longest)
        probing = 2 * sum(map(len, self._probes)) / len(longest) / 3  # forward alone
        steps = len(self._members)
        disk = row_bytes(self._numbers) + 64 + 80 + 32 * steps
        return PrecomputeEstimate(steps, steps, step * (share + probing), disk, self._numbers)

    def run(self, *, update: bool = False, progress: Progress | None = None) -> PrecomputeReport:
        """Train and write the root, or find that it is there. Interrupted, the same call goes on.

        Args:
            update: replace a root of other settings, or one that would be trained on other documents now.
            progress: called with the stage "train", steps done and all of them.

        Raises:
            FileExistsError: there is such a root, and no `update`.
            DatastoreLockedError: another process trains experts for this model.
            IndexCorruptError: a file of the experts is damaged.
            NonFiniteLossError: the learning rate is too high.
        """
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            there = read_experts(self.folder, model=self.fingerprint) if (self.folder / MANIFEST).exists() else None
            wanted = members_digest(self._members)
            if there is not None:
                (root,) = there.experts
                if root.members == wanted and there.config == self.config:
                    return self._report(there, trained=False, started=started)
                if not update:
                    raise FileExistsError(
                        f"{self.folder}: its experts were trained with other settings or on other documents. Train "
                        "them anew with: tttnn precompute --update"
                    )
            manifest = self._train(1 if there is None else there.number + 1, wanted, progress)
        return self._report(manifest, trained=True, started=started)

    def _train(self, number: int, wanted: str, progress: Progress | None) -> ExpertsManifest:
        steps = len(self._windows)

        def on_step(done: int) -> None:
            if progress is not None:
                progress("train", done, steps)

        plan = digest_of(
            {"model": self.fingerprint, "settings": self.config.to_dict(), "members": wanted, "versions": _versions()}
        )
        with ExpertTraining(self._model, self.config) as training:
            before = training.mean_loss(self._probes)
            training.run(self._windows, state=self.folder / STATE, plan=plan, on_step=on_step)
            numbers = training.numbers()
            training.put(unpack(*pack(numbers), len(numbers)))
            after = training.mean_loss(self._probes)
        a = shared_a(
            {layer.name: (layer.outputs, layer.inputs) for layer in self._layers},
            rank=self.config.rank,
            seed=self.config.seed,
        )
        manifest = ExpertsManifest(
            model=self.fingerprint,
            model_name=models.name_of(getattr(self._model.config, "_name_or_path", "")),
            tokenizer=digest_of_tokenizer(self._texts.tokenizer),
            layers=self._layers,
            rank=self.config.rank,
            scale=self.config.scale,
            seed=self.config.seed,
            a_digest=digest_of_matrices(a),
            settings=json.loads(json.dumps(self.config.to_dict())),
            threads=torch.get_num_threads(),
            versions=_versions(),
            experts=(ExpertEntry(ROOT, 0, len(self._members), wanted, steps, before, after),),
            next_id=self._datastore.manifest.next_id,
            number=number,
        )
        write_members(self.folder / manifest.members_file, self.fingerprint, [self._members])
        write_rows(self.folder / manifest.rows_file, self.fingerprint, [numbers])
        write_experts(self.folder, manifest)
        (self.folder / STATE).unlink(missing_ok=True)
        return manifest

    def _report(self, manifest: ExpertsManifest, *, trained: bool, started: float) -> PrecomputeReport:
        (root,) = manifest.experts
        return PrecomputeReport(
            model=self.fingerprint,
            folder=str(self.folder),
            trained=trained,
            documents=root.documents,
            steps=root.steps if trained else 0,
            loss_before=root.loss_before,
            loss_after=root.loss_after,
            bytes_on_disk=bytes_of(self.folder),
            seconds=time.perf_counter() - started,
        )


def fingerprint_of(model: Any) -> str:
    """Return the fingerprint of a model's weights, as a trainer of it has; the model is what it was afterwards."""
    smallest = min(model.named_parameters(), key=lambda entry: int(entry[1].numel()))[0]
    arena = WeightArena(model, trainable=[smallest])
    try:
        return arena.digest()
    finally:
        arena.release()


def _rank(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed} {number}".encode(), digest_size=16).digest()


def _versions() -> dict[str, str]:
    import transformers

    return {
        "tttnn": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
