"""The main method's curves beside the published ones of the same tasks.

Knows one run's numbers and the published runs. Does not know how a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation.results import ALL, PILE_ALL
from . import figures
from . import style as plots
from .data import RunData
from .figures import Panel, Series
from .html import Cell, decimals, ends, one_line, table, whole
from .published_curves import TASKS, TOTAL, PublishedRun
from .section import INTERVAL, Section, counted, group_name, neighbors, tone
from .style import Style


def published_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Lay the main method's curves beside the published ones of the same tasks.

    Where the model's own curve under this protocol was published, both are in bits per byte; else each is a ratio to
    its own base model.
    """
    assert run.main is not None
    assert run.published is not None
    section = Section("Published curves")
    match, shown, groups = run.published.match, run.published.shown, run.published.groups
    if not groups:
        section.say("No component has the name of a published task.")
        return section
    looks = plots.styles_of([run.main, *(one.name for one in shown)])
    looks[run.main] = styles[run.main]
    panels = []
    rows = []
    for group in groups:
        panel, more = _reference_panel(run, group, shown, absolute=match is not None)
        panels.append(panel)
        rows += more
    if match is not None:
        said = f"The model and protocol of the published run {match.name}, in bits per byte."
    else:
        what = f"of {one_line(run.model)} " if run.model is not None else ""
        said = (
            f"No curve {what}under the protocol {run.name} was published: the published runs have other models, "
            f"corpora "
            f"and protocols. Each curve is therefore a ratio to its own base model, and only its shape can be compared."
        )
    section.say(said)
    section.draw(
        f"reference-{run.slug}",
        figures.draw_panels(
            panels,
            looks,
            run.main,
            ylabel="bits per byte" if match is not None else "bits per byte, as a share of the own base",
            relative=match is None,
        ),
        "Our curves beside the published ones",
        f"{one_line(run.main)} (strong) from {counted(run.row(ALL, run.main).documents, 'document')} beside the "
        f"published "
        f"curves, by the number of neighbors. "
        + (
            f"Pile-weighted covers the components present, {run.summary.pile_weight:.0f} % of the Pile; the published "
            f"total covers all. "
            if PILE_ALL in groups
            else ""
        )
        + f"Source of the published figures: {run.published.source}.",
    )
    section.rows[f"reference-{run.slug}"] = rows
    _compare(section, run, run.main, groups, shown)
    return section


def _compare(section: Section, run: RunData, main: str, groups: Sequence[str], shown: Sequence[PublishedRun]) -> None:
    """Add the table of ratios, ours and as published, at the largest number of neighbors that both have."""
    k = min(run.row(ALL, main).k, 50)
    lines: list[list[Cell | str]] = []
    for group in groups:
        row = run.row(group, main)
        cells: list[Cell | str] = [
            Cell(group_name(group), strong=group == PILE_ALL),
            whole(row.documents),
            Cell(
                decimals(row.ratio.value),
                ends(row.ratio, row.documents) if row.ratio.certain else "",
                tone(row),
            ),
        ]
        for one in shown:
            curve = one.curves[TOTAL if group == PILE_ALL else TASKS[group]]
            cells.append(decimals(curve[k] / curve[0]))
        lines.append(cells)
    section.html += table(
        ["component", "documents", f"{one_line(main)} (ours)", *(one.name for one in shown)],
        lines,
        caption=f"Bits per byte after {neighbors(k)} as a ratio to the own base model: ours with {INTERVAL}, and as "
        f"published.",
    )


def _reference_panel(
    run: RunData, group: str, shown: Sequence[PublishedRun], *, absolute: bool
) -> tuple[Panel, list[dict[str, Any]]]:
    assert run.main is not None
    task = TOTAL if group == PILE_ALL else TASKS[group]
    ours = run.curve(group, run.main)
    points = [(row.k, row.bits_per_byte, row.base_bits_per_byte) for row in ours]
    if points and points[0][0] > 0:
        points = [(0, points[0][2], points[0][2]), *points]
    series = [
        Series(
            run.main,
            f"{one_line(run.main)} (ours)",
            [k for k, _, _ in points],
            [value if absolute else value / base for _, value, base in points],
        )
    ]
    rows = [
        {"protocol": run.name, "task": task, "run": "ours", "k": k, "bits_per_byte": value, "ratio": value / base}
        for k, value, base in points
    ]
    for one in shown:
        curve = one.curves[task]
        values = curve if absolute else [value / curve[0] for value in curve]
        series.append(Series(one.name, one.name, range(len(curve)), values))
        rows += [
            {
                "protocol": run.name,
                "task": task,
                "run": one.name,
                "k": k,
                "bits_per_byte": value,
                "ratio": value / curve[0],
            }
            for k, value in enumerate(curve)
        ]
    base = run.row(group, "base")
    return Panel(
        group_name(group), f"{counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}", series
    ), rows
