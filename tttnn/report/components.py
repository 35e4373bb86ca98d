"""Each component before and after, and under every method.

Knows one run's numbers. Does not know how a figure is drawn.
"""

from __future__ import annotations

import math

from ..evaluation.results import ALL
from . import figures
from .data import RunData
from .figures import Bar
from .html import DASH, Cell, decimals, ends, one_line, table, whole
from .section import INTERVAL, Section, counted, few_documents, group_name, tone
from .style import Style


def components_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Make the bars before and after, and the table of components by methods."""
    assert run.main is not None
    section = Section("Components")
    bars = []
    for group in [*run.groups, *run.totals]:
        row = run.row(group, run.main)
        sure = row.ratio.certain
        bars.append(
            Bar(
                group_name(group),
                row.base_bits_per_byte,
                row.bits_per_byte,
                row.ratio.value,
                row.ratio.low if sure else math.nan,
                row.ratio.high if sure else math.nan,
                total=group in run.totals,
            )
        )
    k = run.row(ALL, run.main).k
    label = f"{one_line(run.main)}, k = {k}"
    section.draw(
        f"before-after-{run.slug}",
        figures.draw_bars(bars, styles[run.main], styles["base"], label),
        f"Bits per byte of each component before and after {one_line(run.main)}",
        f"Left: bits per byte of base and of {label}; right: their ratio with {INTERVAL}. "
        f"{counted(run.row(ALL, run.main).documents, 'document')}. An open mark has no interval: it is "
        f"of one document, or of components of one each.",
    )
    lines: list[list[Cell | str]] = []
    for group in [*run.groups, *run.totals]:
        base = run.row(group, "base")
        cells: list[Cell | str] = [
            Cell(group_name(group), strong=group in run.totals),
            whole(base.documents),
            decimals(base.bits_per_byte),
        ]
        rows = [run.row(group, method) for method in run.methods if run.curve(group, method)]
        best = min((row.ratio.value for row in rows), default=math.nan)
        for method in run.methods:
            row = run.row(group, method)
            if not run.curve(group, method):
                cells.append(DASH)
                continue
            interval = ends(row.ratio, row.documents) if row.ratio.certain else ""
            cells.append(Cell(decimals(row.ratio.value), interval, tone(row), strong=row.ratio.value == best))
        lines.append(cells)
    ks = ", ".join(f"{one_line(method)} k = {run.row(ALL, method).k}" for method in run.methods)
    section.html += table(
        ["component", "docs", "base", *(one_line(method) for method in run.methods)],
        lines,
        caption=f"Base in bits per byte, then each method's ratio to base at its largest number of neighbors ({ks}), "
        f"with "
        f"{INTERVAL}. Green lies below 1 and red above with the whole interval; the best of a row is bold. A component "
        f"of one document has no interval. {few_documents(run)}".rstrip(),
    )
    return section
