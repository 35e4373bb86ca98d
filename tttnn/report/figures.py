"""The report's figures: curves over neighbors, before and after, cost against gain, document by document.

Knows numbers and where names have room. Does not know result files, nor the page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


# ---------------------------------------------------------------------------------------------------------------------
# Curves over the number of neighbors
# ---------------------------------------------------------------------------------------------------------------------


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
        _label_ends(axes, ends)
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
            axes.set_title(_short(panel.title, 24), loc="left", fontsize=8.5, fontweight="bold", pad=11)
            axes.text(0, 1.02, _short(panel.detail, 36), transform=axes.transAxes, fontsize=7, va="bottom")
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


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each name right of the plot at the height of its curve's end, moved apart where names would meet."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.052
    ordered = sorted(ends, key=lambda end: end[1])
    heights = spread([end[1] for end in ordered], gap, low, high)
    place = axes.get_yaxis_transform()
    for (_, y, label, colour), height in zip(ordered, heights, strict=True):
        axes.plot(
            [1.0, 1.025],
            [y, height],
            transform=place,
            color=colour,
            linewidth=0.7,
            clip_on=False,
            solid_capstyle="butt",
        )
        text = f"{_short(label, 30)}  {y:.3f}"
        axes.text(1.03, height, text, transform=place, color=colour, va="center", fontsize=8.5)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions apart to at least `gap`, as little as needed, within `low` and `high` where they fit.

    Neighbors that are too near form a block around their mean; blocks that meet are joined.
    """
    blocks: list[tuple[float, int]] = []  # centre, members
    for value in values:
        blocks.append((value, 1))
        while True:
            centre, count = blocks[-1]
            half = gap * (count - 1) / 2
            centre = max(low + half, min(high - half, centre))
            blocks[-1] = (centre, count)
            if len(blocks) == 1:
                break
            before, members = blocks[-2]
            if centre - half - (before + gap * (members - 1) / 2) >= gap * (1 - 1e-9):
                break
            blocks[-2:] = [((before * members + centre * count) / (members + count), members + count)]
    return [centre + gap * (i - (count - 1) / 2) for centre, count in blocks for i in range(count)]


def _handle(style: Style, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.colour, linestyle=style.dashes, marker=style.marker, markersize=4, label=label)


# ---------------------------------------------------------------------------------------------------------------------
# Before and after
# ---------------------------------------------------------------------------------------------------------------------


def draw_bars(bars: Sequence[Bar], style: Style, base: Style, label: str) -> Any:
    """Draw each group's bits per byte before and after as bars, and beside it the ratio with its 95 % interval."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(_WIDTH, 0.9 + 0.36 * len(bars)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
        rows = list(range(len(bars)))
        left.barh([y - 0.19 for y in rows], [bar.base for bar in bars], 0.36, color=base.colour, label="base")
        left.barh([y + 0.19 for y in rows], [bar.value for bar in bars], 0.36, color=style.colour, label=label)
        left.set_yticks(rows, [_short(bar.title, 28) for bar in bars])
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


# ---------------------------------------------------------------------------------------------------------------------
# Cost and gain; document by document
# ---------------------------------------------------------------------------------------------------------------------


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
        _plain_log_ticks(axes.xaxis)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _label_points(
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
        _plain_log_ticks(axes.xaxis)
        _plain_log_ticks(axes.yaxis)
        axes.set_xlabel("bits per byte, base")
        axes.set_ylabel(f"bits per byte, {_short(label, 40)}")
        _label_points(
            axes,
            [(d.base, d.value, d.letter, INK) for d in dots if d.letter],
            [*([(d.base, d.value)] for d in dots), [(ends[0], ends[0]), (ends[1], ends[1])]],
        )
        return figure


def _plain_log_ticks(axis: Any) -> None:
    """Tick a logarithmic axis at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    narrow = low > 0 and high / low < 4
    axis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if narrow else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_points(
    axes: Any, labels: Sequence[tuple[float, float, str, str]], lines: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Write a name beside each point, on the side where it covers least of other names and of lines or lone points."""
    axes.figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    scale = axes.figure.dpi / 72
    taken = [(x - 4, y - 4, x + 4, y + 4) for line in lines for x, y in _along([to_pixels(point) for point in line])]
    frame = axes.bbox
    for x, y, label, colour in labels:
        text = _short(label, 34)
        width, height = 5.4 * len(text) * scale, 10 * scale
        px, py = to_pixels((x, y))
        best: tuple[float, str, str, float, float, tuple[float, float, float, float]] | None = None
        for step in (7, 14, 22):
            for across, up in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                left = px + across * step * scale - width * (1 - across) / 2
                foot = py + up * step * scale - height * (1 - up) / 2
                box = (left, foot, left + width, foot + height)
                outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1 - 40)
                cost = step / 10 + sum(_overlap(box, other) for other in taken) / 10 + 10 * outside
                if best is None or cost < best[0] - 1e-9:
                    sides = {1: "left", 0: "center", -1: "right"}
                    feet = {1: "bottom", 0: "center", -1: "top"}
                    best = (cost, sides[across], feet[up], across * step, up * step, box)
        assert best is not None
        _, ha, va, dx, dy, box = best
        taken.append(box)
        axes.annotate(
            text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8.5, color=colour
        )


def _along(line: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield spots along a line, some eight pixels apart, its points among them."""
    yield line[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        pieces = max(1, round(math.hypot(x1 - x0, y1 - y0) / 8))
        for i in range(1, pieces + 1):
            yield x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
