"""The table of methods, and the main method against each other one.

Knows one run's numbers. Does not know files, nor how the page looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..evaluation.results import ALL, PILE_ALL, BudgetComparison, Comparison, GroupSummary
from .data import RunData
from .html import DASH, Cell, decimals, ends, one_line, signed, significant, table, whole
from .section import INTERVAL, Section, tone


def summary_section(run: RunData) -> Section:
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


def _methods_table(run: RunData, rows: Sequence[GroupSummary], caption: str) -> str:
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


def _summary_row(run: RunData, row: GroupSummary) -> dict[str, Any]:
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


def _compare(section: Section, run: RunData, main: str) -> None:
    """Add the main method against each other one: at their largest k, at equal seconds, at equal tokens."""
    lines: list[list[Cell | str]] = []
    rows = []
    for rival in run.rivals:
        largest = rival.largest
        cells: list[Cell | str] = [one_line(rival.method), whole(largest.documents), _compared(largest, None)]
        rows.append(_comparison_row(run, "largest k", largest, None))
        for unit, at in rival.budgets.items():
            if at is None:
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


def _comparison_row(run: RunData, at: str, row: Comparison, budget: BudgetComparison | None) -> dict[str, Any]:
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
