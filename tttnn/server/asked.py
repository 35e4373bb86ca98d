"""What a request asks of the adaptation: the fields under ``tttnn``.

Knows their names, ranges and what this server can do. Does not know prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..dispatch.refusals import bad
from ..engines.pipe import Frame
from ..settings import Config, setting
from .fields import Fields

_MOST_DIGESTS, _MOST_SOURCES = 1000, 1000


@dataclass(frozen=True)
class Asked(Config):
    """How the model is adapted for one request."""

    mode: Literal["auto", "exact", "base", "instant"] = setting("auto", "auto and exact: trained; base: not adapted")
    num_neighbors: int | None = setting(None, "neighbors to train on; none: as the server was started", minimum=0)
    deadline_ms: float | None = setting(
        None, "milliseconds until the whole answer must be there", minimum=1, maximum=86_400_000
    )
    guard: Literal["none", "query"] | None = setting(None, "as the setting of that name")
    compare: bool = setting(False, "also the answer of the model as it is")
    events: bool = setting(False, "a stream also tells neighbors and steps")
    cache_salt: str = setting("", "states kept for reuse are told apart by it")


@dataclass(frozen=True)
class Adapting:
    """What a request asks of the adaptation, checked against what this server can do."""

    asked: Asked
    query: str | None
    """What to search with; None: the prompt."""
    sources: tuple[str, ...]
    exclude_digests: tuple[str, ...]
    neighbors: int
    """How many will be trained on; 0: the model stays as it is."""

    @property
    def mode(self) -> str:
        """How the answer is made: "exact" or "base"."""
        return "exact" if self.neighbors else "base"

    def payload(self, tenant: str) -> Frame:
        """Return what the engine needs; `tenant` is who asks, as far as keys tell."""
        return {
            "num_neighbors": self.neighbors,
            "guard": self.asked.guard,
            "compare": self.asked.compare,
            "events": self.asked.events,
            "salt": f"{tenant}/{self.asked.cache_salt}",
            "sources": list(self.sources),
            "exclude_digests": list(self.exclude_digests),
        }


def adapting(fields: Fields, facts: Frame, most_neighbors: int) -> Adapting:
    """Take the field ``tttnn`` out of a request.

    Args:
        fields: of the request.
        facts: of the engine.
        most_neighbors: that one request may ask for.

    Raises:
        Refused: a field is wrong, or asks for what this server cannot do; the message then says what to run.
    """
    own = Fields(fields.take("tttnn", {}), "tttnn.")
    query = own.text("query")
    if query is not None and not query.strip():
        raise own.wrong("query", "must be a text that is not empty")
    sources, digests = _where(own), tuple(own.texts("exclude_digests", _MOST_DIGESTS))
    asked = own.settings(Asked)
    own.end()
    if asked.mode == "instant":
        raise bad(
            "tttnn.mode instant is not there: this version has no instant mode. Use exact, base or auto",
            param="tttnn.mode",
            code="unsupported",
        )
    settings = facts["settings"]
    if asked.guard is not None and asked.guard != settings["guard"]:
        raise bad(
            f"tttnn.guard must be {settings['guard']}, as the server was started. "
            f"Start it with: tttnn serve --guard {asked.guard}",
            param="tttnn.guard",
            code="unsupported",
        )
    neighbors = settings["num_neighbors"] if asked.num_neighbors is None else asked.num_neighbors
    if neighbors > max(most_neighbors, settings["num_neighbors"]):
        raise bad(f"tttnn.num_neighbors must be at most {most_neighbors}", param="tttnn.num_neighbors")
    return Adapting(asked, query, sources, digests, 0 if asked.mode == "base" else neighbors)


def _where(own: Fields) -> tuple[str, ...]:
    where: Any = own.take("where")
    if where is None:
        return ()
    filters = Fields(where, "tttnn.where.")
    sources = tuple(filters.texts("source", _MOST_SOURCES))
    filters.end()
    if not sources:
        raise filters.wrong("source", "must name at least one source")
    return sources
