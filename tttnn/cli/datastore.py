"""Commands that make and change a datastore: build, append, delete, compact.

Knows flags and one call for each. Does not know how a datastore is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import CorpusConfig, DatastoreConfig, EmbedConfig, ExpertConfig, IndexConfig, IndexVectors, StoreConfig
from .bars import Bars
from .command import Command
from .experts import print_trained
from .flags import (
    DocumentIdText,
    as_json_flag,
    config_file_flag,
    corpus_argument,
    embedder_flag,
    loading_flags,
    model_flag,
    rejects_flag,
    settings_flags,
    writes,
)
from .loading import Loading
from .printing import print_built, print_json, show, tell_rejected

if TYPE_CHECKING:
    from ..datastore.datastore import Datastore
    from ..instant.precompute_report import PrecomputeReport


@click.command(cls=Command)
@corpus_argument
@click.argument("datastore", type=click.Path())
@embedder_flag
@click.option("--dry-run", is_flag=True, help="Only estimate documents, time, disk and memory: reads CORPUS once.")
@click.option(
    "--experts",
    is_flag=True,
    help="Then train --model's experts, as tttnn precompute does by itself; the datastore can be used meanwhile.",
)
@model_flag
@rejects_flag
@settings_flags(CorpusConfig, "corpus_flags")
@settings_flags(DatastoreConfig, "datastore_flags")
@settings_flags(IndexConfig, "index_flags")
@settings_flags(EmbedConfig, "embed_flags", prefix="embed_")
@settings_flags(StoreConfig, "store_flags", prefix="store_")
@loading_flags(dtype=False)
@config_file_flag
@as_json_flag
@writes("rejects")
def build(
    corpus: tuple[str, ...],
    datastore: str,
    embedder: str,
    rejects: str | None,
    dry_run: bool,
    experts: bool,
    model: str,
    corpus_flags: dict[str, Any],
    datastore_flags: dict[str, Any],
    index_flags: dict[str, Any],
    embed_flags: dict[str, Any],
    store_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Build DATASTORE from CORPUS: files and folders of texts, JSON lines, tables, Parquet, HTML, archives.

    What a file is, its content says; each may be compressed; - is standard
    input. What is left out is told with its reason. A build that was
    interrupted continues where it was.

    \b
    Examples:
      tttnn build train.jsonl.zst pile-00
      tttnn build src/ docs/ my-code --unit passage --exclude node_modules
      zcat dump.gz | tttnn build - dump --text-field body --source-field forum
      tttnn build train.jsonl.zst pile-00 --dry-run
      tttnn build train.jsonl.zst pile-00 --experts --model smollm2-135m
    """
    from ..datastore.build_report import BuildReport
    from ..store.corpus import iter_corpora

    if experts and dry_run:
        raise click.UsageError("--experts must stand without --dry-run. Of a datastore: tttnn precompute --dry-run")
    report = BuildReport()
    settings: dict[str, Any] = {
        "config": DatastoreConfig(**datastore_flags),
        "index": IndexConfig(**index_flags),
        "store": StoreConfig(**store_flags),
    }
    documents = iter_corpora(corpus, CorpusConfig(**corpus_flags), rejects=rejects)
    with Bars(report) as bars:
        encoder = loading.embedder(embedder, EmbedConfig(**embed_flags), bars)
        if experts:
            loading.find(model, bars)  # a wrong name is said before hours of embedding, not after
        if dry_run:
            from ..datastore.estimate import estimate_build

            estimate = estimate_build(documents, encoder, **settings, progress=bars)
            tell_rejected(documents, rejects, bars, most=100)
            show(estimate.to_dict() | {"rejected": documents.num_rejected}, as_json)
            return
        from ..datastore.datastore import Datastore

        built = Datastore.build(datastore, documents, encoder, **settings, progress=bars, report=report)
        tell_rejected(documents, rejects, bars)
        if experts:
            trained = _with_experts(built, model, loading, bars)
    described = built.info() | {"rejected": documents.num_rejected, "build": report.to_dict()}
    if as_json:
        print_json(described | ({"precompute": trained.to_dict()} if experts else {}))
        return
    print_built(described, datastore, len(built))
    if experts:
        print_trained(datastore, trained)


