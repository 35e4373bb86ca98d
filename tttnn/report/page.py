"""One self-contained page from result files, with its figures as PNG and its numbers as CSV and Markdown beside it.

Knows the order of the parts and where files go. Does not measure anything.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from string import Template

from ..errors import ConfigError
from ..evaluation.bootstrap import PILE_WEIGHTS
from ..evaluation.results import ALL
from ..files import write_file
from ..version import __version__
from . import style as plots
from .components import components_section
from .cost import cost_section
from .curves import curves_section
from .documents import documents_section
from .extremes import extreme_documents, with_texts
from .harm import harm_section
from .html import comma_separated, escape, one_line, settings_list
from .markdown import markdown_tables
from .opening import headline, verdict
from .published import reference_section
from .runs import Run, model_name, read_runs
from .section import PROTOCOLS, Section
from .summary import summary_section


@dataclass(frozen=True, slots=True)
class Report:
    """What was written: the page, and the files beside it."""

    page: Path
    headline: str
    figures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)


def write_report(
    results: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    texts: bool = True,
    reference: bool = False,
    documents: str | os.PathLike[str] | None = None,
    datastore: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> Report:
    """Write a report of one or several files of results.

    The page needs no other file. Figures (PNG) and numbers (CSV, and Markdown tables to paste) go into a folder beside
    it, named as the page with ``_files`` in place of its ending; they hold no text of documents.

    Args:
        results: files of results; those of one evaluation (further methods or documents) are put together.
        out: the page.
        texts: show the texts of the best and worst documents; False leaves every text of documents out.
        reference: lay the curves beside those of Hardt & Sun.
        documents: the corpus that was evaluated: gives cases their texts where the results hold none.
        datastore: what the neighbors came from: gives them their excerpts.
        command: how the report was called, to be shown in it.

    Raises:
        ConfigError: a file holds no results, files contradict each other, or texts are both given and left out.
        MissingExtraError: matplotlib is not installed.
    """
    if not texts and (documents is not None or datastore is not None):
        raise ConfigError("documents and datastore must be left out where texts are, got both")
    if datastore is not None and documents is None:
        raise ConfigError("documents must be given with a datastore, got the datastore alone")
    runs = read_runs(results)
    page = Path(out)
    folder = page.with_name(f"{page.stem}_files")
    methods = list(dict.fromkeys(method for run in runs for method in run.methods))
    styles = plots.styles_of(methods)
    body: list[str] = []
    contents: list[str] = []
    made: list[Section] = []
    for run in runs:
        title = f"Protocol {run.name}"
        links = [_link(run.slug, title)]
        about = PROTOCOLS.get(run.protocol)
        body.append(f'<section id="{run.slug}"><h2>{escape(title)}</h2>')
        if about is not None:
            body.append(f"<p>{escape(about[0].upper() + about[1:])}.</p>")
        parts = [summary_section(run)]
        if run.main is not None:
            k = run.row(ALL, run.main).k
            cases = extreme_documents(run.result, run.main, k, texts=texts)
            if texts:
                held = run.result.settings.get("datastore")
                cases = with_texts(
                    cases,
                    documents=documents,
                    datastore=datastore,
                    datastore_id=held if isinstance(held, str) else None,
                )
            parts += [
                curves_section(run, styles),
                components_section(run, styles),
                cost_section(run, styles),
                documents_section(run, styles, cases, texts=texts),
                harm_section(run),
            ]
            if reference:
                parts.append(reference_section(run, styles))
        for i, part in enumerate(parts):
            place = f"{run.slug}-{i}"
            links.append(_link(place, part.title))
            body.append(f'<section id="{place}"><h3>{escape(part.title)}</h3>{part.html}</section>')
        body.append("</section>")
        contents.append(f"<div>{' '.join(links)}</div>")
        made += parts
    contents.append(f"<div>{_link('made', 'How this was measured')}</div>")
    body.append(f'<section id="made"><h2>How this was measured</h2>{_method(runs, command)}</section>')

    first = headline(runs[0])
    header = [f"<h1>{escape(first)}</h1>"]
    header += [f'<p class="lead">{escape(verdict(runs[0]))}</p>']
    header += [f'<p class="lead">{escape(f"{headline(run)}. {verdict(run)}")}</p>' for run in runs[1:]]
    text = Template(files("tttnn.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        version=__version__,
        title=escape(first),
        light=plots.colour_rules(dark=False),
        dark=plots.colour_rules(dark=True),
        header="\n".join(header),
        contents="".join(contents),
        body="\n".join(body),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    report = Report(page, first)
    for part in made:
        for name, figure in part.figures.items():
            plots.save_png(figure, folder / f"{name}.png")
            report.figures.append(folder / f"{name}.png")
        for name, rows in part.rows.items():
            write_file(folder / f"{name}.csv", comma_separated(rows).encode())
            report.tables.append(folder / f"{name}.csv")
    for run in runs:
        write_file(folder / f"tables-{run.slug}.md", markdown_tables(run).encode())
        report.tables.append(folder / f"tables-{run.slug}.md")
    write_file(page, text.encode())
    return report


def _link(place: str, name: str) -> str:
    return f'<a href="#{escape(place)}">{escape(name)}</a>'


def _lonely(run: Run) -> str:
    """Warn of components of one document, which the weighted interval knows no spread of."""
    held = [run.row(group, "base") for group in sorted(run.groups) if group in PILE_WEIGHTS]
    alone = [one_line(row.group) for row in held if row.documents == 1]
    if not alone:
        return ""
    return (
        f" Nothing is known about the spread of components with one document ({', '.join(alone)}): they add no width "
        f"to the Pile-weighted interval, which is too narrow."
    )


def _method(runs: Sequence[Run], command: str | None) -> str:
    """Say how totals and intervals were made, and list files, settings and versions."""
    parts = [
        "<p>Bits per byte are the negative log-likelihood of the scored text in bits, over its UTF-8 bytes; those of "
        "several documents are all their bits over all their bytes. Every method scores the same tokens. Intervals are "
        "95 % intervals of a paired bootstrap over documents (10,000 resamples, percentiles 2.5 and 97.5): each "
        "resample takes a document's values before and after together. Documents that share a source are resampled as "
        "if they were independent.</p>"
    ]
    for run in runs:
        if run.summary.pile_weight:
            outside = sorted({line.group for line in run.result.lines} - set(PILE_WEIGHTS))
            more = (
                f" Components outside the Pile do not enter it: {', '.join(map(one_line, outside))}." if outside else ""
            )
            parts.append(
                f"<p>{escape(run.name)}: the Pile-weighted total is the sum of the components' bits per byte, "
                f"weighted by "
                f"their share of the Pile (Gao et al. 2020, table 1), renormalised over the components present, which "
                f"make up {run.summary.pile_weight:.1f} % of it; its bootstrap draws documents within components, "
                f"n - 1 of n (Rao & Wu 1988), so that small components do not look certain."
                f"{escape(more + _lonely(run))}</p>"
            )
    for run in runs:
        parts.append(f"<h3>{escape(run.name)}</h3>")
        shown = {
            "model": model_name(run.result) or "not named",
            "documents measured": len({line.document for line in run.result.lines}),
            "documents with too little text": run.result.skipped,
        }
        for source in run.sources:
            shown[f"file {source.path.name}"] = (
                f"sha256 {source.sha256}, {source.documents} documents, {', '.join(map(one_line, source.methods))}"
            )
        parts.append(settings_list(shown))
        parts.append(f"<details><summary>All settings</summary>{settings_list(run.result.settings)}</details>")
    parts.append("<h3>This page</h3>")
    made = {"tttnn": __version__, "python": platform.python_version()}
    for package in ("numpy", "matplotlib"):
        try:
            made[package] = version(package)
        except PackageNotFoundError:
            made[package] = "not installed"
    parts.append(settings_list(made))
    if command is not None:
        parts.append(f"<p>Made by <code>{escape(command)}</code></p>")
    return "".join(parts)
