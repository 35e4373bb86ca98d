"""The command line: flags -> settings, one call, print. Results go to standard output, all else to standard error.

Exit codes: 0 done; 1 failed; 2 a wrong argument, setting or file name; 3 a damaged file; 130 Ctrl-C.
"""

from __future__ import annotations

import os

# Read when torch is imported: threads that spin while they wait slow every other process down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

import click

from .. import models
from ..config import (
    PRESETS,
    AdaptConfig,
    DatastoreConfig,
    EmbedConfig,
    EvalConfig,
    IndexConfig,
    ScoreConfig,
    SelectionConfig,
    StoreConfig,
)
from ..errors import IndexCorruptError, StoreCorruptError, StoreVersionError, TttnnError
from ..version import __version__
from .flags import (
    as_json_flag,
    cache_dir_flag,
    config_file_flag,
    embedder_flag,
    model_flag,
    preset_flag,
    settings_flags,
    threads_flag,
)
from .terminal import (
    Bars,
    excerpt,
    print_audit,
    print_demo,
    print_json,
    print_pairs,
    print_results,
    show,
    stages_line,
    tell_rejected,
)

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tttnn")
def app() -> None:
    """Test-time training on nearest neighbors.

    \b
    Examples:
      tttnn demo
      tttnn build train.jsonl.zst pile-00
      tttnn search pile-00 "def quicksort(" -k 3
      tttnn generate pile-00 "def quicksort(" --model smollm2-135m
      tttnn eval pile-00 test.jsonl --out results.jsonl
      tttnn report results.jsonl -o report.html
    """


@app.command()
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

    _quiet_transformers()
    report = BuildReport()
    settings: dict[str, Any] = {
        "config": DatastoreConfig(**datastore_flags),
        "index": IndexConfig(**index_flags),
        "store": StoreConfig(**store_flags),
    }
    with Bars(report) as bars:
        documents = iter_corpora(corpus)
        encoder = _load_embedder(embedder, EmbedConfig(**embed_flags), threads, cache_dir, bars)
        if dry_run:
            estimate = estimate_build(documents, encoder, **settings, progress=bars)
            show(estimate.to_dict(), as_json)
            return
        made = Datastore.build(datastore, documents, encoder, **settings, progress=bars, report=report)
        tell_rejected(documents.rejected, rejects, bars)
    show(made.info() | {"rejected": len(documents.rejected), "build": report.to_dict()}, as_json)


@app.command()
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
    from ..store.corpus import iter_corpora

    if discard == bool(corpus):
        raise click.UsageError("append takes either a CORPUS or --discard")
    if discard:
        show({"discarded": Datastore.open(datastore).discard_append()}, as_json)
        return
    _quiet_transformers()
    report = BuildReport()
    with Bars(report) as bars:
        documents = iter_corpora(corpus)
        opened = _open_datastore(datastore, None, threads, cache_dir, bars)
        before = len(opened)
        opened.append(documents, progress=bars, report=report)
        tell_rejected(documents.rejected, rejects, bars)
    show(
        {"appended": len(opened) - before, **opened.info(), "rejected": len(documents.rejected)}
        | {"build": report.to_dict()},
        as_json,
    )


@app.command()
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


@app.command()
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


