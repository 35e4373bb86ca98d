"""The command that finds documents: search.

Knows how neighbors are printed. Does not know how they are found.
"""

from __future__ import annotations

from typing import Any

import click

from .bars import Bars
from .flags import as_json_flag, cache_dir_flag, threads_flag
from .loading import open_datastore, quiet_transformers
from .printing import excerpt, print_json, print_pairs


@click.command()
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
    quiet_transformers()
    with Bars() as bars:
        opened = open_datastore(datastore, embedder, threads, cache_dir, bars)
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
