"""Commands for text stores without embeddings: import, export, repair.

Knows flags and one call for each. Does not know the format of a store.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import CorpusConfig, IndexConfig, StoreConfig
from .bars import Bars
from .command import Command
from .exit_codes import DAMAGED
from .flags import as_json_flag, config_file_flag, corpus_argument, rejects_flag, settings_flags, writes
from .printing import in_bytes, print_built, print_json, show, tell_rejected

if TYPE_CHECKING:
    from ..store.document import Document


@click.command("import", cls=Command)
@corpus_argument
@click.argument("target", type=click.Path())
@rejects_flag
@click.option("--resume", is_flag=True, help="Continue an import of texts that was interrupted.")
@click.option(
    "--faiss",
    "indexes",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Flat faiss index of the vectors of a CORPUS; one for each, in their order. Makes TARGET a datastore.",
)
@click.option("--embedder-name", default="unknown", show_default=True, help="What made the vectors of --faiss.")
@settings_flags(CorpusConfig, "corpus_flags")
@settings_flags(StoreConfig, "store_flags")
@settings_flags(IndexConfig, "index_flags")
@config_file_flag
@as_json_flag
@writes("target", "rejects")
def import_(
    corpus: tuple[str, ...],
    target: str,
    rejects: str | None,
    resume: bool,
    indexes: tuple[str, ...],
    embedder_name: str,
    corpus_flags: dict[str, Any],
    store_flags: dict[str, Any],
    index_flags: dict[str, Any],
    as_json: bool,
) -> None:
    """Write CORPUS into a text store, without embedding it.

    With --faiss into a datastore, with vectors made elsewhere. CORPUS is as for
    build.

    \b
    Examples:
      tttnn import train.jsonl.zst texts.zst
      tttnn import src/ docs/ code.zst --level 12
      tttnn import 00.jsonl pile --faiss 00.index --embedder-name roberta-large
    """
    from ..store.corpus import iter_corpora
    from ..store.writer import write_store

    if indexes:
        _import_faiss(target, indexes, corpus, corpus_flags, embedder_name, index_flags, store_flags, as_json)
        return
    documents = iter_corpora(corpus, CorpusConfig(**corpus_flags), rejects=rejects)
    with Bars() as bars:
        summary = write_store(target, documents, config=StoreConfig(**store_flags), resume=resume, progress=bars)
        tell_rejected(documents, rejects, bars)
    described = dataclasses.asdict(summary) | {"rejected": documents.num_rejected}
    if as_json:
        print_json(described)
        return
    click.echo(f"{target}: {summary.documents:,} documents, {in_bytes(summary.file_bytes)}")
    click.echo(f"next: tttnn info {shlex.quote(target)}")


def _import_faiss(
    target: str,
    indexes: tuple[str, ...],
    corpus: tuple[str, ...],
    corpus_flags: dict[str, Any],
    embedder_name: str,
    index_flags: dict[str, Any],
    store_flags: dict[str, Any],
    as_json: bool,
) -> None:
    from ..datastore.build_report import BuildReport
    from ..datastore.datastore import Datastore

    report = BuildReport()
    with Bars(report) as bars:
        imported = Datastore.import_faiss(
            target,
            indexes,
            corpus,
            corpus=CorpusConfig(**corpus_flags),
            embedder_name=embedder_name,
            index=IndexConfig(**index_flags),
            store=StoreConfig(**store_flags),
            progress=bars,
            report=report,
        )
    described = imported.info() | {"build": report.to_dict()}
    if as_json:
        print_json(described)
    else:
        print_built(described, target, len(imported))


@click.command(cls=Command)
@click.argument("source", metavar="DATASTORE", type=click.Path(exists=True))
@click.argument("out", type=click.Path(dir_okay=False, allow_dash=True))
@as_json_flag
@writes("out")
def export(source: str, out: str, as_json: bool) -> None:
    """Write the documents of DATASTORE, or of a text store, as JSON lines.

    Deleted ones are not in it. A name that ends in .zst, .gz, .xz or .bz2 is
    compressed; - is standard output.

    \b
    Examples:
      tttnn export pile-00 documents.jsonl.zst
      tttnn export pile-00 - | head -3
      tttnn export texts.zst documents.jsonl
    """
    from ..store.export import export_jsonl, write_lines
    from ..store.text_store import TextStore

    home = _datastore_of(Path(source))
    with Bars() as bars, ExitStack() as opened:
        if home is None:
            documents: Collection[Document] = opened.enter_context(TextStore.open(source))
        else:
            from ..datastore.datastore import Datastore

            documents = opened.enter_context(Datastore.open(home)).store
        if out == "-":
            # Where documents and bars went to one terminal, they would write over each other.
            write_lines(documents, sys.stdout.buffer.write, None if sys.stdout.isatty() else bars)
            sys.stdout.buffer.flush()
            return
        count = export_jsonl(documents, out, force=True, progress=bars)
    show({"documents": count, "file": out}, as_json)


def _datastore_of(path: Path) -> Path | None:
    """Return the datastore that is to be exported; None where the path is a text store.

    Raises:
        ValueError: It is the text store of one segment, of which documents may have been deleted.
    """
    from ..datastore.manifest import MANIFEST, SEGMENTS

    if path.is_dir():
        return path
    if path.is_symlink() and (path.parent / MANIFEST).is_file():
        return path.parent
    segment = path.resolve().parent
    home = segment.parent.parent
    if segment.parent.name == SEGMENTS and (home / MANIFEST).is_file():
        raise ValueError(
            f"{path}: is a part of the datastore {home}, which knows what of it was deleted. "
            f"Export that with: tttnn export {home} OUT"
        )
    return None


@click.command(cls=Command)
@click.argument("store", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@as_json_flag
@writes("out")
def repair(store: str, out: str, as_json: bool) -> None:
    """Rebuild a damaged text store into OUT from what is intact, and list what was lost.

    Document ids stay what they were. Exit code 3 when something was lost.

    \b
    Examples:
      tttnn repair pile-00/segments/000/texts.zst repaired.zst
      tttnn repair texts.zst.partial texts.zst
    """
    from ..store.repair import repair_store

    with Bars() as bars:
        report = repair_store(store, out, progress=bars)
    show(dataclasses.asdict(report), as_json)
    if report.lost_texts or report.lost_metas or not report.tail_known:
        raise SystemExit(DAMAGED)
