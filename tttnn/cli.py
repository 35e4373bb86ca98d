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
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from . import __version__, models
from .config import (
    PRESETS,
    AdaptConfig,
    Config,
    DatastoreConfig,
    EmbedConfig,
    EvalConfig,
    IndexConfig,
    ScoreConfig,
    SelectionConfig,
    StoreConfig,
)
from .errors import IndexCorruptError, StoreCorruptError, StoreVersionError, TttnnError

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 3, 130

_C = TypeVar("_C", bound=Config)
_Command = Callable[..., Any]


# ---------------------------------------------------------------------------------------------------------------------
# Flags from settings
# ---------------------------------------------------------------------------------------------------------------------


class _OrNone(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word none."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.name = {int: "integer", float: "number"}[kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or value == "none":
            return "none"
        try:
            return self._kind(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a {self.name} nor none", param, ctx)


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas between."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 0,5,20", param, ctx)


class _Words(click.ParamType):  # type: ignore[type-arg]
    """Texts with commas between."""

    name = "texts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(value) if isinstance(value, tuple | list) else tuple(filter(None, str(value).split(",")))


def _flag_type(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return _Words() if str in get_args(hint) else _Numbers()
    if hint is bool:
        return click.BOOL
    if hint is str:
        return str
    kinds = get_args(hint) or (hint,)
    number = next(kind for kind in kinds if kind in (int, float))
    return _OrNone(number) if type(None) in kinds else number


def settings_flags(cls: type[Config], keyword: str, *, prefix: str = "") -> Callable[[_Command], _Command]:
    """Give a command one flag per field of `cls`; it receives a function that applies the flags given to a base."""
    names = {field.name: f"{prefix}{field.name}" for field in dataclasses.fields(cls)}

    def decorate(command: _Command) -> _Command:
        def wrapped(**arguments: Any) -> Any:
            given = {field: arguments.pop(f"flag_{flag}") for field, flag in names.items()}
            given = {field: None if v == "none" else v for field, v in given.items() if v is not None}
            return command(**arguments, **{keyword: given})

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        hints = get_type_hints(cls)
        for field in reversed(dataclasses.fields(cls)):
            default = "none" if field.default is None else field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default)) or "empty"
            flag = "--" + names[field.name].replace("_", "-")
            if hints[field.name] is bool:
                flag = f"{flag}/--no-{flag[2:]}"
            click.option(
                flag,
                f"flag_{names[field.name]}",
                type=_flag_type(hints[field.name]),
                default=None,
                help=f"{field.metadata['help']}  [default: {default}]",
            )(wrapped)
        return wrapped

    return decorate


def _load_config_file(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Take defaults for flags from a TOML file: ``learning_rate = 1e-4``, at the top or under a command's name."""
    if value is None:
        return None
    try:
        table = tomllib.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    name = context.info_name or ""
    flat = {key: v for key, v in table.items() if not isinstance(v, dict)} | table.get(name, {})
    known = {parameter.name for parameter in context.command.params}
    defaults: dict[str, Any] = {}
    for key, setting in flat.items():
        key = key.replace("-", "_")
        place = f"flag_{key}" if f"flag_{key}" in known else key
        if place in known:
            defaults[place] = setting
        elif key in table.get(name, {}):
            raise click.BadParameter(f"{value}: {key} is not a flag of tttnn {name}")
    context.default_map = defaults
    return value


_config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_load_config_file,
    help="TOML file with defaults for these flags.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_cache = click.option(
    "--cache-dir",
    envvar="TTTNN_CACHE",
    type=click.Path(file_okay=False),
    help="Folder of demo models  [env: TTTNN_CACHE]",
)
_embedder = click.option("--embedder", default="minilm-l6", show_default=True, help="Demo name, hub id or directory.")
_model = click.option("--model", default="smollm2-135m", show_default=True, help="Demo name, hub id or directory.")
_threads = click.option("--threads", type=click.IntRange(1), help="Threads of torch; all cores unless given.")
_preset = click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------


