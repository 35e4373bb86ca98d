"""The parts of a report, each from one run: tables, figures with captions, rows for CSV files.

Knows what a reader asks of an evaluation. Does not know files, nor how the page looks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import plots
from .extremes import Extreme
from .markup import Cell, decimals, ends, escape, one_line, signed, significant, table, whole
from .plots import Bar, Dot, Panel, Series, Style
from .reference import TASKS, TOTAL, ReferenceRun, matching_run, published
from .results import ALL, PILE_ALL, BudgetComparison, Comparison, GroupSummary
from .runs import Run, model_name

PROTOCOLS = {
    "split": "the query is the document's first half; its second half is scored with the query before it in the "
    "context, for every method, base included",
    "split-bare": "the query is the document's first half; its second half is scored without the query in the context",
    "full": "the document is both the query and what is scored, so that a method may find near-copies of what it is "
    "scored on",
}

_INTERVAL = "95 % intervals of a paired bootstrap over documents (10,000 resamples)"


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


def _group_name(group: str) -> str:
    return {ALL: "all documents", PILE_ALL: "Pile-weighted"}.get(group, one_line(group))


def _neighbors(k: int) -> str:
    return "1 neighbor" if k == 1 else f"{k} neighbors"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _tone(row: GroupSummary | Comparison) -> str:
    if row.documents < 2:
        return ""
    return "better" if row.ratio.high < 1 else "worse" if row.ratio.low > 1 else ""


# ---------------------------------------------------------------------------------------------------------------------
# The headline
# ---------------------------------------------------------------------------------------------------------------------


def headline(run: Run) -> str:
    """Return one sentence with the number and its interval."""
    model = model_name(run.result)
    of = f" of {one_line(model)}'s" if model is not None else " of the base model's"
    if run.main is None:
        row = run.row(ALL, "base")
        return f"base: {decimals(row.bits_per_byte)} bits per byte over {_counted(row.documents, 'document')}"
    row = run.row(ALL, run.main)
    after = f" with {_neighbors(row.k)}" if row.k else ""
    interval = "; one document gives no interval" if row.documents < 2 else f" {ends(row.ratio, row.documents)}"
    return f"{one_line(run.main)}{after} needs {decimals(row.ratio.value)}{of} bits per byte{interval}"


def verdict(run: Run) -> str:
    """Return what the headline rests on, in sentences."""
    if run.main is None:
        return "Only the base model was measured: there is nothing to compare it with."
    row = run.row(ALL, run.main)
    parts = [
        f"Protocol {run.name}, {_counted(row.documents, 'document')} of {_counted(len(run.groups), 'component')}: "
        f"{decimals(row.base_bits_per_byte)} → {decimals(row.bits_per_byte)} bits per byte."
    ]
    if row.documents >= 2:
        if row.ratio.high < 1:
            parts.append("The 95 % interval lies below 1: the gain does not hang on which documents were drawn.")
        elif row.ratio.low > 1:
            parts.append("The 95 % interval lies above 1: the method harms these texts.")
        else:
            parts.append("The 95 % interval holds 1: these documents show neither gain nor harm.")
    if run.summary.pile_weight:
        weighted = run.row(PILE_ALL, run.main)
        parts.append(
            f"Weighted by the components' shares of the Pile the ratio is {decimals(weighted.ratio.value)} "
            f"{ends(weighted.ratio, weighted.documents)}."
        )
    if len(run.groups) > 1:
        worst = max((run.row(group, run.main) for group in run.groups), key=lambda one: one.ratio.value)
        parts.append(
            f"Worst component: {_group_name(worst.group)}, {decimals(worst.ratio.value)} "
            f"({ends(worst.ratio, worst.documents)})."
        )
    return " ".join(parts)


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
        f"difference are to base, with {_INTERVAL}. Seconds and tokens are means per document; seconds count retrieval "
        f"and training, not scoring.",
    )
    every = [row for method in ["base", *run.methods] for row in run.curve(ALL, method)]
    if len(every) > len(rows) + 1:
        inner = _methods_table(run, every, "The same at every number of neighbors that was scored, by method.")
        section.html += f"<details><summary>Every number of neighbors</summary>{inner}</details>"
    section.rows[f"summary-{run.slug}"] = [_summary_row(run, row) for row in run.summary.rows]
    if run.main is not None and len(run.methods) > 1:
        _compare(section, run, run.main)
    return section


def _methods_table(run: Run, rows: Sequence[GroupSummary], caption: str) -> str:
    weighted = bool(run.summary.pile_weight)
    head = ["method", "k", "documents", "bits per byte", "ratio", "difference"]
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
            cells += ["1", "–"]
        else:
            cells += [
                Cell(decimals(row.ratio.value), ends(row.ratio, row.documents), _tone(row), row.ratio.value == best),
                Cell(signed(row.difference.value), ends(row.difference, row.documents, sign=True)),
            ]
        if weighted:
            other = next((one for one in run.curve(PILE_ALL, row.method) if one.k == row.k), None)
            if base or other is None:
                cells.append("1" if base else "–")
            else:
                cells.append(Cell(decimals(other.ratio.value), ends(other.ratio, other.documents), _tone(other)))
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
        "ratio_low": row.ratio.low if row.documents > 1 else None,
        "ratio_high": row.ratio.high if row.documents > 1 else None,
        "difference": row.difference.value,
        "difference_low": row.difference.low if row.documents > 1 else None,
        "difference_high": row.difference.high if row.documents > 1 else None,
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
        found: list[tuple[str, Comparison, BudgetComparison | None]] = []
        plain = next((row for row in run.result.compare(main, other) if row.group == ALL), None)
        if plain is None:
            continue
        found.append(("largest k of both", plain, None))
        for unit in ("seconds", "tokens"):
            at = run.result.compare_at_budget(main, other, unit)
            if at is not None:
                found.append((f"equal {unit}", at.total(), at))
        for how, row, budget in found:
            costs = "" if budget is None else f"{significant(budget.cost_a)} / {significant(budget.cost_b)}"
            lines.append(
                [
                    one_line(other),
                    how,
                    f"{row.k_a} / {row.k_b}",
                    costs or "–",
                    whole(row.documents),
                    f"{decimals(row.a_bits_per_byte)} / {decimals(row.b_bits_per_byte)}",
                    Cell(signed(row.difference.value), ends(row.difference, row.documents, sign=True)),
                    Cell(decimals(row.ratio.value), ends(row.ratio, row.documents), _tone(row)),
                ]
            )
            rows.append(
                {
                    "protocol": run.name,
                    "a": main,
                    "b": other,
                    "at": how,
                    "k_a": row.k_a,
                    "k_b": row.k_b,
                    "cost_a": None if budget is None else budget.cost_a,
                    "cost_b": None if budget is None else budget.cost_b,
                    "documents": row.documents,
                    "a_bits_per_byte": row.a_bits_per_byte,
                    "b_bits_per_byte": row.b_bits_per_byte,
                    "difference": row.difference.value,
                    "difference_low": row.difference.low,
                    "difference_high": row.difference.high,
                    "ratio": row.ratio.value,
                    "ratio_low": row.ratio.low,
                    "ratio_high": row.ratio.high,
                }
            )
    if not lines:
        return
    section.say(f"{one_line(main)} against each other method", "h4")
    section.html += table(
        ["against", "compared at", "k", "cost", "documents", "bits per byte", "difference", "ratio"],
        lines,
        caption=f"{one_line(main)} / the other method on the documents that both have; a ratio below 1 speaks for "
        f"{one_line(main)}. At equal seconds or tokens, the budget is the most that both reach, and each stands at its "
        f"largest k within it. With {_INTERVAL}.",
        names=2,
    )
    section.rows[f"comparisons-{run.slug}"] = rows


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def _series(run: Run, group: str, method: str) -> Series | None:
    rows = run.curve(group, method)
    if not rows:
        return None
    certain = rows[0].documents > 1
    ks, values = [row.k for row in rows], [row.ratio.value for row in rows]
    lows = [row.ratio.low for row in rows] if certain else []
    highs = [row.ratio.high for row in rows] if certain else []
    if ks[0] > 0 and len(ks) > 1:
        # Without neighbors a method of neighbors is the base model.
        ks, values = [0, *ks], [1.0, *values]
        lows, highs = [1.0, *lows] if certain else [], [1.0, *highs] if certain else []
    return Series(method, one_line(method), ks, values, lows, highs)


def _panel(run: Run, group: str, title: str) -> Panel:
    series = [one for method in run.methods if (one := _series(run, group, method)) is not None]
    base = run.row(group, "base")
    detail = f"{_counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}"
    return Panel(title, detail, series)


def curves_section(run: Run, styles: dict[str, Style]) -> Section:
    """Make the curves over the number of neighbors: all documents, then each component."""
    assert run.main is not None
    section = Section("Curves over the number of neighbors")
    whole_panel = _panel(run, ALL, "all documents")
    documents = run.row(ALL, run.main).documents
    section.draw(
        f"curves-{run.slug}",
        plots.draw_total(whole_panel, styles, ylabel="bits per byte, as a share of base"),
        "Curves of all methods over the number of neighbors",
        f"Bits per byte over the number of neighbors, as a share of the base model's (1), {_counted(documents, 'document')} "
        f"together. Bands are {_INTERVAL}; the number beside a name is the curve's last value. A dashed level line is a "
        f"method that takes no neighbors.",
    )
    if len(run.groups) > 1:
        panels = [_panel(run, group, _group_name(group)) for group in run.groups]
        section.draw(
            f"components-{run.slug}",
            plots.draw_panels(panels, styles, run.main, ylabel="bits per byte, as a share of base"),
            "Curves of each component over the number of neighbors",
            f"The same for each of {len(panels)} components ({_counted(documents, 'document')} in all, their number and the "
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
    section = Section("Components, before and after")
    bars = []
    for group in [*run.groups, *run.totals]:
        row = run.row(group, run.main)
        certain = row.documents > 1
        bars.append(
            Bar(
                _group_name(group),
                row.base_bits_per_byte,
                row.bits_per_byte,
                row.ratio.value,
                row.ratio.low if certain else math.nan,
                row.ratio.high if certain else math.nan,
                total=group in run.totals,
            )
        )
    k = run.row(ALL, run.main).k
    label = f"{one_line(run.main)}, k = {k}"
    section.draw(
        f"before-after-{run.slug}",
        plots.draw_bars(bars, styles[run.main], styles["base"], label),
        f"Bits per byte of each component before and after {one_line(run.main)}",
        f"Left: bits per byte of base and of {label}; right: their ratio with {_INTERVAL}. "
        f"{_counted(run.row(ALL, run.main).documents, 'document')}. An open mark is a component of one document, which has "
        f"no interval.",
    )
    lines: list[list[Cell | str]] = []
    for group in [*run.groups, *run.totals]:
        base = run.row(group, "base")
        cells: list[Cell | str] = [
            Cell(_group_name(group), strong=group in run.totals),
            whole(base.documents),
            decimals(base.bits_per_byte),
        ]
        rows = [run.row(group, method) for method in run.methods if run.curve(group, method)]
        best = min((row.ratio.value for row in rows), default=math.nan)
        for method in run.methods:
            row = run.row(group, method)
            if not run.curve(group, method):
                cells.append("–")
                continue
            interval = ends(row.ratio, row.documents) if row.documents > 1 else ""
            cells.append(Cell(decimals(row.ratio.value), interval, _tone(row), strong=row.ratio.value == best))
        lines.append(cells)
    ks = ", ".join(f"{one_line(method)} k = {run.row(ALL, method).k}" for method in run.methods)
    section.html += table(
        ["component", "documents", "base", *(one_line(method) for method in run.methods)],
        lines,
        caption=f"Base in bits per byte, then each method's ratio to base at its largest number of neighbors ({ks}), with "
        f"{_INTERVAL}. Green lies below 1 and red above with the whole interval; the best of a row is bold. A component "
        f"of one document has no interval.",
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
        if points:
            series.append(Series(method, one_line(method), [p[0] for p in points], [p[1] for p in points]))
    if not series:
        section.say("No method's cost is known: the file of seconds is missing, and no tokens of neighbors were read.")
        return section
    unit = "seconds per query" if seconds else "tokens trained on or read in the context, per query"
    section.draw(
        f"cost-{run.slug}",
        plots.draw_cost(series, styles, xlabel=f"{unit} (logarithmic)", ylabel="bits per byte, as a share of base"),
        "Cost against gain of each method",
        f"Mean {unit} against the ratio to base (1), {_counted(run.row(ALL, 'base').documents, 'document')} together. One "
        f"point per method and number of neighbors, joined along it and named at the largest; lower and further left is "
        f"better." + (" Seconds count retrieval and training, not scoring." if seconds else ""),
    )
    return section


# ---------------------------------------------------------------------------------------------------------------------
# Document by document
# ---------------------------------------------------------------------------------------------------------------------


def documents_section(run: Run, styles: dict[str, Style], cases: Sequence[Extreme], *, texts: bool) -> Section:
    """Make the scatter of documents, and the worst and best ones to read."""
    assert run.main is not None
    section = Section("Document by document")
    base, lines = run.result.of("base"), run.result.of(run.main)
    k = run.row(ALL, run.main).k
    letters = {case.line.document: case.letter for case in cases}
    pairs = {d: (base[d].bits_per_byte(), lines[d].bits_per_byte(k)) for d in sorted(lines.keys() & base.keys())}
    dots = [Dot(b, v, letters.get(d, "")) for d, (b, v) in pairs.items() if b > 0 and v > 0]
    if dots:
        worse = sum(value > before for before, value in pairs.values())
        section.draw(
            f"documents-{run.slug}",
            plots.draw_documents(dots, styles[run.main], styles["base"], f"{one_line(run.main)}, k = {k}"),
            f"Bits per byte of each document under base and {one_line(run.main)}",
            f"Each of {_counted(len(dots), 'document')}, base against {one_line(run.main)} with {_neighbors(k)}, on "
            f"logarithmic axes; on the line nothing changes. {worse} of {len(pairs)} are worse than base (triangles). "
            f"Letters name the cases below.",
        )
    section.rows[f"documents-{run.slug}"] = [
        {
            "protocol": run.name,
            "document": line.document,
            "digest": line.digest,
            "group": line.group,
            "method": line.method,
            "k": point.k,
            "bytes": line.num_bytes,
            "bits_per_byte": line.bits_per_byte(point.k),
            "base_bits_per_byte": base[line.document].bits_per_byte() if line.document in base else None,
            "found": line.found,
            "trained_tokens": point.trained_tokens,
            "context_tokens": point.context_tokens,
            "seconds": run.result.seconds[line.document, line.method].at(point.k)
            if (line.document, line.method) in run.result.seconds
            else None,
        }
        for line in run.result.lines
        for point in line.points
    ]
    for best, title in ((False, "Worst"), (True, "Best")):
        chosen = [case for case in cases if case.best == best]
        if chosen:
            section.say(f"{title} documents", "h4")
            section.html += "".join(_case(case, run, texts) for case in chosen)
    if cases and not texts:
        section.say("The texts of documents are left out of this report.")
    elif cases and all(case.texts is None for case in cases):
        section.say(
            "The results hold no texts. Measure with texts kept, or give the evaluated documents and the datastore "
            "(--documents, --datastore) to read the cases here."
        )
    return section


def _case(case: Extreme, run: Run, texts: bool) -> str:
    line = case.line
    title = (
        f"{case.letter} · {one_line(line.group)}, document {line.document}: {decimals(case.base)} → "
        f"{decimals(case.value)} ({decimals(case.ratio)} of base)"
    )
    facts = (
        f"{line.query_tokens:,} tokens of query, {line.tokens:,} scored; {_neighbors(line.found)} found, trained "
        f"until: {one_line(line.stopped_by)}; digest {line.digest[:12]}"
    )
    parts = [f"<h5>{escape(title)}</h5><p class=facts>{escape(facts)}</p>"]
    shown = case.texts if texts else None
    if shown is not None:
        if line.protocol == "full":
            parts.append(_quote("Query, and what is scored", shown.scored))
        else:
            parts.append(_quote("Query, its end", shown.query) + _quote("What is scored, its beginning", shown.scored))
        if shown.before or shown.after:
            parts.append(_quote("Base continues the query", shown.before))
            parts.append(_quote("Adapted, it continues", shown.after))
    rows = []
    for neighbor in case.neighbors:
        excerpt = shown.neighbors.get(neighbor.id, "") if shown is not None else ""
        quote = f"<pre dir=auto>{escape(excerpt)}</pre>" if excerpt else ""
        rows.append(
            f"<li>document {neighbor.id} at distance {decimals(neighbor.distance)}, {neighbor.tokens:,} tokens used"
            f"{quote}</li>"
        )
    if rows:
        parts.append(f"<h6>Nearest neighbors</h6><ol>{''.join(rows)}</ol>")
    return f'<article class="case {"best" if case.best else "worst"}">{"".join(parts)}</article>'


def _quote(title: str, text: str) -> str:
    return f"<div><h6>{escape(title)}</h6><pre dir=auto>{escape(text)}</pre></div>"


# ---------------------------------------------------------------------------------------------------------------------
# Harm, and the guard
# ---------------------------------------------------------------------------------------------------------------------


def harm_section(run: Run) -> Section:
    """Make the table of each method's worst component and document, and how often the guard held back."""
    section = Section("Harm, and the guard")
    base = run.result.of("base")
    lines: list[list[Cell | str]] = []
    rows = []
    for method in run.methods:
        groups = [run.row(group, method) for group in run.groups if run.curve(group, method)]
        if not groups:
            continue
        worst = max(groups, key=lambda row: row.ratio.value)
        held = run.result.of(method)
        k = run.row(ALL, method).k
        pairs = {
            d: (line.bits_per_byte(k), base[d].bits_per_byte())
            for d, line in held.items()
            if d in base and base[d].bits_per_byte() > 0
        }
        harmed = sum(after > before for after, before in pairs.values())
        ratio, document = max(((after / before, d) for d, (after, before) in pairs.items()), default=(math.nan, -1))
        worse = sum(row.ratio.low > 1 for row in groups if row.documents > 1)
        lines.append(
            [
                Cell(one_line(method), strong=method == run.main),
                str(k),
                Cell(decimals(worst.ratio.value), f"{_group_name(worst.group)} {ends(worst.ratio, worst.documents)}"),
                f"{worse} of {len(groups)}",
                f"{harmed} of {len(pairs)}",
                Cell(decimals(ratio), f"document {document}") if document >= 0 else "–",
            ]
        )
        rows.append(
            {
                "protocol": run.name,
                "method": method,
                "k": k,
                "worst_component": worst.group,
                "worst_ratio": worst.ratio.value,
                "worst_ratio_low": worst.ratio.low if worst.documents > 1 else None,
                "worst_ratio_high": worst.ratio.high if worst.documents > 1 else None,
                "components": len(groups),
                "components_worse": worse,
                "documents": len(pairs),
                "documents_worse": harmed,
                "worst_document": document,
                "worst_document_ratio": ratio,
            }
        )
    section.html += table(
        ["method", "k", "worst component", "components worse", "documents worse", "worst document"],
        lines,
        caption=f"The ratio to base where each method does worst ({_INTERVAL}); how many components are worse than base with "
        f"the whole interval, and how many documents at all.",
    )
    section.rows[f"harm-{run.slug}"] = rows
    for method in run.methods:
        if "guard" in method:
            _guard(section, run, method)
    return section


