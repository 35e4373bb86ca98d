"""The command that trains experts before a query comes: precompute.

Knows flags and one call for each. Does not know how an expert is trained.
"""

from __future__ import annotations

from typing import Any

import click

from ..config import ExpertConfig
from .bars import Bars
from .command import Command
from .flags import as_json_flag, config_file_flag, loading_flags, model_flag, settings_flags
from .loading import Loading
from .printing import counted, in_bytes, in_time, print_json


@click.command(cls=Command)
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@model_flag
@click.option(
    "--only",
    type=click.Choice(["root"]),
    default="root",
    show_default=True,
    help="Which experts: the root learns from documents of the whole datastore.",
)
@click.option("--dry-run", is_flag=True, help="Measure two steps, say what all would take, and write nothing.")
@click.option("--update", is_flag=True, help="Train experts anew that saw deleted documents or other settings.")
@settings_flags(ExpertConfig, "expert_flags")
@loading_flags(dtype=False)
@config_file_flag
@as_json_flag
def precompute(
    datastore: str,
    model: str,
    only: str,
    dry_run: bool,
    update: bool,
    expert_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Train, once for all queries, what the model can learn from DATASTORE as a whole.

    What is trained is used with --mode instant and --mode auto of generate and
    serve. Interrupted, the same command goes on.

    \b
    Examples:
      tttnn precompute pile-00 --dry-run
      tttnn precompute pile-00 --documents 200
      tttnn precompute pile-00 --update
    """
    from ..datastore.datastore import Datastore
    from ..instant.precompute import Precompute

    config = ExpertConfig(**expert_flags)
    with Bars() as bars:
        opened = Datastore.open(datastore)
        loaded, tokenizer = loading.language_model(model, bars)
        work = Precompute(opened, loaded, tokenizer, config)
        if dry_run:
            estimate = work.estimate()
        else:
            report = work.run(update=update, progress=bars)
    if dry_run:
        if as_json:
            print_json(estimate.to_dict())
            return
        click.echo(
            f"{datastore}: {counted(estimate.steps, 'step')} on as many documents, {in_time(estimate.seconds)} on this "
            f"machine, {in_bytes(estimate.bytes_on_disk)} on disk"
        )
        return
    if as_json:
        print_json(report.to_dict())
        return
    click.echo(
        f"{datastore}: the {only} {'learned from' if report.trained else 'has learned already from'} "
        f"{counted(report.documents, 'document')}, in {in_time(report.seconds)}; loss on others "
        f"{report.loss_before:.3f} -> {report.loss_after:.3f} nats a token; {in_bytes(report.bytes_on_disk)} on disk"
    )
    click.echo("used with: --mode instant or --mode auto of generate and serve")
