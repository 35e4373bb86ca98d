"""What a request asks of the adaptation: the fields under ``tttnn``.

Knows their names, ranges and what this server can do. Does not know prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..dispatch.refusals import bad, without_value
from ..engines.cost import Work
from ..engines.pipe import Frame
from ..retrieval.where import EVERYTHING, Where
from ..settings import Config, setting
from .fields import Fields

_MOST_DIGESTS, _MOST_SOURCES = 1000, 1000


@dataclass(frozen=True)
class Asked(Config):
    """How the model is adapted for one request."""

    mode: Literal["exact", "instant", "auto", "base"] | None = setting(
        None, "exact: trained; instant: experts merged; auto: both, where there are experts; base: not adapted"
    )
    context_neighbors: int | None = setting(
        None,
        "neighbors read before a text; none: as the server was started, or 4 with auto and experts",
        minimum=0,
    )
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
    where: Where
    exclude_digests: tuple[str, ...]
    mode: Literal["exact", "instant", "auto", "base"]
    """How the answer is made; base: by the model as it is."""
    neighbors: int
    """How many will be trained on, where the mode trains."""
    context_neighbors: int
    """How many are read before a text."""

    @property
    def trained(self) -> int:
        """How many neighbors a prediction counts as trained: in the mode auto it is a deadline that says."""
        return self.neighbors if self.mode == "exact" else 0

    def work(self, facts: Frame, adaptations: int, texts: int, **more: int) -> Work:
        """Return how much it is to adapt so often, and to read so many texts behind neighbors, and `more`."""
        adaptations = 0 if self.mode == "base" else adaptations
        return Work(
            adaptations=adaptations,
            neighbors=adaptations * self.trained,
            merges=adaptations if self.mode in ("instant", "auto") else 0,
            context_neighbors=0 if self.mode == "base" else texts * self.context_neighbors,
            token_limit=facts["settings"]["max_neighbor_tokens"],
            **more,
        )

    def payload(self, tenant: str) -> Frame:
        """Return what the engine needs; `tenant` is who asks, as far as keys tell."""
        return {
            "mode": self.mode,
            "num_neighbors": self.neighbors,
            "context_neighbors": self.context_neighbors,
            "guard": self.asked.guard,
            "compare": self.asked.compare,
            "events": self.asked.events,
            "salt": f"{tenant}/{self.asked.cache_salt}",
            "where": self.where.to_dict(),
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
    where, digests = _where(own), tuple(own.texts("exclude_digests", _MOST_DIGESTS))
    asked = own.settings(Asked)
    own.end()
    settings = facts["settings"]
    mode = _mode(asked, facts)
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
    context = settings["context_neighbors"] if asked.context_neighbors is None else asked.context_neighbors
    if context is None:
        context = 4 if mode == "auto" else 0
    if context > max(most_neighbors, settings["context_neighbors"] or 0):
        raise bad(f"tttnn.context_neighbors must be at most {most_neighbors}", param="tttnn.context_neighbors")
    if mode == "exact" and neighbors == context == 0:
        mode = "base"
    return Adapting(asked, query, where, digests, mode, neighbors, context)


def modes(facts: Frame) -> list[str]:
    """Return the modes that a request may ask for now."""
    return ["exact", "base", "auto", *(["instant"] if _has_experts(facts) else [])]


def _has_experts(facts: Frame) -> bool:
    return Path(facts["experts"]).exists()


def _mode(asked: Asked, facts: Frame) -> Literal["exact", "instant", "auto", "base"]:
    """Return how a request is answered: as it says, else as the server was started."""
    mode: Literal["exact", "instant", "auto", "base"] = asked.mode or facts["settings"]["mode"]
    if mode not in ("instant", "auto"):
        return mode
    if not _has_experts(facts):
        if mode == "auto":
            return "exact"
        raise bad(
            "tttnn.mode must be exact, base or auto, because the datastore has no experts of this model. "
            f"Train them with: tttnn precompute DATASTORE --model {facts['model']['name']}",
            param="tttnn.mode",
            code="unsupported",
        )
    if facts["settings"]["guard"] != "none":
        raise bad(
            "tttnn.mode must be exact or base on a server that guards its answers. Start it with: "
            "tttnn serve --guard none",
            param="tttnn.mode",
            code="unsupported",
        )
    return mode


def _where(own: Fields) -> Where:
    given: Any = own.take("where")
    if given is None:
        return EVERYTHING
    filters = Fields(given, "tttnn.where.")
    by_source, draw = "source" in filters.rest(), {"fraction", "seed"} & filters.rest().keys()
    sources = filters.texts("source", _MOST_SOURCES)
    named = {"source": sources} if by_source else {}
    drawn = {name: filters.take(name) for name in draw}
    filters.end()
    if not sources and (by_source or not draw):
        raise filters.wrong("source", "must name at least one source")
    try:
        return Where.read(named | drawn)
    except (TypeError, ValueError) as error:
        rule = without_value(str(error))
        raise filters.wrong(*rule.split(" ", 1)) from None
