"""The demo's picture: what each document gains, and what a step adds. Knows matplotlib. Does not measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .printing import in_time

if TYPE_CHECKING:
    from ..evaluation.results import GroupSummary
    from .demo_result import HeldOut

_BASE, _CONTEXT, _TRAINED = "#9aa0a6", "#e8a33d", "#1f6fb4"


def draw(
    model: str,
    documents: Sequence[HeldOut],
    totals: Sequence[GroupSummary],
    rival: GroupSummary,
    path: Path,
) -> Path:
    """Draw bars of each document under each method, from zero, beside the curve of all over the neighbors.

    Args:
        model: its name in full.
        documents: the held-out ones.
        totals: all of them together after training on each number of neighbors.
        rival: all of them together with the neighbors in the context.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    k = totals[-1].k
    _bars(left, documents, totals[-1], rival)
    ks, values = [row.k for row in totals], [row.bits_per_byte for row in totals]
    right.plot(ks, values, color=_TRAINED, linewidth=2.2, marker="o")
    for i in sorted({0, len(ks) - 1}):
        right.annotate(f"{values[i]:.3f}", (ks[i], values[i]), xytext=(0, 9), textcoords="offset points", ha="center")
    right.set_ylim(0, 1.15 * max(values))
    right.set_xticks(ks)
    right.margins(x=0.1)
    right.set_xlabel("neighbors trained on, one step each")
    right.set_title("all documents together", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    change = values[-1] / values[0] - 1
    gained = (
        f"Trained for a moment on {k} similar texts, the model needs {abs(change):.0%} "
        f"{'fewer' if change <= 0 else 'more'} bits for text that was held out"
    )
    figure.legend(
        *left.get_legend_handles_labels(),
        title=gained,
        title_fontsize=13,
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.supxlabel(
        f"{model}. Lower is better; axes begin at zero. Seconds: before an answer, of each document.",
        fontsize=8,
        color="#5f6368",
    )
    figure.savefig(path, dpi=150)
    return path


def _bars(axes: Any, documents: Sequence[HeldOut], trained: GroupSummary, rival: GroupSummary) -> None:
    rows = (
        ("the model as it is", _BASE, [document.base for document in documents]),
        (f"neighbors in its context{_cost(rival)}", _CONTEXT, [document.in_context for document in documents]),
        (
            f"trained on {trained.k} neighbors{_cost(trained)}",
            _TRAINED,
            [list(document.curve.values())[-1] for document in documents],
        ),
    )
    for i, (label, color, values) in enumerate(rows):
        centers = [position + 0.27 * (i - 1) for position in range(len(values))]
        drawn = axes.bar(centers, values, 0.25, color=color, label=label)
        axes.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    axes.set_xticks(range(len(documents)), [_short(document.name) for document in documents], fontsize=8)
    axes.set_ylim(0, 1.15 * max(max(values) for _, _, values in rows))
    axes.set_ylabel("bits per byte")
    axes.set_title("second half of held-out documents", fontsize=10)


def _cost(row: GroupSummary) -> str:
    return "" if row.seconds is None else f" ({in_time(row.seconds)})"


def _short(name: str, length: int = 28) -> str:
    folder, slash, file = name.rpartition("/")
    return "\n".join(
        part if len(part) <= length else "…" + part[1 - length :] for part in (folder + slash, file) if part
    )
