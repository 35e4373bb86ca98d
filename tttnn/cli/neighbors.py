"""The command that finds documents, and says which experts a query would use: search.

Knows how neighbors and experts are printed. Does not know how they are found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from ..config import AdaptConfig, ClusterConfig
from ..errors import ConfigError
from ..retrieval.neighbors import SearchResult
from ..retrieval.where import Where
from .bars import Bars
from .flags import (
    ClusterCommand,
    DatastorePlace,
    Query,
    as_json_flag,
    loading_flags,
    model_flag,
    other_embedder_flag,
    queries_flag,
    settings_flags,
)
from .loading import Loading
from .printing import counted, coverage_line, excerpt, print_json, stages_line
from .queries import answer_all, one_or_many

if TYPE_CHECKING:
    from ..training.experts import ExpertsReport

_ExpertsFor = Callable[[str, SearchResult], "ExpertsReport"]


@click.command(cls=ClusterCommand)
@click.argument("datastore", type=DatastorePlace())
@click.argument("query", required=False, type=Query())
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Neighbors to show.")
@queries_flag
@click.option("--source", "sources", multiple=True, help="Only documents of this source; may be given again.")
@click.option(
    "--fraction", type=click.FloatRange(0, 1, min_open=True), help="Only this share of the documents, drawn at random."
)
@click.option("--fraction-seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of --fraction.")
@click.option("--ef", type=click.IntRange(1), help="Width of the search in the graph.")
@click.option("--explain", is_flag=True, help="Say how the query was answered; costs an exact search.")
@settings_flags(ClusterConfig, "cluster_flags")
@click.option(
    "--mode",
    default="exact",
    show_default=True,
    type=click.Choice(["exact", "instant", "auto"]),
    help="instant, auto: say also which of --model's experts would be merged; with --json under `experts`.",
)
@model_flag
@click.option(
    "--leaves",
    default=AdaptConfig().leaves,
    show_default=True,
    type=click.IntRange(0),
    help="Experts of the nearest clusters that would be merged with the root.",
)
@other_embedder_flag
@loading_flags(dtype=False)
@as_json_flag
def search(
    datastore: str,
    query: str | None,
    k: int,
    queries: str | None,
    sources: tuple[str, ...],
    fraction: float | None,
    fraction_seed: int,
    ef: int | None,
    explain: bool,
    cluster_flags: dict[str, Any],
    mode: Literal["exact", "instant", "auto"],
    model: str,
    leaves: int,
    embedder: str | None,
    loading: Loading,
    as_json: bool,
) -> None:
    """Print the K nearest documents of QUERY, nearest first.

    DATASTORE may be a cluster: then the answer says what share of it was
    searched.

    \b
    Examples:
      tttnn search pile-00 "def quicksort(" -k 3
      tttnn search pile-00 "def quicksort(" --source Github --explain
      tttnn search pile-00 --queries questions.txt > neighbors.jsonl
      tttnn search pile-00 "def quicksort(" --mode instant
      tttnn search --cluster pile "def quicksort(" --on-missing-shard partial
    """
    one_or_many(query, queries)
    experts: _ExpertsFor | None = None
    with Bars() as bars:
        opened = loading.datastore(datastore, embedder, bars, ClusterConfig(**cluster_flags))
        if mode != "exact":
            experts = _experts(opened, model, AdaptConfig(mode=mode, leaves=leaves), loading, bars)
    where = Where(frozenset(sources) or None, fraction, fraction_seed if fraction is not None else 0)
    options: dict[str, Any] = {"ef": ef, "where": where, "explain": explain}

    def answer(text: str) -> tuple[SearchResult, dict[str, Any]]:
        result = opened.search(text, k, **options)
        described = _described(result)
        return result, described if experts is None else described | {"experts": _plain(experts(text, result))}

    if queries is not None:
        with bars:
            answer_all(queries, lambda text: {"query": text, **answer(text)[1]}, bars)
        return
    assert query is not None
    result, described = answer(query)
    if result.query_truncated:
        bars.tell("the query is longer than the embedder reads: its end was not searched with")
    if len(result) < k:
        bars.tell(f"{counted(len(result), 'neighbor')}, fewer than the {k} asked for: the datastore has no more")
    if result.coverage is not None:
        bars.tell(coverage_line(result.coverage))
    if as_json:
        print_json(described["neighbors"] if list(described) == ["neighbors"] else described)
        return
    for neighbor in result:
        name = neighbor.source or neighbor.meta.get("path") or ""
        click.echo(f"{neighbor.distance:8.4f}  {neighbor.id:>8}  {name}")
        click.echo(f"          {excerpt(neighbor.text)}")
    if "experts" in described:
        _print_experts(described["experts"])
    if explain:
        _print_explanation(result)


def _experts(opened: Any, model: str, config: AdaptConfig, loading: Loading, bars: Bars) -> _ExpertsFor:
    """Return what says which experts of a model a query would use."""
    from ..datastore.datastore import Datastore
    from ..instant.experts import Experts
    from ..instant.fingerprint import fingerprint_of

    if not isinstance(opened, Datastore):
        raise ConfigError(f"mode must be exact for a cluster, which has no experts, got {config.mode!r}")
    loaded, tokenizer = loading.language_model(model, bars)
    experts = Experts(opened, model=fingerprint_of(loaded), tokenizer=tokenizer)
    return lambda query, found: experts.choose(query, config, (), distance=_nearest(found)).report


def _nearest(found: SearchResult) -> float | None:
    return min((neighbor.distance for neighbor in found), default=None)


def _plain(report: ExpertsReport) -> dict[str, Any]:
    """Return the experts as plain values, in the shape of a report's own."""
    return dataclasses.asdict(report)