def chosen_depths(run: Run, method: str) -> Counter[int]:
    """Count at how many neighbors a guarded method ended, over documents.

    A line that does not say it itself is held against the curve of the main method: the guard gives one of its points.
    """
    counts: Counter[int] = Counter()
    curve = run.result.of(run.main) if run.main is not None and run.main != method else {}
    base = run.result.of("base")
    for document, line in run.result.of(method).items():
        last = line.at()
        said = next((last.extra[key] for key in ("chosen_k", "chosen", "k") if key in last.extra), None)
        if isinstance(said, int):
            counts[said] += 1
            continue
        points = [*base[document].points, *(curve[document].points if document in curve else [])]
        same = [point.k for point in points if math.isclose(point.nats, last.nats, rel_tol=1e-9)]
        counts[min(same, default=last.k)] += 1
    return counts


def _guard(section: Section, run: Run, method: str) -> None:
    counts = chosen_depths(run, method)
    last = max(run.row(ALL, run.main or method).k, max(counts))
    total = counts.total()
    early = sum(count for k, count in counts.items() if 0 < k < last)
    section.say(
        f"{one_line(method)} kept the base model for {counts[0]} of {_counted(total, 'document')}, stopped early for "
        f"{early}, and went to the last of {last} neighbors for {counts[last] if last else 0}."
    )
    section.html += table(
        ["chosen k", "documents", "share"],
        [[str(k), whole(count), f"{100 * count / total:.0f} %"] for k, count in sorted(counts.items())],
        caption=f"How many neighbors {one_line(method)} took, over {_counted(total, 'document')} (0: the base model).",
    )
    section.rows[f"chosen-{run.slug}-{_slug(method)}"] = [
        {"protocol": run.name, "method": method, "k": k, "documents": count} for k, count in sorted(counts.items())
    ]


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:60]


