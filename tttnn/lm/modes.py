"""Evaluation mode for the length of a block: dropout off, and each module back in its own mode afterwards.

Knows modules and their flag. Does not know weights, losses or what is computed inside of the block.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import nn

import tttnn._core as _core


def eval_mode(model: nn.Module) -> EvalMode:
    """Return a context manager inside of which every module of a model is in evaluation mode.

    However the block ends, each module is then in the mode it had: a model may be partly in train mode, which
    ``model.train(flag)`` would not bring back.

    >>> with eval_mode(model):   # doctest: +SKIP
    ...     model(input_ids=ids)
    """
    return EvalMode(model)


class EvalMode:
    """One block: which mode each module had before it. Made by `eval_mode`."""

    def __init__(self, model: nn.Module) -> None:
        # The flags themselves, not train() and eval(): a module may do more in those, which nothing would undo.
        self._before = [(module, module.training) for module in model.modules()]

    def _enter(self) -> Self:
        for module, _ in self._before:
            module.training = False
        return self

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Let each module have the mode that it had when this was made; may be called at any time, and again."""
        for module, training in self._before:
            module.training = training

    __enter__ = _core.undoing(_enter, put_back)
    __exit__ = _core.retried(_leave)
