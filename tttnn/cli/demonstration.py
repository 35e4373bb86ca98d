"""The command that runs the demo, and what it prints.

Knows flags and the demo's result. Does not know what the demo does.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import AdaptConfig, CorpusConfig
from .bars import Bars
from .command import Command
from .flags import as_json_flag, config_file_flag, loading_flags, settings_flags
from .loading import Loading, quiet_transformers
from .printing import in_time, print_json, stages_line, tell_rejected

if TYPE_CHECKING:
    from .demo_result import DemoResult

_TOLD_SECONDS = 1.0  # what takes less is not told on its own


@click.command(cls=Command)
@click.option("--corpus", type=click.Path(exists=True), help="Folder or file of texts; else Python's own library.")
@click.option(
    "--out", default="tttnn-demo", show_default=True, type=click.Path(file_okay=False), help="Where files go."
)
@click.option("--sample-seed", default=0, show_default=True, help="Draws the held-out documents and the sample.")
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(CorpusConfig, "corpus_flags")
@loading_flags()
@config_file_flag
@as_json_flag
def demo(
    corpus: str | None,
    out: str,
    sample_seed: int,
    adapt_flags: dict[str, Any],
    corpus_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Run test-time training on real text and show what it gains.

    10 neighbors unless --num-neighbors says otherwise.

    \b
    Examples:
      tttnn demo
      tttnn demo --corpus my-code/ --sample-seed 3
    """
    loading.check()
    from ..store.corpus import iter_corpora
    from .demo import NUM_NEIGHBORS, run_demo

    quiet_transformers()
    documents = iter_corpora([corpus], CorpusConfig(**corpus_flags)) if corpus is not None else None
    with Bars() as bars:
        result = run_demo(
            out,
            corpus=documents,
            seed=sample_seed,
            config=AdaptConfig(**{"num_neighbors": NUM_NEIGHBORS} | adapt_flags),
            device=loading.device,
            dtype=loading.dtype,
            threads=loading.threads,
            cache_dir=loading.cache_dir,
            progress=bars,
            tell=bars.tell,
        )
        if documents is not None:
            tell_rejected(documents, "tttnn build --dry-run --rejects FILE", bars)
    if as_json:
        print_json(result.to_dict())
    else:
        print_demo(result)


def print_demo(result: DemoResult) -> None:
    """Print the table of documents and methods, a prompt continued beside the true text, costs, and what to type."""
    console = Console(highlight=False)
    trained, rival = result.totals()[-1], result.totals("in-context")[-1]
    console.print(Text.assemble(("Model: ", "bold"), result.model))
    console.print(
        f"Corpus: {result.corpus}, {result.windows:,} windows of 512 tokens; {result.left_out} left out, as "
        "near-copies of the held-out documents"
    )
    table = Table(
        title="bits per byte of the second half of held-out documents; lower is better",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("document", overflow="fold")
    for heading in ("base", "in context", "trained", "trained/base"):
        table.add_column(heading, justify="right")
    for document in result.documents:
        values = (document.base, document.in_context, list(document.curve.values())[-1])
        table.add_row(document.name, *(f"{value:.3f}" for value in values), f"{values[2] / values[0]:.3f}")
    table.add_section()
    totals = (trained.base_bits_per_byte, rival.bits_per_byte, trained.bits_per_byte)
    table.add_row("total", *(f"{value:.3f}" for value in totals), f"{trained.ratio.value:.3f}", style="bold")
    cost = [in_time(row.seconds) if row.seconds is not None else "" for row in (rival, trained)]
    table.add_row("before an answer", "0.0 s", *cost, "")
    console.print(table)
    console.print(
        "base: the model as it is, with the first half in its context. in context: as many of "
        f"{trained.k} neighbors as fit before it, nothing trained. trained: one step on each of {trained.k} neighbors, "
        "then every weight put back. The model may have met such files when it was made: compare the columns."
    )
    for document in result.documents:
        names = list(dict.fromkeys(name for name, _ in document.neighbors))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        console.print(Text.assemble((document.name, "bold"), f" was trained on {', '.join(names[:4])}{more}"))
    for label, text in (
        ("a prompt ends", result.prompt),
        ("it goes on, in truth", result.truth),
        ("base", result.before),
        (f"trained on {trained.k} neighbors", result.after),
    ):
        console.print(Text.assemble((f"\n--- {label}\n", "bold"), text))
    console.print(f"\npicture: {result.plot}", soft_wrap=True)
    longest = {stage: spent for stage, spent in result.seconds.items() if spent >= _TOLD_SECONDS}
    told = f" (seconds: {stages_line(longest)})" if longest else ""
    console.print(f"everything took {in_time(result.total_seconds)}{told}")
    path = shlex.quote(str(result.place))
    console.print(f'next: tttnn search {path} "def quicksort(" -k 3', soft_wrap=True)
    console.print(f'      tttnn generate {path} "def quicksort(" --num-neighbors 5', soft_wrap=True)
    console.print(f"      tttnn precompute {path} --dry-run", soft_wrap=True)
    console.print("      tttnn demo --corpus FOLDER", soft_wrap=True)
