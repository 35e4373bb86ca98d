"""Which shards a build makes of which files, with which settings: written down, so that a build goes on as it began.

Knows cluster-build.json. Builds nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import CorpusConfig, DatastoreConfig, EmbedConfig, IndexConfig, StoreConfig
from ..datastore.records import read_record
from ..errors import ConfigError
from ..files import read_manifest, write_manifest
from ..store.corpus import Corpus
from ..store.document import Document

FORMAT = 1
PLAN = "cluster-build.json"
SHARDS = "shards"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The documents of one shard: of all that the paths hold, every `of`-th, beginning with number `first`."""

    paths: tuple[str, ...]
    first: int = 0
    of: int = 1

    def documents(self, config: CorpusConfig) -> Corpus | Callable[[], Iterable[Document]]:
        """Return them, so that they can be read again."""
        corpus = Corpus(self.paths, config, name_paths=len(self.paths) > 1)
        return corpus if self.of == 1 else lambda: islice(iter(corpus), self.first, None, self.of)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """All shards, and the settings that they share. `embedder` is a name that every machine can load."""

    shards: tuple[ShardPlan, ...]
    embedder: str
    corpus: dict[str, Any] = field(default_factory=dict)
    datastore: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    embed: dict[str, Any] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        corpora: Sequence[str | os.PathLike[str]],
        shards: int | None,
        embedder: str,
        corpus: CorpusConfig,
        datastore: DatastoreConfig,
        index: IndexConfig,
        embed: EmbedConfig,
        store: StoreConfig,
    ) -> BuildPlan:
        """Return a plan.

        Args:
            corpora: Files and folders.
            shards: How many, each of which takes its share of all documents in turn; None: one for each of `corpora`.
            embedder: Demo name, hub id or directory.
            corpus: How files are read.
            datastore: As of `Datastore.build`, like the rest.
            index: See there.
            embed: See there.
            store: See there.

        Raises:
            ConfigError: There are no corpora, a shard is asked for that is none, or standard input is one of them.
        """
        paths = [os.path.abspath(path) if os.fspath(path) != "-" else "-" for path in corpora]
        if not paths or "-" in paths:
            raise ConfigError(f"corpus must be files and folders that every machine can read, got {paths or 'none'}")
        if shards is not None and shards < 1:
            raise ConfigError(f"shards must be at least 1, got {shards}")
        parts = (
            tuple(ShardPlan((path,)) for path in paths)
            if shards is None
            else tuple(ShardPlan(tuple(paths), first, shards) for first in range(shards))
        )
        name = os.path.abspath(embedder) if os.path.isdir(embedder) else embedder
        return cls(
            parts, name, corpus.to_dict(), datastore.to_dict(), index.to_dict(), embed.to_dict(), store.to_dict()
        )

    def begin(self, place: Path) -> None:
        """Write the plan down, or compare it with the one that is there.

        Raises:
            ConfigError: Another build was begun in this place.
        """
        path = place / PLAN
        if not path.exists():
            (place / SHARDS).mkdir(parents=True, exist_ok=True)
            write_manifest(path, asdict(self))
            return
        before = read_record(BuildPlan, read_manifest(path, format_version=FORMAT), f"{path}: plan")
        mine, theirs = (json.loads(json.dumps(asdict(plan))) for plan in (self, before))
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            raise ConfigError(
                f"{place}: its build must go on as it began, but these differ: {', '.join(differing)}. Give what was "
                "given before, or build in another place."
            )


def shard_path(place: Path, number: int) -> Path:
    """Return where the datastore of a shard lies when it is finished."""
    return place / SHARDS / f"{number:04d}"


def unfinished_path(place: Path, number: int) -> Path:
    """Return where it lies until then."""
    return place / SHARDS / f"{number:04d}.unfinished"
