"""Commands that make and change a datastore: build, append, delete, compact.

Knows flags and one call for each. Does not know how a datastore is made.
"""

from __future__ import annotations

from typing import Any

import click

from ..config import DatastoreConfig, EmbedConfig, IndexConfig, StoreConfig
from .bars import Bars
from .flags import as_json_flag, cache_dir_flag, config_file_flag, embedder_flag, settings_flags, threads_flag
from .loading import load_embedder, quiet_transformers
from .printing import show, tell_rejected


@click.command()
@click.argument("corpus", nargs=-1, required=True, type=click.Path(exists=True))
@click.argument("datastore", type=click.Path())
@embedder_flag
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why.")
@settings_flags(DatastoreConfig, "datastore_flags")
@settings_flags(IndexConfig, "index_flags")
@settings_flags(EmbedConfig, "embed_flags", prefix="embed_")
@settings_flags(StoreConfig, "store_flags", prefix="store_")
@click.option("--dry-run", is_flag=True, help="Only estimate documents, time and disk: reads CORPUS once.")
@threads_flag
@cache_dir_flag
@config_file_flag
@as_json_flag
def build(
    corpus: tuple[str, ...],
    datastore: str,
    embedder: str,
    rejects: str | None,
    dry_run: bool,
    datastore_flags: dict[str, Any],
    index_flags: dict[str, Any],
    embed_flags: dict[str, Any],
    store_flags: dict[str, Any],
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Build DATASTORE from CORPUS: .jsonl, .jsonl.zst, text files or folders of text.

    A build that was interrupted continues where it was.

    \b
    Examples:
      tttnn build train.jsonl.zst pile-00
      tttnn build src/ docs/ my-code --unit passage
      tttnn build train.jsonl.zst pile-00 --dry-run
    """
    from ..datastore.build_report import BuildReport
    from ..datastore.datastore import Datastore
    from ..datastore.estimate import estimate_build
    from ..store.corpus import iter_corpora

    quiet_transformers()
    report = BuildReport()
    settings: dict[str, Any] = {
        "config": DatastoreConfig(**datastore_flags),
        "index": IndexConfig(**index_flags),
        "store": StoreConfig(**store_flags),
    }
    with Bars(report) as bars:
        documents = iter_corpora(corpus)
        encoder = load_embedder(embedder, EmbedConfig(**embed_flags), threads, cache_dir, bars)
        if dry_run:
            estimate = estimate_build(documents, encoder, **settings, progress=bars)
            show(estimate.to_dict(), as_json)
            return
        made = Datastore.build(datastore, documents, encoder, **settings, progress=bars, report=report)
        tell_rejected(documents.rejected, rejects, bars)
    show(made.info() | {"rejected": len(documents.rejected), "build": report.to_dict()}, as_json)


@click.command()
@click.argument("corpus", nargs=-1, type=click.Path(exists=True))
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.option("--discard", is_flag=True, help="Forget an append that was interrupted, instead of appending.")
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why.")
@threads_flag
@cache_dir_flag
@as_json_flag
def append(
    corpus: tuple[str, ...],
    datastore: str,
    discard: bool,
    rejects: str | None,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Add CORPUS to DATASTORE as new segments, with its embedder and settings; ids go on.

    An append that was interrupted continues where it was; DATASTORE can be searched meanwhile.

    \b
    Examples:
      tttnn append more.jsonl.zst pile-00
      tttnn append --discard pile-00
    """
    from ..datastore.build_report import BuildReport
    from ..datastore.datastore import Datastore
    from ..recipe import with_embedder
    from ..store.corpus import iter_corpora

    if discard == bool(corpus):
        raise click.UsageError("append takes either a CORPUS or --discard")
    if discard:
        show({"discarded": Datastore.open(datastore).discard_append()}, as_json)
        return
    quiet_transformers()
    report = BuildReport()
    with Bars(report) as bars:
        documents = iter_corpora(corpus)
        opened = Datastore.open(datastore)
        if not opened.foreign:  # of imported vectors `append` says itself why it refuses
            with_embedder(opened, threads=threads, cache_dir=cache_dir, on_fetch=bars.tell)
        before = len(opened)
        opened.append(documents, progress=bars, report=report)
        tell_rejected(documents.rejected, rejects, bars)
    show(
        {"appended": len(opened) - before, **opened.info(), "rejected": len(documents.rejected)}
        | {"build": report.to_dict()},
        as_json,
    )


@click.command()
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(0))
@click.option("--source", "sources", multiple=True, help="All documents of this source; may be given again.")
@click.option(
    "--digest", "digests", multiple=True, help="All documents whose text has this digest; may be given again."
)
@as_json_flag
def delete(
    datastore: str, ids: tuple[int, ...], sources: tuple[str, ...], digests: tuple[str, ...], as_json: bool
) -> None:
    """Delete documents of DATASTORE by ID, source or digest: they are gone from every answer.

    Their bytes stay in the files until compact. Ids are never used again.

    \b
    Examples:
      tttnn delete pile-00 17 4711
      tttnn delete pile-00 --source Github
    """
    from ..datastore.datastore import Datastore

    if not (ids or sources or digests):
        raise click.UsageError("delete takes at least one ID, --source or --digest")
    opened = Datastore.open(datastore)
    deleted = opened.delete(ids, source=sources, digests=digests)
    show({"deleted": deleted, "documents": len(opened)}, as_json)


@click.command()
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@as_json_flag
def compact(datastore: str, as_json: bool) -> None:
    """Rewrite DATASTORE without its deleted documents, and merge small segments. Ids stay.

    Interrupted, it leaves the datastore as it was.

    \b
    Examples:
      tttnn compact pile-00
    """
    from ..datastore.datastore import Datastore

    with Bars() as bars:
        report = Datastore.open(datastore).compact(progress=bars)
    show(report.to_dict(), as_json)
