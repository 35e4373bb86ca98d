"""Re-read the receipts of an evaluation: was anything trained on that was scored?

Compares texts by their word n-grams. Knows results, a datastore's texts and a tokenizer; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..config import EvalConfig, Progress
from ..errors import ConfigError
from ..lm.neighbor_tokens import portion_of
from ..lm.tokens import TextTokens
from ..retrieval.neighbors import Neighbor
from ..retrieval.retriever import DocumentsById
from ..store.document import Document, text_digest
from ..training.experts import Member
from .overlap import MAX_SHARE, NGRAM, ngrams_of, shared
from .protocols import split_task
from .records import Line, UsedExperts, UsedNeighbor
from .results import EvalResult

FindingKind = Literal["document", "neighbor", "expert", "own text", "overlap", "unused copy"]

Seen = Mapping[str, tuple[str, Sequence[Member]]]
"""What each expert saw, by its name: the digest of these documents, and each of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    `kind`: "document": it is not the one that was measured; "neighbor": the datastore holds no such text under this
    id; "expert": there is no such expert, or it saw other documents; "own text": the document itself was used as a
    neighbor, or seen by an expert; "overlap": a neighbor, or a document that an expert saw, holds scored text, or is
    held by it; "unused copy", which is a note and no leak: the neighbor's text holds scored text where it was not used.
    `share_of_scored` is the share of the scored text's n-grams that the neighbor's used passage holds,
    `share_of_neighbor` the other way round; both are None where nothing was compared.
    """

    kind: FindingKind
    document: int
    method: str
    neighbor: int | None
    what: str
    share_of_scored: float | None = None
    share_of_neighbor: float | None = None


@dataclass(slots=True)
class AuditReport:
    """What an audit looked at, and what it found.

    `largest_share` is the largest share of n-grams that any passage and any scored text have in common. `notes` are of
    the kind "unused copy": what was used of those neighbors shares nothing that counts with the scored text.
    """

    documents: int = 0
    lines: int = 0
    passages: int = 0
    ngram: int = NGRAM
    max_share: float = MAX_SHARE
    largest_share: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self) | {"clean": self.clean}


def audit_results(
    result: EvalResult,
    documents: Iterable[Document | str],
    store: DocumentsById,
    tokenizer: Any,
    *,
    ngram: int = NGRAM,
    max_share: float = MAX_SHARE,
    experts: Seen | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Check every line of a result against the documents it measured and the texts it used.

    For each line: the document has the digest on record; each neighbor's id and digest are the datastore's; no neighbor
    is the document itself; and of the passage of a neighbor that was used (the tokens that training takes, as many as
    are on record) no larger share than `max_share` of its n-grams stands in the scored text, nor the other way round.
    Every document that an expert of the line saw is compared like a neighbor.

    Args:
        result: from `read_results`.
        documents: those that were measured, in the same order.
        store: the datastore's texts, by id.
        tokenizer: of the model that was measured.
        ngram: words of an n-gram.
        max_share: largest share, from 0 to 1.
        experts: of the datastore, for the model that was measured; needed where a method used some.
        progress: called after each line.

    Raises:
        ConfigError: `ngram` or `max_share` is out of range.
    """
    if ngram < 1:
        raise ConfigError(f"ngram must be at least 1, got {ngram}")
    if not 0 <= max_share <= 1:
        raise ConfigError(f"max_share must be between 0 and 1, got {max_share}")
    audit = _Audit(result, documents, store, tokenizer, AuditReport(ngram=ngram, max_share=max_share), experts)
    for done, line in enumerate(result.lines):
        if progress is not None:
            progress("audit", done, len(result.lines))
        audit.check(line)
    audit.report.documents = len({line.document for line in result.lines})
    if progress is not None:
        progress("audit", len(result.lines), len(result.lines))
    return audit.report


