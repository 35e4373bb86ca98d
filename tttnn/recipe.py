"""A datastore or a cluster with its embedder, and a trainer with both: opened and loaded by their names, in one place.

Knows names and settings. Does not know what is asked of the datastore or of the trainer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from . import models
from .cluster.cluster_datastore import ClusterDatastore
from .cluster.manifest import ClusterManifest, is_cluster, open_cluster
from .cluster.running import running_cluster
from .config import AdaptConfig, ClusterConfig, ScoreConfig, SelectionConfig
from .datastore.datastore import Datastore
from .datastore.manifest import Manifest, open_manifest
from .errors import DatastoreMismatchError
from .retrieval.selector import Selector

if TYPE_CHECKING:
    from .training.trainer import TestTimeTrainer
    from .weights.shared_weights import SharedWeights

RUNNING = "ray:"
"""Before the name of a running cluster, wherever a datastore's path can stand."""
OnFetch = Callable[[str], None]
Opened = TypeVar("Opened", bound=Datastore | ClusterDatastore)


def running_name(path: str | os.PathLike[str]) -> str | None:
    """Return the name of the running cluster that ``ray:NAME`` stands for; of a directory None."""
    text = os.fspath(path)
    return text.removeprefix(RUNNING) if text.startswith(RUNNING) else None


def names_cluster(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a cluster's, or stands for one that runs."""
    return running_name(path) is not None or is_cluster(path)


def open_documents(
    path: str | os.PathLike[str], *, cluster: ClusterConfig | None = None
) -> Datastore | ClusterDatastore:
    """Open a datastore, or the shards of a cluster, without an embedder.

    Args:
        path: The directory; or ``ray:NAME``, a cluster that runs on Ray.
        cluster: How long a cluster's shards are waited for, and what happens when one is missing.

    Raises:
        FileNotFoundError: There is neither.
        ClusterError: No cluster of this name runs.
    """
    name = running_name(path)
    if name is not None:
        return ClusterDatastore.connect(name, config=cluster)
    return ClusterDatastore.open(path, config=cluster) if is_cluster(path) else Datastore.open(path)


def open_datastore(
    path: str | os.PathLike[str],
    *,
    cluster: ClusterConfig | None = None,
    embedder: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    on_fetch: OnFetch | None = None,
) -> Datastore | ClusterDatastore:
    """Open a datastore or a cluster, once, and load the embedder that makes the vectors of queries.

    Args:
        path: The directory.
        cluster: As of `open_documents`.
        embedder: A demo name, hub id or directory; None: the datastore's own. For imported vectors one must be named;
            it is loaded as it is, because nothing is known of the one that made them.
        device: Torch's name of the embedder's device.
        threads: Torch's, for the embedder; None leaves them as they are.
        cache_dir: Where demo models are kept.
        on_fetch: Called with one sentence before a demo model is fetched.

    Raises:
        FileNotFoundError: There is no datastore.
        DatastoreMismatchError: The embedder is not the one it was built with, or the vectors were imported and none is
            named.
        UnknownModelError: There is no such embedder.
    """
    opened = open_documents(path, cluster=cluster)
    return with_embedder(
        opened, embedder=embedder, device=device, threads=threads, cache_dir=cache_dir, on_fetch=on_fetch
    )


def with_embedder(
    opened: Opened,
    *,
    embedder: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    on_fetch: OnFetch | None = None,
) -> Opened:
    """Load an embedder for a datastore that is open, and attach it; see `open_datastore`."""
    from .embedding.embedder import Embedder

    name = _embedder_of(opened.path, opened.manifest, embedder)
    models.resolve(name, cache_dir=cache_dir, on_fetch=on_fetch)
    config = None if opened.foreign else opened.embed_config
    opened.attach(Embedder.load(name, config, device=device, threads=threads, cache_dir=cache_dir))
    return opened


def _embedder_of(path: Path, manifest: Manifest | ClusterManifest, named: str | None) -> str:
    """Return the name of the embedder for queries: the one that is named, else the datastore's own."""
    made_by = manifest.embedder
    if named is None and made_by.foreign:
        raise DatastoreMismatchError(
            f"{path}: embedder must be named, because its vectors were imported: they were made by "
            f"{made_by.name!r}. Name one of {manifest.dim} dimensions that makes the same vectors "
            "(--embedder NAME, embedder=NAME)."
        )
    return named or made_by.name


@dataclass(frozen=True)
class TrainerRecipe:
    """What a process needs to load a trainer of its own.

    `model` and `embedder` are demo names, hub ids or directories; an embedder of None is the datastore's own.
    `threads` are torch's in each process; None leaves them as they are. `device` is torch's name of a device, `dtype`
    its name of the type of the model's weights. `cluster` matters where `datastore` is a cluster.
    """

    model: str
    datastore: str
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    embedder: str | None = None
    threads: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def model_name(self) -> str:
        """What clients of a server call the model."""
        return last_part(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they travel to another process."""
        return asdict(self) | {"cache_dir": None if self.cache_dir is None else os.fspath(self.cache_dir)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Return what `to_dict` was made from."""
        kinds: dict[str, Any] = {
            "adapt": AdaptConfig,
            "selection": SelectionConfig,
            "score": ScoreConfig,
            "cluster": ClusterConfig,
        }
        return cls(**{name: kinds[name](**value) if name in kinds else value for name, value in plain.items()})

    def fetch(self, on_fetch: OnFetch | None = None) -> None:
        """Fetch the models of these names that are not in reach yet, so that no process has to wait for another.

        Reads the datastore's manifest, and none of its files.

        Args:
            on_fetch: called with one sentence before a demo model is fetched.

        Raises:
            FileNotFoundError: there is no datastore.
            DatastoreMismatchError: its vectors were imported and no embedder is named.
            UnknownModelError: there is no such model.
        """
        name = running_name(self.datastore)
        path = Path(self.datastore if name is None else running_cluster(name)["place"])
        manifest = open_cluster(path) if is_cluster(path) else open_manifest(path)
        for model in (_embedder_of(path, manifest, self.embedder), self.model):
            models.resolve(model, cache_dir=self.cache_dir, on_fetch=on_fetch)

    def load(self, shared_weights: SharedWeights | None = None) -> TestTimeTrainer:
        """Open the datastore, once, and load embedder and model.

        Args:
            shared_weights: of a trainer that the same recipe made in another process.
        """
        import torch

        from .training.trainer import TestTimeTrainer

        opened = open_datastore(
            self.datastore,
            cluster=self.cluster,
            embedder=self.embedder,
            device=self.device,
            threads=self.threads,
            cache_dir=self.cache_dir,
        )
        trainer = TestTimeTrainer.load(
            self.model,
            Selector(opened, self.selection),
            self.adapt,
            score=self.score,
            device=self.device,
            dtype=getattr(torch, self.dtype),
            threads=self.threads,
            cache_dir=self.cache_dir,
            shared_weights=shared_weights,
        )
        give_experts(trainer, opened)
        return trainer


def give_experts(trainer: TestTimeTrainer, opened: Datastore | ClusterDatastore) -> None:
    """Let a trainer use the experts of a datastore; they are opened by the first query whose mode wants them.

    A cluster has none.
    """
    if isinstance(opened, ClusterDatastore):
        return
    from .instant.experts import Experts

    trainer.experts = Experts(opened, model=trainer.fingerprint, tokenizer=trainer.tokenizer)


def last_part(name: str) -> str:
    """Return a model's name as others are told it: of a directory its last part, a hub id or demo name as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name
