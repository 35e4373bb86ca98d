"""torch's modes of the running thread, gradients and autocast: other ones for a block, or as they are, to be put back.

torch's own context managers are written in Python: a Ctrl-C in their last lines leaves the thread without gradients, or
products in bfloat16, for good. These here are left through the core, which an interrupt cannot cut short.

Knows torch's switches. Does not know what is computed between them.
"""

from __future__ import annotations

from abc import abstractmethod
from operator import call

import torch

from ..undone import UndoneBlock


class ThreadModes:
    """The modes of this thread as they were when it was made."""

    def __init__(self, *devices: str) -> None:
        """Take note of the modes, of autocast on these types of devices."""
        self._gradients = torch.is_grad_enabled()
        self._autocast = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in {*devices}
        ]
        self._nesting = _nesting()

    def put_back(self) -> None:
        """Put them back; may be called again."""
        torch.set_grad_enabled(self._gradients)
        for device, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        # torch drops its rounded copies of weights only where its own count of open blocks is 0.
        while _nesting() > self._nesting:
            torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def _nesting() -> int:
    """Return how many of torch's autocast blocks are open."""
    # In one pass through C: torch tells the count only as it changes it.
    return int(list(map(call, (torch.autocast_increment_nesting, torch.autocast_decrement_nesting)))[1])


class _Block(UndoneBlock[None]):
    """A block inside of which some mode differs; however it ends, all modes are then what they were."""

    def __init__(self, *devices: str) -> None:
        self._devices = devices
        self._before: ThreadModes | None = None

    @abstractmethod
    def _switch(self) -> None:
        """Set the mode."""

    def _enter(self) -> None:
        self._before = ThreadModes(*self._devices)
        self._switch()

    def undo(self) -> None:
        """Put back what was before it."""
        if self._before is not None:
            self._before.put_back()


class Threads(UndoneBlock[None]):
    """torch computes with so many threads inside of the block; None: as many as before."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._before: int | None = None

    def _enter(self) -> None:
        if self._count is not None:
            self._before = torch.get_num_threads()
            torch.set_num_threads(self._count)

    def undo(self) -> None:
        """Put back what was before it."""
        if self._before is not None:
            torch.set_num_threads(self._before)


class Gradients(_Block):
    """Operations are recorded for gradients inside of the block, or not."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled

    def _switch(self) -> None:
        torch.set_grad_enabled(self._enabled)


class Autocast(_Block):
    """Matrix products run in bfloat16 inside of the block, or in the type of their operands."""

    def __init__(self, device: str, *, bfloat16: bool) -> None:
        super().__init__(device)
        self._device = device
        self._bfloat16 = bfloat16

    def _switch(self) -> None:
        torch.set_autocast_enabled(self._device, self._bfloat16)
        if self._bfloat16:
            torch.set_autocast_dtype(self._device, torch.bfloat16)
