"""What the folder of a model's experts says of itself: its manifest, as typed values.

Knows the names of files and the fields of manifest.json. Does not know what is in the other files. The format is in
docs/experts.md.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import ExpertConfig
from ..datastore.records import read_record
from ..errors import ConfigError, DatastoreMismatchError, IndexCorruptError
from ..files import read_manifest, write_manifest

FORMAT = 2
FOLDER = "experts"
MANIFEST = "manifest.json"
STATE = "training.state"
ROOT = "root"
_LEAF = "leaf-"
_OURS = re.compile(
    r"(members|experts|centers|asked)\.[0-9]+\.bin|"  # of this state or one before it
    r"((members|experts|centers)\.[0-9]+\.bin|manifest\.json|training\.state)(\.[0-9]+)?\.partial"  # left by a crash
)


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """A linear layer that experts change."""

    name: str
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class ExpertEntry:
    """One expert. Losses are in nats per token, of documents it was not trained on where there are any."""

    name: str
    row: int
    documents: int
    members: str
    """Digest of the documents it saw, in their order."""
    steps: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True, slots=True)
class ExpertsManifest:
    """The experts of one model in one datastore."""

    model: str
    """Fingerprint of its weights."""
    model_name: str
    tokenizer: str
    """Digest of the tokenizer."""
    layers: tuple[LayerEntry, ...]
    rank: int
    scale: float
    seed: int
    """Of A."""
    a_digest: str
    settings: dict[str, Any]
    threads: int
    """Of torch in training: sums depend on it."""
    versions: dict[str, str]
    experts: tuple[ExpertEntry, ...]
    next_id: int
    """The datastore's when they were trained: documents of this id and above came later."""
    number: int
    """N of the files that are valid."""
    clusters: int = 0
    """Of the datastore, each with an expert that is or will be there; its row is one more than its number."""
    listed: int = 0
    """Documents in the file of members, those of experts still to be trained too; 0: of the experts alone."""
    format: int = FORMAT

    @property
    def members_file(self) -> str:
        """The name of the file of members."""
        return f"members.{self.number}.bin"

    @property
    def rows_file(self) -> str:
        """The name of the file of matrices."""
        return f"experts.{self.number}.bin"

    @property
    def centers_file(self) -> str:
        """The name of the file of the clusters' centers."""
        return f"centers.{self.number}.bin"

    @property
    def asked_file(self) -> str:
        """The name of the file that says which experts were missed."""
        return f"asked.{self.number}.bin"

    @property
    def rows(self) -> int:
        """Rows of the file of matrices: the root's, and one for each cluster."""
        return 1 + self.clusters

    @property
    def config(self) -> ExpertConfig:
        """The settings of training."""
        try:
            return ExpertConfig().with_(**self.settings)
        except (TypeError, ConfigError) as problem:
            raise IndexCorruptError(f"{MANIFEST}: its settings cannot be used ({problem}). {remedy()}") from None

    @property
    def numbers(self) -> int:
        """Numbers of B of an expert."""
        return sum(layer.outputs for layer in self.layers) * self.rank


def remedy() -> str:
    """Say what helps where a file is damaged."""
    return "Remove the folder and train its experts again: tttnn precompute"


def leaf_name(cluster: int) -> str:
    """Return the name of the expert of a cluster."""
    return f"{_LEAF}{cluster}"


def folder_of(datastore: Path, model: str) -> Path:
    """Return the folder of a model's experts."""
    return datastore / FOLDER / model


def bytes_of(folder: Path) -> int:
    """Return the bytes that a folder's files take, without what is kept free for experts still to be trained."""
    files = [file.stat() for file in folder.iterdir() if file.is_file()]
    return sum(min(status.st_size, status.st_blocks * 512) for status in files)


def write_experts(folder: Path, manifest: ExpertsManifest) -> None:
    """Make a state of the experts the valid one, at once, and remove the files of the one before."""
    write_manifest(folder / MANIFEST, asdict(manifest))
    valid = {manifest.members_file, manifest.rows_file, manifest.centers_file, manifest.asked_file}
    for file in folder.iterdir():
        if file.name not in valid and _OURS.fullmatch(file.name) is not None:
            file.unlink()


def read_experts(folder: Path, *, model: str) -> ExpertsManifest:
    """Read a manifest.

    Args:
        folder: of the experts.
        model: the fingerprint that they must be of.

    Raises:
        FileNotFoundError: there is none.
        IndexCorruptError: it is damaged.
        DatastoreMismatchError: it is of another model.
    """
    path = folder / MANIFEST
    manifest = read_record(ExpertsManifest, read_manifest(path, format_version=FORMAT), f"{path}: manifest")
    if manifest.model != model:
        raise DatastoreMismatchError(
            f"{path}: is of the model {manifest.model[:16]} ({manifest.model_name}), expected {model[:16]}. {remedy()}"
        )
    rows = [entry.row for entry in manifest.experts]
    if rows[:1] != [0] or rows != sorted(set(rows)) or rows[-1] >= manifest.rows:
        raise IndexCorruptError(
            f"{path}: rows of experts must rise from 0 and be below {manifest.rows}, got {rows[:9]}. {remedy()}"
        )
    return manifest
