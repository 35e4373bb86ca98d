"""The report's figures: curves over neighbors, before and after, cost against gain, document by document.

Knows numbers and marks. Does not know where names have room, nor result files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .labels import label_ends, label_points, plain_log_ticks, shortened
from .style import INK, PAPER, STYLES, Style, drawing

_WIDTH = 9.6
"""Inches; the page scales a figure to its column, so that 9 pt are about 13 pixels."""

_MARKED = 12
"""Points of a curve up to which each is marked."""


@dataclass(frozen=True, slots=True)
class Series:
    """One method's values over the number of neighbors; `low` and `high` are the ends of 95 % intervals."""

    method: str
    label: str
    k: Sequence[float]
    value: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot: a title, a line of detail below it, and its curves."""

    title: str
    detail: str
    series: Sequence[Series]


@dataclass(frozen=True, slots=True)
class Bar:
    """A group before and after: bits per byte, and the ratio with its interval (nan: there is none)."""

    title: str
    base: float
    value: float
    ratio: float
    low: float
    high: float
    total: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A document: bits per byte before and after, and the letter of its case where it is shown."""

    base: float
    value: float
    letter: str = ""


def draw_total(panel: Panel, styles: dict[str, Style], main: str, *, ylabel: str) -> Any:
    """Draw all methods' curves in one plot, each with its name at its end, the main one with its interval as a band."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        last = _last_k([panel])
        ends = [
            _draw_series(axes, series, styles[series.method], last, band=series.method == main)
            for series in panel.series
        ]
        axes.axhline(1, color=styles["base"].colour, linewidth=1.2)
        ends.append((last, 1.0, "base", styles["base"].colour))
        _axis_of_k(axes, [panel], last, 0.045)
        # Room for names beside the last point; the grid ends where the numbers of neighbors end.
        axes.set_xlim(-0.03 * last, last * 1.02)
        axes.set_xlabel("neighbors")
        axes.set_ylabel(ylabel)
        label_ends(axes, ends)
        return figure


def draw_panels(
    panels: Sequence[Panel], styles: dict[str, Style], main: str, *, ylabel: str, relative: bool = True
) -> Any:
    """Draw small multiples; the main method is drawn strong and its last value written.

    Ratios to base share one axis, on which base is the line at 1; `relative` False gives each panel its own.
    """
    columns = min(5, max(2, math.ceil(math.sqrt(len(panels)))))
    rows = math.ceil(len(panels) / columns)
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 0.55 + 1.75 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=relative, squeeze=False)
        last = _last_k(panels)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for series in panel.series:
                strong = series.method == main
                x, y, _, colour = _draw_series(axes, series, styles[series.method], last, band=strong, strong=strong)
                if strong:
                    up = relative and y >= 1
                    axes.annotate(
                        f"{y:.3f}",
                        (x, y),
                        xytext=(0, 5 if up else -5),
                        textcoords="offset points",
                        ha="right",
                        va="bottom" if up else "top",
                        fontsize=7.5,
                        color=colour,
                        fontweight="bold",
                    )
            if relative:
                axes.axhline(1, color=styles["base"].colour, linewidth=1)
            axes.set_title(shortened(panel.title, 24), loc="left", fontsize=8.5, fontweight="bold", pad=11)
            axes.text(0, 1.02, shortened(panel.detail, 36), transform=axes.transAxes, fontsize=7, va="bottom")
        _axis_of_k(grid.flat[0], panels, last, 0.19)
        grid.flat[0].set_xlim(-0.06 * last, last * 1.06)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel("neighbors", fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
        present = {series.method: series.label for panel in panels for series in panel.series}
        handles = [_handle(styles["base"], "base")] if relative else []
        handles += [_handle(styles[method], label) for method, label in present.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)), frameon=False, fontsize=8)
        return figure


def _draw_series(
    axes: Any, series: Series, style: Style, last: float, *, band: bool, strong: bool = True
) -> tuple[float, float, str, str]:
    """Draw one curve; return where it ends, its name and colour."""
    if len(series.k) == 1 and series.k[0] == 0:
        # A method without neighbors: one value, whatever the number of neighbors.
        axes.axhline(series.value[0], color=style.colour, linewidth=1.2, linestyle=(0, (6, 3)))
        return last, series.value[0], series.label, style.colour
    width, size = (1.8, 4.0) if strong else (0.9, 2.2)
    axes.plot(
        series.k,
        series.value,
        color=style.colour,
        linewidth=width,
        linestyle=style.dashes,
        marker=style.marker if len(series.k) <= _MARKED else "",
        markersize=size,
        markeredgewidth=0,
        zorder=3 if strong else 2,
    )
    if band and series.low:
        if len(series.k) > 1:
            axes.fill_between(series.k, series.low, series.high, color=style.colour, alpha=0.12, linewidth=0)
        else:
            axes.vlines(series.k, series.low, series.high, color=style.colour, linewidth=1, alpha=0.5)
    return series.k[-1], series.value[-1], series.label, style.colour


def _last_k(panels: Sequence[Panel]) -> float:
    return max((k for panel in panels for series in panel.series for k in series.k), default=1) or 1


def _axis_of_k(axes: Any, panels: Sequence[Panel], last: float, apart: float) -> None:
    """Tick the numbers of neighbors that were measured, those at least `apart` of the axis' length from each other."""
    measured = sorted({k for panel in panels for series in panel.series for k in series.k} | {0.0})
    kept = [0.0]
    for k in reversed(measured):
        if min(abs(k - other) for other in kept) >= apart * last:
            kept.append(k)
    axes.set_xticks(kept, [f"{k:g}" for k in kept])


