"""The curves over the number of neighbors: all documents together, then each component.

Knows one run's numbers. Does not know how a figure is drawn.
"""

from __future__ import annotations

from ..evaluation.results import ALL
from . import figures
from .data import RunData
from .figures import Panel, Series
from .html import decimals, one_line
from .section import INTERVAL, Section, counted, group_name
from .style import Style


def _series(run: RunData, group: str, method: str) -> Series | None:
    rows = run.curve(group, method)
    if not rows:
        return None
    sure = rows[-1].ratio.certain
    ks, values = [row.k for row in rows], [row.ratio.value for row in rows]
    lows = [row.ratio.low for row in rows] if sure else []
    highs = [row.ratio.high for row in rows] if sure else []
    if ks[0] > 0 and len(ks) > 1:
        # Without neighbors a method of neighbors is the base model.
        ks, values = [0, *ks], [1.0, *values]
        lows, highs = [1.0, *lows] if sure else [], [1.0, *highs] if sure else []
    return Series(method, one_line(method), ks, values, lows, highs)


def _panel(run: RunData, group: str, title: str) -> Panel:
    series = [one for method in run.methods if (one := _series(run, group, method)) is not None]
    base = run.row(group, "base")
    detail = f"{counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}"
    return Panel(title, detail, series)


def curves_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Make the curves over the number of neighbors: all documents, then each component."""
    assert run.main is not None
    section = Section("Curves")
    whole_panel = _panel(run, ALL, "all documents")
    documents = run.row(ALL, run.main).documents
    section.draw(
        f"curves-{run.slug}",
        figures.draw_total(whole_panel, styles, run.main, ylabel="bits per byte, as a share of base"),
        "Curves of all methods over the number of neighbors",
        f"Bits per byte over the number of neighbors, as a share of the base model's (1), "
        f"{counted(documents, 'document')} "
        f"together. The band is of {one_line(run.main)}: {INTERVAL}. The number beside a name is the curve's last "
        f"value. A dashed level line is a "
        f"method that takes no neighbors.",
    )
    if len(run.groups) > 1:
        panels = [_panel(run, group, group_name(group)) for group in run.groups]
        section.draw(
            f"components-{run.slug}",
            figures.draw_panels(panels, styles, run.main, ylabel="bits per byte, as a share of base"),
            "Curves of each component over the number of neighbors",
            f"The same for each of {len(panels)} components ({counted(documents, 'document')} in all, their number "
            f"and the "
            f"base model's bits per byte above each panel), on one axis, those that gain most first. "
            f"{one_line(run.main)} is drawn strong, with its last value and its interval as a band.",
        )
    return section
