"""What the stages of a build have done, how fast, and how long the rest will take. Knows no files."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import Any

_KIB = 1024  # Linux counts resident memory so


@dataclass
class StageReport:
    """One stage of a build: ingest, dictionary, passages, embed or index."""

    done: int = 0
    """Documents, or vectors in the stages embed and index, that are done; those of an interrupted build included."""
    total: int | None = None
    """All of them, where it is known."""
    resumed: int = 0
    """How many of `done` an interrupted build had done."""
    tokens: int = 0
    """Tokens that this run has read."""
    bytes: int = 0
    """Bytes of text, or of vectors in the stage index, that this run has read."""
    seconds: float = 0.0
    """Seconds that the stage took in this run."""

    @property
    def rates(self) -> dict[str, float]:
        """Documents (or vectors), tokens and bytes a second in this run; what was not counted is left out."""
        if self.seconds <= 0:
            return {}
        counts = {"documents": self.done - self.resumed, "tokens": self.tokens, "bytes": self.bytes}
        return {name: count / self.seconds for name, count in counts.items() if count > 0}


@dataclass
class BuildReport:
    """What a build, an append or an import has cost. Filled while it runs, so progress can show it."""

    stages: dict[str, StageReport] = field(default_factory=dict)
    """The stages by name, in the order in which they began; a stage that an earlier run had finished may be missing."""
    peak_memory_bytes: int = 0
    """The most memory that the process has held so far, at any time of its life."""
    _started: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    def begin(self, name: str, done: int = 0, total: int | None = None) -> StageReport:
        """Start a stage's clock."""
        self.stages[name] = StageReport(done=done, resumed=done, total=total)
        self._started[name] = time.perf_counter()
        return self.stages[name]

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Note how far a stage is."""
        stage = self.stages[name]
        stage.done, stage.total = done, total
        stage.seconds = time.perf_counter() - self._started[name]
        self.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "stages": {
                name: {
                    "done": stage.done,
                    "resumed": stage.resumed,
                    "seconds": round(stage.seconds, 3),
                    **{f"{what}_per_second": round(rate, 1) for what, rate in stage.rates.items()},
                }
                for name, stage in self.stages.items()
            },
            "peak_memory_bytes": self.peak_memory_bytes,
        }
