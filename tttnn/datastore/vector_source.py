"""Where the vectors of a build come from: an embedder that reads texts, or files that hold them already.

Knows what a builder asks for. Does not know segments on disk, nor how far a build is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import Progress
from ..embedding.batches import GROUP
from ..embedding.embed_report import EmbedReport
from .manifest import EmbedderEntry

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder


@dataclass(frozen=True)
class Units:
    """Texts that vectors stand for, and what names one of them in messages."""

    texts: list[str]
    name_of: Callable[[int], str]


class VectorSource(Protocol):
    """Makes the vectors of a build's units, some at a time, in their order."""

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""

    @property
    def batch(self) -> int:
        """Units that are made at a time, and lost where a build is interrupted."""

    @property
    def embedder(self) -> Embedder | None:
        """What cuts documents into passages; None where the vectors are those of whole documents."""

    def entry(self) -> EmbedderEntry:
        """Return what the manifest says of what made the vectors."""

    def plan(self) -> dict[str, Any]:
        """Return what a run that continues an interrupted build must have in common with it."""

    def segment_documents(self, number: int, most: int) -> int:
        """Return the most documents of a segment, by its place in this build, where the settings allow `most`."""

    def vectors(
        self, number: int, begin: int, end: int, units: Callable[[], Units], *, report: EmbedReport, progress: Progress
    ) -> tuple[NDArray[np.float32], int]:
        """Return the vectors of units [begin, end) of a segment, (n, dim), and the bytes that were read for them.

        Args:
            number: The segment's place in this build.
            begin: The first unit.
            end: The unit after the last.
            units: Reads their texts.
            report: Tokens, truncated and empty texts are added to it.
            progress: Called with a stage and units done of these.
        """


class EmbeddedTexts:
    """Vectors that an embedder makes of the texts."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.dim = embedder.dim

    @property
    def batch(self) -> int:
        """The embedder's group: groups are the same after an interruption, so vectors are too, to the last bit."""
        return GROUP

    @property
    def embedder(self) -> Embedder:
        """The embedder."""
        return self._embedder

    def entry(self) -> EmbedderEntry:
        """Return the embedder's name and what identifies it."""
        return EmbedderEntry(self._embedder.name, self._embedder.precision, self._embedder.identity)

    def plan(self) -> dict[str, Any]:
        """Return what identifies the embedder, and its settings."""
        embedder = self._embedder
        return {
            "embedder": embedder.identity,
            "precision": embedder.precision,
            "embed": embedder.config.to_dict(),
        }

    def segment_documents(self, number: int, most: int) -> int:
        """Return `most`."""
        return most

    def vectors(
        self, number: int, begin: int, end: int, units: Callable[[], Units], *, report: EmbedReport, progress: Progress
    ) -> tuple[NDArray[np.float32], int]:
        """Embed the texts."""
        read = units()
        vectors = self._embedder.embed(read.texts, name_of=read.name_of, report=report, progress=progress)
        return vectors, sum(len(text) if text.isascii() else len(text.encode()) for text in read.texts)