class _Audit:
    """One audit: what the lines are compared with, and what was found so far."""

    def __init__(
        self,
        result: EvalResult,
        documents: Iterable[Document | str],
        store: DocumentsById,
        tokenizer: Any,
        report: AuditReport,
        experts: Seen | None,
    ) -> None:
        self.report = report
        self._experts = experts or {}
        self._passages: dict[tuple[int, int], set[tuple[str, ...]]] = {}  # of (document, tokens) that experts saw
        self._documents = [document if isinstance(document, Document) else Document(document) for document in documents]
        self._store = store
        self._methods = result.settings["methods"]
        evaluation = result.settings["evaluation"]
        self._config = EvalConfig(
            protocol=result.settings["protocol"],
            query_tokens=evaluation["query_tokens"],
            scored_tokens=evaluation["scored_tokens"],
        )
        # Results older than the setting were made by reading control tokens as such.
        read_as = {settings["control_tokens"] for settings in self._methods.values() if "control_tokens" in settings}
        self._texts = TextTokens(tokenizer, read_as.pop() if read_as else "tokens")
        self._scored: dict[int, set[tuple[str, ...]] | None] = {}  # n-grams of what was scored; None: another document
        self._whole: dict[tuple[int, int], float] = {}  # (document, neighbor): share of the scored text in all of it

    def check(self, line: Line) -> None:
        """Compare one line with the documents and the store."""
        self.report.lines += 1
        scored = self._scored_of(line)
        for neighbor in line.neighbors:
            self.report.passages += 1
            if neighbor.digest == line.digest:
                self._find("own text", line, neighbor, "the document itself was used as a neighbor")
            problem = _neighbor_problem(neighbor, self._store)
            if problem is not None:
                self._find("neighbor", line, neighbor, problem)
            elif scored is not None:
                limit = self._methods[line.method].get("max_neighbor_tokens")
                passage = used_passage(self._texts, self._store[neighbor.id], neighbor, limit)
                self._compare(line, neighbor, scored, ngrams_of(passage, self.report.ngram))
        for expert in line.experts:
            self._check_expert(line, expert, scored)

    def _check_expert(self, line: Line, expert: UsedExperts, scored: set[tuple[str, ...]] | None) -> None:
        """Compare every document that an expert saw with what was scored."""
        digest, members = self._experts.get(expert.name, (None, ()))
        if digest != expert.members:
            what = f"its documents have the digest {digest}, expected {expert.members}"
            self._find("expert", line, None, f"{expert.name}: {'there is no such expert' if digest is None else what}")
            return
        tokens = int(self._methods[line.method]["expert_tokens"])
        for member in members:
            self.report.passages += 1
            seen = UsedNeighbor(member.id, member.digest, 0.0, tokens, None)
            if member.digest == line.digest:
                self._find("own text", line, seen, f"{expert.name} saw the document itself")
            problem = _neighbor_problem(seen, self._store)
            if problem is not None:
                self._find("neighbor", line, seen, f"seen by {expert.name}: {problem}")
            elif scored is not None:
                if (member.id, tokens) not in self._passages:
                    passage = used_passage(self._texts, self._store[member.id], seen, tokens)
                    self._passages[member.id, tokens] = ngrams_of(passage, self.report.ngram)
                self._compare(line, seen, scored, self._passages[member.id, tokens])

    def _find(self, kind: FindingKind, line: Line, neighbor: UsedNeighbor | None, what: str, *shares: float) -> None:
        finding = Finding(kind, line.document, line.method, None if neighbor is None else neighbor.id, what, *shares)
        (self.report.notes if kind == "unused copy" else self.report.findings).append(finding)

    def _scored_of(self, line: Line) -> set[tuple[str, ...]] | None:
        """Return the n-grams of the text that was scored; None, told once, where the document is another."""
        if line.document not in self._scored:
            task = None
            problem = _document_problem(line, self._documents)
            if problem is None:
                task = split_task(self._texts, self._documents[line.document].text, self._config)
                if task is None or len(task.scored.encode("utf-8")) != line.num_bytes:
                    problem = f"its scored text has not the {line.num_bytes} bytes on record: another tokenizer?"
            if problem is not None:
                self._find("document", line, None, problem)
                task = None
            self._scored[line.document] = None if task is None else ngrams_of(task.scored, self.report.ngram)
        return self._scored[line.document]

    def _compare(
        self, line: Line, neighbor: UsedNeighbor, scored: set[tuple[str, ...]], passage: set[tuple[str, ...]]
    ) -> None:
        """Compare what was used of a neighbor, and then all of it, with what was scored."""
        report = self.report
        document = self._store[neighbor.id]
        shares = shared(scored, passage)
        report.largest_share = max(report.largest_share, *shares)
        if max(shares) > report.max_share:
            what = f"shares {max(shares):.0%} of its {report.ngram}-grams with the scored text"
            if shares[0] >= shares[1]:
                what = f"holds {shares[0]:.0%} of the scored text's {report.ngram}-grams"
            self._find("overlap", line, neighbor, what, *shares)
            return
        pair = line.document, neighbor.id
        if pair not in self._whole:
            self._whole[pair] = shared(scored, ngrams_of(document.text, report.ngram))[0]
        if self._whole[pair] > report.max_share:
            what = f"holds {self._whole[pair]:.0%} of the scored text's {report.ngram}-grams, not used"
            self._find("unused copy", line, neighbor, what)


def _document_problem(line: Line, documents: list[Document]) -> str | None:
    if line.document >= len(documents):
        return f"there are only {len(documents)} documents"
    digest = text_digest(documents[line.document].text)
    return None if digest == line.digest else f"its digest is {digest}, expected {line.digest}"


def _neighbor_problem(neighbor: UsedNeighbor, store: DocumentsById) -> str | None:
    try:
        text = store[neighbor.id].text
    except IndexError as error:
        return f"the datastore has it no more: {error}"
    digest = text_digest(text)
    return None if digest == neighbor.digest else f"its digest is {digest}, expected {neighbor.digest}"


def used_passage(texts: TextTokens, document: Document, used: UsedNeighbor, limit: int | None) -> str:
    """Return the text of a neighbor that was used: of the tokens that training takes, as many as are on record."""
    neighbor = Neighbor(used.id, used.distance, document.text, span=used.span, digest=used.digest)
    tokens = portion_of(texts, neighbor, limit).tokens[: used.tokens]
    return str(texts.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
