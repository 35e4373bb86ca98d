"""Commands of a cluster's shards: cluster add, cluster replace.

Knows flags and one call for each. Does not know how a shard is made or searched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import Command
from .flags import as_json_flag
from .printing import counted, print_json

if TYPE_CHECKING:
    from ..cluster.manifest import ClusterManifest


@click.group()
def cluster() -> None:
    """Make one corpus of many datastores: its shards, searched together.

    \b
    Examples:
      tttnn cluster add pile pile-00 pile-01
      tttnn search pile "def quicksort(" -k 3
    """


@cluster.command(cls=Command)
@click.argument("place", type=click.Path(file_okay=False))
@click.argument("datastores", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@as_json_flag
def add(place: str, datastores: tuple[str, ...], as_json: bool) -> None:
    """Enter DATASTORES as further shards of the cluster PLACE; the first make it. Nothing is copied.

    All must have the same embedder, unit and metric. A cluster can be searched
    meanwhile.

    \b
    Examples:
      tttnn cluster add pile pile-00 pile-01
    """
    from ..cluster.manifest import add_shards

    _told(Path(place), add_shards(Path(place), datastores), as_json)


@cluster.command(cls=Command)
@click.argument("place", type=click.Path(exists=True, file_okay=False))
@click.argument("shard", type=click.IntRange(0))
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@as_json_flag
def replace(place: str, shard: int, datastore: str, as_json: bool) -> None:
    """Put DATASTORE, or what it has become, in the place of a SHARD of the cluster PLACE.

    The others, and their documents' ids, stay. The cluster can be searched
    meanwhile.

    \b
    Examples:
      tttnn append more.jsonl.zst pile-01
      tttnn cluster replace pile 1 pile-01
    """
    from ..cluster.manifest import replace_shard

    _told(Path(place), replace_shard(Path(place), shard, datastore), as_json)


def _told(place: Path, manifest: ClusterManifest, as_json: bool) -> None:
    if as_json:
        shards = [{"path": s.path, "id": s.id, "documents": s.documents} for s in manifest.shards]
        print_json({"id": manifest.id, "documents": manifest.documents, "shards": shards})
    else:
        click.echo(f"{place}: {counted(len(manifest.shards), 'shard')}, {counted(manifest.documents, 'document')}")