@app.command("import")
@click.argument("corpus", nargs=-1, required=True, type=click.Path(exists=True))
@click.argument("target", type=click.Path())
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why.")
@click.option("--resume", is_flag=True, help="Continue an import of texts that was interrupted.")
@click.option(
    "--faiss",
    "indexes",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Flat faiss index of the vectors of a CORPUS; one for each, in their order. Makes TARGET a datastore.",
)
@click.option("--embedder-name", default="unknown", show_default=True, help="What made the vectors of --faiss.")
@settings_flags(StoreConfig, "store_flags")
@settings_flags(IndexConfig, "index_flags")
@config_file_flag
@as_json_flag
def import_(
    corpus: tuple[str, ...],
    target: str,
    rejects: str | None,
    resume: bool,
    indexes: tuple[str, ...],
    embedder_name: str,
    store_flags: dict[str, Any],
    index_flags: dict[str, Any],
    as_json: bool,
) -> None:
    """Write CORPUS into a text store, without embedding it; with --faiss into a datastore with vectors made elsewhere.

    \b
    Examples:
      tttnn import train.jsonl.zst texts.zst
      tttnn import src/ docs/ code.zst --level 12
      tttnn import 00.jsonl 01.jsonl pile --faiss 00.index --faiss 01.index --embedder-name roberta-large-pile
    """
    from ..store.corpus import iter_corpora
    from ..store.text_store import write_store

    if indexes:
        from ..datastore.build_report import BuildReport
        from ..datastore.datastore import Datastore

        report = BuildReport()
        with Bars(report) as bars:
            made = Datastore.import_faiss(
                target,
                indexes,
                corpus,
                embedder_name=embedder_name,
                index=IndexConfig(**index_flags),
                store=StoreConfig(**store_flags),
                progress=bars,
                report=report,
            )
        show(made.info() | {"build": report.to_dict()}, as_json)
        return
    documents = iter_corpora(corpus)
    with Bars() as bars:
        summary = write_store(target, documents, config=StoreConfig(**store_flags), resume=resume, progress=bars)
        tell_rejected(documents.rejected, rejects, bars)
    show(dataclasses.asdict(summary) | {"rejected": len(documents.rejected)}, as_json)


