"""Commands that look at a datastore or a text store and change nothing: info, verify.

Knows flags and one call for each. Does not know what a file should hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .bars import Bars
from .command import Command
from .flags import as_json_flag
from .printing import print_datastore, print_json, show


@click.command(cls=Command)
@click.argument("datastore", required=False, type=click.Path())
@click.option("--build", "about_build", is_flag=True, help="Describe this installation instead.")
@as_json_flag
def info(datastore: str | None, about_build: bool, as_json: bool) -> None:
    """Describe DATASTORE (a cluster, or a single text store), or this installation.

    \b
    Examples:
      tttnn info pile-00
      tttnn info --build --json
    """
    from ..cluster.manifest import is_cluster

    if about_build == (datastore is not None):
        raise click.UsageError("info takes either a DATASTORE or --build")
    if datastore is None:
        described = _build_info()
    elif Path(datastore).is_file():
        from ..store.text_store import TextStore

        with TextStore.open(datastore) as store:
            described = store.info()
    elif is_cluster(datastore):
        from ..cluster.cluster_datastore import ClusterDatastore

        described = ClusterDatastore.open(datastore).info()
    else:
        from ..datastore.datastore import Datastore
        from ..instant.descriptions import described_experts

        opened = Datastore.open(datastore)
        described = opened.info() | {"experts": described_experts(opened)}
        if not as_json:
            print_datastore(described)
            click.echo("more: --json")
            return
    show(described, as_json)


def _build_info() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from .._core import build_info

    described: dict[str, Any] = build_info()
    described["python"] = platform.python_version()
    described["platform"] = platform.platform()
    for package in ("torch", "transformers", "numpy", "zstandard"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    return described


@click.command(cls=Command)
@click.argument("datastore", type=click.Path(exists=True))
@click.option("--quick", is_flag=True, help="Check sizes, tables and the manifest; do not read every byte.")
@as_json_flag
def verify(datastore: str, quick: bool, as_json: bool) -> None:
    """Read DATASTORE (a cluster, or a single text store) and compare it with its checksums.

    Exit code 3 and a message that names the file when something is damaged.

    \b
    Examples:
      tttnn verify pile-00
      tttnn verify pile-00 --quick
    """
    from ..cluster.manifest import is_cluster
    from ..store.text_store import TextStore

    with Bars() as bars:
        if is_cluster(datastore):
            documents = sum(_verified(path, quick, bars) for path in _shards_of(Path(datastore)))
        elif Path(datastore).is_dir():
            documents = _verified(Path(datastore), quick, bars)
        else:
            with TextStore.open(datastore) as store:
                store.verify(full=not quick, progress=bars)
                documents = len(store)
    if as_json:
        print_json({"ok": True, "documents": documents, "full": not quick})
    else:
        click.echo(f"{datastore}: {documents} documents, no damage found")


def _shards_of(place: Path) -> list[Path]:
    """Return where a cluster's shards lie; each must be in the state that the cluster names."""
    from ..cluster.manifest import check_shard, open_cluster

    manifest = open_cluster(place)
    for number in range(len(manifest.shards)):
        check_shard(place, manifest, number)
    return [manifest.path_of(place, number) for number in range(len(manifest.shards))]


def _verified(path: Path, quick: bool, bars: Bars) -> int:
    """Compare a datastore with its checksums; return how many documents it has."""
    from ..datastore.datastore import Datastore
    from ..instant.descriptions import described_experts

    with Datastore.open(path) as opened:
        described_experts(opened, full=not quick)  # reads and compares their files
        opened.verify_texts(full=not quick, progress=bars)
        return len(opened)
