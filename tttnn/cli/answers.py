"""Commands that adapt a model to a query: generate, replay.

Knows what is printed. Does not know how a model is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..config import PRESETS, AdaptConfig, SelectionConfig
from .bars import Bars
from .exit_codes import FAILED
from .flags import as_json_flag, cache_dir_flag, config_file_flag, model_flag, preset_flag, settings_flags, threads_flag
from .loading import load_trainer, open_datastore, quiet_transformers
from .printing import print_json, show, stages_line


@click.command()
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

    quiet_transformers()
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    with Bars() as bars:
        config = PRESETS[preset].with_(**adapt_flags)
        opened = open_datastore(datastore, embedder, threads, cache_dir, bars)
        chosen = Selector(opened, SelectionConfig(**select_flags))
        trainer = load_trainer(model, chosen, config, None, threads, cache_dir, bars)
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


@click.command()
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

    quiet_transformers()
    held = json.loads(Path(report).read_text(encoding="utf-8"))
    held = held.get("report", held)
    config = AdaptConfig().with_read(held["settings"])
    with Bars() as bars:
        trainer = load_trainer(model, Datastore.open(datastore), config, None, threads, cache_dir, bars)
        with trainer.replay(held) as adapted:
            losses = adapted.report.losses
    before = [loss for neighbor in held["neighbors"] for loss in neighbor["losses"]]
    difference = max((abs(a - b) for a, b in zip(before, losses, strict=True)), default=0.0)
    show({"steps": len(losses), "largest_difference": difference, "same": difference == 0.0}, as_json)
    if difference != 0.0:
        raise SystemExit(FAILED)
