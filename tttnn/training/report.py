"""What adapting to one query did and cost, as plain values.

Knows nothing of how it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import AdaptError
from ..stages import Stages
from .experts import ExpertsReport, UsedExpert

if TYPE_CHECKING:
    from ..lm.generate import Generation

StoppedBy = Literal["neighbors", "deadline", "max_tokens", "max_steps", "cancelled"]


@dataclass(frozen=True, slots=True)
class TrainedNeighbor:
    """What one neighbor contributed. `losses` are in nats per token, each measured before its step.

    `span` is what was near the query and `trained_span` what was trained on, both in bytes of the text's UTF-8; None
    where the document was embedded whole, and where nothing was trained or the tokenizer does not say.
    """

    id: int
    distance: float
    source: str | None
    digest: str
    span: tuple[int, int] | None
    trained_span: tuple[int, int] | None
    tokens: int
    losses: list[float]


@dataclass(frozen=True, slots=True)
class ContextNeighbor:
    """A neighbor that may be read before a text, and how many of its tokens the last text had before it."""

    id: int
    distance: float
    source: str | None
    digest: str
    span: tuple[int, int] | None
    tokens: int = 0


@dataclass(slots=True)
class GuardReport:
    """What a guard saw: mean nats per token of the query, before training and after some of the neighbors.

    Attributes:
        scores: one per state, in the order of training.
        after: the number of neighbors trained before each.
        kept: the number of neighbors whose state is handed out; 0 for the base weights, None where there was no guard.
        reason: why there was no guard, or why its last score is missing; None where neither.
    """

    scores: list[float] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    kept: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """What one continuation took, without its text; see `lm.generate.Generation`."""

    tokens: int
    seconds: float
    tokens_per_second: float
    ended_by: str
    prompt_tokens: int
    prompt_cut: int

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Return what a report says of a continuation: everything but its text."""
        return cls(
            len(generation.tokens),
            generation.seconds,
            generation.tokens_per_second,
            generation.ended_by,
            generation.prompt_tokens,
            generation.prompt_cut,
        )


@dataclass(slots=True, repr=False)
class AdaptReport:
    """What adapting to one query did and cost.

    `seconds` has one entry per stage: embed, search and read where the retriever says so (else retrieve), tokenize,
    train, guard, observe (without the scoring in it), score (inside `AdaptedModel.score`), restore, verify.
    `step_seconds` are those of each step; `generations` what was written inside of the block. `stopped_by` is
    "neighbors" when all of them were trained on. `excluded` counts texts that the caller excluded; `left_out` what a
    selection left out, by reason. `coverage` says what share of a cluster was searched. `page_faults` counts the
    process's minor faults while training. `reused`: the weights came from an earlier query with the same neighbors,
    whose losses, steps and tokens these are. `experts` are those that were merged, None in the mode ``exact``;
    `context` the neighbors that stand before a text. `untrained` says why no step was made though there were neighbors;
    None otherwise.
    """

    query_digest: str
    requested: int
    query: str = field(default="", repr=False)
    found: int = 0
    excluded: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, Any] | None = None
    neighbors: list[TrainedNeighbor] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    bytes_moved: int = 0
    page_faults: int = 0
    mode: str = "exact"
    experts: ExpertsReport | None = None
    context: list[ContextNeighbor] = field(default_factory=list)
    stopped_by: StoppedBy = "neighbors"
    untrained: str | None = None
    guard: GuardReport | None = None
    reused: bool = False
    query_truncated: bool = False
    seconds: Stages = field(default_factory=Stages)
    step_seconds: list[float] = field(default_factory=list)
    generations: list[GenerationReport] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: str = "float32"
    model: str = ""
    datastore: str | None = None
    embedder: str | None = None
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        reused = ", reused" if self.reused else ""
        return (
            f"AdaptReport({len(self.neighbors)} of {self.requested} neighbors, {self.steps} steps{reused}, "
            f"{self.tokens} tokens, stopped by {self.stopped_by}, {sum(self.seconds.values()):.2f} s)"
        )

    def _repr_html_(self) -> str:
        """Return a table of the neighbors, as notebooks show it."""
        names = ("", "document", "distance", "source", "tokens", "loss before its steps")
        rows = []
        for rank, neighbor in enumerate(self.neighbors, 1):
            losses = " ".join(f"{loss:.3f}" for loss in neighbor.losses)
            cells = (rank, neighbor.id, f"{neighbor.distance:.4f}", neighbor.source or "", neighbor.tokens, losses)
            rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
        head = "".join(f"<th>{name}</th>" for name in names)
        seconds = ", ".join(f"{stage} {value:.2f}" for stage, value in self.seconds.items())
        caption = f"{escape(repr(self))}<br>seconds: {escape(seconds)}"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"

    @property
    def losses(self) -> list[float]:
        """Loss before each step, in the order of the steps."""
        return [loss for neighbor in self.neighbors for loss in neighbor.losses]

    def to_dict(self, *, query: bool = False) -> dict[str, Any]:
        """Return plain values, ready for JSON; the query's text only where asked for."""
        plain = asdict(self) | {"seconds": dict(self.seconds)}
        if not query:
            del plain["query"]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Return the report that `to_dict` made plain values of, in this version or an earlier one.

        Raises:
            AdaptError: something is missing or of another kind; the message names it.
        """
        values = _fields_of(cls, plain, "report")
        rows = values.get("neighbors", [])
        if not isinstance(rows, list):
            raise AdaptError(f"report: neighbors must be a list, got {type(rows).__name__}")
        values["neighbors"] = [
            TrainedNeighbor(
                **_fields_of(TrainedNeighbor, row, f"report: neighbor {i}")
                | {name: None if row.get(name) is None else tuple(row[name]) for name in ("span", "trained_span")}
            )
            for i, row in enumerate(rows)
        ]
        values["context"] = [
            ContextNeighbor(
                **_fields_of(ContextNeighbor, row, f"report: neighbor {i} in the context")
                | {"span": None if row.get("span") is None else tuple(row["span"])}
            )
            for i, row in enumerate(values.get("context", []))
        ]
        if values.get("experts") is not None:
            experts = _fields_of(ExpertsReport, values["experts"], "report: experts")
            experts["used"] = [
                UsedExpert(**_fields_of(UsedExpert, row, "report: expert")) for row in experts.get("used", [])
            ]
            values["experts"] = ExpertsReport(**experts)
        if values.get("guard") is not None:
            values["guard"] = GuardReport(**_fields_of(GuardReport, values["guard"], "report: guard"))
        values["seconds"] = Stages(values.get("seconds", {}))
        generations = values.get("generations", [])
        values["generations"] = [
            GenerationReport(**_fields_of(GenerationReport, row, "report: generation")) for row in generations
        ]
        return cls(**values)


def _fields_of(cls: type[Any], plain: Any, name: str) -> dict[str, Any]:
    """Return those of the values that a class has fields for; an AdaptError where one that it needs is missing."""
    if not isinstance(plain, Mapping):
        raise AdaptError(f"{name} must be an object, as a report's to_dict() gives it, got {type(plain).__name__}")
    for f in fields(cls):
        if f.name not in plain and f.default is MISSING and f.default_factory is MISSING:
            raise AdaptError(f"{name} must have {f.name!r}, as a report's to_dict() gives it, got none")
    return {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
