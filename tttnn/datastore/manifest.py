"""What a datastore's directory says of itself: its manifest, and how far a build is, as typed values.

Knows the names of files and the fields of manifest.json and build.json; does not know what is in the other files.

A document's id is given once and names that document for ever: a segment that was built holds the ids from `base`
upwards, one after another. The manifest's `next_id` only grows, so an id is never used again, not even that of a
deleted document. The manifest is replaced at once, so a build, an append, a deletion and a compaction happen when its
name stands for the new content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..config import DatastoreConfig, IndexConfig, StoreConfig
from ..embedding.identity import differences
from ..errors import ConfigError, DatastoreMismatchError, IndexCorruptError
from ..files import digest_of, new_beside, read_manifest, write_manifest
from ..settings import Config
from .records import read_record

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "build.json"
SEGMENTS = "segments"
TEXTS = "texts.zst"
PASSAGES = "passages.bin"
IDS = "ids.bin"

_SEGMENT = re.compile(r"[0-9]{3,}")
_DELETED = re.compile(r"deleted\.[0-9]+\.bin")
_BEGUN = re.compile(r"(manifest\.json|build\.json|texts\.zst)(\.[0-9]+)?\.partial")
_FILES = (
    r"(index\.json|copies\.bin|vectors\.(hnsw|f32|full|float16|int8)|graph\.links|passages\.bin|ids\.bin|"
    r"deleted\.[0-9]+\.bin|cut\.json|embedded\.json|dictionary\.partial)"
)
_BEGUN_IN_SEGMENT = re.compile(_FILES + r"(\.[0-9]+)?\.partial")
_IN_SEGMENT = re.compile(_FILES + r"((\.[0-9]+)?\.partial)?|texts\.zst(\.partial)?|(vectors|passages)\.partial")
# What file systems without symbolic links answer.
_HAS_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_Config = TypeVar("_Config", bound=Config)
_REMEDY = "Restore the file or rebuild the datastore."


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file's size in bytes and the sha256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DeletedEntry:
    """The list of a segment's deleted documents that is valid, and how many it holds."""

    name: str
    documents: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment. `tokens`, `truncated` and `empty` count what was embedded, deleted documents included."""

    name: str
    base: int
    """The id of its first document."""
    end: int
    """No id of it is as large as this."""
    documents: int
    store_id: str
    store_bytes: int
    units: int
    tokens: int
    truncated: int
    empty: int
    recall_at_20: float
    files: dict[str, FileEntry]
    """Files beside the texts whose content the manifest answers for."""
    deleted: DeletedEntry | None = None
    store_sha256: str = ""
    """Of the texts' file, whose own checksums are of texts: other bytes may hold the same ones. Empty: not known."""


