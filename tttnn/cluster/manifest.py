"""What a cluster's directory says of itself: its shards, in order, and what they must agree in.

Knows cluster.json and the manifests of datastores. Does not search.

A shard is a datastore. It is named by its place and by its id, which changes with every change of its documents, so a
shard that was exchanged, is older or was changed by someone else is refused by name. A shard's number is its position,
and stays when its datastore is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..datastore.compaction import delete_documents
from ..datastore.lock import locked
from ..datastore.manifest import MANIFEST, EmbedderEntry, Manifest, open_manifest
from ..datastore.records import read_record
from ..errors import DatastoreMismatchError, IndexCorruptError
from ..files import digest_of, read_manifest, write_manifest
from ..version import __version__
from .document_id import MOST_SHARDS, DocumentId

FORMAT = 1
CLUSTER = "cluster.json"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard. `path` is relative where the datastore lies in the cluster's directory."""

    path: str
    id: str
    """Of the datastore, as it was when it was entered."""
    documents: int
    """That are not deleted."""
    embedder: str
    version: str
    """Of the tttnn that entered it."""


@dataclass(frozen=True, slots=True)
class ClusterManifest:
    """A state of a cluster. `id` is the digest of the shards' ids, in order; it changes whenever a document does."""

    unit: str
    dim: int
    metric: str
    embedder: EmbedderEntry
    embed: dict[str, Any]
    """Settings of the embedder, as a datastore keeps them."""
    shards: tuple[ShardEntry, ...]
    format: int = FORMAT
    id: str = ""

    @property
    def documents(self) -> int:
        """Documents of all shards that are not deleted."""
        return sum(shard.documents for shard in self.shards)

    def path_of(self, place: Path, number: int) -> Path:
        """Return where a shard's datastore lies."""
        return place / self.shards[number].path

    def name_of(self, number: int) -> str:
        """Return what a message calls a shard."""
        return f"shard {number} ({self.shards[number].path})"


def open_cluster(place: Path) -> ClusterManifest:
    """Read a cluster's manifest.

    Raises:
        FileNotFoundError: There is no cluster.
        IndexCorruptError: Its manifest is damaged, or names a shard twice.
    """
    path = place / CLUSTER
    if not is_cluster(place):
        raise FileNotFoundError(
            f"{place}: is not a cluster: there is no {CLUSTER} in it. Make one of datastores with: tttnn cluster add"
        )
    fields = read_manifest(path, format_version=FORMAT)
    manifest = read_record(ClusterManifest, fields, f"{path}: manifest")
    if manifest.id != _id_of(manifest.shards):
        raise IndexCorruptError(f"{path}: its id is not that of its shards. Restore the file or make the cluster anew.")
    return manifest


def is_cluster(place: str | os.PathLike[str]) -> bool:
    """Say whether a directory is a cluster's."""
    return (Path(place) / CLUSTER).is_file()


def add_shards(place: Path, paths: Sequence[str | os.PathLike[str]]) -> ClusterManifest:
    """Enter datastores as further shards, in this order; the first make the cluster. Nothing is copied.

    Raises:
        FileNotFoundError: There is no such datastore.
        IndexCorruptError: A manifest is damaged.
        DatastoreMismatchError: One is a shard already, or its embedder, unit or metric is not that of the others.
        DatastoreLockedError: Another process changes the cluster.
    """
    if (place / MANIFEST).exists():
        raise DatastoreMismatchError(f"{place}: must be a directory of its own, got that of a datastore")
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        manifest = open_cluster(place) if (place / CLUSTER).exists() else None
        for path in paths:
            manifest = _with(place, manifest, Path(path), None)
        assert manifest is not None, "a command line or a build gives at least one"
        return _write(place, manifest)


def replace_shard(place: Path, number: int, path: str | os.PathLike[str]) -> ClusterManifest:
    """Put a datastore, or the new state of the one that is there, in the place of a shard.

    Raises:
        IndexError: There is no such shard.
        FileNotFoundError: There is no such datastore.
        DatastoreMismatchError: As of `add_shards`.
        DatastoreLockedError: Another process changes the cluster.
    """
    with locked(place):
        manifest = open_cluster(place)
        _check_number(manifest, number)
        return _write(place, _with(place, manifest, Path(path), number))


