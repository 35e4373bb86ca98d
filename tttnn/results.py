"""Files of results: one JSON line per document and method, and what they say together.

`FORMAT` and the dataclasses here are the format. Knows no model: results are read and summed up without torch.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from .errors import ConfigError
from .statistics import PILE_WEIGHTS, Interval, Paired, paired_bootstrap, pile_weights

FORMAT = "results 2"

ALL, PILE_ALL = "all", "pile_all"
"""Totals: over the bytes of all documents, and over components by their share of the Pile."""

Budget = Literal["seconds", "tokens"]


# ---------------------------------------------------------------------------------------------------------------------
# What one file holds
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement after `k` neighbors (0: none).

    `nats` of the scored text; `query_nats` of the query in the same state, where the method knows it. `trained_tokens`
    were trained on, `context_tokens` of neighbors were read in the context, or counted into a histogram. `extra` holds
    what one method alone has.
    """

    k: int
    nats: float
    query_nats: float | None
    steps: int
    trained_tokens: int
    context_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsedNeighbor:
    """A receipt: which text a method used, and how many of its tokens. `span`: bytes of the nearest passage."""

    id: int
    digest: str
    distance: float
    tokens: int
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Line:
    """One document under one method.

    `tokens`, `num_bytes` and `words` are those of the scored text, the same for every method. Where fewer neighbors
    were `found` than a point's `k`, the point is the measurement after those. `left_out` counts near neighbors that
    were not used because they hold scored text (`EvalConfig.max_overlap`).
    """

    document: int
    digest: str
    group: str
    method: str
    protocol: str
    tokens: int
    num_bytes: int
    words: int
    query_tokens: int
    query_bytes: int
    found: int
    stopped_by: str
    points: list[Point]
    neighbors: list[UsedNeighbor]
    left_out: int = 0

    def at(self, k: int | None = None) -> Point:
        """Return the point of the largest number of neighbors up to `k`; None: the last."""
        held = [point for point in self.points if k is None or point.k <= k]
        return held[-1] if held else self.points[0]

    def bits_per_byte(self, k: int | None = None) -> float:
        """Return the bits per byte of the scored text after up to `k` neighbors; None: the last point."""
        return self.at(k).nats / math.log(2) / self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; a point's `extra` only where there is some."""
        row = asdict(self)
        for point in row["points"]:
            if not point["extra"]:
                del point["extra"]
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Line:
        """Return the line that `to_dict` gave."""
        points = [Point(**point) for point in row["points"]]
        neighbors = [
            UsedNeighbor(**neighbor | {"span": None if neighbor["span"] is None else tuple(neighbor["span"])})
            for neighbor in row["neighbors"]
        ]
        if not points:
            raise ValueError("points must not be empty, got []")
        return cls(**row | {"points": points, "neighbors": neighbors})


@dataclass(frozen=True, slots=True)
class Skipped:
    """A document that has too little text for the protocol."""

    document: int
    digest: str
    group: str


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one document cost under one method.

    `seconds` by stage; `points`: seconds of the method up to k neighbors, retrieval included, scoring not.
    """

    document: int
    method: str
    seconds: dict[str, float]
    points: dict[int, float]

    def at(self, k: int | None = None) -> float:
        """Return the seconds up to `k` neighbors; None: all of them."""
        held = [value for at, value in sorted(self.points.items()) if k is None or at <= k]
        return held[-1] if held else 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """What one document looked like, kept only where asked for. `neighbors`: pairs of id and excerpt."""

    document: int
    method: str
    query: str
    scored: str
    neighbors: list[tuple[int, str]]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Measured:
    """All of one document: a line for each method, or None where it was left out, and what goes beside them."""

    skipped: Skipped | None
    lines: list[Line]
    seconds: list[Seconds]
    texts: list[Texts]

    @property
    def position(self) -> int:
        """The document's position."""
        return self.skipped.document if self.skipped is not None else self.lines[0].document

    @property
    def digest(self) -> str:
        """The document's digest."""
        return self.skipped.digest if self.skipped is not None else self.lines[0].digest


