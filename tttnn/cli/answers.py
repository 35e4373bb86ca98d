"""Commands that adapt a model to a query: generate, replay.

Knows what is printed. Does not know how a model is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..config import PRESETS, AdaptConfig, ClusterConfig, SelectionConfig
from ..errors import AdaptError, ConfigError
from .bars import Bars
from .command import Command
from .exit_codes import FAILED
from .flags import (
    ClusterCommand,
    DatastorePlace,
    Query,
    as_json_flag,
    config_file_flag,
    loading_flags,
    model_flag,
    other_embedder_flag,
    preset_flag,
    queries_flag,
    settings_flags,
)
from .loading import Loading
from .printing import counted, print_json, show, stages_line
from .queries import answer_all, one_or_many


@click.command(cls=ClusterCommand)
@click.argument("datastore", type=DatastorePlace())
@click.argument("query", required=False, type=Query())
@model_flag
@queries_flag
@preset_flag
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@settings_flags(ClusterConfig, "cluster_flags")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest continuation.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="0 takes the likeliest token each time.",
)
@click.option("--base/--no-base", default=True, show_default=True, help="Show the base model's continuation too.")
@other_embedder_flag
@loading_flags()
@config_file_flag
@as_json_flag
def generate(
    datastore: str,
    query: str | None,
    model: str,
    queries: str | None,
    preset: str,
    adapt_flags: dict[str, Any],
    select_flags: dict[str, Any],
    cluster_flags: dict[str, Any],
    max_new_tokens: int,
    temperature: float,
    base: bool,
    embedder: str | None,
    loading: Loading,
    as_json: bool,
) -> None:
    """Adapt the model to QUERY's neighbors in DATASTORE and continue QUERY.

    \b
    Examples:
      tttnn generate pile-00 "def quicksort(" --num-neighbors 20
      tttnn generate pile-00 "def quicksort(" --deadline-ms 2000 --json
      tttnn generate pile-00 --queries prompts.txt > answers.jsonl
    """
    one_or_many(query, queries)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    config = PRESETS[preset].with_(**adapt_flags)
    selection = SelectionConfig(**select_flags)
    with Bars() as bars:
        from ..recipe import give_experts
        from ..retrieval.selector import Selector

        opened = loading.datastore(datastore, embedder, bars, ClusterConfig(**cluster_flags))
        trainer = loading.trainer(model, Selector(opened, selection), config, None, bars)
        give_experts(trainer, opened)

        def observe(_: Any, k: int) -> None:
            if queries is None:
                bars("adapt", k, config.num_neighbors)

        if config.deadline_ms is not None:
            trainer.warm_up()  # the clock of a query does not pay for a process's slow first step

        def answer(text: str) -> dict[str, Any]:
            before = trainer.generate(text, **options) if base else None
            with trainer.adapt(text, observe=observe, answer_tokens=max_new_tokens) as adapted:
                after = adapted.generate(**options)
            return {"query": text, "base": before, "adapted": after, "report": adapted.report.to_dict()}

        if queries is not None:
            answer_all(queries, answer, bars)
            return
        assert query is not None
        answered = answer(query)
    if as_json:
        print_json(answered)
        return
    report = answered["report"]
    if base:
        click.echo(f"--- base\n{answered['base']}\n--- adapted to {counted(len(report['neighbors']), 'neighbor')}")
    click.echo(answered["adapted"])
    bars.tell(f"seconds: {stages_line(report['seconds'])}")


@click.command(cls=Command)
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@model_flag
@loading_flags()
@as_json_flag
def replay(report: str, datastore: str, model: str, loading: Loading, as_json: bool) -> None:
    """Repeat the adaptation that REPORT describes, and compare every loss.

    REPORT is what generate --json printed, or its "report". Exit code 1 when a
    loss differs.

    \b
    Examples:
      tttnn generate pile-00 "def quicksort(" --json > report.json
      tttnn replay report.json pile-00
    """
    recorded, config = _read_report(report)
    from ..recipe import give_experts, open_documents

    with Bars() as bars:
        opened = open_documents(datastore)
        trainer = loading.trainer(model, opened, config, None, bars)
        give_experts(trainer, opened)
        count = len(recorded.neighbors)
        with trainer.replay(recorded, observe=lambda _, k: bars("replay", k, count)) as adapted:
            losses = adapted.report.losses
    differences = [abs(a - b) for a, b in zip(recorded.losses, losses, strict=False)]
    same = len(losses) == len(recorded.losses) and not any(differences)
    show({"steps": len(losses), "largest_difference": max(differences, default=0.0), "same": same}, as_json)
    if not same:
        raise SystemExit(FAILED)


def _read_report(path: str) -> tuple[Any, AdaptConfig]:
    """Read a report and its settings; what is wrong with the file is one sentence with its name."""
    from ..training.report import AdaptReport

    try:
        fields = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from None
    fields = fields.get("report", fields) if isinstance(fields, dict) else fields
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: must be a report of tttnn generate --json, got {type(fields).__name__}")
    try:
        report = AdaptReport.from_dict(fields)
        return report, AdaptConfig().with_read(report.settings)
    except (AdaptError, ConfigError) as error:
        raise ConfigError(f"{path}: must be a report of tttnn generate --json. {error}") from None
