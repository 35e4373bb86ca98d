"""One self-contained page from result files, with its figures as PNG and its numbers as CSV and Markdown beside it.

Knows the order of the parts and where files go. Does not measure anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain
from pathlib import Path
from string import Template

from ..config import CorpusConfig
from ..errors import ConfigError
from ..files import check_folder, check_target, write_file
from ..version import __version__
from .components import components_section
from .cost import cost_section
from .curves import curves_section
from .data import ReportData, RunData, gathered
from .documents import documents_section
from .harm import harm_section
from .html import comma_separated, escape
from .index_size import index_size_section
from .markdown import markdown_tables
from .opening import headline, verdict
from .provenance import how_measured
from .published import published_section
from .section import PROTOCOLS, Section
from .style import Style, colour_rules, save_png, styles_of
from .summary import summary_section


@dataclass(frozen=True, slots=True)
class WrittenReport:
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
    corpus: CorpusConfig | None = None,
    datastore: str | os.PathLike[str] | None = None,
    command: str | None = None,
    force: bool = False,
) -> WrittenReport:
    """Write a report of one or several files of results.

    The page needs no other file. Figures (PNG) and numbers (CSV, and Markdown tables to paste) go into a folder beside
    it, named as the page with ``_files`` in place of its ending; they hold no text of documents.

    Args:
        results: files of results; those of one evaluation (further methods or documents) are put together.
        out: the page.
        texts: show the texts of the best and worst documents; False leaves every text of documents out.
        reference: lay the curves beside those of Hardt & Sun.
        documents: the corpus that was evaluated: gives cases their texts where the results hold none.
        corpus: how it is read, as when it was evaluated; None: by the defaults.
        datastore: what the neighbors came from: gives them their excerpts.
        command: how the report was called, to be shown in it.
        force: replace files that are there: the page, and those of the same names in the folder beside it.

    Raises:
        FileExistsError: a file is there and `force` is not given; or it is no regular file, or one that is read.
        ConfigError: a file holds no results, files contradict each other, or texts are both given and left out.
        MissingExtraError: matplotlib is not installed.
    """
    if not texts and (documents is not None or datastore is not None):
        raise ConfigError("documents and datastore must be left out where texts are, got both")
    if datastore is not None and documents is None:
        raise ConfigError("documents must be given with a datastore, got the datastore alone")
    data = gathered(results, texts=texts, reference=reference, documents=documents, corpus=corpus, datastore=datastore)
    styles = styles_of(data.methods)
    parts = [_parts(run, styles) for run in data.runs]
    page = Path(out)
    text = _page(data, parts, command)
    folder = page.with_name(f"{page.stem}_files")
    figures = {folder / f"{name}.png": figure for part in chain(*parts) for name, figure in part.figures.items()}
    tables = {
        folder / f"{name}.csv": comma_separated(rows) for part in chain(*parts) for name, rows in part.rows.items()
    }
    tables |= {folder / f"tables-{run.slug}.md": markdown_tables(run) for run in data.runs}
    page.parent.mkdir(parents=True, exist_ok=True)
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    given = [Path(f"{path}{ending}") for path in results for ending in ("", ".seconds", ".texts")]
    if documents is not None:
        given.append(Path(documents))
    for path in (page, *figures, *tables):
        check_target(path, force=force, inputs=given)
    for path, figure in figures.items():
        save_png(figure, path)
    for path, table in tables.items():
        write_file(path, table.encode())
    write_file(page, text.encode())
    return WrittenReport(page, headline(data.runs[0]), list(figures), list(tables))


def _parts(run: RunData, styles: dict[str, Style]) -> list[Section]:
    """Lay out the parts of one run, in the order of the page."""
    parts = [summary_section(run)]
    if run.main is not None:
        parts += [
            curves_section(run, styles),
            components_section(run, styles),
            cost_section(run, styles),
            documents_section(run, styles),
            harm_section(run),
        ]
    if run.laws:
        parts.append(index_size_section(run, styles))
    if run.published is not None:
        parts.append(published_section(run, styles))
    return parts


def _page(data: ReportData, parts: Sequence[Sequence[Section]], command: str | None) -> str:
    """Put the parts of all runs into one page."""
    body: list[str] = []
    contents: list[str] = []
    for run, sections in zip(data.runs, parts, strict=True):
        title = f"Protocol {run.name}"
        links = [_link(run.slug, title)]
        about = PROTOCOLS.get(run.protocol)
        body.append(f'<section id="{run.slug}"><h2>{escape(title)}</h2>')
        if about is not None:
            body.append(f"<p>{escape(about[0].upper() + about[1:])}.</p>")
        for i, part in enumerate(sections):
            anchor = f"{run.slug}-{i}"
            links.append(_link(anchor, part.title))
            body.append(f'<section id="{anchor}"><h3>{escape(part.title)}</h3>{part.html}</section>')
        body.append("</section>")
        contents.append(f"<div>{' '.join(links)}</div>")
    contents.append(f"<div>{_link('made', 'How this was measured')}</div>")
    body.append(f'<section id="made"><h2>How this was measured</h2>{how_measured(data, command)}</section>')

    first, *others = data.runs
    header = [f"<h1>{escape(headline(first))}</h1>"]
    header += [f'<p class="lead">{escape(verdict(first))}</p>']
    header += [f'<p class="lead">{escape(f"{headline(run)}. {verdict(run)}")}</p>' for run in others]
    return Template(files("tttnn.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        version=__version__,
        title=escape(headline(first)),
        light=colour_rules(dark=False),
        dark=colour_rules(dark=True),
        header="\n".join(header),
        contents="".join(contents),
        body="\n".join(body),
    )


def _link(anchor: str, name: str) -> str:
    return f'<a href="#{escape(anchor)}">{escape(name)}</a>'
