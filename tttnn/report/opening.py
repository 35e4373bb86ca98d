"""What a run says in one sentence, and what that rests on.

Knows one run's numbers. Does not know tables, nor the page.
"""

from __future__ import annotations

from ..evaluation.bootstrap import FEW
from ..evaluation.results import ALL, PILE_ALL, GroupSummary
from .data import RunData
from .html import decimals, ends, one_line
from .section import counted, group_name, neighbors


def headline(run: RunData) -> str:
    """Return one sentence with the number and its interval."""
    if run.main is None:
        row = run.row(ALL, "base")
        return f"base: {decimals(row.bits_per_byte)} bits per byte over {counted(row.documents, 'document')}"
    row = run.row(ALL, run.main)
    of = "the base model" if run.model is None else one_line(run.model.rstrip("/").rpartition("/")[2])
    after = f" with {neighbors(row.k)}" if row.k else ""
    interval = f" {ends(row.ratio, row.documents)}" if row.ratio.certain else ""
    return f"{one_line(run.main)}{after}: {decimals(row.ratio.value)}{interval} times the bits per byte of {of}"


def verdict(run: RunData) -> str:
    """Return what the headline rests on, in sentences."""
    if run.main is None:
        return "Only the base model was measured: there is nothing to compare it with."
    row = run.row(ALL, run.main)
    parts = [
        f"Protocol {run.name}, {counted(row.documents, 'document')} of {counted(len(run.groups), 'component')}: from "
        f"{decimals(row.base_bits_per_byte)} to {decimals(row.bits_per_byte)} bits per byte."
    ]
    if run.model_description is not None:
        parts.append(f"The model is {one_line(run.model_description)}.")
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
        parts.append(f"Weighted by the components' shares of the Pile the ratio is {sized(weighted)}.")
    if len(run.groups) > 1:
        worst = max((run.row(group, run.main) for group in run.groups), key=lambda one: one.ratio.value)
        parts.append(f"Worst component: {group_name(worst.group)}, {sized(worst)}.")
    return " ".join(parts)


def sized(row: GroupSummary) -> str:
    """Write a ratio with its interval, or in brackets why there is none."""
    interval = ends(row.ratio, row.documents)
    return f"{decimals(row.ratio.value)} {interval if row.ratio.certain else f'({interval})'}"
