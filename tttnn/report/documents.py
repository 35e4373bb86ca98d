"""Document by document: how far each is from base, and the best and worst ones to read.

Knows one run's numbers and its cases. Does not know where texts are found.
"""

from __future__ import annotations

from ..evaluation.results import ALL
from . import figures
from .data import RunData
from .extremes import Extreme
from .figures import Dot
from .html import decimals, escape, one_line
from .section import Section, counted, neighbors
from .style import Style


def documents_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Make the scatter of documents, and the worst and best ones to read."""
    assert run.main is not None
    section = Section("Documents")
    k = run.row(ALL, run.main).k
    letters = {case.line.document: case.letter for case in run.cases}
    dots = [Dot(b, v, letters.get(d, "")) for d, (b, v) in run.pairs.items() if b > 0 and v > 0]
    if dots:
        worse = sum(value > before for before, value in run.pairs.values())
        section.draw(
            f"documents-{run.slug}",
            figures.draw_documents(dots, styles[run.main], styles["base"], f"{one_line(run.main)}, k = {k}"),
            f"Bits per byte of each document under base and {one_line(run.main)}",
            f"Each of {counted(len(dots), 'document')}, base against {one_line(run.main)} with {neighbors(k)}, on "
            f"logarithmic axes; on the line nothing changes. {worse} of {len(run.pairs)} are worse than base "
            f"(triangles). Letters name the cases below.",
        )
    section.rows[f"documents-{run.slug}"] = [
        {
            "protocol": run.name,
            "document": point.document,
            "digest": point.digest,
            "group": point.group,
            "method": point.method,
            "k": point.k,
            "bytes": point.num_bytes,
            "bits_per_byte": point.bits_per_byte,
            "base_bits_per_byte": point.base_bits_per_byte,
            "found": point.found,
            "trained_tokens": point.trained_tokens,
            "context_tokens": point.context_tokens,
            "seconds": point.seconds,
        }
        for point in run.points
    ]
    for best, title in ((False, "Worst"), (True, "Best")):
        chosen = [case for case in run.cases if case.best == best]
        if chosen:
            section.say(f"{title} documents", "h4")
            section.html += "".join(_case(case, texts=run.texts) for case in chosen)
    if run.cases and not run.texts:
        section.say("The texts of documents are left out of this report.")
    elif run.cases and all(case.texts is None for case in run.cases):
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