@dataclass(frozen=True, slots=True)
class EmbedderEntry:
    """What made the vectors. `identity`: what an embedder must agree in to make the same ones."""

    name: str
    precision: str
    identity: dict[str, Any]
    foreign: bool = False
    """Whether the vectors were imported, so that tttnn cannot know that an embedder is the one that made them."""

    def require_known(self, where: Path, dim: int, what: str) -> None:
        """Refuse to make something for which the embedder of imported vectors would be needed.

        Raises:
            DatastoreMismatchError: The vectors were imported.
        """
        if self.foreign:
            raise DatastoreMismatchError(
                f"{where}: {what} must come from the embedder that made its imported vectors, {self.name!r}, which "
                f"tttnn does not have. Give an embedder of {dim} dimensions that makes the same vectors."
            )

    def require_same(self, where: str, name: str, identity: dict[str, Any]) -> None:
        """Refuse another embedder than the one that made the vectors.

        Raises:
            DatastoreMismatchError: It is another; the message begins with `where` and names what differs.
        """
        differing = differences(self.identity, identity)
        if differing:
            raise DatastoreMismatchError(
                f"{where} built with embedder {self.name!r}, got {name!r}: {', '.join(differing)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the manifest holds them."""
        plain = asdict(self)
        if not self.foreign:
            del plain["foreign"]
        return plain


@dataclass(frozen=True, slots=True)
class Manifest:
    """A state of a datastore. `id` is the digest of all the rest; empty until it is written."""

    unit: str
    dim: int
    embedder: EmbedderEntry
    settings: dict[str, Any]
    segments: tuple[SegmentEntry, ...]
    next_id: int
    next_segment: int
    """Number of the next segment; only grows."""
    format: int = FORMAT
    id: str = ""

    @classmethod
    def from_dict(cls, fields: dict[str, Any], path: Path) -> Manifest:
        """Return what a manifest's fields say; one of format 1 gets those of the newest.

        Raises:
            IndexCorruptError: A field is missing, unknown or has a value it may not have.
        """
        entries = fields.get("segments")
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            entries = [{"end": _end_of(entry), **entry} for entry in entries]
            fields = {"next_id": entries[-1]["end"] if entries else 0, "next_segment": len(entries), **fields}
        manifest = read_record(cls, {**fields, "segments": entries}, f"{path}: manifest")
        if manifest.unit not in ("document", "passage"):
            raise IndexCorruptError(f"{path}: unit must be document or passage, got {manifest.unit!r}. {_REMEDY}")
        end = 0
        for entry in manifest.segments:
            if not end <= entry.base <= entry.end <= manifest.next_id or not entry.name.isdigit():
                raise IndexCorruptError(
                    f"{path}: segment {entry.name!r} must hold ids between {end} and {manifest.next_id}, "
                    f"got {entry.base} to {entry.end}. {_REMEDY}"
                )
            end = entry.end
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the id."""
        plain = asdict(self)
        del plain["id"]
        return plain | {"embedder": self.embedder.to_dict()}

    @property
    def datastore_config(self) -> DatastoreConfig:
        """How the corpus was cut and laid out."""
        return _settings(DatastoreConfig, self.settings, "datastore")

    @property
    def index_config(self) -> IndexConfig:
        """How vectors are indexed."""
        return _settings(IndexConfig, self.settings, "index")

    @property
    def store_config(self) -> StoreConfig:
        """How texts are compressed."""
        return _settings(StoreConfig, self.settings, "store")


def _end_of(entry: dict[str, Any]) -> Any:
    base, documents = entry.get("base"), entry.get("documents")
    return base + documents if isinstance(base, int) and isinstance(documents, int) else None


def _settings(cls: type[_Config], settings: dict[str, Any], name: str) -> _Config:
    try:
        return cls().with_(**settings[name])
    except (KeyError, TypeError, ConfigError) as problem:
        raise IndexCorruptError(f"{MANIFEST}: its {name} settings cannot be used ({problem}). {_REMEDY}") from None


@dataclass(frozen=True, slots=True)
class IngestedSegment:
    """A segment whose store is finished."""

    documents: int
    store_id: str


@dataclass(frozen=True, slots=True)
class BuildState:
    """How far a build or an append is."""

    plan: dict[str, Any]
    """Settings that a run which continues it must have."""
    append: bool = False
    first: int = 0
    """Number of the first segment that is built."""
    base: int = 0
    """Id of its first document."""
    sampled: bool = False
    """Whether the stores' dictionaries are trained."""
    ingested: bool = False
    segments: tuple[IngestedSegment, ...] = ()
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> BuildState:
        """Read build.json of a datastore.

        Raises:
            IndexCorruptError: It is damaged, or of a newer format.
        """
        file = path / STATE
        return read_record(cls, read_manifest(file, format_version=FORMAT), f"{file}: state")

    def write(self, path: Path) -> BuildState:
        """Make this the state of the build, at once; return it."""
        write_manifest(path / STATE, asdict(self))
        return self


@dataclass(frozen=True, slots=True)
class EmbeddedCounts:
    """Units of a segment whose vectors are on disk, and what was read for them."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    empty: int = 0
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> EmbeddedCounts:
        """Read them; where there is no such file nothing was embedded."""
        if not path.exists():
            return cls()
        return read_record(cls, read_manifest(path, format_version=FORMAT), f"{path}: counts")

    def write(self, path: Path) -> EmbeddedCounts:
        """Write them, at once; return them."""
        write_manifest(path, asdict(self))
        return self


def segment_name(number: int) -> str:
    """Return the directory name of a segment."""
    return f"{number:03d}"


def open_manifest(path: Path) -> Manifest:
    """Read a datastore's manifest and check its digest; one of an older format gets the fields of the newest.

    Raises:
        FileNotFoundError: There is no datastore, or its build was not finished.
        IndexCorruptError: The manifest is damaged.
    """
    if not (path / MANIFEST).is_file():
        if (path / STATE).is_file():
            raise FileNotFoundError(f"{path}: its build was not finished. Run the same build again to continue it.")
        raise FileNotFoundError(f"{path}: is not a datastore: there is no {MANIFEST} in it")
    fields = read_manifest(path / MANIFEST, format_version=FORMAT)
    if digest_of({key: value for key, value in fields.items() if key != "id"}) != fields.get("id"):
        raise IndexCorruptError(f"{path / MANIFEST}: its id is not that of its content. {_REMEDY}")
    return Manifest.from_dict(fields, path / MANIFEST)


def replace_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Make another state of the datastore the valid one, at once; return it with its id."""
    content = replace(manifest, format=FORMAT).to_dict()
    if manifest.segments:
        _lead(path / TEXTS, Path(SEGMENTS) / manifest.segments[0].name / TEXTS)
    else:
        _lead(path / TEXTS, None)
    identifier = digest_of(content)
    write_manifest(path / MANIFEST, {**content, "id": identifier})
    return replace(manifest, format=FORMAT, id=identifier)


def _lead(shortcut: Path, target: Path | None) -> None:
    """Make a link lead to the first texts, or to none; for people only. What is no link there is someone's file."""
    if os.path.lexists(shortcut) and not shortcut.is_symlink():
        return
    if target is not None:
        try:
            new_beside(shortcut, lambda fresh: fresh.symlink_to(target)).replace(shortcut)
            return
        except OSError as error:
            # What no longer leads to the first texts is worse than nothing.
            if error.errno not in _HAS_NO_LINKS:
                raise
    shortcut.unlink(missing_ok=True)


def remove_begun(path: Path) -> None:
    """Remove files that a writer of this datastore began and did not live to finish; it is held by the caller."""
    for file in path.iterdir():
        if _BEGUN.fullmatch(file.name) and (file.is_symlink() or not file.name.startswith(TEXTS)):
            file.unlink()
    for folder in (path / SEGMENTS).iterdir() if (path / SEGMENTS).is_dir() else []:
        if _SEGMENT.fullmatch(folder.name) and folder.is_dir():
            for file in folder.iterdir():
                if _BEGUN_IN_SEGMENT.fullmatch(file.name):
                    file.unlink()


def remove_unlisted(path: Path, manifest: Manifest) -> None:
    """Remove what an interrupted append, deletion or compaction left and the manifest does not name.

    Only what has a name that a segment or a list of deletions gets: anything else is someone's.
    """
    remove_begun(path)
    listed = {entry.name: entry for entry in manifest.segments}
    for folder in sorted((path / SEGMENTS).iterdir()) if (path / SEGMENTS).is_dir() else []:
        if _SEGMENT.fullmatch(folder.name) is None or folder.is_symlink() or not folder.is_dir():
            continue
        entry = listed.get(folder.name)
        if entry is None:
            for file in folder.iterdir():
                if _IN_SEGMENT.fullmatch(file.name):
                    file.unlink()
            with contextlib.suppress(OSError):  # someone's file is in it
                folder.rmdir()
            continue
        valid = entry.deleted.name if entry.deleted is not None else None
        for file in folder.glob("deleted.*"):
            if file.name != valid and _DELETED.fullmatch(file.name) is not None:
                file.unlink()
