"""A part of the page, and the words in which every part speaks.

Knows HTML and names. Does not know what a part shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..evaluation.bootstrap import COVERAGE, FEW
from ..evaluation.results import ALL, PILE_ALL, Comparison, GroupSummary
from . import style as plots
from .data import RunData
from .html import escape, one_line

PROTOCOLS = {
    "split": "the query is the document's first half; its second half is scored with the query before it in the "
    "context, for every method, base included",
    "split-bare": "the query is the document's first half; its second half is scored without the query in the context",
    "full": "the document is both the query and what is scored, so that a method may find near-copies of what it is "
    "scored on",
}


INTERVAL = "95 % intervals of a paired bootstrap over documents (10,000 resamples)"


@dataclass(slots=True)
class Section:
    """A part of the page: its HTML with places for figures, the figures by name, and CSV rows by name."""

    title: str
    html: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def draw(self, name: str, figure: Any, title: str, caption: str) -> None:
        """Add a figure with its caption."""
        self.figures[name] = figure
        self.html += (
            f'<figure id="{escape(name)}">{plots.svg_of(figure, name, title)}'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def say(self, text: str, kind: str = "p") -> None:
        """Add a paragraph, or a heading (`kind` "h3")."""
        self.html += f"<{kind}>{escape(text)}</{kind}>"


def group_name(group: str) -> str:
    """Write a group's name; the totals have words."""
    return {ALL: "all documents", PILE_ALL: "Pile-weighted"}.get(group, one_line(group))


def neighbors(k: int) -> str:
    """Write a number of neighbors."""
    return "1 neighbor" if k == 1 else f"{k} neighbors"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def few_documents(run: RunData) -> str:
    """Say how far the intervals of components can be trusted, where some have few documents."""
    if all(run.row(group, "base").documents >= FEW for group in run.groups):
        return ""
    said = ", ".join(f"of {count} in {100 * share:.0f} cases of 100" for count, share in sorted(COVERAGE.items()))
    return f"An interval of few documents is too narrow: it holds the true ratio {said}."


def tone(row: GroupSummary | Comparison) -> str:
    """Return "better" or "worse" where the ratio's interval lies clear of 1."""
    if not row.ratio.certain:
        return ""
    return "better" if row.ratio.high < 1 else "worse" if row.ratio.low > 1 else ""
