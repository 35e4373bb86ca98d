"""The command that makes a page of results: report.

Knows flags. Does not know what a page holds.
"""

from __future__ import annotations

from typing import Any

import click

from ..config import CorpusConfig
from .command import Command
from .flags import as_json_flag, as_typed, settings_flags, writes
from .printing import print_json


@click.command(cls=Command)
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o", "--out", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="The page."
)
@click.option("--without-text", is_flag=True, help="Leave every text of documents out.")
@click.option("--reference", is_flag=True, help="Lay the curves beside those of Hardt & Sun (ICLR 2024).")
@click.option("--documents", type=click.Path(exists=True), help="What was evaluated, where the results hold no texts.")
@click.option("--datastore", type=click.Path(exists=True, file_okay=False), help="Where the neighbors came from.")
@settings_flags(CorpusConfig, "corpus_flags")
@as_json_flag
@writes("out", makes_folder=True, others_too=True)
def report(
    results: tuple[str, ...],
    out: str,
    without_text: bool,
    reference: bool,
    documents: str | None,
    datastore: str | None,
    corpus_flags: dict[str, Any],
    as_json: bool,
    force: bool,
) -> None:
    """Write one self-contained page from RESULTS of tttnn eval, its figures and tables in a folder beside it.

    Files of one evaluation (further methods or documents) are put together; other protocols or settings follow each
    other on the page. The flags that say how --documents is read are those that eval was given.

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
    given += as_typed(corpus_flags)
    given += ["--without-text"] * without_text + ["--reference"] * reference
    written = write_report(
        results,
        out,
        texts=not without_text,
        reference=reference,
        documents=documents,
        corpus=CorpusConfig(**corpus_flags),
        datastore=datastore,
        command=shlex.join(["tttnn", "report", *results, "-o", out, *given]),
        force=force,
    )
    described = {
        "page": str(written.page),
        "figures": list(map(str, written.figures)),
        "tables": list(map(str, written.tables)),
    }
    if as_json:
        print_json(described | {"headline": written.headline})
        return
    click.echo(written.headline)
    click.echo(f"{written.page}, with {len(written.figures)} figures and {len(written.tables)} tables beside it")
