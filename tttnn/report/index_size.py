"""What is gained over the size of the index: a curve for all documents and for each component, and a table.

Knows one run's numbers. Does not know how a figure is drawn.
"""

from __future__ import annotations

from typing import Any

from ..evaluation.bootstrap import Interval
from ..evaluation.catalogue import INDEX_SIZE
from ..evaluation.size_law import SizeLaw
from .data import RunData
from .html import DASH, Cell, decimals, ends, signed, table, whole
from .section import INTERVAL, Section, few_documents, group_name, neighbors
from .size_figure import SizePanel, draw_sizes
from .style import Style


def index_size_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Make the curves over the size of the index, and the table of components by shares."""
    section = Section("Size of the index")
    groups = [*run.totals, *run.groups]
    laws = sorted((law for law in run.laws if law.group in groups), key=lambda law: groups.index(law.group))
    first = laws[0]
    fractions = [point.fraction for point in first.points]
    section.draw(
        f"index-size-{run.slug}",
        draw_sizes([_panel(law) for law in laws], styles[INDEX_SIZE.name], styles["base"]),
        "Bits per byte over the size of the index, for all documents and each component",
        f"Ratio to base (1) after training on {neighbors(first.k)} found in shares of the datastore, drawn at random, "
        f"a larger one holding each smaller one; the bars are {INTERVAL}. The thin line is a fit by least squares over "
        f"the logarithm of the size. Of the shares there was one draw: the intervals do not know how another would "
        f"have turned out.",
    )
    known = first.points[-1].index_documents is not None
    head = [f"{whole(point.index_documents)} documents" if known else f"{point.fraction:.9g}" for point in first.points]
    lines: list[list[Cell | str]] = []
    for law in laws:
        cells: list[Cell | str] = [
            Cell(group_name(law.group), strong=law.group in run.totals),
            whole(law.documents),
            decimals(law.base_bits_per_byte),
        ]
        for point in law.points:
            cells.append(Cell(decimals(point.ratio.value), ends(point.ratio, law.documents), _tone(point.ratio, 1.0)))
        if law.slope is None:
            cells.append(DASH)
        else:
            slope = signed(law.slope.value, 4)
            cells.append(Cell(slope, ends(law.slope, law.documents, sign=True), _tone(law.slope, 0.0)))
        lines.append(cells)
    section.html += table(
        ["component", "docs", "base", *head, "slope per tenfold"],
        lines,
        caption=f"Base in bits per byte, then the ratio to base with neighbors from an index of each size, with "
        f"{INTERVAL}; the slope is the change of the ratio when the index grows tenfold. {few_documents(run)}".rstrip(),
    )
    section.rows[f"index-size-{run.slug}"] = [_row(run, law, i) for law in laws for i in range(len(fractions))]
    return section


def _panel(law: SizeLaw) -> SizePanel:
    slope = "" if law.slope is None else f"slope {signed(law.slope.value, 4)}"
    sizes = [point.index_documents or point.fraction for point in law.points]
    sure = all(point.ratio.certain for point in law.points)
    return SizePanel(
        group_name(law.group),
        slope,
        sizes,
        [point.ratio.value for point in law.points],
        [point.ratio.low for point in law.points] if sure else [],
        [point.ratio.high for point in law.points] if sure else [],
        [] if law.slope is None else [law.fitted(point.fraction) for point in law.points],
        "documents in the index" if law.points[-1].index_documents is not None else "share of the datastore",
    )


def _tone(interval: Interval, nothing: float) -> str:
    if not interval.certain:
        return ""
    return "better" if interval.high < nothing else "worse" if interval.low > nothing else ""


def _row(run: RunData, law: SizeLaw, i: int) -> dict[str, Any]:
    point, slope = law.points[i], law.slope
    return {
        "protocol": run.name,
        "group": law.group,
        "k": law.k,
        "documents": law.documents,
        "fraction": point.fraction,
        "index_documents": point.index_documents,
        "found": point.found,
        "base_bits_per_byte": law.base_bits_per_byte,
        "bits_per_byte": point.bits_per_byte,
        "ratio": point.ratio.value,
        "ratio_low": point.ratio.low if point.ratio.certain else None,
        "ratio_high": point.ratio.high if point.ratio.certain else None,
        "slope_per_tenfold": None if slope is None else slope.value,
        "slope_low": slope.low if slope is not None and slope.certain else None,
        "slope_high": slope.high if slope is not None and slope.certain else None,
    }
