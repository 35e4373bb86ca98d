"""The best and the worst documents of a method, with what a reader needs to see why.

Knows result lines and where their texts are found. Does not know the page.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..config import CorpusConfig
from ..errors import ConfigError
from ..evaluation.records import Line, UsedNeighbor
from ..evaluation.results import EvalResult
from ..store.corpus import iter_corpus
from ..store.document import text_digest

_EACH = 3
"""Cases shown of either kind."""

_NEIGHBORS = 3
"""Neighbors shown of a case: the nearest."""

_QUERY, _SCORED, _EXCERPT, _CONTINUED = 600, 600, 300, 400
"""Characters shown of a query's end, of the beginning of the scored text, of a neighbor, and of a continuation."""

_LINES = 14
"""Lines shown of any of them."""


@dataclass(frozen=True, slots=True)
class ExtremeTexts:
    """What is read in a case. `neighbors`: id -> excerpt. `before` and `after` continue the query; may be empty."""

    query: str
    scored: str
    neighbors: dict[int, str]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Extreme:
    """One document under one method. `ratio`: bits per byte after `k` neighbors over the base model's."""

    letter: str
    best: bool
    line: Line
    k: int
    base: float
    value: float
    neighbors: list[UsedNeighbor]
    texts: ExtremeTexts | None

    @property
    def ratio(self) -> float:
        """Bits per byte of the method over those of the base model."""
        return self.value / self.base


def extreme_documents(result: EvalResult, method: str, k: int, *, texts: bool) -> list[Extreme]:
    """Return the best documents, best first, and the worst, worst first; a document stands in one list only.

    Args:
        result: what was measured.
        method: whose documents.
        k: neighbors.
        texts: take the texts that the result holds.
    """
    base, lines = result.of("base"), result.of(method)
    cases = []
    for document in sorted(lines.keys() & base.keys()):
        line, before = lines[document], base[document].bits_per_byte()
        if before > 0:
            kept = result.texts.get((document, method)) if texts and result.texts is not None else None
            shown = (
                ExtremeTexts(
                    _end(kept.query),
                    _beginning(kept.scored, _SCORED),
                    {number: _beginning(excerpt, _EXCERPT) for number, excerpt in kept.neighbors},
                    _beginning(kept.before, _CONTINUED),
                    _beginning(kept.after, _CONTINUED),
                )
                if kept is not None
                else None
            )
            value = line.bits_per_byte(k)
            cases.append(Extreme("", True, line, line.at(k).k, before, value, line.neighbors[:_NEIGHBORS], shown))
    cases.sort(key=lambda case: (case.ratio, case.line.document))
    worst = min(_EACH, len(cases) // 2)
    best = min(_EACH, len(cases) - worst)
    return [replace(case, letter=letter) for case, letter in zip(cases[:best], "ABC", strict=False)] + [
        replace(case, letter=letter, best=False)
        for case, letter in zip(reversed(cases[len(cases) - worst :]), "ZYX", strict=False)
    ]


def with_texts(
    cases: Iterable[Extreme],
    *,
    documents: str | os.PathLike[str] | None,
    corpus: CorpusConfig | None,
    datastore: str | os.PathLike[str] | None,
    datastore_id: str | None,
) -> list[Extreme]:
    """Give cases that lack them their texts, cut out of the documents and of the datastore by the receipts.

    Args:
        cases: of one evaluation.
        documents: what was evaluated; None: cases stay without query and scored text.
        corpus: how it was read; None: by the defaults.
        datastore: what the neighbors came from; None: they stay without excerpts.
        datastore_id: the one that the results name; None: not known.

    Raises:
        ConfigError: documents or datastore are not those of the results.
    """
    cases = list(cases)
    lacking = {case.line.document: case for case in cases if case.texts is None}
    if documents is None or not lacking:
        return cases
    halves: dict[int, tuple[str, str]] = {}
    for position, document in enumerate(iter_corpus(documents, corpus)):
        if position in lacking:
            halves[position] = _halves(lacking[position].line, document.text, documents)
    for position in lacking.keys() - halves.keys():
        raise ConfigError(f"{documents}: must hold document {position} of the results, got fewer documents")
    excerpts = _excerpts(lacking.values(), datastore, datastore_id) if datastore is not None else {}
    return [
        replace(
            case,
            texts=ExtremeTexts(
                _end(halves[case.line.document][0]),
                _beginning(halves[case.line.document][1], _SCORED),
                {n.id: excerpts[n.id] for n in case.neighbors if n.id in excerpts},
                "",
                "",
            ),
        )
        if case.texts is None
        else case
        for case in cases
    ]


def _halves(line: Line, text: str, source: str | os.PathLike[str]) -> tuple[str, str]:
    if text_digest(text) != line.digest:
        raise ConfigError(
            f"{source}: document {line.document} must be the one of the results (digest {line.digest}), "
            f"got {text_digest(text)}"
        )
    data = text.encode()
    begin = 0 if line.protocol == "full" else line.query_bytes
    pieces = data[: line.query_bytes], data[begin : begin + line.num_bytes]
    return pieces[0].decode("utf-8", "replace"), pieces[1].decode("utf-8", "replace")


def _excerpts(cases: Iterable[Extreme], datastore: str | os.PathLike[str], expected: str | None) -> dict[int, str]:
    from ..datastore.datastore import Datastore

    excerpts = {}
    with Datastore.open(datastore) as opened:
        if expected is not None and opened.id != expected:
            raise ConfigError(f"{datastore}: must be the datastore of the results ({expected}), got {opened.id}")
        for neighbor in {n.id: n for case in cases for n in case.neighbors}.values():
            try:
                text = opened.documents[neighbor.id].text
            except IndexError as error:
                raise ConfigError(
                    f"{datastore}: must hold document {neighbor.id} of the results, but {error}"
                ) from None
            if text_digest(text) != neighbor.digest:
                raise ConfigError(
                    f"{datastore}: document {neighbor.id} must have the text of the results (digest "
                    f"{neighbor.digest}), got {text_digest(text)}"
                )
            begin = neighbor.span[0] if neighbor.span is not None else 0
            passage = text.encode()[begin : begin + 4 * _EXCERPT].decode("utf-8", "ignore")
            excerpts[neighbor.id] = _beginning(passage, _EXCERPT)
    return excerpts


def _beginning(text: str, length: int) -> str:
    return "\n".join(text[:length].split("\n")[:_LINES])


def _end(text: str) -> str:
    return "\n".join(text[-_QUERY:].split("\n")[-_LINES:])
