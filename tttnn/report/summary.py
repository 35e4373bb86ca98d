"""The main parts of a report, each from one run: tables, figures with captions, rows for CSV files.

Knows what a reader asks of an evaluation. Does not know files, nor how the page looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.bootstrap import COVERAGE, FEW
from ..evaluation.results import ALL, PILE_ALL, BudgetComparison, Comparison, GroupSummary
from . import figures
from . import style as plots
from .figures import Bar, Panel, Series
from .html import DASH, Cell, decimals, ends, escape, one_line, signed, significant, table, whole
from .runs import Run, model_name
from .style import Style

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


def few_documents(run: Run) -> str:
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


# ---------------------------------------------------------------------------------------------------------------------
# The headline
# ---------------------------------------------------------------------------------------------------------------------


def headline(run: Run) -> str:
    """Return one sentence with the number and its interval."""
    if run.main is None:
        row = run.row(ALL, "base")
        return f"base: {decimals(row.bits_per_byte)} bits per byte over {counted(row.documents, 'document')}"
    row = run.row(ALL, run.main)
    model = model_name(run.result)
    of = "the base model" if model is None else one_line(model.rstrip("/").rpartition("/")[2])
    after = f" with {neighbors(row.k)}" if row.k else ""
    interval = f" {ends(row.ratio, row.documents)}" if row.ratio.certain else ""
    return f"{one_line(run.main)}{after}: {decimals(row.ratio.value)}{interval} times the bits per byte of {of}"


def verdict(run: Run) -> str:
    """Return what the headline rests on, in sentences."""
    if run.main is None:
        return "Only the base model was measured: there is nothing to compare it with."
    row = run.row(ALL, run.main)
    parts = [
        f"Protocol {run.name}, {counted(row.documents, 'document')} of {counted(len(run.groups), 'component')}: from "
        f"{decimals(row.base_bits_per_byte)} to {decimals(row.bits_per_byte)} bits per byte."
    ]
    if row.documents < 2:
        parts.append("One document gives no interval.")
    if row.ratio.certain:
        if row.ratio.high < 1:
            parts.append("The 95 % interval lies below 1: the gain does not hang on which documents were drawn.")
        elif row.ratio.low > 1:
            parts.append("The 95 % interval lies above 1: the method harms these texts.")
        else:
            parts.append("The 95 % interval holds 1: these documents show neither gain nor harm.")
        if row.documents < FEW:
            parts.append(f"{row.documents} documents are few for a bootstrap: its interval may be too narrow.")
    if run.summary.pile_weight:
        weighted = run.row(PILE_ALL, run.main)
        parts.append(f"Weighted by the components' shares of the Pile the ratio is {_sized(weighted)}.")
    if len(run.groups) > 1:
        worst = max((run.row(group, run.main) for group in run.groups), key=lambda one: one.ratio.value)
        parts.append(f"Worst component: {group_name(worst.group)}, {_sized(worst)}.")
    return " ".join(parts)


def _sized(row: GroupSummary) -> str:
    """Write a ratio with its interval, or in brackets why there is none."""
    interval = ends(row.ratio, row.documents)
    return f"{decimals(row.ratio.value)} {interval if row.ratio.certain else f'({interval})'}"


# ---------------------------------------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------------------------------------


def summary_section(run: Run) -> Section:
    """Make the table of methods at their largest number of neighbors, and the methods against each other."""
    section = Section("Summary")
    rows = sorted((run.row(ALL, method) for method in run.methods), key=lambda row: row.ratio.value)
    section.html += _methods_table(
        run,
        [run.row(ALL, "base"), *rows],
        f"Each method at its largest number of neighbors, best ratio first, over the bytes of all documents. Ratio and "
        f"difference are to base, with {INTERVAL}. Seconds and tokens are means per document; seconds count retrieval "
        f"and training, not scoring.",
    )
    every = [row for method in ["base", *run.methods] for row in run.curve(ALL, method)]
    if len(every) > len(rows) + 1:
        inner = _methods_table(run, every, "The same at every number of neighbors that was scored, by method.")
        section.html += f'<details class="screen"><summary>Every number of neighbors</summary>{inner}</details>'
    section.rows[f"summary-{run.slug}"] = [_summary_row(run, row) for row in run.summary.rows]
    if run.main is not None and len(run.methods) > 1:
        _compare(section, run, run.main)
    return section


def _methods_table(run: Run, rows: Sequence[GroupSummary], caption: str) -> str:
    weighted = bool(run.summary.pile_weight)
    head = ["method", "k", "docs", "bits per byte", "ratio", "difference"]
    head += ["ratio, Pile-weighted"] if weighted else []
    head += ["byte perplexity", "word perplexity", "seconds", "tokens trained", "tokens in context"]
    best = min((row.ratio.value for row in rows if row.method != "base"), default=math.nan)
    lines = []
    for row in rows:
        base = row.method == "base"
        cells: list[Cell | str] = [
            Cell(one_line(row.method), strong=row.method == run.main),
            str(row.k),
            whole(row.documents),
            Cell(decimals(row.bits_per_byte), strong=row.ratio.value == best),
        ]
        if base:
            cells += ["1", DASH]
        else:
            cells += [
                Cell(decimals(row.ratio.value), ends(row.ratio, row.documents), tone(row), row.ratio.value == best),
                Cell(signed(row.difference.value), ends(row.difference, row.documents, sign=True)),
            ]
        if weighted:
            other = next((one for one in run.curve(PILE_ALL, row.method) if one.k == row.k), None)
            if base or other is None:
                cells.append("1" if base else DASH)
            else:
                cells.append(Cell(decimals(other.ratio.value), ends(other.ratio, other.documents), tone(other)))
        cells += [
            decimals(row.byte_perplexity),
            significant(row.word_perplexity),
            significant(row.seconds),
            whole(row.trained_tokens),
            whole(row.context_tokens),
        ]
        lines.append(cells)
    return table(head, lines, caption=caption)


def _summary_row(run: Run, row: GroupSummary) -> dict[str, Any]:
    sure = row.ratio.certain
    return {
        "protocol": run.name,
        "group": row.group,
        "method": row.method,
        "k": row.k,
        "documents": row.documents,
        "bytes": row.num_bytes,
        "base_bits_per_byte": row.base_bits_per_byte,
        "bits_per_byte": row.bits_per_byte,
        "ratio": row.ratio.value,
        "ratio_low": row.ratio.low if sure else None,
        "ratio_high": row.ratio.high if sure else None,
        "difference": row.difference.value,
        "difference_low": row.difference.low if sure else None,
        "difference_high": row.difference.high if sure else None,
        "byte_perplexity": row.byte_perplexity,
        "word_perplexity": row.word_perplexity,
        "seconds": row.seconds,
        "trained_tokens": row.trained_tokens,
        "context_tokens": row.context_tokens,
    }


def _compare(section: Section, run: Run, main: str) -> None:
    """Add the main method against each other one: at their largest k, at equal seconds, at equal tokens."""
    lines: list[list[Cell | str]] = []
    rows = []
    for other in run.methods[1:]:
        largest = next((row for row in run.result.compare(main, other) if row.group == ALL), None)
        if largest is None:
            continue
        cells: list[Cell | str] = [one_line(other), whole(largest.documents), _compared(largest, None)]
        rows.append(_comparison_row(run, "largest k", largest, None))
        for unit in ("seconds", "tokens"):
            at = run.result.compare_at_budget(main, other, unit)
            if at is None or at.budget <= 0:
                cells.append(DASH)
                continue
            cells.append(_compared(at.total(), at))
            rows.append(_comparison_row(run, f"equal {unit}", at.total(), at))
        lines.append(cells)
    if not lines:
        return
    section.say(f"{one_line(main)} against each other method", "h4")
    section.html += table(
        ["against", "documents", "ratio at the largest k", "ratio at equal seconds", "ratio at equal tokens"],
        lines,
        caption=f"Bits per byte of {one_line(main)} over those of the other method on the documents that both have, "
        f"with "
        f"{INTERVAL}: below 1 speaks for {one_line(main)}. Below each ratio, the numbers of neighbors of the two. At "
        f"equal "
        f"seconds or tokens (trained on or read in the context) the budget is the most that both reach, and each "
        f"method "
        f"stands at its largest k within it.",
    )
    section.rows[f"comparisons-{run.slug}"] = rows


def _compared(row: Comparison, budget: BudgetComparison | None) -> Cell:
    at = f"k {row.k_a} / {row.k_b}"
    if budget is not None:
        unit = "s" if budget.unit == "seconds" else "tokens"
        at += f", {significant(budget.budget)} {unit}"
    detail = f"{ends(row.ratio, row.documents)} {at.replace(' ', chr(0xA0))}"
    return Cell(decimals(row.ratio.value), detail, tone(row))


def _comparison_row(run: Run, at: str, row: Comparison, budget: BudgetComparison | None) -> dict[str, Any]:
    sure = row.ratio.certain
    return {
        "protocol": run.name,
        "a": row.a,
        "b": row.b,
        "at": at,
        "k_a": row.k_a,
        "k_b": row.k_b,
        "cost_a": None if budget is None else budget.cost_a,
        "cost_b": None if budget is None else budget.cost_b,
        "documents": row.documents,
        "a_bits_per_byte": row.a_bits_per_byte,
        "b_bits_per_byte": row.b_bits_per_byte,
        "difference": row.difference.value,
        "difference_low": row.difference.low if sure else None,
        "difference_high": row.difference.high if sure else None,
        "ratio": row.ratio.value,
        "ratio_low": row.ratio.low if sure else None,
        "ratio_high": row.ratio.high if sure else None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def _series(run: Run, group: str, method: str) -> Series | None:
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


def _panel(run: Run, group: str, title: str) -> Panel:
    series = [one for method in run.methods if (one := _series(run, group, method)) is not None]
    base = run.row(group, "base")
    detail = f"{counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}"
    return Panel(title, detail, series)


def curves_section(run: Run, styles: dict[str, Style]) -> Section:
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


# ---------------------------------------------------------------------------------------------------------------------
# Components
# ---------------------------------------------------------------------------------------------------------------------


def components_section(run: Run, styles: dict[str, Style]) -> Section:
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


# ---------------------------------------------------------------------------------------------------------------------
# Cost and gain
# ---------------------------------------------------------------------------------------------------------------------


def cost_section(run: Run, styles: dict[str, Style]) -> Section:
    """Make the figure of cost against gain."""
    section = Section("Cost against gain")
    seconds = run.seconds_known
    series = []
    for method in run.methods:
        points = [
            (cost, row.ratio.value, row.k)
            for row in run.curve(ALL, method)
            if (cost := row.seconds if seconds else row.trained_tokens + row.context_tokens)
        ]
        # With no neighbors a method of neighbors is base: its seconds are those of looking for them.
        points = [point for point in points if point[2] > 0] or points
        if points:
            series.append(Series(method, one_line(method), [p[0] for p in points], [p[1] for p in points]))
    if not series:
        section.say("No method's cost is known: the file of seconds is missing, and no tokens of neighbors were read.")
        return section
    unit = "seconds per query" if seconds else "tokens trained on or read in the context, per query"
    section.draw(
        f"cost-{run.slug}",
        figures.draw_cost(series, styles, xlabel=f"{unit} (logarithmic)", ylabel="bits per byte, as a share of base"),
        "Cost against gain of each method",
        f"Mean {unit} against the ratio to base (1), {counted(run.row(ALL, 'base').documents, 'document')} together. "
        f"One "
        f"point per method and number of neighbors, joined along it and named at the largest; lower and further left "
        f"is "
        f"better." + (" Seconds count retrieval and training, not scoring." if seconds else ""),
    )
    return section
