"""What the demo measured, as plain values. Does not know how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import models
from ..evaluation.catalogue import IN_CONTEXT, TTT_NN
from ..evaluation.results import GroupSummary, Summary


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One document's measurement: bits per byte by method, and the neighbors that were trained on."""

    name: str
    base: float
    in_context: float
    curve: dict[int, float]
    """Bits per byte by the number of neighbors that were trained on; 0: the base model."""
    neighbors: list[tuple[str, float]]
    """Name and distance, nearest first."""


@dataclass(slots=True)
class DemoResult:
    """What the demo measured. `seconds` has one entry for each stage; `total_seconds` are those of the whole run."""

    model_name: str
    seed: int
    corpus: str
    windows: int
    num_bytes: int
    left_out: int
    place: Path
    documents: list[HeldOut] = field(default_factory=list)
    summary: Summary | None = None
    prompt: str = ""
    truth: str = ""
    """How the document goes on after the prompt."""
    before: str = ""
    after: str = ""
    plot: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0

    @property
    def model(self) -> str:
        """The model's name in full."""
        return models.described(self.model_name) or self.model_name

    def totals(self, method: str = TTT_NN.name) -> list[GroupSummary]:
        """Return the rows of all documents together after each number of neighbors."""
        assert self.summary is not None
        return [row for row in self.summary.rows if row.group == "all" and row.method == method]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        total, rival = self.totals()[-1], self.totals(IN_CONTEXT.name)[-1]
        return {
            "model": self.model,
            "base_bits_per_byte": total.base_bits_per_byte,
            "in_context_bits_per_byte": rival.bits_per_byte,
            "adapted_bits_per_byte": total.bits_per_byte,
            "ratio": [total.ratio.value, total.ratio.low, total.ratio.high],
            "in_context_ratio": [rival.ratio.value, rival.ratio.low, rival.ratio.high],
            "seconds_per_document": {"in_context": rival.seconds, "adapted": total.seconds},
            "documents": total.documents,
            "num_neighbors": total.k,
            "curve": {str(row.k): row.bits_per_byte for row in self.totals()},
            "per_document": [
                {
                    "name": d.name,
                    "base": d.base,
                    "in_context": d.in_context,
                    "curve": {str(k): value for k, value in d.curve.items()},
                }
                for d in self.documents
            ],
            "seed": self.seed,
            "corpus_windows": self.windows,
            "corpus_bytes": self.num_bytes,
            "corpus_left_out": self.left_out,
            "plot": str(self.plot),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "total_seconds": round(self.total_seconds, 2),
        }
