"""All that a report shows of its runs, gathered once: the parts of the page only lay out what lies here.

Knows what a reader asks of an evaluation. Does not know tables, figures, nor how the page looks.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..config import CorpusConfig
from ..evaluation.catalogue import BASE
from ..evaluation.results import ALL, PILE_ALL, Budget, BudgetComparison, Comparison, EvalResult, GroupSummary, Summary
from ..evaluation.size_law import SizeLaw, size_laws
from .extremes import Extreme, extreme_documents, with_texts
from .published_curves import TASKS, PublishedRun, matching_run, published
from .runs import ResultFileRead, Run, model_description, model_name, read_runs

Curves = Mapping[tuple[str, str], Sequence[GroupSummary]]
"""(group, method) -> rows over the numbers of neighbors."""


@dataclass(frozen=True, slots=True)
class Rival:
    """The main method against another one on the documents that both have.

    `largest`: each at its largest number of neighbors. `budgets`: at equal seconds and tokens; None where nothing is
    known of the cost, or it is nothing.
    """

    method: str
    largest: Comparison
    budgets: Mapping[Budget, BudgetComparison | None]


@dataclass(frozen=True, slots=True)
class DocumentPoint:
    """One document under one method after `k` neighbors. `base_bits_per_byte` and `seconds`: None where not known."""

    document: int
    digest: str
    group: str
    method: str
    k: int
    num_bytes: int
    bits_per_byte: float
    base_bits_per_byte: float | None
    found: int
    trained_tokens: int
    context_tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Published:
    """What was published that curves can be laid beside.

    `match` is the run of this very model and protocol, else None, and `shown` then holds all of them. `groups` are
    those of ours that are published tasks, the weighted total among them.
    """

    source: str
    match: PublishedRun | None
    shown: Sequence[PublishedRun]
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class RunData:
    """What is shown of one evaluation.

    Attributes:
        name: the protocol, numbered where several runs have it.
        protocol: its name alone.
        model: the model that was measured; None where the settings hold no name.
        model_description: the same in full; None where they say no more.
        main: the method that figures of one method show; None where only base was measured.
        methods: without base, the main one first, then as in the files.
        groups: components, those that gain most under the main method first; without the totals.
        totals: the total over all bytes, and the one weighted by the Pile's shares where there is one.
        summary: every group, method and number of neighbors.
        curves: (group, method) -> its rows of the summary, over the numbers of neighbors.
        seconds_known: whether every method's mean seconds are known.
        rivals: the main method against each other one.
        points: every document, method and number of neighbors, in the order of the files.
        pairs: document -> bits per byte of base, and of the main method at its largest number of neighbors.
        ratios: (method, k) -> document -> its bits over base's, where base has any.
        group_of: document -> its component.
        depths: guarded method -> at how many neighbors it ended -> documents.
        laws: what is gained over the size of the index, by group; empty where that was not measured.
        cases: the best and the worst documents of the main method.
        texts: whether texts of documents are shown.
        published: None where the published curves were not asked for.
        settings: of the result files.
        files: the files.
        documents: how many were measured.
        reasons: why documents were not measured -> how many.
    """

    name: str
    protocol: str
    model: str | None
    model_description: str | None
    main: str | None
    methods: Sequence[str]
    groups: Sequence[str]
    totals: Sequence[str]
    summary: Summary
    curves: Curves
    seconds_known: bool
    rivals: Sequence[Rival]
    points: Sequence[DocumentPoint]
    pairs: Mapping[int, tuple[float, float]]
    ratios: Mapping[tuple[str, int], Mapping[int, float]]
    group_of: Mapping[int, str]
    depths: Mapping[str, Counter[int]]
    laws: Sequence[SizeLaw]
    cases: Sequence[Extreme]
    texts: bool
    published: Published | None
    settings: Mapping[str, Any]
    files: Sequence[ResultFileRead]
    documents: int
    reasons: Mapping[str, int]

    @property
    def slug(self) -> str:
        """The name, for files and ids."""
        return "".join(c if c.isalnum() else "-" for c in self.name)

    def curve(self, group: str, method: str) -> Sequence[GroupSummary]:
        """Return a method's rows of a group over the numbers of neighbors; may be empty."""
        return self.curves.get((group, method), ())

    def row(self, group: str, method: str) -> GroupSummary:
        """Return a method's row of a group at its largest number of neighbors, or base's where it has none."""
        return _last(self.curves, group, method)


@dataclass(frozen=True, slots=True)
class ReportData:
    """What is shown of all runs, in the order of the files."""

    runs: Sequence[RunData]

    @property
    def methods(self) -> list[str]:
        """The methods of all runs, without base."""
        return list(dict.fromkeys(method for run in self.runs for method in run.methods))