def _handle(style: Style, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.colour, linestyle=style.dashes, marker=style.marker, markersize=4, label=label)


def draw_bars(bars: Sequence[Bar], style: Style, base: Style, label: str) -> Any:
    """Draw each group's bits per byte before and after as bars, and beside it the ratio with its 95 % interval."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 0.9 + 0.36 * len(bars)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
        rows = list(range(len(bars)))
        left.barh([y - 0.19 for y in rows], [bar.base for bar in bars], 0.36, color=base.colour, label="base")
        left.barh([y + 0.19 for y in rows], [bar.value for bar in bars], 0.36, color=style.colour, label=label)
        left.set_yticks(rows, [shortened(bar.title, 28) for bar in bars])
        for name, bar in zip(left.get_yticklabels(), bars, strict=True):
            name.set_fontweight("bold" if bar.total else "normal")
        left.set_xlabel("bits per byte")
        left.tick_params(axis="y", length=0)
        right.tick_params(axis="y", length=0)
        left.invert_yaxis()
        left.grid(axis="y", visible=False)
        right.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        right.axvline(1, color=base.colour, linewidth=1.2)
        for y, bar in zip(rows, bars, strict=True):
            certain = not math.isnan(bar.low)
            if certain:
                right.plot([bar.low, bar.high], [y, y], color=style.colour, linewidth=1.6, solid_capstyle="butt")
            right.plot(
                [bar.ratio],
                [y],
                marker="D" if bar.total else "o",
                markersize=6 if bar.total else 5,
                color=style.colour,
                markerfacecolor=style.colour if certain else PAPER,
                linestyle="none",
            )
            right.text(
                1.01,
                y,
                f"{bar.ratio:.3f}",
                transform=right.get_yaxis_transform(),
                va="center",
                fontsize=8,
                fontweight="bold" if bar.total else "normal",
            )
        first = next((y for y, bar in enumerate(bars) if bar.total), 0)
        if first:
            for axes in (left, right):
                axes.axhline(first - 0.5, color=INK, linewidth=0.5)
        right.set_xlabel("ratio to base, with its 95 % interval")
        return figure


def draw_cost(series: Sequence[Series], styles: dict[str, Style], *, xlabel: str, ylabel: str) -> Any:
    """Draw gain over cost: one point per method and number of neighbors, joined along it; the cost axis is logarithmic.

    Args:
        series: `k` holds the cost of each point (seconds or tokens), `value` the ratio to the base model.
        styles: how methods look.
        xlabel: names the cost.
        ylabel: names the gain.
    """
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        for one in series:
            style = styles[one.method]
            axes.plot(
                one.k,
                one.value,
                color=style.colour,
                linewidth=1.3,
                linestyle=style.dashes,
                marker=style.marker,
                markersize=5,
                markeredgewidth=0,
            )
        axes.axhline(1, color=styles["base"].colour, linewidth=1)
        axes.margins(x=0.12, y=0.12)
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        label_points(
            axes,
            [(one.k[-1], one.value[-1], one.label, styles[one.method].colour) for one in series],
            [list(zip(one.k, one.value, strict=True)) for one in series],
        )
        return figure


def draw_documents(dots: Sequence[Dot], style: Style, base: Style, label: str) -> Any:
    """Draw each document's bits per byte after over before; below the diagonal it is better."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        worse = STYLES[1]
        for dots_of, look in (
            ([d for d in dots if d.value <= d.base], style),
            ([d for d in dots if d.value > d.base], Style(worse.colour, worse.dark, "^", "-")),
        ):
            axes.plot(
                [d.base for d in dots_of],
                [d.value for d in dots_of],
                linestyle="none",
                marker=look.marker,
                color=look.colour,
                markersize=5,
                markeredgewidth=0,
                alpha=0.75,
            )
        values = [value for d in dots for value in (d.base, d.value)]
        ends = (min(values) / 1.15, max(values) * 1.15)
        axes.plot(ends, ends, color=base.colour, linewidth=1)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.text(0.985, 0.03, "better than base", transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5)
        axes.text(0.015, 0.97, "worse than base", transform=axes.transAxes, ha="left", va="top", fontsize=8.5)
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
        axes.set_xlabel("bits per byte, base")
        axes.set_ylabel(f"bits per byte, {shortened(label, 40)}")
        label_points(
            axes,
            [(d.base, d.value, d.letter, INK) for d in dots if d.letter],
            [*([(d.base, d.value)] for d in dots), [(ends[0], ends[0]), (ends[1], ends[1])]],
        )
        return figure
