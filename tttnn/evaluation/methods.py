"""All methods by name: measured side by side, with the same scored tokens and the same context rule for each.

Knows which methods there are. Does not know files, groups or statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .case import Case
from .catalogue import BASE
from .context_methods import InContext, Together
from .dynamic_evaluation import DynamicEvaluation
from .expert_methods import Auto, Instant, InstantContext
from .index_size import IndexSize
from .interpolation import Interpolation
from .lab import Lab
from .measurement import Measurement, Method
from .records import Point
from .training_methods import Guard, Lora, Reference, Sift, TestTimeTraining


class Base:
    """The model as it is."""

    name = BASE.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return nothing: there are none."""
        return {}

    def measure(self, case: Case) -> Measurement:
        """Score once."""
        scored = case.base()
        return Measurement([Point(0, scored.nats, scored.query_nats, 0, 0, 0)], {0: 0.0}, {"score": scored.seconds})


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Base(),
        TestTimeTraining(),
        Sift(),
        Guard(),
        Lora(),
        InContext(),
        Together(),
        Instant(),
        InstantContext(),
        Auto(),
        DynamicEvaluation(),
        Interpolation(),
        Reference(),
        IndexSize(),
    )
}


def methods_named(names: Sequence[str]) -> list[Method]:
    """Return methods by name, base first in any case.

    Raises:
        ConfigError: there is no such method.
    """
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return [METHODS[name] for name in dict.fromkeys((BASE.name, *names))]
