"""What an adaptation's report says of how it was made, so that it can be repeated: settings, neighbors, experts.

Knows reports, and that nothing but what they name may take part. Does not know how a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..config import AdaptConfig
from ..errors import AdaptError
from ..retrieval.neighbors import Neighbor
from ..retrieval.retriever import Retriever
from .adaptation import Merging
from .experts import ChosenExperts, ExpertSource
from .report import AdaptReport, ContextNeighbor, TrainedNeighbor


@dataclass(frozen=True)
class Recorded:
    """An adaptation that was reported.

    Attributes:
        report: its report.
    """

    report: AdaptReport

    @classmethod
    def read(cls, report: AdaptReport | dict[str, Any], fingerprint: str) -> Self:
        """Take a report, or the dictionary that its `to_dict` gave.

        Args:
            report: of the adaptation.
            fingerprint: of the model that is to repeat it.

        Raises:
            AdaptError: the report is of another model.
        """
        if not isinstance(report, AdaptReport):
            report = AdaptReport.from_dict(report)
        if report.model != fingerprint:
            raise AdaptError(f"model must be the one of the report ({report.model[:16]}), got {fingerprint[:16]}")
        return cls(report)

    def settings(self, own: AdaptConfig) -> AdaptConfig:
        """Return the settings of the report, without a clock; those that do not change the weights are the trainer's.

        Raises:
            AdaptError: a setting for which another trainer must be made differs from `own`.
        """
        # Made into settings first, so that lists are tuples again and settings newer than the report have defaults.
        before = AdaptConfig.recorded(self.report.settings)
        fixed = before.differing(own, trains=True, per_call=False)
        if fixed:
            raise AdaptError(f"settings must be those of the report, but these differ: {', '.join(fixed)}")
        trains_alike = {name: getattr(own, name) for name in before.differing(own, trains=False)}
        return before.with_(**trains_alike).with_(deadline_ms=None)

    def neighbors(self, datastore: Retriever | None) -> list[Neighbor]:
        """Return the neighbors that were trained on; see `_read`."""
        return _read(self.report.neighbors, datastore)

    def context(self, datastore: Retriever | None) -> list[Neighbor]:
        """Return the neighbors that stood in the context; see `_read`."""
        return _read(self.report.context, datastore)

    def experts(self, source: ExpertSource | None) -> Merging | None:
        """Return what merges the same experts again; None where the mode used none.

        Raises:
            AdaptError: experts were merged, and there is no `source`.
        """
        chosen = self.report.experts
        if chosen is None:
            return None
        if chosen.used and source is None:
            raise AdaptError("replay must have the experts of the report, and the trainer has none")
        return lambda _: ChosenExperts(chosen, None if source is None else source.named(chosen.used))


def _read(rows: Sequence[TrainedNeighbor | ContextNeighbor], datastore: Retriever | None) -> list[Neighbor]:
    """Return neighbors of a report with their texts.

    Raises:
        AdaptError: there is no datastore, or a document is not there or has another text than the report's.
    """
    if not rows:
        return []
    if datastore is None:
        raise AdaptError("replay must have a datastore to read the neighbors from, got None")
    documents = datastore.documents
    neighbors = []
    for row in rows:
        try:
            document = documents[row.id]
        except IndexError as error:
            raise AdaptError(f"document {row.id} of the report must be in the datastore: {error}") from error
        neighbor = Neighbor(row.id, row.distance, document.text, document.meta, row.source, row.span)
        if neighbor.digest != row.digest:
            raise AdaptError(
                f"document {row.id} must have the text of the report (digest {row.digest}), got {neighbor.digest}"
            )
        neighbors.append(neighbor)
    return neighbors
