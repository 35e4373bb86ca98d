"""Where names and numbers have room in a figure.

Knows positions in a plot. Does not know what is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
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
        text = f"{shortened(label, 30)}  {y:.3f}"
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


def plain_log_ticks(axis: Any) -> None:
    """Tick a logarithmic axis at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    narrow = low > 0 and high / low < 4
    axis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if narrow else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def label_points(
    axes: Any, labels: Sequence[tuple[float, float, str, str]], lines: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Write a name beside each point, on the side where it covers least of other names and of lines or lone points."""
    axes.figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    scale = axes.figure.dpi / 72
    taken = [(x - 4, y - 4, x + 4, y + 4) for line in lines for x, y in _along([to_pixels(point) for point in line])]
    frame = axes.bbox
    for x, y, label, colour in labels:
        text = shortened(label, 34)
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


def shortened(text: str, length: int) -> str:
    """Return a text of at most `length` characters, an ellipsis at its end where it was longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
