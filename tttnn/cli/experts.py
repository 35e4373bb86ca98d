"""The commands of experts: precompute trains them before a query comes, export-expert writes them for others.

Knows flags and one call for each. Does not know how an expert is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import AdaptConfig, ExpertConfig
from ..errors import AdaptError
from .bars import Bars
from .command import Command
from .flags import Query, as_json_flag, config_file_flag, loading_flags, model_flag, settings_flags
from .loading import Loading
from .printing import counted, in_bytes, in_time, print_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..datastore.datastore import Datastore
    from ..instant.leaf_workers import LeafRecipe
    from ..instant.precompute_report import PrecomputeEstimate, PrecomputeReport


@click.command(cls=Command)
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@model_flag
@click.option(
    "--only",
    type=click.Choice(["root"]),
    help="Train the root alone, which learns from documents of the whole datastore: minutes.",
)
@click.option("--dry-run", is_flag=True, help="Measure two steps, say what all would take, and write nothing.")
@click.option("--update", is_flag=True, help="Train experts anew that saw deleted documents or other settings.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, a model in each.")
@click.option("--limit-hours", type=click.FloatRange(0), help="Begin no expert of a cluster that would end later.")
@click.option(
    "--queries",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of queries, read as a corpus: the clusters nearest to them come first, then the largest.",
)
@click.option("--watch", is_flag=True, help="Train those experts of clusters that queries miss, as they miss them.")
@settings_flags(ExpertConfig, "expert_flags")
@loading_flags(dtype=False)
@config_file_flag
@as_json_flag
def precompute(
    datastore: str,
    model: str,
    only: str | None,
    dry_run: bool,
    update: bool,
    workers: int,
    limit_hours: float | None,
    queries: str | None,
    watch: bool,
    expert_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Train, once for all queries, what the model can learn from DATASTORE.

    First the root, on documents drawn from all of it; then an expert of each cluster of documents, from the root. What
    is trained is used with --mode instant and --mode auto, each expert as soon as it is done. Interrupted, the same
    command goes on.

    \b
    Examples:
      tttnn precompute pile-00 --dry-run
      tttnn precompute pile-00 --only root --documents 200
      tttnn precompute pile-00 --limit-hours 2 --workers 2 --threads 1
      tttnn precompute pile-00 --update
    """
    from ..datastore.datastore import Datastore
    from ..instant.precompute import Precompute

    if watch and (workers > 1 or only is not None or dry_run):
        raise click.UsageError("--watch must stand without --only, --dry-run and --workers above 1")
    config = ExpertConfig(**expert_flags)
    with Bars() as bars:
        opened = Datastore.open(datastore)
        loaded, tokenizer = loading.language_model(model, bars)
        work = Precompute(opened, loaded, tokenizer, config, leaves=only is None)
        if dry_run:
            estimate = work.estimate()
        else:
            report = work.run(
                update=update,
                limit_seconds=None if limit_hours is None else limit_hours * 3600,
                workers=workers,
                recipe=_recipe(model, loading),
                queries=[] if queries is None else _vectors(queries, opened, loading, bars),
                watch=watch,
                progress=bars,
            )
    if dry_run:
        _print_estimate(datastore, estimate, as_json)
    elif as_json:
        print_json(report.to_dict())
    else:
        print_trained(datastore, report)


