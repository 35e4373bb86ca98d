"""Where each method does worst, and how often the guard held back.

Knows one run's numbers. Does not know texts.
"""

from __future__ import annotations

import math
from collections import Counter

from ..evaluation.results import ALL
from .data import RunData
from .html import DASH, Cell, decimals, ends, one_line, table, whole
from .section import INTERVAL, Section, counted, group_name, tone


def harm_section(run: RunData) -> Section:
    """Make the table of each method's worst component and document, and how often the guard held back."""
    section = Section("Harm and guard")
    lines: list[list[Cell | str]] = []
    rows = []
    for method in run.methods:
        groups = [run.row(group, method) for group in run.groups if run.curve(group, method)]
        if not groups:
            continue
        worst = max(groups, key=lambda row: row.ratio.value)
        sure = worst.ratio.certain
        k = run.row(ALL, method).k
        ratios = run.ratios[method, k]
        harmed = sum(ratio > 1 for ratio in ratios.values())
        ratio, document = max(((ratio, d) for d, ratio in ratios.items()), default=(math.nan, -1))
        worse = sum(tone(row) == "worse" for row in groups)
        lines.append(
            [
                Cell(one_line(method), strong=method == run.main),
                str(k),
                Cell(decimals(worst.ratio.value), f"{group_name(worst.group)} {ends(worst.ratio, worst.documents)}"),
                f"{worse} of {len(groups)}",
                f"{harmed} of {len(ratios)}",
                Cell(decimals(ratio), f"document {document}") if document >= 0 else DASH,
            ]
        )
        rows.append(
            {
                "protocol": run.name,
                "method": method,
                "k": k,
                "worst_component": worst.group,
                "worst_ratio": worst.ratio.value,
                "worst_ratio_low": worst.ratio.low if sure else None,
                "worst_ratio_high": worst.ratio.high if sure else None,
                "components": len(groups),
                "components_worse": worse,
                "documents": len(ratios),
                "documents_worse": harmed,
                "worst_document": document,
                "worst_document_ratio": ratio,
            }
        )
    section.html += table(
        ["method", "k", "worst component", "components worse", "documents worse", "worst document"],
        lines,
        caption=f"The ratio to base where each method does worst, with {INTERVAL}; how many components are worse than "
        f"base with "
        f"the whole interval, and how many documents at all.",
    )
    section.rows[f"harm-{run.slug}"] = rows
    for method, counts in run.depths.items():
        _guard(section, run, method, counts)
    return section


def _guard(section: Section, run: RunData, method: str, counts: Counter[int]) -> None:
    last = max(run.row(ALL, run.main or method).k, max(counts))
    total = counts.total()
    early = sum(count for k, count in counts.items() if 0 < k < last)
    section.say(
        f"{one_line(method)} kept the base model for {counts[0]} of {counted(total, 'document')}, stopped early for "
        f"{early}, and went to the last of {last} neighbors for {counts[last] if last else 0}."
    )
    section.html += table(
        ["chosen k", "documents", "share"],
        [[str(k), whole(count), f"{100 * count / total:.0f} %"] for k, count in sorted(counts.items())],
        caption=f"How many neighbors {one_line(method)} took, over {counted(total, 'document')} (0: the base model).",
    )
    section.rows[f"chosen-{run.slug}-{_slug(method)}"] = [
        {"protocol": run.name, "method": method, "k": k, "documents": count} for k, count in sorted(counts.items())
    ]


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:60]