def _with_experts(built: Datastore, model: str, loading: Loading, bars: Bars) -> PrecomputeReport:
    """Train the experts of a datastore, as `tttnn precompute` does unless it is told otherwise."""
    from ..instant.precompute import Precompute
    from ..lm.limits import model_max_length

    loaded, tokenizer = loading.language_model(model, bars)
    window = min(ExpertConfig().max_length, model_max_length(loaded, tokenizer))
    leaves = built.manifest.unit == "document"
    work = Precompute(built, loaded, tokenizer, ExpertConfig(max_length=window), leaves=leaves)
    return work.run(progress=bars)


@click.command(cls=Command)
@click.argument("corpus", nargs=-1, type=click.Path(exists=True, allow_dash=True), metavar="[CORPUS]...")
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.option("--discard", is_flag=True, help="Forget an append that was interrupted, instead of appending.")
@rejects_flag
@settings_flags(CorpusConfig, "corpus_flags")
@loading_flags(dtype=False)
@as_json_flag
@writes("rejects")
def append(
    corpus: tuple[str, ...],
    datastore: str,
    discard: bool,
    rejects: str | None,
    corpus_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Add CORPUS to DATASTORE as new segments, with its embedder and settings.

    Ids go on. An append that was interrupted continues where it was; DATASTORE
    can be searched meanwhile.

    \b
    Examples:
      tttnn append more.jsonl.zst pile-00
      tttnn append --discard pile-00
    """
    from ..datastore.build_report import BuildReport
    from ..datastore.datastore import Datastore
    from ..store.corpus import iter_corpora

    if discard == bool(corpus):
        raise click.UsageError("append takes either a CORPUS or --discard")
    if discard:
        show({"discarded": Datastore.open(datastore).discard_append()}, as_json)
        return
    report = BuildReport()
    documents = iter_corpora(corpus, CorpusConfig(**corpus_flags), rejects=rejects)
    with Bars(report) as bars:
        opened = Datastore.open(datastore)
        if not opened.foreign:  # of imported vectors `append` says itself why it refuses
            loading.attach(opened, bars)
        before = len(opened)
        opened.append(documents, progress=bars, report=report)
        tell_rejected(documents, rejects, bars)
    appended = len(opened) - before
    described = {"appended": appended, **opened.info(), "rejected": documents.num_rejected, "build": report.to_dict()}
    if as_json:
        print_json(described)
    else:
        print_built(described, datastore, appended)


@click.command(cls=Command)
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.argument("ids", metavar="[ID]...", nargs=-1, type=DocumentIdText())
@click.option("--source", "sources", multiple=True, help="All documents of this source; may be given again.")
@click.option(
    "--digest", "digests", multiple=True, help="All documents whose text has this digest; may be given again."
)
@as_json_flag
def delete(
    datastore: str, ids: tuple[int, ...], sources: tuple[str, ...], digests: tuple[str, ...], as_json: bool
) -> None:
    """Delete documents of DATASTORE by ID, source or digest: they are gone from every answer.

    Their bytes stay in the files until compact. Ids are never used again. Of
    a cluster an ID is shard:id, as search prints it.

    \b
    Examples:
      tttnn delete pile-00 17 4711
      tttnn delete pile 3:17
      tttnn delete pile-00 --source Github
    """
    from ..cluster.document_id import DocumentId
    from ..cluster.manifest import delete_from, is_cluster, open_cluster
    from ..datastore.datastore import Datastore

    if not (ids or sources or digests):
        raise click.UsageError("delete takes at least one ID, --source or --digest")
    if is_cluster(datastore):
        if sources or digests:
            raise click.UsageError("delete takes the documents of a cluster by ID alone")
        deleted = delete_from(Path(datastore), [DocumentId(i) for i in ids])
        documents = open_cluster(Path(datastore)).documents
    else:
        opened = Datastore.open(datastore)
        deleted = opened.delete(ids, source=sources, digests=digests)
        documents = len(opened)
    show({"deleted": deleted, "documents": documents}, as_json)


@click.command(cls=Command)
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--index-vectors",
    type=click.Choice(get_args(IndexVectors)),
    help="Index every segment anew where it has other vectors than these.",
)
@as_json_flag
def compact(datastore: str, index_vectors: IndexVectors | None, as_json: bool) -> None:
    """Rewrite DATASTORE without its deleted documents, and merge small segments. Ids stay.

    Interrupted, it leaves the datastore as it was.

    \b
    Examples:
      tttnn compact pile-00
      tttnn compact pile-00 --index-vectors int8
    """
    from ..datastore.datastore import Datastore

    with Bars() as bars:
        report = Datastore.open(datastore).compact(vectors=index_vectors, progress=bars)
    show(report.to_dict(), as_json)
