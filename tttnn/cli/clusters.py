"""Commands of a cluster: build, add, replace, start, status, stop.

Knows flags, one call for each and what is printed. Does not know how a shard is made or searched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import models
from ..cluster.ray_session import LOCAL
from ..config import CorpusConfig, DatastoreConfig, EmbedConfig, IndexConfig, StoreConfig
from .bars import Bars
from .command import Command
from .exit_codes import FAILED
from .flags import as_json_flag, config_file_flag, corpus_argument, embedder_flag, loading_flags, settings_flags
from .loading import Loading
from .printing import counted, in_bytes, print_json, show

if TYPE_CHECKING:
    from ..cluster.manifest import ClusterManifest
    from ..cluster.shard_build import ShardProgress


@click.group()
def cluster() -> None:
    """Make one corpus of many datastores: its shards, searched together.

    \b
    Examples:
      tttnn cluster build train/*.jsonl.zst pile
      tttnn search pile "def quicksort(" -k 3
      tttnn cluster start pile --replicas 2
      tttnn search --cluster pile "def quicksort(" -k 3
    """


address_flag = click.option(
    "--address",
    default="auto",
    show_default=True,
    help="Of Ray, as ray start prints it; auto: the one that runs on this machine.",
)


@cluster.command(cls=Command)
@corpus_argument
@click.argument("place", type=click.Path(file_okay=False))
@click.option("--shards", type=click.IntRange(1), help="How many, of all files together  [default: one for each file]")
@click.option(
    "--address",
    default=LOCAL,
    show_default=True,
    help="Of Ray, as ray start prints it; auto: the one that runs on this machine; local: one starts for this.",
)
@embedder_flag
@click.option(
    "--preset",
    type=click.Choice(["default", "paper-gpt2", "paper-gpt-neo"]),
    default="default",
    show_default=True,
    help="paper-: whole documents, every vector compared, as Hardt & Sun.",
)
@settings_flags(CorpusConfig, "corpus_flags")
@settings_flags(DatastoreConfig, "datastore_flags")
@settings_flags(IndexConfig, "index_flags")
@settings_flags(EmbedConfig, "embed_flags", prefix="embed_")
@settings_flags(StoreConfig, "store_flags", prefix="store_")
@loading_flags(dtype=False)
@config_file_flag
@as_json_flag
def build(
    corpus: tuple[str, ...],
    place: str,
    shards: int | None,
    address: str,
    embedder: str,
    preset: str,
    corpus_flags: dict[str, Any],
    datastore_flags: dict[str, Any],
    index_flags: dict[str, Any],
    embed_flags: dict[str, Any],
    store_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Build the cluster PLACE from CORPUS: one shard for each file, or as many as --shards says.

    Shards are built side by side, as many as there are cores for (--threads is
    what each takes, 1 unless given), here or on the machines of a Ray cluster,
    which must all see CORPUS and PLACE under the same names. Interrupted, the
    same command goes on; a machine that is lost costs what it had not written.

    \b
    Examples:
      tttnn cluster build train/*.jsonl.zst pile
      tttnn cluster build train.jsonl.zst pile --shards 8 --address auto
      tttnn cluster build /pile/train/*.jsonl.zst pile --preset paper-gpt2
    """
    from ..cluster.build_plan import BuildPlan
    from ..cluster.ray_build import build_cluster

    paper = {} if preset == "default" else {"backend": "exact", "metric": "l2"}
    plan = BuildPlan.of(
        corpus,
        shards,
        embedder,
        CorpusConfig(**corpus_flags),
        DatastoreConfig(**({"unit": "document"} | datastore_flags)),
        IndexConfig(**(paper | index_flags)),
        EmbedConfig(**embed_flags),
        StoreConfig(**store_flags),
    )
    loading.check()
    with Bars() as bars:
        models.resolve(embedder, cache_dir=loading.cache_dir, on_fetch=bars.tell)
        lines = ShardLines(bars)
        made = build_cluster(
            place,
            plan,
            address=address,
            device=loading.device,
            threads=loading.threads or 1,
            cache_dir=None if loading.cache_dir is None else str(loading.cache_dir),
            on_progress=lines,
        )
    _told(Path(place), made, as_json)


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


@cluster.command(cls=Command)
@click.argument("place", type=click.Path(exists=True, file_okay=False))
@click.option("--name", help="What clients call it  [default: PLACE's last part]")
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(1), help="Processes of each shard.")
@address_flag
@as_json_flag
def start(place: str, name: str | None, replicas: int, address: str, as_json: bool) -> None:
    """Start the cluster PLACE on Ray: processes that hold the shards open and answer.

    Replicas of a shard are on different machines, where there are several. They
    stay when this command ends, until stop; one that is lost begins again.
    A Ray must run: ray start --head.

    \b
    Examples:
      tttnn cluster start pile
      tttnn cluster start pile --name pile-2 --replicas 3 --address 10.0.0.1:6379
    """
    from ..cluster.running import start_cluster

    described = start_cluster(place, name or Path(place).absolute().name, replicas=replicas, address=address)
    print_json(described) if as_json else _print_running(described)


@cluster.command(cls=Command)
@click.argument("name")
@address_flag
@as_json_flag
def status(name: str, address: str, as_json: bool) -> None:
    """Say of the running cluster NAME where its replicas are, what memory they hold and how many queries they had.

    Exit code 1 when a replica gives no answer.

    \b
    Examples:
      tttnn cluster status pile
    """
    from ..cluster.running import describe_cluster

    described = describe_cluster(name, address=address)
    print_json(described) if as_json else _print_running(described)
    if any("error" in replica for shard in described["shards"] for replica in shard["replicas"]):
        raise SystemExit(FAILED)


@cluster.command(cls=Command)
@click.argument("name")
@address_flag
@as_json_flag
def stop(name: str, address: str, as_json: bool) -> None:
    """End the processes of the running cluster NAME; its files stay.

    \b
    Examples:
      tttnn cluster stop pile
    """
    from ..cluster.running import stop_cluster

    show({"stopped": stop_cluster(name, address=address)}, as_json)


def _print_running(described: dict[str, Any]) -> None:
    click.echo(
        f"{described['name']} ({described['place']}): {counted(len(described['shards']), 'shard')}, "
        f"{counted(described['documents'], 'document')}, on {counted(len(described['nodes']), 'node')}"
    )
    for shard in described["shards"]:
        click.echo(f"shard {shard['shard']}: {counted(shard['documents'], 'document')}, {shard['path']}")
        for replica in shard["replicas"]:
            said = replica.get("error") or (
                f"node {replica['node']} ({replica['node_id'][:8]}), process {replica['pid']}, "
                f"{in_bytes(replica['memory_bytes'])}, {counted(replica['queries'], 'question')}"
            )
            click.echo(f"  replica {replica['replica']}: {said}")


class ShardLines:
    """Tells how far each shard of a build is: a bar for each on a terminal, else a line now and then."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def __call__(self, shards: list[ShardProgress]) -> None:
        """Show a state of all shards."""
        for number, shard in enumerate(shards):
            if shard.stage not in ("waiting", "done"):
                self._bars(f"shard {number}: {shard.stage}", shard.done, shard.total, rates=shard.rates)
        self._bars("shards", sum(shard.stage == "done" for shard in shards), len(shards))