def gathered(
    results: Sequence[str | os.PathLike[str]],
    *,
    texts: bool,
    reference: bool,
    documents: str | os.PathLike[str] | None,
    corpus: CorpusConfig | None,
    datastore: str | os.PathLike[str] | None,
) -> ReportData:
    """Read files of results and gather what a report shows of them; the arguments are those of `page.write_report`."""
    runs = []
    for run in read_runs(results):
        curves = _curves(run.summary)
        cases: list[Extreme] = []
        if run.main is not None:
            cases = extreme_documents(run.result, run.main, _last(curves, ALL, run.main).k, texts=texts)
            if texts:
                name = run.result.settings.get("datastore")
                known = name if isinstance(name, str) else None
                cases = with_texts(cases, documents=documents, corpus=corpus, datastore=datastore, datastore_id=known)
        runs.append(_gathered_run(run, curves, cases, texts=texts, reference=reference))
    return ReportData(runs)


def _gathered_run(run: Run, curves: Curves, cases: list[Extreme], *, texts: bool, reference: bool) -> RunData:
    result, main = run.result, run.main
    others = [method for method in run.summary.methods() if method not in (BASE.name, main)]
    methods = ([main] if main is not None else []) + others
    group_of = {line.document: line.group for line in result.lines}
    gains = {group: _last(curves, group, main or BASE.name).ratio.value for group in group_of.values()}
    groups = sorted(gains, key=lambda group: (gains[group], group))
    totals = [ALL, PILE_ALL] if run.summary.pile_weight else [ALL]
    return RunData(
        name=run.name,
        protocol=result.lines[0].protocol,
        model=model_name(result),
        model_description=model_description(result),
        main=main,
        methods=methods,
        groups=groups,
        totals=totals,
        summary=run.summary,
        curves=curves,
        seconds_known=all(_last(curves, ALL, method).seconds is not None for method in methods),
        rivals=[] if main is None else _rivals(result, main, others),
        points=_points(result),
        pairs={} if main is None else _pairs(result, main, _last(curves, ALL, main).k),
        ratios={
            (row.method, row.k): result.ratios(row.method, row.k) for method in methods for row in curves[ALL, method]
        },
        group_of=group_of,
        depths={method: chosen_depths(result, method, main) for method in methods if "guard" in method},
        laws=size_laws(result),
        cases=cases,
        texts=texts,
        published=_published(result, [*groups, *totals]) if reference and main is not None else None,
        settings=result.settings,
        files=run.files,
        documents=len(group_of),
        reasons=run.summary.reasons,
    )


def _curves(summary: Summary) -> Curves:
    curves: dict[tuple[str, str], list[GroupSummary]] = {}
    for row in summary.rows:
        curves.setdefault((row.group, row.method), []).append(row)
    return curves


def _last(curves: Curves, group: str, method: str) -> GroupSummary:
    return (curves.get((group, method)) or curves[group, BASE.name])[-1]


def _rivals(result: EvalResult, main: str, others: Sequence[str]) -> list[Rival]:
    rivals = []
    for other in others:
        largest = next((row for row in result.compare(main, other) if row.group == ALL), None)
        if largest is not None:
            budgets = {unit: result.compare_at_budget(main, other, unit) for unit in get_args(Budget)}
            rivals.append(
                Rival(
                    other,
                    largest,
                    {unit: at if at is not None and at.budget > 0 else None for unit, at in budgets.items()},
                )
            )
    return rivals


def _points(result: EvalResult) -> list[DocumentPoint]:
    base = result.of(BASE.name)
    points = []
    for line in result.lines:
        before = base[line.document].bits_per_byte() if line.document in base else None
        seconds = result.seconds.get((line.document, line.method))
        points += [
            DocumentPoint(
                line.document,
                line.digest,
                line.group,
                line.method,
                point.k,
                line.num_bytes,
                line.bits_per_byte(point.k),
                before,
                line.found,
                point.trained_tokens,
                point.context_tokens,
                seconds.at(point.k) if seconds is not None else None,
            )
            for point in line.points
        ]
    return points


def _pairs(result: EvalResult, main: str, k: int) -> dict[int, tuple[float, float]]:
    base, lines = result.of(BASE.name), result.of(main)
    return {d: (base[d].bits_per_byte(), lines[d].bits_per_byte(k)) for d in sorted(lines.keys() & base.keys())}


def chosen_depths(result: EvalResult, method: str, main: str | None) -> Counter[int]:
    """Count at how many neighbors a guarded method ended, over documents.

    A line that does not say it itself is held against the curve of the main method: the guard gives one of its points.
    """
    counts: Counter[int] = Counter()
    curve = result.of(main) if main is not None and main != method else {}
    for document, line in result.of(method).items():
        last = line.at()
        said = last.extra.get("chosen")
        if isinstance(said, int):
            counts[said] += 1
            continue
        points = curve[document].points if document in curve else []
        same = [point.k for point in points if math.isclose(point.nats, last.nats, rel_tol=1e-9)]
        counts[min(same, default=last.k)] += 1
    return counts


def _published(result: EvalResult, groups: Sequence[str]) -> Published:
    source, runs = published()
    name = model_name(result)
    match = matching_run(name, result.lines[0].protocol) if name is not None else None
    return Published(
        source,
        match,
        (match,) if match is not None else runs,
        [group for group in groups if group == PILE_ALL or group in TASKS],
    )
