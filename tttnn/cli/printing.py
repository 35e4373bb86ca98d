"""What the command line prints: values, tables, remarks. Knows the results of a few calls. Does not know a command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..files import strict_json
from .bars import Bars

if TYPE_CHECKING:
    from ..evaluation.audit import AuditReport
    from ..evaluation.results import BudgetComparison, Summary
    from ..evaluation.size_law import SizeLaw
    from ..retrieval.coverage import Coverage
    from ..store.corpus import Corpus


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(strict_json(value, default=str))


def print_pairs(value: dict[str, Any], indent: str = "") -> None:
    """Print names and values in two columns, what is nested further in."""
    width = max((len(key) for key in value), default=0)
    for key, item in value.items():
        if isinstance(item, dict):
            click.echo(f"{indent}{key}")
            print_pairs(item, indent + "  ")
        elif isinstance(item, list) and item and all(isinstance(entry, dict) for entry in item):
            for i, entry in enumerate(item):
                click.echo(f"{indent}{key} {i}")
                print_pairs(entry, indent + "  ")
        else:
            click.echo(f"{indent}{key:<{width}}  {item}")


def show(value: dict[str, Any], as_json: bool) -> None:
    """Print a description, as JSON where that was asked for."""
    if as_json:
        print_json(value)
    else:
        print_pairs(value)


def in_bytes(count: float) -> str:
    """Return a number of bytes for people: 83.3 kB."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def in_time(seconds: float) -> str:
    """Return a length of time for people: 3 min 12 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 segment, 2 segments."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def coverage_line(coverage: Coverage) -> str:
    """Return what share of a cluster was searched, for people."""
    shards, documents = coverage.shards, coverage.documents
    said = f"searched {shards.answered} of {counted(shards.total, 'shard')}, "
    said += f"{documents.searched:,} of {counted(documents.total, 'document')}"
    if coverage.full:
        return said
    return f"{said} ({documents.ratio:.1%}); " + "; ".join(f"shard {f.shard}: {f.reason}" for f in coverage.failures)


def print_datastore(described: dict[str, Any]) -> None:
    """Print what a datastore is, for people: `Datastore.info` in a few lines."""
    unit = "" if described["unit"] == "document" else f" of {described['unit']}s"
    click.echo(
        f"{described['path']}: {counted(described['documents'], 'document')}, {counted(described['vectors'], 'vector')}"
        f"{unit} of {described['dim']} dimensions, {counted(described['segments'], 'segment')}"
    )
    sizes = {"texts": "store_bytes", "index": "index_bytes", "passages": "passage_bytes"}
    files = ", ".join(f"{name} {in_bytes(described[key])}" for name, key in sizes.items() if described[key])
    click.echo(
        f"files: {files}; {in_bytes(described['text_bytes'])} of text; recall@20 {described['recall_at_20']:.3f}"
    )
    each, kept = described["bytes_per_vector"], described["settings"]["index"].get("vectors", "float32")
    click.echo(
        f"a vector: {each['memory']:,.0f} bytes that searches want in memory ({kept}), {each['disk']:,.0f} on disk"
    )
    made_by = described["embedder"]
    limit = made_by.get("identity", {}).get("max_length")
    reads = f", which reads {limit} tokens" if limit else ""
    click.echo(f"embedder: {made_by['name']}{reads}")
    if described["sources"]:
        names = described["sources"]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        click.echo(f"sources: {', '.join(names[:8])}{more}")
    for model in described.get("experts", ()):
        _print_experts(model)
    if described["deleted"]:
        click.echo(f"deleted: {counted(described['deleted'], 'document')}, whose bytes tttnn compact frees")
    if described["truncated"] and described["unit"] == "document":
        click.echo(
            f"{described['truncated']:,} of {counted(described['vectors'], 'document')} are longer than the embedder "
            "reads: their ends cannot be found. A datastore built with --unit passage finds every part."
        )


def _print_experts(model: dict[str, Any]) -> None:
    """Print the experts of one model in a line."""
    root, *leaves = model["experts"]
    parts = [
        f"a root of {counted(root['documents'], 'document')} (loss {root['loss_before']:.3f} -> "
        f"{root['loss_after']:.3f})"
    ]
    if model["leaves"]:
        told = f"{model['leaves_there']:,} of {counted(model['leaves'], 'cluster')}"
        if leaves:
            before, after = (sum(leaf[f"loss_{when}"] for leaf in leaves) / len(leaves) for when in ("before", "after"))
            told += f" (mean loss {before:.3f} -> {after:.3f})"
        parts.append(told)
    parts.append(in_bytes(model["bytes"]))
    if model["stale"]:
        parts.append(f"{counted(model['stale'], 'expert')} stale: tttnn precompute --update trains anew")
    if model["not_learned"]:
        parts.append(f"{counted(model['not_learned'], 'document')} came later")
    click.echo(f"experts of {model['model_name'] or model['model'][:16]}: {'; '.join(parts)}")


def print_built(described: dict[str, Any], path: str, documents: int) -> None:
    """Print what a build, an append or an import of vectors made, for people, and what to type next."""
    print_datastore(described)
    stages = described["build"]["stages"]
    took = ", ".join(f"{name} {in_time(stage['seconds'])}" for name, stage in stages.items())
    total = in_time(sum(stage["seconds"] for stage in stages.values()))
    memory = in_bytes(described["build"]["peak_memory_bytes"])
    click.echo(f"added {counted(documents, 'document')} in {total} ({took}), with {memory} of memory at most")
    if described.get("rejected"):
        click.echo(f"left out: {described['rejected']:,}; --rejects FILE lists them with their reasons")
    quoted = shlex.quote(path)
    click.echo(f'next: tttnn search {quoted} "some text" -k 3\n      tttnn generate {quoted} "some text"')


def tell_rejected(documents: Corpus, file: str | None, bars: Bars, *, most: int = 5) -> None:
    """Say what a corpus held that is no document, and what else a reader may not expect."""
    for where, reason in documents.rejected[:most]:
        bars.tell(f"left out {where if isinstance(where, str) else f'line {where}'}: {reason}")
    if documents.num_rejected > most:
        listed = file or "--rejects FILE"
        bars.tell(f"... and {documents.num_rejected - most:,} more; {listed} lists them all")
    for remark in documents.remarks():
        bars.tell(remark)


def excerpt(text: str, length: int = 160) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1] + "…"


def stages_line(seconds: dict[str, float]) -> str:
    """Return the seconds of each stage as one line."""
    parts = [f"{stage} {value:.2f}" if value < 10 else f"{stage} {value:.0f}" for stage, value in seconds.items()]
    return ", ".join(parts)


def print_results(
    summary: Summary, pairs: Sequence[BudgetComparison], weights: Mapping[int, Mapping[float, float]]
) -> None:
    """Print the table of methods, what they reach at equal budgets, and interpolation at each weight."""
    click.echo(str(summary))
    for pair in pairs:
        click.echo(
            f"at {pair.budget:.4g} {pair.unit} a document: {pair.a} (k {pair.k_a}) over {pair.b} (k {pair.k_b}) "
            f"{pair.total().ratio}"
        )
    for k, curve in weights.items():
        listed = ", ".join(f"{weight:g}: {value:.4f}" for weight, value in curve.items())
        click.echo(f"interpolation with {k} neighbors, bits per byte by weight: {listed}")


def print_size_laws(laws: Sequence[SizeLaw]) -> None:
    """Print the ratio to base over the size of the index, a row for each group; nothing where it was not measured."""
    if not laws:
        return
    click.echo(f"index-size with {laws[0].k} neighbors: ratio to base [95 % interval] by share of the datastore")
    width = max(5, *(len(law.group) for law in laws))
    fractions = [point.fraction for point in laws[0].points]
    heads = "  ".join(f"{fraction:<23.9g}" for fraction in fractions)
    click.echo(f"{'group':<{width}}  {'docs':>5}  {heads}  slope per tenfold")
    for law in laws:
        ratios = "  ".join(f"{point.ratio!s:<23}" for point in law.points)
        slope = "" if law.slope is None else str(law.slope)
        click.echo(f"{law.group:<{width}}  {law.documents:>5}  {ratios}  {slope}".rstrip())


def print_audit(report: AuditReport) -> None:
    """Print findings and notes as a table, and one line of totals."""
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
