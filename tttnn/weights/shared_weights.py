"""SharedWeights: one copy of a model's weights that several processes read and none can write.

Knows bytes, what lies where in them, and how a process hands them to another. Does not know models or training: the
arena lays out, compares and uses.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from multiprocessing import reduction
from typing import Any, Self

import torch

import tttnn._core as _core

from ..errors import AdaptError


@dataclass(frozen=True)
class SharedTensor:
    """One tensor of the model: every name it goes by, what the arena does with it, and its bytes in the block."""

    names: tuple[str, ...]
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    nbytes: int


class SharedWeights:
    """The pristine weights of a model in memory that processes share: n workers, one copy. Linux only.

    Made by `WeightArena.share`, handed to other processes, and used there in place of a pristine block of their own:

    >>> weights = WeightArena(model).share()              # doctest: +SKIP
    >>> Process(target=work, args=(weights,)).start()                     # doctest: +SKIP
    >>> arena = WeightArena(model, shared=weights)        # in `work`, after loading the same model
    ...                                                                   # doctest: +SKIP

    It is picklable for a process that multiprocessing starts (spawn, forkserver) and through its pipes and queues: the
    file descriptor travels, no weight. A process that is started may outlive the one that made the block; the memory is
    free when the last `SharedWeights` and the last arena on it are gone. A pickle that is sent through a pipe or queue
    must be received while the sender lives, and once.

    The system refuses every write to the block. A process sees it as memory of its own that is copied when written: a
    stray write to a pristine weight costs that process one page, changes nothing for the others, and is found as in a
    private block, by the arena's ``begin()`` or `verify()`.
    """

    def __init__(self, memory: _core.SharedMemory, tensors: Sequence[SharedTensor]) -> None:
        self._memory = memory
        self._tensors = tuple(tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self._memory.size

    def described(self) -> tuple[int, list[list[Any]]]:
        """Return the file descriptor, which stays this object's own, and what lies in the block, as plain values.

        With both, another process makes its own `SharedWeights` of them, whatever way it was started; see `of`.
        """
        rows = [
            [
                *(list(tensor.names), tensor.kind, str(tensor.dtype).removeprefix("torch.")),
                *(list(tensor.shape), list(tensor.stride), tensor.offset, tensor.nbytes),
            ]
            for tensor in self._tensors
        ]
        return self._memory.fileno(), rows

    @classmethod
    def of(cls, descriptor: int, rows: Sequence[Sequence[Any]]) -> Self:
        """Take over weights from the descriptor and rows that `described` gave in another process.

        Args:
            descriptor: an open one of this process; it stays the caller's.
            rows: what lies in the block.
        """
        tensors = tuple(
            SharedTensor(tuple(names), kind, getattr(torch, dtype), tuple(shape), tuple(stride), offset, nbytes)
            for names, kind, dtype, shape, stride, offset, nbytes in rows
        )
        size = os.fstat(descriptor).st_size
        return cls(_core.SharedMemory(descriptor, size), tensors)

    def block(self) -> _core.Block:
        """Return the block as this process sees it; it may outlive this object."""
        return _core.Block(self._memory)

    def require_layout(self, tensors: Sequence[SharedTensor]) -> None:
        """Compare what this process would lay out with what lies in the block.

        Raises:
            AdaptError: They differ; the message names the first tensor that does, and how.
        """
        for tensor, expected in zip(tensors, self._tensors, strict=False):
            for field in fields(SharedTensor):
                now, shared = getattr(tensor, field.name), getattr(expected, field.name)
                if now != shared:
                    raise AdaptError(
                        f"{tensor.names[0]} must have {field.name} {shared} as in the shared weights, got {now}. "
                        "Load the same model in every process, and train the same parameters."
                    )
        if len(tensors) != len(self._tensors):
            raise AdaptError(
                f"model must have the {len(self._tensors)} tensors of the shared weights, got {len(tensors)}. "
                "Load the same model in every process."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (reduction.DupFd(self._memory.fileno()), self._memory.size, self._tensors)


def _receive(sent: Any, size: int, tensors: tuple[SharedTensor, ...]) -> SharedWeights:
    descriptor = sent.detach()
    try:
        return SharedWeights(_core.SharedMemory(descriptor, size), tensors)
    finally:
        os.close(descriptor)