@click.command("export-expert", cls=Command)
@click.argument("datastore", type=click.Path(exists=True, file_okay=False))
@click.argument("folder", type=click.Path(file_okay=False))
@model_flag
@click.option(
    "--merged-for", "query", type=Query(), help="Merge the experts that this text would use; without, the root alone."
)
@click.option(
    "--leaves",
    default=AdaptConfig().leaves,
    show_default=True,
    type=click.IntRange(0),
    help="Experts of the nearest clusters that are merged with the root for --merged-for.",
)
@loading_flags(dtype=False)
@as_json_flag
def export_expert(
    datastore: str, folder: str, model: str, query: str | None, leaves: int, loading: Loading, as_json: bool
) -> None:
    """Write what DATASTORE's experts taught the model as a peft adapter into FOLDER, which must be new or empty.

    What loads adapters of peft then computes what --mode instant does.

    \b
    Examples:
      tttnn export-expert pile-00 my-adapter --model smollm2-135m
      tttnn export-expert pile-00 my-adapter --merged-for "def quicksort("
    """
    from ..datastore.datastore import Datastore
    from ..instant.experts import Experts
    from ..instant.fingerprint import fingerprint_of

    place = Path(folder)
    if place.exists() and any(place.iterdir()):
        raise FileExistsError(f"{folder}: must be new or empty, and holds files. Choose another folder.")
    with Bars() as bars:
        opened = Datastore.open(datastore)
        loaded, tokenizer = loading.language_model(model, bars)
        if query is not None:
            loading.attach(opened, bars)
        config = AdaptConfig(mode="instant", leaves=0 if query is None else leaves)
        experts = Experts(opened, model=fingerprint_of(loaded), tokenizer=tokenizer)
        chosen = experts.choose(query or "", config, (), distance=None)
        if chosen.update is None:
            raise AdaptError(
                f"{datastore}: its root must have seen no document that was deleted, and it has. Train it anew with: "
                "tttnn precompute --update"
            )
        chosen.update.save(place, loaded)
    report = chosen.report
    if as_json:
        used = [{"name": expert.name, "weight": expert.weight} for expert in report.used]
        print_json({"folder": folder, "experts": used, "left_out": report.left_out})
        return
    told = ", ".join(f"{expert.name} x {expert.weight:.3g}" for expert in report.used)
    click.echo(f"{folder}: an adapter of {told}")
    for reason, count in report.left_out.items():
        bars.tell(f"left out as {reason}: {counted(count, 'expert')}")


def _recipe(model: str, loading: Loading) -> LeafRecipe:
    import torch

    from ..instant.leaf_workers import LeafRecipe

    return LeafRecipe(model, loading.cache_dir, loading.device, torch.get_num_threads())


def _vectors(queries: str, opened: Datastore, loading: Loading, bars: Bars) -> list[NDArray[np.float32]]:
    """Return the vectors of the texts of a file."""
    from ..store.corpus import iter_corpus

    loading.attach(opened, bars)
    return [opened.embedder.embed([document.text])[0] for document in iter_corpus(queries) if document.text.strip()]


def _print_estimate(datastore: str, estimate: PrecomputeEstimate, as_json: bool) -> None:
    if as_json:
        print_json(estimate.to_dict())
        return
    leaves = f" and {counted(estimate.leaves, 'cluster')}" if estimate.leaves else ""
    click.echo(
        f"{datastore}: a root of {counted(estimate.documents, 'document')}{leaves}, {counted(estimate.steps, 'step')}, "
        f"{in_time(estimate.seconds)} of one process on this machine, {in_bytes(estimate.bytes_on_disk)} on disk"
    )


def print_trained(datastore: str, report: PrecomputeReport) -> None:
    """Print what was trained, and what it is used with."""
    click.echo(
        f"{datastore}: the root {'learned from' if report.trained else 'has learned already from'} "
        f"{counted(report.documents, 'document')}; loss on others {report.loss_before:.3f} -> {report.loss_after:.3f} "
        "nats a token"
    )
    if report.leaves:
        loss = ""
        if report.leaf_loss_before is not None:
            loss = f"; mean loss on others of the cluster {report.leaf_loss_before:.3f} -> {report.leaf_loss_after:.3f}"
        click.echo(
            f"{report.leaves_there:,} of {counted(report.leaves, 'cluster')} have an expert, {report.leaves_trained:,} "
            f"of them new{loss}"
        )
    click.echo(f"{in_time(report.seconds)}, {counted(report.steps, 'step')}; {in_bytes(report.bytes_on_disk)} on disk")
    click.echo("used with: --mode instant or --mode auto of generate, eval and serve")
