"""Which documents may be answers: a filter as it comes in a call, a flag or a line of JSON.

Knows the names of filters and their values; does not know which documents there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LISTED = 8  # sources that a message names
_FILTERS = ("source", "fraction", "seed")
_WORD = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64


@dataclass(frozen=True, slots=True)
class Where:
    """A filter. None allows every document; of several conditions all must hold.

    Which documents a fraction holds depends on their ids and the seed alone: a larger fraction of the same seed holds
    every document of a smaller one, and those that are appended later change nothing among the others. How many there
    are is about the fraction of all, as of as many draws.

    Raises:
        TypeError: The fraction is no number, or the seed no whole number.
        ValueError: One of them is out of its range, or a seed comes without a fraction.
    """

    sources: frozenset[str] | None = None
    """Documents of these alone."""
    fraction: float | None = None
    """Documents drawn at random, above 0 and at most 1: what a datastore of that size would hold."""
    seed: int = 0
    """Of the draw."""
    first_id: int = 0
    """The id that a document of id 0 has among all of a cluster, by which it is drawn."""

    def __post_init__(self) -> None:
        if self.fraction is not None:
            object.__setattr__(self, "fraction", checked_fraction("fraction", self.fraction))
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise TypeError(f"seed must be a whole number, got {self.seed!r}")
        if not 0 <= self.seed <= _WORD:
            raise ValueError(f"seed must be between 0 and {_WORD}, got {self.seed}")
        if self.seed and self.fraction is None:
            raise ValueError(f"seed must come with a fraction, whose draw it is of, got {self.seed} alone")

    @classmethod
    def read(cls, given: Where | Mapping[str, Any] | None) -> Where:
        """Return a filter as it was given: itself, or by name.

        As in ``{"source": ["Github", "ArXiv"]}`` or ``{"fraction": 0.1, "seed": 3}``.

        Raises:
            ValueError: There is no filter of such a name, or a value is out of its range.
            TypeError: A value is of another type.
        """
        if given is None or isinstance(given, Where):
            return given or EVERYTHING
        if not isinstance(given, Mapping):
            raise TypeError(f"where must be a mapping like {{'source': ['Github']}}, got {type(given).__name__}")
        for name in given:
            if name not in _FILTERS:
                raise ValueError(f"where must filter by source or fraction, got {name!r}")
        sources = names_of("source", given["source"]) if "source" in given else None
        return cls(sources, given.get("fraction"), given.get("seed", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `read` takes; empty where every document is allowed."""
        sources = {} if self.sources is None else {"source": sorted(self.sources)}
        return sources | ({} if self.fraction is None else {"fraction": self.fraction, "seed": self.seed})

    @property
    def draws(self) -> bool:
        """Whether some documents are left out at random."""
        return self.fraction is not None and self.fraction < 1

    def shifted(self, first_id: int) -> Where:
        """Return the same filter for a shard, whose ids begin anew: `first_id` is its document 0 in the cluster."""
        return replace(self, first_id=first_id)

    def drawn(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which documents a fraction holds, (n,), by their ids."""
        if self.fraction is None:
            return np.ones(len(ids), np.bool_)
        # SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) from a state that the seed gives, id steps on.
        state = ids.astype(np.uint64) + np.uint64(self.first_id)
        state *= np.uint64(_STEP)
        state += np.uint64(_mixed(self.seed))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
        state ^= state >> np.uint64(31)
        chosen: NDArray[np.bool_] = (state >> np.uint64(11)) * 2.0**-53 < self.fraction
        return chosen


EVERYTHING = Where()
"""The filter that allows every document."""


def _mixed(value: int) -> int:
    """Return a seed's place on SplitMix64's way, so that seeds beside each other draw nothing alike."""
    value = (value + _STEP) & _WORD
    value = ((value ^ (value >> 30)) * _FIRST) & _WORD
    value = ((value ^ (value >> 27)) * _SECOND) & _WORD
    return value ^ (value >> 31)


def where_of(where: Where | Mapping[str, Any] | None, source: str | Collection[str] | None) -> Where:
    """Return the filter of a call that takes `source` as a short form of one.

    Raises:
        ValueError: Both are given, or as `Where.read`.
    """
    if source is None:
        return Where.read(where)
    if where is not None:
        raise ValueError(f"source must not be given beside where, got {source!r} and {where!r}")
    return Where(names_of("source", source))


def checked_fraction(what: str, value: object) -> float:
    """Return a share of documents as a plain float.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0 and at most 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(f"{what} must be above 0 and at most 1, got {value!r}")
    return share


def names_of(what: str, value: str | Iterable[str]) -> frozenset[str]:
    """Return one name, or several, as a set.

    Raises:
        ValueError: There is none.
        TypeError: A value is neither text nor a list of texts.
    """
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what} must be a name or a list of names, got {name!r}")
    if not names:
        raise ValueError(f"{what} must name at least one, got none")
    return frozenset(names)


def check_sources(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse a source that no document has.

    Raises:
        ValueError: There is no document of a source.
    """
    for name in sorted(set(names) - set(known)):
        if not known:
            raise ValueError(f"source must be one that a document has, but no document has one, got {name!r}")
        near = get_close_matches(name, known, n=_LISTED, cutoff=0.6)
        shown = near or sorted(known)[:_LISTED]
        more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
        raise ValueError(f"source must be one of {', '.join(shown)}{more}, got {name!r}")
