"""Which documents may be answers: a filter as it comes in a call, a flag or a line of JSON.

Knows the names of filters and their values; does not know which documents there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

_LISTED = 8  # sources that a message names


@dataclass(frozen=True, slots=True)
class Where:
    """A filter. None allows every document."""

    sources: frozenset[str] | None = None
    """Documents of these alone."""

    @classmethod
    def read(cls, given: Where | Mapping[str, str | Collection[str]] | None) -> Where:
        """Return a filter as it was given: itself, or by name as in ``{"source": ["Github", "ArXiv"]}``.

        Raises:
            ValueError: There is no filter of such a name.
            TypeError: A value is neither text nor a list of texts.
        """
        if given is None or isinstance(given, Where):
            return given or cls()
        if not isinstance(given, Mapping):
            raise TypeError(f"where must be a mapping like {{'source': ['Github']}}, got {type(given).__name__}")
        for name in given:
            if name != "source":
                raise ValueError(f"where must filter by source, got {name!r}")
        return cls(names_of("source", given["source"])) if given else cls()


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
