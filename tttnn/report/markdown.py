"""A run's numbers as Markdown tables, ready to be pasted into a README.

Knows Markdown and which numbers a reader asks for. Does not know files, nor how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..evaluation.bootstrap import PILE_WEIGHTS, Interval
from ..evaluation.results import ALL, PILE_ALL, GroupSummary
from .data import RunData
from .html import decimals, one_line, plain, significant, whole
from .opening import headline, verdict
from .section import few_documents, group_name

_PLACES = 4


def markdown_tables(run: RunData) -> str:
    """Return a run's numbers: totals, methods against the main one, components, and each component by itself.

    Ratios are bits per byte over base, with their 95 % interval of a paired bootstrap over documents where there is
    one. Seconds and tokens are means per document; seconds count retrieval and training, not scoring.
    """
    parts = [f"# Protocol {_text(run.name)}", f"{_text(headline(run))}. {_text(verdict(run))}"]
    for total in run.totals:
        parts += [f"## {_text(group_name(total)).capitalize()}", _curves(run, total)]
    if len(run.methods) > 1 and run.main is not None:
        parts += [f"## {_text(run.main)} against each other method", _against(run, run.main)]
    if len(run.groups) > 1 and run.methods:
        parts += ["## Components, each method at its largest k", few_documents(run), _components(run)]
        for group in sorted(run.groups):
            parts += [f"### {_text(group_name(group))}", _curves(run, group)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _curves(run: RunData, group: str) -> str:
    """Make the table of all methods of one group, at every number of neighbors that was scored."""
    head = ["method", "k", "documents", "bits per byte", "ratio to base", "documents worse", "worst document"]
    head += ["tokens trained", "tokens in context", "seconds"]
    rows = []
    for method in ["base", *run.methods]:
        for row in run.curve(group, method):
            if method != "base" and row.k == 0 and row.trained_tokens == 0 == row.context_tokens:
                continue  # without neighbors it is base
            ratios = [] if method == "base" else _document_ratios(run, group, row)
            rows.append(
                [
                    _text(method),
                    str(row.k),
                    whole(row.documents),
                    decimals(row.bits_per_byte, _PLACES),
                    "1" if method == "base" else _interval(row.ratio),
                    str(sum(ratio > 1 for ratio in ratios)) if ratios else decimals(None),
                    decimals(max(ratios)) if ratios else decimals(None),
                    whole(row.trained_tokens),
                    whole(row.context_tokens),
                    significant(row.seconds),
                ]
            )
    return _table(head, rows)


def _against(run: RunData, main: str) -> str:
    """Make the table of ratios of bits per byte between the main method and each other one."""
    rows = []
    for rival in run.rivals:
        row = rival.largest
        rows.append([f"{_text(main)} ({row.k_a}) / {_text(rival.method)} ({row.k_b})", _interval(row.ratio)])
    return _table(["methods (k)", "ratio of bits per byte"], rows)


def _components(run: RunData) -> str:
    rows = []
    for group in [*sorted(run.groups), *run.totals]:
        base = run.row(group, "base")
        cells = [
            _interval(run.row(group, method).ratio, 3) if run.curve(group, method) else decimals(None)
            for method in run.methods
        ]
        rows.append([_text(group_name(group)), whole(base.documents), decimals(base.bits_per_byte, _PLACES), *cells])
    heads = [f"{_text(method)} {run.row(ALL, method).k or ''}".rstrip() for method in run.methods]
    return _table(["component", "documents", "base", *heads], rows)


def _document_ratios(run: RunData, group: str, row: GroupSummary) -> list[float]:
    """Return the ratio to base of each document that a row is about and whose base has any bits."""
    within = {ALL: set(run.groups), PILE_ALL: set(PILE_WEIGHTS)}.get(group, {group})
    return [ratio for d, ratio in run.ratios[row.method, row.k].items() if run.group_of[d] in within]


def _interval(ratio: Interval, places: int = _PLACES) -> str:
    value = decimals(ratio.value, places)
    return f"{value} [{decimals(ratio.low, places)}, {decimals(ratio.high, places)}]" if ratio.certain else value


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table: the first column is of names on the left, the others of numbers on the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Make a name safe where Markdown is read: a component may have any."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", one_line(plain(value)))