# ---------------------------------------------------------------------------------------------------------------------
# What they say together
# ---------------------------------------------------------------------------------------------------------------------


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

    `pile_weight` is the per cent of the Pile that the components present make up: "pile_all" is over these alone,
    renormalised.
    """

    rows: list[GroupSummary]
    skipped: int
    pile_weight: float = 0.0

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

    def __str__(self) -> str:
        width = max([len(row.group) for row in self.rows] + [5])
        wide = max([len(row.method) for row in self.rows] + [6])
        lines = [
            f"{'group':<{width}}  {'method':<{wide}}  {'k':>3}  {'docs':>5}  {'base':>7}  {'after':>7}  "
            f"ratio [95 % interval]    seconds"
        ]
        for row in self.rows:
            ratio = f"{row.ratio.value:.4f} [{row.ratio.low:.4f}, {row.ratio.high:.4f}]"
            seconds = "" if row.seconds is None else f"{row.seconds:9.2f}"
            lines.append(
                f"{row.group:<{width}}  {row.method:<{wide}}  {row.k:>3}  {row.documents:>5}  "
                f"{row.base_bits_per_byte:>7.4f}  {row.bits_per_byte:>7.4f}  {ratio}  {seconds}".rstrip()
            )
        if self.pile_weight:
            lines.append(
                f"pile_all: components weighted by their share of the Pile (Gao et al. 2020, table 1), renormalised; "
                f"those present make up {self.pile_weight:.1f} % of it"
            )
        if self.skipped:
            lines.append(f"{self.skipped} documents had too little text for the protocol")
        return "\n".join(lines)


@dataclass(slots=True)
class EvalResult:
    """The lines of an evaluation and its settings.

    `seconds` and `texts` are by (document, method); `texts` is None where none were kept. `skipped` counts documents
    that have too little text for the protocol.
    """

    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    seconds: dict[tuple[int, str], Seconds] = field(default_factory=dict)
    texts: dict[tuple[int, str], Texts] | None = None
    skipped: int = 0

    def add(self, measured: Measured) -> None:
        """Take one more document in."""
        self.skipped += measured.skipped is not None
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

    def summary(self, *, seed: int = 0) -> Summary:
        """Sum the lines up by group, method and k against base, with 95 % intervals of a bootstrap over documents."""
        if not self.lines:
            return Summary([], self.skipped)
        base = self.of("base")
        rows = []
        for method in self.methods():
            lines = self.of(method)
            for k in sorted({point.k for line in lines.values() for point in line.points}):
                rows += self._rows(method, k, base, lines, seed)
        order = {group: i for i, group in enumerate(self._groups([line.group for line in self.lines]))}
        rows.sort(key=lambda row: order[row.group])
        present = pile_weights([line.group for line in self.lines])
        return Summary(rows, self.skipped, sum(PILE_WEIGHTS[group] for group in present))

    def _rows(
        self, method: str, k: int, base: dict[int, Line], lines: dict[int, Line], seed: int
    ) -> list[GroupSummary]:
        rows = []
        for group, documents, paired in _by_group(base, None, lines, k, seed):
            held = [lines[d] for d in documents]
            spent = [self.seconds[d, method].at(k) for d in documents if (d, method) in self.seconds]
            words = sum(line.words for line in held)
            nats = sum(line.at(k).nats for line in held)
            rows.append(
                GroupSummary(
                    group,
                    method,
                    k,
                    len(documents),
                    sum(line.num_bytes for line in held),
                    paired.before,
                    paired.after,
                    paired.difference,
                    paired.ratio,
                    float(2.0**paired.after),
                    math.exp(nats / words) if group != PILE_ALL and words and nats / words < 709 else None,
                    float(np.mean([line.at(k).trained_tokens for line in held])),
                    float(np.mean([line.at(k).context_tokens for line in held])),
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
        found = [self.compare_at_budget(a, b, unit, seed=seed) for a, b in pairs]
        return [comparison for comparison in found if comparison is not None]

    @staticmethod
    def _groups(names: Sequence[str]) -> list[str]:
        return [*sorted(set(names)), ALL, PILE_ALL]


def _by_group(
    before: dict[int, Line], k_before: int | None, after: dict[int, Line], k_after: int | None, seed: int
) -> list[tuple[str, list[int], Paired]]:
    """Pair two methods' lines: for each component and both totals, the documents and their comparison."""
    common = sorted(before.keys() & after.keys())
    groups: dict[str, list[int]] = {}
    for d in common:
        if before[d].digest != after[d].digest or before[d].num_bytes != after[d].num_bytes:
            raise ConfigError(f"document {d} must be scored on the same text by both methods, got other bytes")
        groups.setdefault(before[d].group, []).append(d)

    def arrays(documents: list[int]) -> tuple[Any, Any, Any]:
        return (
            np.array([before[d].at(k_before).nats for d in documents]),
            np.array([after[d].at(k_after).nats for d in documents]),
            np.array([before[d].num_bytes for d in documents], np.float64),
        )

    found = [
        (group, groups[group], paired_bootstrap([arrays(groups[group])], [1.0], seed=seed)) for group in sorted(groups)
    ]
    if common:
        found.append((ALL, common, paired_bootstrap([arrays(common)], [1.0], seed=seed)))
    weights = pile_weights(list(groups))
    if weights:
        strata = [arrays(groups[group]) for group in weights]
        documents = [d for group in weights for d in groups[group]]
        found.append((PILE_ALL, documents, paired_bootstrap(strata, list(weights.values()), seed=seed)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------------------------


def read_results(path: str | os.PathLike[str]) -> EvalResult:
    """Read a file of results, with ``<path>.seconds`` and ``<path>.texts`` where they lie beside it.

    A last line that was cut off, and a document of which some methods are missing, are left out: an interrupted run
    can be read as far as it went.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no file of results, or one of another format; a line is damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    settings, first = _header(path, data)
    held, _ = _measured(path, data[first:], settings)
    result = EvalResult(settings, texts={} if Path(f"{path}.texts").is_file() else None)
    for _, measured in sorted(held.items()):
        result.add(measured)
    return result


def _header(path: Path, data: bytes) -> tuple[dict[str, Any], int]:
    first, newline, _ = data.partition(b"\n")
    try:
        header = json.loads(first)
        kind, settings = header["tttnn"], header["settings"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is not a file of results: it has no header line of tttnn") from None
    if kind != FORMAT or not newline or not isinstance(settings, dict):
        raise ConfigError(f"{path}: must be of the format {FORMAT!r}, got {kind!r}. Measure again.")
    return settings, len(first) + 1


def _measured(path: Path, data: bytes, settings: dict[str, Any]) -> tuple[dict[int, Measured], int]:
    """Read whole documents after the header, and what lies beside them; return how many bytes they take, too."""
    methods = list(settings["methods"])
    held: dict[int, Measured] = {}
    block: list[Line] = []
    kept = start = 0
    for number, row in enumerate(data.split(b"\n")[:-1], 2):
        start += len(row) + 1
        try:
            value = json.loads(row)
            if "skipped" in value:
                skipped = Skipped(value["document"], value["digest"], value["group"])
                held[skipped.document] = Measured(skipped, [], [], [])
                kept = start
                continue
            line = Line.from_dict(value)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: line {number} is no result: {error}. Choose another --out.") from error
        block.append(line)
        if line.method != methods[len(block) - 1] or line.document != block[0].document:
            raise ConfigError(
                f"{path}: line {number} must be document {block[0].document} under {methods[len(block) - 1]}, got "
                f"document {line.document} under {line.method}. Choose another --out."
            )
        if len(block) == len(methods):
            held[line.document] = Measured(None, block, [], [])
            block, kept = [], start
    for spent in _sidecar(Path(f"{path}.seconds")):
        if spent["document"] in held:
            points = {point["k"]: point["seconds"] for point in spent["points"]}
            seconds = Seconds(spent["document"], spent["method"], spent["seconds"], points)
            held[seconds.document].seconds.append(seconds)
    for texts in _sidecar(Path(f"{path}.texts")):
        if texts["document"] in held:
            texts["neighbors"] = [(neighbor["id"], neighbor["excerpt"]) for neighbor in texts["neighbors"]]
            held[texts["document"]].texts.append(Texts(**texts))
    return held, kept


def _sidecar(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, if it is there; a line cut off by an interruption is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _continued(path: Path, *, fresh: bool) -> IO[str]:
    """Open a file of JSON lines to append; a last line that was cut off is ended, so that the next stands alone."""
    cut = not fresh and path.is_file() and not path.read_bytes().endswith(b"\n")
    file = open(path, "w" if fresh else "a", encoding="utf-8")  # noqa: SIM115
    if cut:
        file.write("\n")
    return file


class ResultFile:
    """A file of results while it is written: locked, and continued where an interrupted run left it."""

    def __init__(self, path: Path, settings: dict[str, Any], *, texts: bool = False) -> None:
        """Create or continue a file.

        Raises:
            ConfigError: the file holds other settings or something else, or another process is writing it.
        """
        self._held: dict[int, Measured] = {}
        header = json.dumps({"tttnn": FORMAT, "settings": settings})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = self._read(header, settings) if path.stat().st_size else 0
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"{path}: another process is writing it. Wait for it, or choose another --out."
            ) from error
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(kept)
        self._seconds = _continued(Path(f"{path}.seconds"), fresh=not kept)
        self._texts = _continued(Path(f"{path}.texts"), fresh=not kept) if texts else None
        if not kept:
            self._file.write(header.encode() + b"\n")
            self._file.flush()

    def _read(self, header: str, settings: dict[str, Any]) -> int:
        """Take over whole documents of an earlier run; return the number of bytes to keep."""
        data = self._path.read_bytes()
        first, newline, rest = data.partition(b"\n")
        if not newline and header.encode().startswith(first):
            return 0  # cut off in its first line: nothing was measured
        if first.decode("utf-8", "replace") != header:
            raise ConfigError(f"{self._path}: holds results of {_difference(first, settings)}. Choose another --out.")
        self._held, kept = _measured(self._path, rest, settings)
        return len(first) + 1 + kept

    def held(self, position: int, digest: str) -> Measured | None:
        """Return what an earlier run measured of a document; None where it did not.

        Raises:
            ConfigError: it was another document.
        """
        measured = self._held.get(position)
        if measured is not None and measured.digest != digest:
            raise ConfigError(
                f"document {position} must be the one the results file was begun with (digest {measured.digest}), "
                f"got {digest}. Choose another --out."
            )
        return measured

    def append(self, measured: Measured) -> None:
        """Write one document; what goes beside it first, so that no document lacks its seconds."""
        at = time.time()
        for spent in measured.seconds:
            points = [{"k": k, "seconds": round(value, 4)} for k, value in sorted(spent.points.items())]
            stages = {name: round(value, 4) for name, value in spent.seconds.items()}
            row = {"document": spent.document, "method": spent.method, "seconds": stages, "points": points, "at": at}
            self._seconds.write(json.dumps(row) + "\n")
        self._seconds.flush()
        if self._texts is not None:
            for texts in measured.texts:
                excerpts = [{"id": number, "excerpt": excerpt} for number, excerpt in texts.neighbors]
                self._texts.write(json.dumps(asdict(texts) | {"neighbors": excerpts}) + "\n")
            self._texts.flush()
        if measured.skipped is not None:
            rows = [asdict(measured.skipped) | {"skipped": "too little text"}]
        else:
            rows = [line.to_dict() for line in measured.lines]
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files and give up the lock."""
        self._file.close()
        self._seconds.close()
        if self._texts is not None:
            self._texts.close()


def _difference(first: bytes, settings: dict[str, Any]) -> str:
    try:
        header = json.loads(first)
        held = header["settings"]
        if header["tttnn"] != FORMAT:
            return f"the format {header['tttnn']!r}, not {FORMAT!r}"
    except (ValueError, KeyError, TypeError):
        return "something else than tttnn"
    names = _changed("", held, settings)
    return "other settings: " + ", ".join(names)


def _changed(prefix: str, held: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = []
    for key in sorted({*held, *now}):
        old, new = held.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _changed(f"{prefix}{key}.", old, new)
        elif old != new:
            names.append(f"{prefix}{key} = {old} (now {new})")
    return names
