"""The figure of curves over the size of the index, one small plot for each group.

Knows numbers and marks. Does not know result files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .labels import plain_log_ticks, shortened
from .style import Style, drawing

_WIDTH = 9.6  # inches, as of all figures
_MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class SizePanel:
    """One group: ratios to base over sizes of the index, the ends of their intervals (empty: there are none), a fit."""

    title: str
    detail: str
    size: Sequence[float]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    fitted: Sequence[float]
    xlabel: str


def draw_sizes(panels: Sequence[SizePanel], style: Style, base: Style) -> Any:
    """Draw each group's curve over a logarithmic axis of sizes; all share both axes."""
    columns = min(_MOST_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 0.7 + (3.2 if rows == 1 else 1.9 * rows)), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_xscale("log")
            axes.axhline(1, color=base.colour, linewidth=1)
            if panel.fitted:
                axes.plot(panel.size, panel.fitted, color=style.colour, linewidth=0.8, alpha=0.7)
            if panel.low:
                axes.vlines(panel.size, panel.low, panel.high, color=style.colour, linewidth=1.2, alpha=0.6)
            axes.plot(panel.size, panel.value, color=style.colour, linestyle="none", marker=style.marker, markersize=5)
            axes.set_title(shortened(panel.title, 24), loc="left", fontsize=8.5, fontweight="bold", pad=11)
            axes.text(0, 1.02, shortened(panel.detail, 36), transform=axes.transAxes, fontsize=7, va="bottom")
        grid.flat[0].margins(x=0.1)
        plain_log_ticks(grid.flat[0].xaxis)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel(f"{panels[0].xlabel} (logarithmic)", fontsize=9)
        figure.supylabel("bits per byte, as a share of base", fontsize=9)
        return figure