def _print_experts(experts: dict[str, Any]) -> None:
    click.echo("\nexperts that would be merged, with their weights:")
    for expert in experts["used"]:
        away = "" if expert["distance"] is None else f", at {expert['distance']:.4f}"
        click.echo(f"{expert['weight']:8.4f}  {expert['name']}{away}, of {counted(expert['documents'], 'document')}")
    for reason, count in experts["left_out"].items():
        click.echo(f"left out as {reason}: {counted(count, 'expert')}")


def _described(result: SearchResult) -> dict[str, Any]:
    rows = [
        {"id": n.id, "distance": n.distance, "source": n.source, "span": n.span, "meta": n.meta, "text": n.text}
        for n in result
    ]
    coverage = {} if result.coverage is None else {"coverage": result.coverage.to_dict()}
    if result.explanation is None:
        return {"neighbors": rows} | coverage
    explanation = {
        "tokens": result.query_tokens,
        "truncated": result.query_truncated,
        **result.explanation.to_dict(),
        "seconds": {name: round(value, 6) for name, value in result.seconds.items()},
    }
    return {"neighbors": rows, "explanation": explanation}


def _print_explanation(result: SearchResult) -> None:
    how = result.explanation
    assert how is not None
    read = "of which the embedder read the beginning" if result.query_truncated else "all of which were embedded"
    click.echo(f"\nquery: {counted(result.query_tokens, 'token')}, {read}")
    left = {"are deleted": how.deleted, "are left out by the filter": how.filtered, "were excluded": how.excluded}
    without = ", ".join(f"{count:,} {why}" for why, count in left.items() if count)
    click.echo(
        f"searched: {counted(how.segments, 'segment')} with {counted(how.vectors, 'vector')}"
        + (f"; of the documents {without}" if without else "")
    )
    ways = []
    if how.walked:
        ways.append(
            f"{counted(how.walked, 'walk')} through graphs in {counted(how.rounds, 'round')}, the widest of ef {how.ef}"
        )
    if how.scanned:
        ways.append(f"every vector compared in {counted(how.scanned, 'segment')}, as that was less work than a walk")
    click.echo(f"by: {' and '.join(ways) or 'nothing'}; {counted(how.distances, 'distance')} computed")
    if how.recall is not None:
        click.echo(f"recall: {how.recall:.3f} of the true nearest, by exact search")
    click.echo(f"seconds: {stages_line(result.seconds)}")
