"""What the lines of an evaluation say together: totals, comparisons with intervals, methods at equal budgets.

Knows no file and no model: results are summed up without torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError
from .bootstrap import PILE_WEIGHTS, Interval, Paired, paired_bootstrap, pile_weights
from .records import TOO_LITTLE, Line, Measured, Seconds, Skipped, Texts

ALL, PILE_ALL = "all", "pile_all"
"""Totals: over the bytes of all documents, and over components by their share of the Pile."""

Budget = Literal["seconds", "tokens"]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One group under one method at one number of neighbors.

    Groups are the components, "all" (over all bytes) and "pile_all" (over components by their share of the Pile).
    `difference` is the method minus base in bits per byte, `ratio` the method over base: a paired bootstrap over
    documents. `seconds` is the mean per document; None where nothing is known. `word_perplexity` is None where the
    texts hold no words, and for "pile_all".
    """

    group: str
    method: str
    k: int
    documents: int
    num_bytes: int
    base_bits_per_byte: float
    bits_per_byte: float
    difference: Interval
    ratio: Interval
    byte_perplexity: float
    word_perplexity: float | None
    trained_tokens: float
    context_tokens: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Method `a` against method `b` on the same documents: `difference` is a minus b, `ratio` a over b."""

    group: str
    a: str
    b: str
    k_a: int
    k_b: int
    documents: int
    a_bits_per_byte: float
    b_bits_per_byte: float
    difference: Interval
    ratio: Interval


@dataclass(frozen=True, slots=True)
class BudgetComparison:
    """Two methods at the largest budget both reach.

    `budget` is the smaller of the two methods' largest mean costs per document; each method stands at its largest k
    whose mean cost is within it. `rows` are as of `EvalResult.compare`.
    """

    unit: Budget
    budget: float
    a: str
    b: str
    k_a: int
    k_b: int
    cost_a: float
    cost_b: float
    rows: list[Comparison]

    def total(self, group: str = ALL) -> Comparison:
        """Return the row of a group; by default that of all documents together."""
        return next(row for row in self.rows if row.group == group)


@dataclass(frozen=True, slots=True)
class Summary:
    """All groups and totals, for each method and number of neighbors.

    `skipped` documents were not measured, for the `reasons` that are counted. `pile_weight` is the per cent of the Pile
    that the components present make up: "pile_all" is over these alone, renormalised.
    """

    rows: list[GroupSummary]
    skipped: int
    pile_weight: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def methods(self) -> list[str]:
        """Return the methods, in the order of the file."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def total(self, k: int | None = None, *, method: str | None = None, group: str = ALL) -> GroupSummary:
        """Return the row of all documents together.

        Args:
            k: number of neighbors; None: the largest.
            method: None: base at k = 0 in a file of base alone, else the first other method.
            group: "all", "pile_all" or a component.
        """
        if not self.rows:
            raise ValueError("results must hold at least one document, got none")
        names = self.methods()
        wanted = method if method is not None else next((name for name in names if name != "base"), "base")
        rows = [row for row in self.rows if row.group == group and row.method == wanted]
        if not rows:
            raise ValueError(f"method must be one of {', '.join(names)} with a row for {group}, got {wanted!r}")
        largest = max(row.k for row in rows) if k is None else k
        for row in rows:
            if row.k == largest:
                return row
        raise ValueError(f"k must be one of {', '.join(str(row.k) for row in rows)}, got {k}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Return a table, as notebooks show it."""
        names = ("group", "method", "neighbors", "documents", "base", "after", "ratio [95 % interval]", "seconds")
        rows = []
        for row in self.rows:
            seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
            bits = (f"{row.base_bits_per_byte:.4f}", f"{row.bits_per_byte:.4f}")
            cells = (row.group, row.method, row.k, row.documents, *bits, row.ratio, seconds)
            rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
        told = "<br>".join(["bits per byte: smaller is better", *map(escape, reasons_told(self.reasons))])
        head = "".join(f"<th>{name}</th>" for name in names)
        return f"<table><caption>{told}</caption><tr>{head}</tr>{''.join(rows)}</table>"

    def __str__(self) -> str:
        width = max([len(row.group) for row in self.rows] + [5])
        wide = max([len(row.method) for row in self.rows] + [6])
        lines = [
            f"{'group':<{width}}  {'method':<{wide}}  {'k':>3}  {'docs':>5}  {'base':>7}  {'after':>7}  "
            f"{'ratio [95 % interval]':<23}    seconds"
        ]
        for row in self.rows:
            seconds = "" if row.seconds is None else f"{row.seconds:9.2f}"
            lines.append(
                f"{row.group:<{width}}  {row.method:<{wide}}  {row.k:>3}  {row.documents:>5}  "
                f"{row.base_bits_per_byte:>7.4f}  {row.bits_per_byte:>7.4f}  {row.ratio!s:<23}  {seconds}".rstrip()
            )
        if self.pile_weight:
            lines.append(
                f"pile_all: components weighted by their share of the Pile (Gao et al. 2020, table 1), renormalised; "
                f"those present make up {self.pile_weight:.1f} % of it"
            )
        lines += reasons_told(self.reasons)
        return "\n".join(lines)


@dataclass(slots=True)
class EvalResult:
    """The lines of an evaluation and its settings.

    `seconds` and `texts` are by (document, method); `texts` is None where none were kept. `unmeasured` holds, by
    position, the documents that have no lines, and why.
    """

    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    seconds: dict[tuple[int, str], Seconds] = field(default_factory=dict)
    texts: dict[tuple[int, str], Texts] | None = None
    unmeasured: dict[int, Skipped] = field(default_factory=dict)

    def __repr__(self) -> str:
        documents = len({line.document for line in self.lines})
        methods = ", ".join(self.methods()) or "none"
        return f"EvalResult({documents} documents measured, {self.skipped} skipped, methods: {methods})"

    @property
    def skipped(self) -> int:
        """How many documents were not measured."""
        return len(self.unmeasured)

    def add(self, measured: Measured) -> None:
        """Take one more document in."""
        if measured.skipped is not None:
            self.unmeasured[measured.position] = measured.skipped
        self.lines += measured.lines
        self.seconds.update({(row.document, row.method): row for row in measured.seconds})
        if self.texts is not None:
            self.texts.update({(row.document, row.method): row for row in measured.texts})

    def methods(self) -> list[str]:
        """Return the methods that were measured, in the order of the file."""
        return list(dict.fromkeys(line.method for line in self.lines))

    def of(self, method: str) -> dict[int, Line]:
        """Return a method's lines by document."""
        lines = {line.document: line for line in self.lines if line.method == method}
        if not lines:
            raise ConfigError(f"method must be one of {', '.join(self.methods()) or 'none'}, got {method!r}")
        return lines

    def ratios(self, method: str, k: int) -> dict[int, float]:
        """Return a method's nats at `k` over base's, by document; without those whose base has none."""
        base = self.of("base")
        return {
            d: line.at(k).nats / base[d].at().nats
            for d, line in self.of(method).items()
            if d in base and base[d].at().nats > 0
        }

    def summary(self, *, seed: int = 0) -> Summary:
        """Sum the lines up by group, method and k against base, with 95 % intervals of a bootstrap over documents."""
        if not self.lines:
            return Summary([], self.skipped, reasons=self._reasons())
        base = self.of("base")
        rows = []
        for method in self.methods():
            lines = self.of(method)
            for k in sorted({point.k for line in lines.values() for point in line.points}):
                rows += self._rows(method, k, base, lines, seed)
        order = {group: i for i, group in enumerate(self._groups([line.group for line in self.lines]))}
        rows.sort(key=lambda row: order[row.group])
        present = pile_weights([line.group for line in self.lines])
        return Summary(rows, self.skipped, sum(PILE_WEIGHTS[group] for group in present), self._reasons())

    def _rows(
        self, method: str, k: int, base: dict[int, Line], lines: dict[int, Line], seed: int
    ) -> list[GroupSummary]:
        rows = []
        for group, documents, paired in _by_group(base, None, lines, k, seed):
            measured = [lines[d] for d in documents]
            spent = [self.seconds[d, method].at(k) for d in documents if (d, method) in self.seconds]
            words = sum(line.words for line in measured)
            nats = sum(line.at(k).nats for line in measured)
            rows.append(
                GroupSummary(
                    group,
                    method,
                    k,
                    len(documents),
                    sum(line.num_bytes for line in measured),
                    paired.before,
                    paired.after,
                    paired.difference,
                    paired.ratio,
                    float(2.0**paired.after),
                    math.exp(nats / words) if group != PILE_ALL and words and nats / words < 709 else None,
                    float(np.mean([line.at(k).trained_tokens for line in measured])),
                    float(np.mean([line.at(k).context_tokens for line in measured])),
                    float(np.mean(spent)) if len(spent) == len(documents) else None,
                )
            )
        return rows

    def compare(
        self, a: str, b: str, k: int | None = None, *, k_b: int | None = None, seed: int = 0
    ) -> list[Comparison]:
        """Compare two methods on the documents that both have, by group: a paired bootstrap over documents.

        Args:
            a: a method.
            b: the method it is held against.
            k: neighbors of both; None: as many as each has. A method without a point at `k` stands at its largest
                below (base: at 0).
            k_b: neighbors of b, where they are not those of a.
            seed: of the bootstrap.
        """
        first, second = self.of(a), self.of(b)
        other = k if k_b is None else k_b
        rows = []
        for group, documents, paired in _by_group(second, other, first, k, seed):
            rows.append(
                Comparison(
                    group,
                    a,
                    b,
                    max(first[d].at(k).k for d in documents),
                    max(second[d].at(other).k for d in documents),
                    len(documents),
                    paired.after,
                    paired.before,
                    paired.difference,
                    paired.ratio,
                )
            )
        return rows

    def costs(self, method: str, unit: Budget, documents: Iterable[int] | None = None) -> dict[int, float]:
        """Return the mean cost of a method per document, by k: seconds without scoring, or tokens.

        Tokens are those trained on and those of neighbors read in the context. Empty where no seconds are known.
        """
        lines = self.of(method)
        chosen = sorted(lines) if documents is None else list(documents)
        costs = {}
        for k in sorted({point.k for d in chosen for point in lines[d].points}):
            if unit == "tokens":
                values = [float(lines[d].at(k).trained_tokens + lines[d].at(k).context_tokens) for d in chosen]
            elif all((d, method) in self.seconds for d in chosen):
                values = [self.seconds[d, method].at(k) for d in chosen]
            else:
                return {}
            costs[k] = float(np.mean(values))
        return costs

    def compare_at_budget(self, a: str, b: str, unit: Budget, *, seed: int = 0) -> BudgetComparison | None:
        """Compare two methods at the largest budget that both reach; see `BudgetComparison`.

        Returns:
            None where a method has no point within the budget, or no seconds are known.
        """
        common = sorted(self.of(a).keys() & self.of(b).keys())
        costs = self.costs(a, unit, common), self.costs(b, unit, common)
        if not common or not costs[0] or not costs[1]:
            return None
        budget = min(max(cost.values()) for cost in costs)
        within = [[k for k, cost in method.items() if cost <= budget] for method in costs]
        if not within[0] or not within[1]:
            return None
        k_a, k_b = max(within[0]), max(within[1])
        rows = self.compare(a, b, k_a, k_b=k_b, seed=seed)
        return BudgetComparison(unit, budget, a, b, k_a, k_b, costs[0][k_a], costs[1][k_b], rows)

    def compare_at_budgets(self, unit: Budget, *, seed: int = 0) -> list[BudgetComparison]:
        """Compare each pair of methods other than base at the largest budget both reach."""
        methods = [method for method in self.methods() if method != "base"]
        pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
        comparisons = [self.compare_at_budget(a, b, unit, seed=seed) for a, b in pairs]
        return [comparison for comparison in comparisons if comparison is not None]

    def _reasons(self) -> dict[str, int]:
        return dict(Counter(skipped.reason for skipped in self.unmeasured.values()).most_common())

    @staticmethod
    def _groups(names: Sequence[str]) -> list[str]:
        return [*sorted(set(names)), ALL, PILE_ALL]


def reasons_told(reasons: Mapping[str, int], most: int = 3) -> list[str]:
    """Say how many documents were not measured and why, a sentence for each reason, the most frequent ones first."""
    told = []
    for reason, count in list(reasons.items())[:most]:
        documents = "1 document" if count == 1 else f"{count} documents"
        if reason == TOO_LITTLE:
            told.append(f"{documents} had too little text for the protocol")
        else:
            told.append(f"{documents} not measured: {reason}")
    rest = sum(list(reasons.values())[most:])
    if rest:
        told.append(f"{rest} more not measured, for other reasons")
    return told


def documents_by_group(
    before: Mapping[int, Line], after: Mapping[int, Line]
) -> list[tuple[str, list[list[int]], list[float]]]:
    """Return each component and both totals with the documents that two methods have in common.

    Returns:
        name, strata of documents, and the strata's weights; the components first, by name. Only the total over the
        Pile's components has several strata; it is there where one of them is.

    Raises:
        ConfigError: a document's text is not the same under both.
    """
    common = sorted(before.keys() & after.keys())
    groups: dict[str, list[int]] = {}
    for d in common:
        if before[d].digest != after[d].digest or before[d].num_bytes != after[d].num_bytes:
            raise ConfigError(f"document {d} must be scored on the same text by both methods, got other bytes")
        groups.setdefault(before[d].group, []).append(d)
    found = [(group, [groups[group]], [1.0]) for group in sorted(groups)]
    if common:
        found.append((ALL, [common], [1.0]))
    weights = pile_weights(list(groups))
    if weights:
        found.append((PILE_ALL, [groups[group] for group in weights], list(weights.values())))
    return found


def _by_group(
    before: dict[int, Line], k_before: int | None, after: dict[int, Line], k_after: int | None, seed: int
) -> list[tuple[str, list[int], Paired]]:
    """Pair two methods' lines: for each component and both totals, the documents and their comparison."""

    def arrays(documents: list[int]) -> tuple[Any, Any, Any]:
        return (
            np.array([before[d].at(k_before).nats for d in documents]),
            np.array([after[d].at(k_after).nats for d in documents]),
            np.array([before[d].num_bytes for d in documents], np.float64),
        )

    return [
        (
            group,
            [d for stratum in strata for d in stratum],
            paired_bootstrap([arrays(stratum) for stratum in strata], weights, seed=seed),
        )
        for group, strata, weights in documents_by_group(before, after)
    ]
