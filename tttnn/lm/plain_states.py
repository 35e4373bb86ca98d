"""What a model's modules hold beside their weights, noted and put back: plain attributes, and which buffers there are.

Some architectures keep what they computed as attributes of their modules: recurrent states, tables of positions. Left
there, they would carry one text's numbers to the next, and a graph of gradients that nobody can copy.

Knows modules. Does not know weights, losses or what is computed meanwhile.
"""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import nn


class PlainStates:
    """What the modules of a model held when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._before: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (held, dict(held)) for module in model.modules() for held in (vars(module), vars(module)["_buffers"])
        ]

    def put_back(self) -> None:
        """Let each module hold that again, but for its mode, which is `EvalMode`'s; may be called again."""
        for held, before in self._before:
            if len(held) == len(before) and all(map(is_, held.values(), before.values())):
                continue
            for name in [name for name in held if name not in before]:
                del held[name]
            for name, value in before.items():
                if name != "training":
                    held[name] = value
