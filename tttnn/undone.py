"""A `with` block whose effects are undone however it ends, which Ctrl-C cuts short neither on its way in nor out.

Knows entering, leaving and the core's guard of both. Does not know what a block changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Generic, TypeVar

import tttnn._core as _core

T = TypeVar("T")


class UndoneBlock(ABC, Generic[T]):
    """A block that undoes what entering it did; `T` is what ``with ... as`` gives."""

    @abstractmethod
    def _enter(self) -> T:
        """Do what the block is for; where this raises or is interrupted, `undo` follows."""

    @abstractmethod
    def undo(self) -> None:
        """Undo as much of it as was done; may be called at any time, and again."""

    def _entered(self) -> T:
        return self._enter()

    def _undone(self) -> None:
        self.undo()

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    __enter__ = _core.undoing(_entered, _undone)
    __exit__ = _core.retried(_leave)