class Bars:
    """Progress bars on standard error, with rates where a build report has them; nothing where that is no terminal."""

    def __init__(self, report: Any = None) -> None:
        self.console = Console(stderr=True)
        self._report = report
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show how far a stage is: a `config.Progress`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rates="")
        held = None if self._report is None else self._report.stages.get(stage)
        rates = "" if held is None else _rates(held.rates)
        self._progress.update(self._tasks[stage], completed=done, total=total, rates=rates)

    def tell(self, sentence: str) -> None:
        """Say something on standard error, terminal or not."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _rates(rates: dict[str, float]) -> str:
    """Shorten rates for a line: 12.3k tokens/s."""
    parts = []
    for name, rate in rates.items():
        power = next((p for p in ("G", "M", "k") if rate >= {"G": 1e9, "M": 1e6, "k": 1e3}[p]), "")
        parts.append(f"{rate / {'G': 1e9, 'M': 1e6, 'k': 1e3, '': 1}[power]:.1f}{power} {name}/s")
    return ", ".join(parts)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def _print_pairs(value: dict[str, Any], indent: str = "") -> None:
    width = max((len(key) for key in value), default=0)
    for key, item in value.items():
        if isinstance(item, dict):
            click.echo(f"{indent}{key}")
            _print_pairs(item, indent + "  ")
        elif isinstance(item, list) and item and all(isinstance(entry, dict) for entry in item):
            for i, entry in enumerate(item):
                click.echo(f"{indent}{key} {i}")
                _print_pairs(entry, indent + "  ")
        else:
            click.echo(f"{indent}{key:<{width}}  {item}")


def _show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        _print_pairs(value)


def _report_rejected(rejected: Sequence[tuple[int | str, str]], file: str | None, bars: Bars) -> None:
    """Say what a corpus held that is no document; to a file too, where one is asked for."""
    for where, reason in rejected[:20]:
        bars.tell(f"left out {where}: {reason}")
    if len(rejected) > 20:
        bars.tell(f"... and {len(rejected) - 20} more; --rejects FILE lists them all")
    if file is not None:
        rows = [json.dumps({"where": where, "reason": reason}) + "\n" for where, reason in rejected]
        Path(file).write_text("".join(rows), encoding="utf-8")


def _excerpt(text: str, length: int = 160) -> str:
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


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
@_embedder
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why.")
@settings_flags(DatastoreConfig, "datastore_flags")
@settings_flags(IndexConfig, "index_flags")
@settings_flags(EmbedConfig, "embed_flags", prefix="embed_")
@settings_flags(StoreConfig, "store_flags", prefix="store_")
@click.option("--dry-run", is_flag=True, help="Only estimate documents, time and disk: reads CORPUS once.")
@_threads
@_cache
@_config_file
@_json
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
    from .corpus import iter_corpora
    from .datastore import Datastore
    from .estimate import estimate_build
    from .stages import BuildReport

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
            _show(estimate.to_dict(), as_json)
            return
        made = Datastore.build(datastore, documents, encoder, **settings, progress=bars, report=report)
        _report_rejected(documents.rejected, rejects, bars)
    _show(made.info() | {"rejected": len(documents.rejected), "build": report.to_dict()}, as_json)


@app.command()
@click.argument("corpus", nargs=-1, type=click.Path(exists=True))
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.option("--discard", is_flag=True, help="Forget an append that was interrupted, instead of appending.")
@click.option("--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why.")
@_threads
@_cache
@_json
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
    from .corpus import iter_corpora
    from .datastore import Datastore
    from .stages import BuildReport

    if discard == bool(corpus):
        raise click.UsageError("append takes either a CORPUS or --discard")
    if discard:
        _show({"discarded": Datastore.open(datastore).discard_append()}, as_json)
        return
    _quiet_transformers()
    report = BuildReport()
    with Bars(report) as bars:
        documents = iter_corpora(corpus)
        opened = _open_datastore(datastore, None, threads, cache_dir, bars)
        before = len(opened)
        opened.append(documents, progress=bars, report=report)
        _report_rejected(documents.rejected, rejects, bars)
    _show(
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
@_json
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
    from .datastore import Datastore

    if not (ids or sources or digests):
        raise click.UsageError("delete takes at least one ID, --source or --digest")
    opened = Datastore.open(datastore)
    deleted = opened.delete(ids, source=sources, digests=digests)
    _show({"deleted": deleted, "documents": len(opened)}, as_json)


@app.command()
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@_json
def compact(datastore: str, as_json: bool) -> None:
    """Rewrite DATASTORE without its deleted documents, and merge small segments. Ids stay.

    Interrupted, it leaves the datastore as it was.

    \b
    Examples:
      tttnn compact pile-00
    """
    from .datastore import Datastore

    with Bars() as bars:
        report = Datastore.open(datastore).compact(progress=bars)
    _show(report.to_dict(), as_json)


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
@_config_file
@_json
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
    from .corpus import iter_corpora
    from .store import write_store

    if indexes:
        from .datastore import Datastore
        from .stages import BuildReport

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
        _show(made.info() | {"build": report.to_dict()}, as_json)
        return
    documents = iter_corpora(corpus)
    with Bars() as bars:
        summary = write_store(target, documents, config=StoreConfig(**store_flags), resume=resume, progress=bars)
        _report_rejected(documents.rejected, rejects, bars)
    _show(dataclasses.asdict(summary) | {"rejected": len(documents.rejected)}, as_json)


@app.command()
@click.argument("store", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@_json
def repair(store: str, out: str, as_json: bool) -> None:
    """Rebuild a damaged text store into OUT from what is intact, and list what was lost.

    Document ids stay what they were. Exit code 3 when something was lost.

    \b
    Examples:
      tttnn repair pile-00/segments/000/texts.zst repaired.zst
      tttnn repair texts.zst.partial texts.zst
    """
    from .store import repair_store

    with Bars() as bars:
        report = repair_store(store, out, progress=bars)
    _show(dataclasses.asdict(report), as_json)
    if report.lost_texts or report.lost_metas or not report.tail_known:
        raise SystemExit(DAMAGED)


@app.command()
@click.argument("store", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@_json
def export(store: str, out: str, as_json: bool) -> None:
    """Write the documents of a text store as JSON lines; a name that ends in .zst is compressed.

    \b
    Examples:
      tttnn export pile-00/texts.zst documents.jsonl.zst
    """
    from .store import TextStore, export_jsonl

    with Bars() as bars, TextStore.open(store) as opened:
        count = export_jsonl(opened, out, progress=bars)
    _show({"documents": count, "file": out}, as_json)


@app.command()
@click.argument("datastore", required=False, type=click.Path())
@click.option("--build", "about_build", is_flag=True, help="Describe this installation instead.")
@_json
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
        from .store import TextStore

        with TextStore.open(datastore) as store:
            described = store.info()
    else:
        from .datastore import Datastore

        described = Datastore.open(datastore).info()
    _show(described, as_json)


def _build_info() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from ._core import build_info

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
@_json
def verify(datastore: str, quick: bool, as_json: bool) -> None:
    """Read DATASTORE (or a single text store) and compare it with its checksums.

    Exit code 3 and a message that names the file when something is damaged.

    \b
    Examples:
      tttnn verify pile-00
      tttnn verify pile-00 --quick
    """
    from .datastore import Datastore
    from .store import TextStore

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
        _print_json({"ok": True, "documents": documents, "full": not quick})
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
@_threads
@_cache
@_json
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
        _print_json({"neighbors": rows, "explanation": explained} if explain else rows)
        return
    for neighbor in found:
        name = neighbor.source or neighbor.meta.get("path") or ""
        click.echo(f"{neighbor.distance:8.4f}  {neighbor.id:>8}  {name}")
        click.echo(f"          {_excerpt(neighbor.text)}")
    _print_pairs(explained)


@app.command()
@click.argument("datastore", type=click.Path())
@click.argument("query")
@_model
@_preset
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest continuation.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token each time.")
@click.option("--base/--no-base", default=True, show_default=True, help="Show the base model's continuation too.")
@click.option("--embedder", help="Instead of the one the datastore was built with.")
@_threads
@_cache
@_config_file
@_json
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
    from .selection import Selector

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
        _print_json({"query": query, "base": before, "adapted": after, "report": report.to_dict()})
        return
    if before is not None:
        click.echo(f"--- base\n{before}\n--- adapted to {len(report.neighbors)} neighbors")
    click.echo(after)
    bars.tell(_stages(report.seconds))


@app.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.argument("datastore", type=click.Path())
@_model
@_threads
@_cache
@_json
def replay(report: str, datastore: str, model: str, threads: int | None, cache_dir: str | None, as_json: bool) -> None:
    """Repeat the adaptation that REPORT describes, and compare every loss.

    REPORT is what generate --json printed, or its "report". Exit code 1 when a loss differs.

    \b
    Examples:
      tttnn generate pile-00 "def quicksort(" --json > report.json
      tttnn replay report.json pile-00
    """
    from .datastore import Datastore

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
    _show({"steps": len(losses), "largest_difference": difference, "same": difference == 0.0}, as_json)
    if difference != 0.0:
        raise SystemExit(FAILED)


@app.command("eval")
@click.argument("datastore", type=click.Path())
@click.argument("docs", type=click.Path(exists=True))
@_model
@_preset
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
@_cache
@_config_file
@_json
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
    from .baselines import interpolation_curve
    from .corpus import iter_corpus
    from .datastore import Datastore
    from .evaluation import evaluate
    from .results import Budget
    from .workers import TrainerRecipe, evaluate_with_workers

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
        _report_rejected(documents.rejected, rejects, bars)
    summary = result.summary()
    hidden = {"both": (), "bytes": ("pile_all",), "pile": ("all",)}[weighting]
    summary = dataclasses.replace(summary, rows=[row for row in summary.rows if row.group not in hidden])
    pairs = [pair for unit in get_args(Budget) for pair in result.compare_at_budgets(unit)]
    weights = interpolation_curve(result) if "interpolation" in names else {}
    if as_json:
        described = {"at_equal_budget": [dataclasses.asdict(pair) for pair in pairs], "interpolation": weights}
        _print_json(summary.to_dict() | described)
        return
    click.echo(str(summary))
    for pair in pairs:
        ratio = pair.total().ratio
        click.echo(
            f"at {pair.budget:.4g} {pair.unit} a document: {pair.a} (k {pair.k_a}) over {pair.b} (k {pair.k_b}) "
            f"{ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
        )
    for k, curve in weights.items():
        listed = ", ".join(f"{weight:g}: {value:.4f}" for weight, value in curve.items())
        click.echo(f"interpolation with {k} neighbors, bits per byte by weight: {listed}")


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
@_cache
@_json
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

    from .audit import audit_results
    from .corpus import iter_corpus
    from .datastore import Datastore
    from .results import read_results

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
        _print_json(report.to_dict())
    else:
        _print_audit(report)
    if not report.clean:
        raise SystemExit(FAILED)


def _print_audit(report: Any) -> None:
    if report.findings or report.notes:
        table = Table(box=box.SIMPLE)
        for heading in ("kind", "document", "method", "neighbor", "what"):
            table.add_column(heading)
        for finding in [*report.findings, *report.notes]:
            neighbor = "" if finding.neighbor is None else str(finding.neighbor)
            table.add_row(finding.kind, str(finding.document), finding.method, neighbor, finding.what)
        Console().print(table)
    click.echo(
        f"{report.documents} documents, {report.lines} lines, {report.passages} passages; {len(report.findings)} leaks "
        f"or wrong receipts, {len(report.notes)} notes; largest share of {report.ngram}-grams in common "
        f"{report.largest_share:.1%}, allowed {report.max_share:.1%}"
    )


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
    from .harness import run

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
@_json
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

    from .report import write_report

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
        _print_json(described | {"headline": made.headline})
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
@_cache
@_config_file
@_json
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
        _print_json(described)
        return
    console = Console()
    assert result.summary is not None
    ks = [row.k for row in result.totals()]
    table = Table(
        title=f"bits per byte of the second half of held-out documents (seed {result.seed})",
        box=box.SIMPLE,
    )
    table.add_column("document")
    for k in ks:
        table.add_column("base" if k == 0 else f"{k} nn", justify="right")
    table.add_column("ratio", justify="right")
    for document in result.documents:
        values = list(document.curve.values())
        table.add_row(document.name, *(f"{v:.3f}" for v in values), f"{values[-1] / values[0]:.3f}")
    table.add_section()
    total = result.summary.total()
    values = [row.bits_per_byte for row in result.totals()]
    table.add_row("total", *(f"{v:.3f}" for v in values), f"{total.ratio.value:.3f}", style="bold")
    console.print(table)
    console.print(f"corpus: {result.corpus}, {result.windows} windows of 512 tokens, {result.num_bytes:,} bytes\n")
    for document in result.documents:
        names: dict[str, int] = {}
        for name, _ in document.neighbors:
            names[name] = names.get(name, 0) + 1
        used = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in names.items())
        console.print(Text.assemble((document.name, "bold"), " trained on ", used))
    console.print("\n[bold]The end of a prompt[/], continued before and after:")
    for label, text in (("prompt", result.prompt), ("before", result.before), ("after", result.after)):
        console.print(Text.assemble((f"--- {label}\n", "bold"), text))
    console.print(f"\ncurve over neighbors: {result.plot}")
    console.print(f"seed {result.seed}; seconds: {_stages(result.seconds)}", highlight=False)


def _stages(seconds: dict[str, float]) -> str:
    parts = [f"{stage} {value:.2f}" if value < 10 else f"{stage} {value:.0f}" for stage, value in seconds.items()]
    return ", ".join(parts)


def _load_embedder(
    name: str, config: EmbedConfig | None, threads: int | None, cache_dir: str | None, bars: Bars
) -> Any:
    from .embed import Embedder

    models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
    return Embedder.load(name, config, threads=threads, cache_dir=cache_dir)


def _open_datastore(path: str, embedder: str | None, threads: int | None, cache_dir: str | None, bars: Bars) -> Any:
    from .datastore import Datastore

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
    from .adapt import TestTimeTrainer

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
