"""What an engine process loads, as plain values that travel to it.

Knows names and settings. Does not import what loads them: the HTTP process has no torch.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..config import AdaptConfig, ScoreConfig, SelectionConfig


@dataclass(frozen=True)
class EngineRecipe:
    """A model, a datastore, and how to adapt the one to the other's documents.

    `model` and `embedder` are demo names, hub ids or directories; an embedder of None is the datastore's own. `name` is
    what clients call the model; None: `model`'s last part. `threads` are torch's in each engine; None: all cores.
    `device` is torch's name of a device, `dtype` its name of the type of the model's weights.
    """

    model: str
    datastore: str
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    embedder: str | None = None
    name: str | None = None
    threads: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    verify_every: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.name or last_part(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Return what `to_dict` was made from."""
        kinds: dict[str, Any] = {"adapt": AdaptConfig, "selection": SelectionConfig, "score": ScoreConfig}
        return cls(**{name: kinds[name](**value) if name in kinds else value for name, value in plain.items()})


def last_part(name: str) -> str:
    """Return what clients call a model: a hub id or demo name as it is, of a directory its last part."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name
