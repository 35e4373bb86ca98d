"""What a trainer asks for experts, and what a report holds of them.

Knows names, weights and digests. Does not know files, members or how an expert was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..config import AdaptConfig

if TYPE_CHECKING:
    from ..weights.low_rank_update import LowRankUpdate


@dataclass(frozen=True, slots=True)
class Member:
    """A document that an expert saw: its id, and the digest of its text."""

    id: int
    digest: str


@dataclass(frozen=True, slots=True)
class UsedExpert:
    """An expert that was merged: its name and weight, how many documents it saw, and a digest of these.

    `distance` is the squared Euclidean one of the query's vector from the center of the expert's cluster; None for the
    root, which has none.
    """

    name: str
    weight: float
    documents: int
    members: str
    distance: float | None = None


@dataclass(slots=True)
class ExpertsReport:
    """The experts of one query.

    `left_out` counts those that were not used, by reason: "deleted" (it saw a document that is gone), "excluded" (it
    saw a text that the caller excluded), "far" (the query's nearest document is farther than `expert_distance`, or the
    center of a cluster than `leaf_distance`), "untrained" (the expert of a near cluster is not there yet). Without the
    root no other expert is used, and none is counted. `distance` is that of the nearest document, where it was asked
    for.
    """

    used: list[UsedExpert] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    distance: float | None = None


@dataclass(frozen=True)
class ChosenExperts:
    """What is merged for a query, and what the report says of it. None: nothing."""

    report: ExpertsReport
    update: LowRankUpdate | None


class ExpertSource(Protocol):
    """Gives experts for a query."""

    def choose(
        self, query: str, config: AdaptConfig, excluded: Collection[str], *, distance: float | None
    ) -> ChosenExperts:
        """Return the experts for a query: the root, and those of the clusters nearest to it.

        Args:
            query: its text, by whose vector clusters are near.
            config: how many, how near, and how they share.
            excluded: digests of texts; an expert that saw one of them is left out.
            distance: of the query's nearest document; None where it has none or nothing was searched.

        Raises:
            FileNotFoundError: there are no experts.
            DatastoreMismatchError: there are experts of other models alone.
            IndexCorruptError: a file is damaged.
        """

    def named(self, used: Sequence[UsedExpert]) -> LowRankUpdate | None:
        """Return the update of experts that a report names.

        Raises:
            AdaptError: one of them is not there as it was.
        """

    def near(self, query: str, config: AdaptConfig) -> Mapping[str, Sequence[Member]]:
        """Return what the experts that a query may use have seen, by their names; see `choose`."""

    def max_length(self) -> int:
        """Return how many tokens of a document experts are trained on."""

    def digest(self) -> str:
        """Return what tells these experts from others: models, settings, documents and losses."""

    def members(self) -> Mapping[str, Sequence[Member]]:
        """Return what each expert that is trained has seen, by its name."""
