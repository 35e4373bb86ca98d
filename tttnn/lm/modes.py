"""Evaluation mode for the length of a block: dropout off, and each module back in its own mode afterwards.

Knows modules and their flag. Does not know weights, losses or what is computed inside of the block.
"""

from __future__ import annotations

from torch import nn

from ..undone import UndoneBlock


def eval_mode(model: nn.Module) -> EvalMode:
    """Return a context manager inside of which every module of a model is in evaluation mode.

    However the block ends, each module is then in the mode it had: a model may be partly in train mode, which
    ``model.train(flag)`` would not bring back.

    >>> with eval_mode(model):   # doctest: +SKIP
    ...     model(input_ids=ids)
    """
    return EvalMode(model)


class EvalMode(UndoneBlock[None]):
    """One block: which mode each module had before it. Made by `eval_mode`."""

    def __init__(self, model: nn.Module) -> None:
        # The flags themselves, not train() and eval(): a module may do more in those, which nothing would undo.
        self._before = [(module, module.training) for module in model.modules()]

    def _enter(self) -> None:
        for module, _ in self._before:
            module.training = False

    def undo(self) -> None:
        """Let each module have the mode that it had when this was made; may be called at any time, and again."""
        for module, training in self._before:
            module.training = training