def delete_from(place: Path, ids: Collection[DocumentId]) -> int:
    """Delete documents from the shards that own them; return how many there were.

    All shards that own one must be at hand and in the state that the cluster names.

    Raises:
        IndexError: There is no such shard, or an id was never given in it.
        DatastoreMismatchError: A shard is in another state than the cluster names.
        DatastoreLockedError: Another process changes the cluster or the shard.
    """
    deleted = 0
    with locked(place):
        manifest = open_cluster(place)
        owners: dict[int, list[int]] = {}
        for document in ids:
            _check_number(manifest, document.shard)
            owners.setdefault(document.shard, []).append(document.local)
        for number, local in owners.items():
            now = check_shard(place, manifest, number)
            wrong = [i for i in local if i >= now.next_id]
            if wrong:
                raise IndexError(
                    f"document id of {manifest.name_of(number)} must be between 0 and {now.next_id - 1}, got {wrong[0]}"
                )
        for number, local in owners.items():
            path = manifest.path_of(place, number)
            deleted += delete_documents(path, local)
            # Written after each shard: interrupted between the two, that shard alone is refused, by name.
            manifest = _write(place, _with(place, manifest, path, number))
    return deleted


def check_shard(place: Path, manifest: ClusterManifest, number: int) -> Manifest:
    """Return a shard's own manifest, in the state that the cluster names.

    Raises:
        FileNotFoundError: Its datastore is not there.
        IndexCorruptError: Its manifest is damaged.
        DatastoreMismatchError: It is in another state.
    """
    entry, path = manifest.shards[number], manifest.path_of(place, number)
    found = open_manifest(path)
    if found.id != entry.id:
        raise DatastoreMismatchError(
            f"{path}: shard {number} must be the datastore {entry.id}, got {found.id}: it is another one, or was "
            f"changed outside of the cluster. Restore it, or take it as it is with: "
            f"tttnn cluster replace {place} {number} {path}"
        )
    return found


def _check_number(manifest: ClusterManifest, number: int) -> None:
    if not 0 <= number < len(manifest.shards):
        raise IndexError(f"shard must be between 0 and {len(manifest.shards) - 1}, got {number}")


def _with(place: Path, manifest: ClusterManifest | None, path: Path, number: int | None) -> ClusterManifest:
    """Return a cluster's manifest with a datastore as shard `number`, or as one more."""
    found = open_manifest(path)
    live = sum(s.documents - (0 if s.deleted is None else s.deleted.documents) for s in found.segments)
    resolved, base = path.resolve(), place.resolve()
    where = str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)
    entry = ShardEntry(where, found.id, live, found.embedder.name, __version__)
    metric = found.index_config.metric
    if manifest is None:
        embed = found.settings.get("embed", {})
        manifest = ClusterManifest(found.unit, found.dim, metric, found.embedder, embed, ())
    for other, shard in enumerate(manifest.shards):
        if other != number and (shard.id == entry.id or (base / shard.path).resolve() == resolved):
            raise DatastoreMismatchError(f"{path}: is shard {other} already ({shard.path}). Add each datastore once.")
    expected = [manifest.unit, manifest.dim, metric if not manifest.shards else manifest.metric]
    names = ("unit", "dim", "metric")
    differing = [
        f"{name} is {got!r}, expected {wanted!r}"
        for name, wanted, got in zip(names, expected, (found.unit, found.dim, metric), strict=True)
        if got != wanted
    ]
    if (manifest.embedder.identity, manifest.embedder.foreign) != (found.embedder.identity, found.embedder.foreign):
        differing.append(f"its embedder {found.embedder.name!r} is another than {manifest.embedder.name!r}")
    if differing:
        raise DatastoreMismatchError(f"{path}: must be like the other shards of {place}: {', '.join(differing)}")
    shards = list(manifest.shards)
    if number is None:
        shards.append(entry)
    else:
        shards[number] = entry
    if len(shards) > MOST_SHARDS:
        raise DatastoreMismatchError(f"{place}: must have at most {MOST_SHARDS} shards, got {len(shards)}")
    return replace(manifest, shards=tuple(shards))


def _id_of(shards: Sequence[ShardEntry]) -> str:
    return digest_of([shard.id for shard in shards])


def _write(place: Path, manifest: ClusterManifest) -> ClusterManifest:
    """Make a state of the cluster the valid one, at once; return it with its id."""
    manifest = replace(manifest, id=_id_of(manifest.shards))
    write_manifest(place / CLUSTER, asdict(manifest) | {"embedder": manifest.embedder.to_dict()})
    return manifest