@app.command()
@click.argument("store", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@as_json_flag
def repair(store: str, out: str, as_json: bool) -> None:
    """Rebuild a damaged text store into OUT from what is intact, and list what was lost.

    Document ids stay what they were. Exit code 3 when something was lost.

    \b
    Examples:
      tttnn repair pile-00/segments/000/texts.zst repaired.zst
      tttnn repair texts.zst.partial texts.zst
    """
    from ..store.text_store import repair_store

    with Bars() as bars:
        report = repair_store(store, out, progress=bars)
    show(dataclasses.asdict(report), as_json)
    if report.lost_texts or report.lost_metas or not report.tail_known:
        raise SystemExit(DAMAGED)


@app.command()
@click.argument("store", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@as_json_flag
def export(store: str, out: str, as_json: bool) -> None:
    """Write the documents of a text store as JSON lines; a name that ends in .zst is compressed.

    \b
    Examples:
      tttnn export pile-00/texts.zst documents.jsonl.zst
    """
    from ..store.text_store import TextStore, export_jsonl

    with Bars() as bars, TextStore.open(store) as opened:
        count = export_jsonl(opened, out, progress=bars)
    show({"documents": count, "file": out}, as_json)


@app.command()
@click.argument("datastore", required=False, type=click.Path())
@click.option("--build", "about_build", is_flag=True, help="Describe this installation instead.")
@as_json_flag
def info(datastore: str | None, about_build: bool, as_json: bool) -> None:
    """Describe DATASTORE (or a single text store), or this installation.

    \b
    Examples:
      tttnn info pile-00
      tttnn info --build --json
    """
    if about_build == (datastore is not None):
        raise click.UsageError("info takes either a DATASTORE or --build")
    if datastore is None:
        described = _build_info()
    elif Path(datastore).is_file():
        from ..store.text_store import TextStore

        with TextStore.open(datastore) as store:
            described = store.info()
    else:
        from ..datastore.datastore import Datastore

        described = Datastore.open(datastore).info()
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


@app.command()
@click.argument("datastore", type=click.Path(exists=True))
@click.option("--quick", is_flag=True, help="Check sizes, tables and the manifest; do not read every byte.")
@as_json_flag
def verify(datastore: str, quick: bool, as_json: bool) -> None:
    """Read DATASTORE (or a single text store) and compare it with its checksums.

    Exit code 3 and a message that names the file when something is damaged.

    \b
    Examples:
      tttnn verify pile-00
      tttnn verify pile-00 --quick
    """
    from ..datastore.datastore import Datastore
    from ..store.text_store import TextStore

    with Bars() as bars:
        if Path(datastore).is_dir():
            opened = Datastore.open(datastore)
            opened.verify(full=not quick, progress=bars)
            documents = len(opened)
        else:
            with TextStore.open(datastore) as store:
                store.verify(full=not quick, progress=bars)
                documents = len(store)
    if as_json:
        print_json({"ok": True, "documents": documents, "full": not quick})
    else:
        click.echo(f"{datastore}: {documents} documents, no damage found")


@app.command()
@click.argument("datastore", type=click.Path())
@click.argument("query")
@click.option("-k", default=10, show_default=True, help="Neighbors to show.")
@click.option("--ef", type=int, help="Width of the search in the graph.")
@click.option("--source", "sources", multiple=True, help="Only documents of this source; may be given again.")
@click.option("--explain", is_flag=True, help="Say how the query was answered; costs an exact search.")
@click.option("--embedder", help="Instead of the one the datastore was built with.")
@threads_flag
@cache_dir_flag
@as_json_flag
def search(
    datastore: str,
    query: str,
    k: int,
    ef: int | None,
    sources: tuple[str, ...],
    explain: bool,
    embedder: str | None,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Print the K nearest documents of QUERY, nearest first.

    \b
    Examples:
      tttnn search pile-00 "def quicksort(" -k 3
      tttnn search pile-00 "$(cat query.txt)" --json
      tttnn search pile-00 "def quicksort(" --source Github --explain
    """
    _quiet_transformers()
    with Bars() as bars:
        opened = _open_datastore(datastore, embedder, threads, cache_dir, bars)
        found = opened.search(query, k, ef=ef, source=sources or None, explain=explain)
    if found.query_truncated:
        bars.tell("the query is longer than the embedder reads: its end was not searched with")
    if len(found) < k:
        bars.tell(f"{len(found)} neighbors, fewer than the {k} asked for: the datastore has no more")
    explained: dict[str, Any] = {}
    if found.explanation is not None:
        explained = {
            "tokens": found.query_tokens,
            "truncated": found.query_truncated,
            **found.explanation.to_dict(),
            "seconds": {name: round(value, 6) for name, value in found.seconds.items()},
        }
    if as_json:
        rows = [
            {"id": n.id, "distance": n.distance, "source": n.source, "span": n.span, "meta": n.meta, "text": n.text}
            for n in found
        ]
        print_json({"neighbors": rows, "explanation": explained} if explain else rows)
        return
    for neighbor in found:
        name = neighbor.source or neighbor.meta.get("path") or ""
        click.echo(f"{neighbor.distance:8.4f}  {neighbor.id:>8}  {name}")
        click.echo(f"          {excerpt(neighbor.text)}")
    print_pairs(explained)


@app.command()
@click.argument("datastore", type=click.Path())
@click.argument("query")
@model_flag
@preset_flag
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest continuation.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token each time.")
@click.option("--base/--no-base", default=True, show_default=True, help="Show the base model's continuation too.")
@click.option("--embedder", help="Instead of the one the datastore was built with.")
@threads_flag
@cache_dir_flag
@config_file_flag
@as_json_flag
def generate(
    datastore: str,
    query: str,
    model: str,
    preset: str,
    adapt_flags: dict[str, Any],
    select_flags: dict[str, Any],
    max_new_tokens: int,
    temperature: float,
    base: bool,
    embedder: str | None,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Adapt the model to QUERY's neighbors in DATASTORE and continue QUERY.

    \b
    Examples:
      tttnn generate pile-00 "def quicksort(" --model smollm2-135m --num-neighbors 20
      tttnn generate pile-00 "def quicksort(" --deadline-ms 2000 --json
    """
    from ..retrieval.selector import Selector

    _quiet_transformers()
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    with Bars() as bars:
        config = PRESETS[preset].with_(**adapt_flags)
        opened = _open_datastore(datastore, embedder, threads, cache_dir, bars)
        chosen = Selector(opened, SelectionConfig(**select_flags))
        trainer = _load_trainer(model, chosen, config, None, threads, cache_dir, bars)
        before = trainer.generate(query, **options) if base else None
        with trainer.adapt(query, observe=lambda _, k: bars("adapt", k, config.num_neighbors)) as adapted:
            after = adapted.generate(**options)
            report = adapted.report
    if as_json:
        print_json({"query": query, "base": before, "adapted": after, "report": report.to_dict()})
        return
    if before is not None:
        click.echo(f"--- base\n{before}\n--- adapted to {len(report.neighbors)} neighbors")
    click.echo(after)
    bars.tell(stages_line(report.seconds))


@app.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.argument("datastore", type=click.Path())
@model_flag
@threads_flag
@cache_dir_flag
@as_json_flag
def replay(report: str, datastore: str, model: str, threads: int | None, cache_dir: str | None, as_json: bool) -> None:
    """Repeat the adaptation that REPORT describes, and compare every loss.

    REPORT is what generate --json printed, or its "report". Exit code 1 when a loss differs.

    \b
    Examples:
      tttnn generate pile-00 "def quicksort(" --json > report.json
      tttnn replay report.json pile-00
    """
    from ..datastore.datastore import Datastore

    _quiet_transformers()
    held = json.loads(Path(report).read_text(encoding="utf-8"))
    held = held.get("report", held)
    config = AdaptConfig(**held["settings"])
    with Bars() as bars:
        trainer = _load_trainer(model, Datastore.open(datastore), config, None, threads, cache_dir, bars)
        with trainer.replay(held) as adapted:
            losses = adapted.report.losses
    before = [loss for neighbor in held["neighbors"] for loss in neighbor["losses"]]
    difference = max((abs(a - b) for a, b in zip(before, losses, strict=True)), default=0.0)
    show({"steps": len(losses), "largest_difference": difference, "same": difference == 0.0}, as_json)
    if difference != 0.0:
        raise SystemExit(FAILED)


@app.command("eval")
@click.argument("datastore", type=click.Path())
@click.argument("docs", type=click.Path(exists=True))
@model_flag
@preset_flag
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@settings_flags(EvalConfig, "eval_flags")
@settings_flags(ScoreConfig, "score_flags", prefix="score_")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File of result lines; continued if there.")
@click.option(
    "--methods",
    default="base,ttt-nn",
    show_default=True,
    help="Names with commas between: base, ttt-nn, ttt-nn-sift, ttt-nn-guard, lora, in-context, ttt-nn+in-context, "
    "dynamic, interpolation, tttlm-2024.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, a model in each.")
@click.option("--keep-text", is_flag=True, help="Keep queries, neighbors and continuations beside the results.")
@click.option(
    "--weighting",
    type=click.Choice(["both", "bytes", "pile"]),
    default="both",
    show_default=True,
    help="Totals to show: over all bytes, over components by their share of the Pile, or both.",
)
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was no document, and why.")
@click.option("--embedder", help="Instead of the one the datastore was built with.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch in each process  [default: cores / workers]")
@cache_dir_flag
@config_file_flag
@as_json_flag
def eval_(
    datastore: str,
    docs: str,
    model: str,
    preset: str,
    adapt_flags: dict[str, Any],
    select_flags: dict[str, Any],
    eval_flags: dict[str, Any],
    score_flags: dict[str, Any],
    out: str,
    methods: str,
    workers: int,
    keep_text: bool,
    weighting: str,
    rejects: str | None,
    embedder: str | None,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Measure methods on DOCS: bits per byte after each number of neighbors, against the base model.

    One JSON line per document and method goes to --out. Started again after an interruption, it measures only what is
    missing; a larger --limit continues, too.

    \b
    Examples:
      tttnn eval pile-00 test.jsonl --model smollm2-135m --num-neighbors 20 --out results.jsonl
      tttnn eval pile-00 val.jsonl.zst --methods ttt-nn,in-context --limit 4 --workers 2 --out val.jsonl
    """
    from ..datastore.datastore import Datastore
    from ..evaluation.methods import interpolation_curve
    from ..evaluation.results import Budget
    from ..evaluation.runner import evaluate
    from ..evaluation.workers import evaluate_with_workers
    from ..recipe import TrainerRecipe
    from ..store.corpus import iter_corpus

    _quiet_transformers()
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if threads is None and workers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
    with Bars() as bars:
        recipe = TrainerRecipe(
            model,
            datastore,
            PRESETS[preset].with_(**adapt_flags),
            SelectionConfig(**select_flags),
            ScoreConfig(**score_flags),
            embedder,
            threads,
            cache_dir,
        )
        config = EvalConfig(**eval_flags)
        for name in (model, embedder or Datastore.open(datastore).embedder_name):
            models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
        documents = iter_corpus(docs)
        options: dict[str, Any] = {
            "out": out,
            "config": config,
            "methods": names,
            "keep_text": keep_text,
            "progress": bars,
        }
        if workers == 1:
            result = evaluate(recipe.load(), documents, **options)
        else:
            result = evaluate_with_workers(recipe, documents, workers=workers, **options)
        tell_rejected(documents.rejected, rejects, bars)
    summary = result.summary()
    hidden = {"both": (), "bytes": ("pile_all",), "pile": ("all",)}[weighting]
    summary = dataclasses.replace(summary, rows=[row for row in summary.rows if row.group not in hidden])
    pairs = [pair for unit in get_args(Budget) for pair in result.compare_at_budgets(unit)]
    weights = interpolation_curve(result) if "interpolation" in names else {}
    if as_json:
        described = {"at_equal_budget": [dataclasses.asdict(pair) for pair in pairs], "interpolation": weights}
        print_json(summary.to_dict() | described)
        return
    print_results(summary, pairs, weights)


@app.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False))
@click.option("--datastore", required=True, type=click.Path(exists=True), help="The one that was searched.")
@click.option("--documents", required=True, type=click.Path(exists=True), help="The documents that were measured.")
@click.option("--model", help="Whose tokenizer to use; that of the results unless given.")
@click.option("--ngram", default=8, show_default=True, type=click.IntRange(1), help="Words of an n-gram.")
@click.option(
    "--max-share",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Largest share of the n-grams of a passage, or of a scored text, that the other may hold.",
)
@cache_dir_flag
@as_json_flag
def audit(
    results: str,
    datastore: str,
    documents: str,
    model: str | None,
    ngram: int,
    max_share: float,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Check RESULTS for leaks: whether text that was scored was trained on.

    Re-reads every document and every passage that a method used: ids and digests must match, and no passage may share
    more of its n-grams with the scored text than --max-share, nor the other way round. Exit code 1 when something is
    found.

    \b
    Examples:
      tttnn audit results.jsonl --datastore pile-00 --documents test.jsonl
      tttnn audit results.jsonl --datastore pile-00 --documents test.jsonl --max-share 0.02 --json
    """
    from transformers import AutoTokenizer

    from ..datastore.datastore import Datastore
    from ..evaluation.audit import audit_results
    from ..evaluation.result_file import read_results
    from ..store.corpus import iter_corpus

    _quiet_transformers()
    held = read_results(results)
    name = model or held.settings["model"]["name"]
    with Bars() as bars:
        place = models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
        with models.loading(name):
            tokenizer = AutoTokenizer.from_pretrained(place)
        with Datastore.open(datastore) as opened:
            report = audit_results(
                held,
                iter_corpus(documents),
                opened.store,
                tokenizer,
                ngram=ngram,
                max_share=max_share,
                progress=bars,
            )
    if as_json:
        print_json(report.to_dict())
    else:
        print_audit(report)
    if not report.clean:
        raise SystemExit(FAILED)


@app.command("lm-eval", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with the model tttnn and the packaged task tttnn_jsonl; ARGUMENTS are its own.

    \b
    Examples:
      tttnn lm-eval run --model tttnn --model_args pretrained=smollm2-135m,datastore=pile-00,k=10 --tasks lambada_openai
      tttnn lm-eval run --model tttnn --model_args pretrained=smollm2-135m,datastore=pile-00,k=10,rolling=split \\
        --tasks tttnn_jsonl --metadata '{"documents": "val.jsonl.zst"}' --limit 20
    """
    from ..evaluation.harness import run

    _quiet_transformers()
    run(arguments)


@app.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o", "--out", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="The page."
)
@click.option("--without-text", is_flag=True, help="Leave every text of documents out.")
@click.option("--reference", is_flag=True, help="Lay the curves beside those of Hardt & Sun (ICLR 2024).")
@click.option("--documents", type=click.Path(exists=True), help="What was evaluated, where the results hold no texts.")
@click.option("--datastore", type=click.Path(exists=True, file_okay=False), help="Where the neighbors came from.")
@as_json_flag
def report(
    results: tuple[str, ...],
    out: str,
    without_text: bool,
    reference: bool,
    documents: str | None,
    datastore: str | None,
    as_json: bool,
) -> None:
    """Write one self-contained page from RESULTS of tttnn eval, its figures and tables in a folder beside it.

    Files of one evaluation (further methods or documents) are put together; other protocols or settings follow each
    other on the page.

    \b
    Examples:
      tttnn report results.jsonl -o report.html
      tttnn report split.jsonl full.jsonl --without-text --reference
      tttnn report results.jsonl --documents test.jsonl --datastore pile-00
    """
    import shlex

    from ..report.page import write_report

    flags = {"--documents": documents, "--datastore": datastore}
    given = [part for name, value in flags.items() if value is not None for part in (name, value)]
    given += ["--without-text"] * without_text + ["--reference"] * reference
    made = write_report(
        results,
        out,
        texts=not without_text,
        reference=reference,
        documents=documents,
        datastore=datastore,
        command=shlex.join(["tttnn", "report", *results, "-o", out, *given]),
    )
    described = {"page": str(made.page), "figures": list(map(str, made.figures)), "tables": list(map(str, made.tables))}
    if as_json:
        print_json(described | {"headline": made.headline})
        return
    click.echo(made.headline)
    click.echo(f"{made.page}, with {len(made.figures)} figures and {len(made.tables)} tables beside it")


@app.command()
@click.option("--corpus", type=click.Path(exists=True), help="Folder, .jsonl or .jsonl.zst; else Python's own library.")
@click.option(
    "--out", default="tttnn-demo", show_default=True, type=click.Path(file_okay=False), help="Where files go."
)
@click.option("--sample-seed", default=0, show_default=True, help="Draws the held-out documents and the sample.")
@settings_flags(AdaptConfig, "adapt_flags")
@cache_dir_flag
@config_file_flag
@as_json_flag
def demo(
    corpus: str | None, out: str, sample_seed: int, adapt_flags: dict[str, Any], cache_dir: str | None, as_json: bool
) -> None:
    """Run test-time training on real text and show what it gains.

    \b
    Examples:
      tttnn demo
      tttnn demo --corpus my-code/ --sample-seed 3
    """
    from .demo import run_demo

    _quiet_transformers()
    with Bars() as bars:
        result = run_demo(
            out,
            corpus=corpus,
            seed=sample_seed,
            config=AdaptConfig(**adapt_flags),
            cache_dir=cache_dir,
            progress=bars,
            tell=bars.tell,
        )
    described = result.to_dict()
    if as_json:
        print_json(described)
        return
    print_demo(result)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _load_embedder(
    name: str, config: EmbedConfig | None, threads: int | None, cache_dir: str | None, bars: Bars
) -> Any:
    from ..embedding.embedder import Embedder

    models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
    return Embedder.load(name, config, threads=threads, cache_dir=cache_dir)


def _open_datastore(path: str, embedder: str | None, threads: int | None, cache_dir: str | None, bars: Bars) -> Any:
    from ..datastore.datastore import Datastore

    opened = Datastore.open(path)
    if opened.foreign:
        # Its embedder is not ours: only one that is named, as it is, can stand for it.
        return (
            opened
            if embedder is None
            else Datastore.open(path, _load_embedder(embedder, None, threads, cache_dir, bars))
        )
    name, config = opened.embedder_name, opened.embed_config
    return Datastore.open(path, _load_embedder(embedder or name, config, threads, cache_dir, bars))


def _load_trainer(
    name: str,
    datastore: Any,
    config: AdaptConfig,
    score: ScoreConfig | None,
    threads: int | None,
    cache_dir: str | None,
    bars: Bars,
) -> Any:
    from ..training.trainer import TestTimeTrainer

    models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
    return TestTimeTrainer.load(name, datastore, config, score=score, threads=threads, cache_dir=cache_dir)


def main() -> None:
    """Run the command line, turning errors into one sentence and an exit code."""
    try:
        code = app.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone; so that Python's own flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except (StoreCorruptError, StoreVersionError, IndexCorruptError) as error:
        click.echo(f"tttnn: {error}", err=True)
        sys.exit(DAMAGED)
    except (ValueError, IndexError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        click.echo(f"tttnn: {error}", err=True)
        sys.exit(USAGE)
    except (TttnnError, OSError) as error:
        click.echo(f"tttnn: {error}", err=True)
        sys.exit(FAILED)
