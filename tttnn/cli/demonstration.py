"""The command that runs the demo.

Knows flags. Does not know what the demo does.
"""

from __future__ import annotations

from typing import Any

import click

from ..config import AdaptConfig
from .bars import Bars
from .command import Command
from .flags import as_json_flag, config_file_flag, loading_flags, settings_flags
from .loading import Loading, quiet_transformers
from .printing import print_demo, print_json


@click.command(cls=Command)
@click.option("--corpus", type=click.Path(exists=True), help="Folder, .jsonl or .jsonl.zst; else Python's own library.")
@click.option(
    "--out", default="tttnn-demo", show_default=True, type=click.Path(file_okay=False), help="Where files go."
)
@click.option("--sample-seed", default=0, show_default=True, help="Draws the held-out documents and the sample.")
@settings_flags(AdaptConfig, "adapt_flags")
@loading_flags()
@config_file_flag
@as_json_flag
def demo(
    corpus: str | None, out: str, sample_seed: int, adapt_flags: dict[str, Any], loading: Loading, as_json: bool
) -> None:
    """Run test-time training on real text and show what it gains.

    \b
    Examples:
      tttnn demo
      tttnn demo --corpus my-code/ --sample-seed 3
    """
    from .demo import run_demo

    quiet_transformers()
    with Bars() as bars:
        result = run_demo(
            out,
            corpus=corpus,
            seed=sample_seed,
            config=AdaptConfig(**adapt_flags),
            cache_dir=loading.cache_dir,
            progress=bars,
            tell=bars.tell,
        )
    described = result.to_dict()
    if as_json:
        print_json(described)
        return
    print_demo(result)