# ---------------------------------------------------------------------------------------------------------------------
# The published curves
# ---------------------------------------------------------------------------------------------------------------------


def reference_section(run: Run, styles: dict[str, Style]) -> Section:
    """Lay the main method's curves beside the published ones of the same tasks.

    Where the model's own curve under this protocol was published, both are in bits per byte; else each is a ratio to
    its own base model.
    """
    assert run.main is not None
    section = Section("Beside the published curves")
    source, runs = published()
    name = model_name(run.result)
    match = matching_run(name, run.protocol) if name is not None else None
    shown = (match,) if match is not None else runs
    groups = [group for group in [*run.groups, *run.totals] if group == PILE_ALL or group in TASKS]
    if not groups:
        section.say("No component has the name of a published task.")
        return section
    looks = plots.styles_of([run.main, *(one.name for one in shown)])
    looks[run.main] = styles[run.main]
    panels = []
    rows = []
    for group in groups:
        panel, more = _reference_panel(run, group, shown, absolute=match is not None)
        panels.append(panel)
        rows += more
    if match is not None:
        said = f"The model and protocol of the published run {match.name}, in bits per byte."
    else:
        what = f"of {one_line(name)} " if name is not None else ""
        said = (
            f"No curve {what}under the protocol {run.name} was published: the published runs have other models, corpora "
            f"and protocols. Each curve is therefore a ratio to its own base model, and only its shape can be compared."
        )
    section.say(said)
    section.draw(
        f"reference-{run.slug}",
        plots.draw_panels(
            panels,
            looks,
            run.main,
            ylabel="bits per byte" if match is not None else "bits per byte, as a share of the own base",
            relative=match is None,
        ),
        "Our curves beside the published ones",
        f"{one_line(run.main)} (strong) from {_counted(run.row(ALL, run.main).documents, 'document')} beside the published "
        f"curves, by the number of neighbors. "
        + (
            f"Pile-weighted covers the components present, {run.summary.pile_weight:.0f} % of the Pile; the published "
            f"total covers all. "
            if PILE_ALL in groups
            else ""
        )
        + f"Source of the published figures: {source}.",
    )
    section.rows[f"reference-{run.slug}"] = rows
    k = min(run.row(ALL, run.main).k, 50)
    lines: list[list[Cell | str]] = []
    for group in groups:
        row = run.row(group, run.main)
        cells: list[Cell | str] = [
            Cell(_group_name(group), strong=group == PILE_ALL),
            whole(row.documents),
            Cell(decimals(row.ratio.value), ends(row.ratio, row.documents) if row.documents > 1 else "", _tone(row)),
        ]
        for one in shown:
            curve = one.curves[TOTAL if group == PILE_ALL else TASKS[group]]
            cells.append(decimals(curve[k] / curve[0]))
        lines.append(cells)
    section.html += table(
        ["component", "documents", f"{one_line(run.main)} (ours)", *(one.name for one in shown)],
        lines,
        caption=f"Bits per byte after {_neighbors(k)} as a ratio to the own base model: ours with {_INTERVAL}, and as "
        f"published.",
    )
    return section


