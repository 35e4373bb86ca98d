"""The closer parts of a report: documents to read, harm and the guard, the published curves beside ours.

Knows what a reader asks who doubts a total. Does not know files, nor how the page looks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..evaluation.results import ALL, PILE_ALL
from . import figures
from . import style as plots
from .extremes import Extreme
from .figures import Dot, Panel, Series
from .html import DASH, Cell, decimals, ends, escape, one_line, table, whole
from .published_curves import TASKS, TOTAL, ReferenceRun, matching_run, published
from .runs import Run, model_name
from .style import Style
from .summary import INTERVAL, Section, counted, group_name, neighbors, tone

# ---------------------------------------------------------------------------------------------------------------------
# Document by document
# ---------------------------------------------------------------------------------------------------------------------


def documents_section(run: Run, styles: dict[str, Style], cases: Sequence[Extreme], *, texts: bool) -> Section:
    """Make the scatter of documents, and the worst and best ones to read."""
    assert run.main is not None
    section = Section("Documents")
    base, lines = run.result.of("base"), run.result.of(run.main)
    k = run.row(ALL, run.main).k
    letters = {case.line.document: case.letter for case in cases}
    pairs = {d: (base[d].bits_per_byte(), lines[d].bits_per_byte(k)) for d in sorted(lines.keys() & base.keys())}
    dots = [Dot(b, v, letters.get(d, "")) for d, (b, v) in pairs.items() if b > 0 and v > 0]
    if dots:
        worse = sum(value > before for before, value in pairs.values())
        section.draw(
            f"documents-{run.slug}",
            figures.draw_documents(dots, styles[run.main], styles["base"], f"{one_line(run.main)}, k = {k}"),
            f"Bits per byte of each document under base and {one_line(run.main)}",
            f"Each of {counted(len(dots), 'document')}, base against {one_line(run.main)} with {neighbors(k)}, on "
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
            section.html += "".join(_case(case, texts=texts) for case in chosen)
    if cases and not texts:
        section.say("The texts of documents are left out of this report.")
    elif cases and all(case.texts is None for case in cases):
        section.say(
            "The results hold no texts. Measure with texts kept, or give the evaluated documents and the datastore "
            "(--documents, --datastore) to read the cases here."
        )
    return section


def _case(case: Extreme, *, texts: bool) -> str:
    line = case.line
    title = (
        f"{case.letter} · {one_line(line.group)}, document {line.document}: {decimals(case.base)} → "
        f"{decimals(case.value)} bits per byte, {decimals(case.ratio)} of base"
    )
    facts = (
        f"{line.query_tokens:,} tokens of query, {line.tokens:,} scored; {neighbors(line.found)} found; training ended "
        f"by: {one_line(line.stopped_by)}; digest {line.digest[:12]}"
    )
    if line.left_out:
        facts += f"; {neighbors(line.left_out)} left out that hold scored text"
    parts = [f"<h5>{escape(title)}</h5><p class=facts>{escape(facts)}</p>"]
    shown = case.texts if texts else None
    if shown is not None:
        pairs = [("Query, its end", shown.query), ("What is scored, its beginning", shown.scored)]
        if line.protocol == "full":
            pairs = [("Query, and what is scored: its beginning", shown.scored)]
        if shown.before or shown.after:
            pairs += [("Base continues the query", shown.before), ("Adapted, it continues", shown.after)]
        parts.append(f'<div class="pair">{"".join(_quote(name, text) for name, text in pairs)}</div>')
    rows = []
    for neighbor in case.neighbors:
        excerpt = shown.neighbors.get(neighbor.id, "") if shown is not None else ""
        quote = f"<pre dir=auto>{escape(excerpt)}</pre>" if excerpt else ""
        said = f"document {neighbor.id} at distance {decimals(neighbor.distance)}, {neighbor.tokens:,} tokens used"
        rows.append(f"<li>{escape(said)}{quote}</li>")
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
        ratios = run.result.ratios(method, k)
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
    for document, line in run.result.of(method).items():
        last = line.at()
        said = last.extra.get("chosen")
        if isinstance(said, int):
            counts[said] += 1
            continue
        points = curve[document].points if document in curve else []
        same = [point.k for point in points if math.isclose(point.nats, last.nats, rel_tol=1e-9)]
        counts[min(same, default=last.k)] += 1
    return counts


def _guard(section: Section, run: Run, method: str) -> None:
    counts = chosen_depths(run, method)
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


# ---------------------------------------------------------------------------------------------------------------------
# The published curves
# ---------------------------------------------------------------------------------------------------------------------


def reference_section(run: Run, styles: dict[str, Style]) -> Section:
    """Lay the main method's curves beside the published ones of the same tasks.

    Where the model's own curve under this protocol was published, both are in bits per byte; else each is a ratio to
    its own base model.
    """
    assert run.main is not None
    section = Section("Published curves")
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
            f"No curve {what}under the protocol {run.name} was published: the published runs have other models, "
            f"corpora "
            f"and protocols. Each curve is therefore a ratio to its own base model, and only its shape can be compared."
        )
    section.say(said)
    section.draw(
        f"reference-{run.slug}",
        figures.draw_panels(
            panels,
            looks,
            run.main,
            ylabel="bits per byte" if match is not None else "bits per byte, as a share of the own base",
            relative=match is None,
        ),
        "Our curves beside the published ones",
        f"{one_line(run.main)} (strong) from {counted(run.row(ALL, run.main).documents, 'document')} beside the "
        f"published "
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
            Cell(group_name(group), strong=group == PILE_ALL),
            whole(row.documents),
            Cell(
                decimals(row.ratio.value),
                ends(row.ratio, row.documents) if row.ratio.certain else "",
                tone(row),
            ),
        ]
        for one in shown:
            curve = one.curves[TOTAL if group == PILE_ALL else TASKS[group]]
            cells.append(decimals(curve[k] / curve[0]))
        lines.append(cells)
    section.html += table(
        ["component", "documents", f"{one_line(run.main)} (ours)", *(one.name for one in shown)],
        lines,
        caption=f"Bits per byte after {neighbors(k)} as a ratio to the own base model: ours with {INTERVAL}, and as "
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
    return Panel(
        group_name(group), f"{counted(base.documents, 'document')}, base {decimals(base.bits_per_byte)}", series
    ), rows