def _reference_panel(
    run: Run, group: str, shown: Sequence[ReferenceRun], *, absolute: bool
) -> tuple[Panel, list[dict[str, Any]]]:
    assert run.main is not None
    task = TOTAL if group == PILE_ALL else TASKS[group]
    ours = run.curve(group, run.main)
    points = [(row.k, row.bits_per_byte, row.base_bits_per_byte) for row in ours]
    if points and points[0][0] > 0:
        points = [(0, points[0][2], points[0][2]), *points]
    series = [
        Series(
            run.main,
            f"{one_line(run.main)} (ours)",
            [k for k, _, _ in points],
            [value if absolute else value / base for _, value, base in points],
        )
    ]
    rows = [
        {"protocol": run.name, "task": task, "run": "ours", "k": k, "bits_per_byte": value, "ratio": value / base}
        for k, value, base in points
    ]
    for one in shown:
        curve = one.curves[task]
        values = curve if absolute else [value / curve[0] for value in curve]
        series.append(Series(one.name, one.name, range(len(curve)), values))
        rows += [
            {
                "protocol": run.name,
                "task": task,
                "run": one.name,
                "k": k,
                "bits_per_byte": value,
                "ratio": value / curve[0],
            }
            for k, value in enumerate(curve)
        ]
    base = run.row(group, "base")
    return Panel(_group_name(group), f"{_counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}", series), rows
