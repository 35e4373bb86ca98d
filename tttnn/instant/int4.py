"""Numbers in 4 bits with a scale for each 128 of them.

Knows arrays. Does not know what the numbers are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP = 128
"""Numbers that share a scale."""

_LARGEST = 7


def groups_of(count: int) -> int:
    """Return how many groups hold so many numbers."""
    return -(-count // GROUP)


def pack(numbers: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round numbers to 4 bits.

    Args:
        numbers: (n,), finite.

    Returns:
        (groups * 64,) bytes of two numbers each, and (groups,) scales.
    """
    padded = np.zeros((groups_of(len(numbers)), GROUP), np.float32)
    padded.reshape(-1)[: len(numbers)] = numbers
    scales: NDArray[np.float32] = (np.abs(padded).max(1) / np.float32(_LARGEST)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))
    rounded = np.clip(np.rint(padded / divisors[:, None]), -_LARGEST, _LARGEST).astype(np.int8)
    halves = (rounded + 8).astype(np.uint8).reshape(-1, 2)
    packed: NDArray[np.uint8] = np.bitwise_or(halves[:, 0], np.left_shift(halves[:, 1], np.uint8(4)))
    return packed, scales


def unpack(packed: NDArray[np.uint8], scales: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the first `count` numbers, (count,) float32."""
    halves = np.stack([packed & 15, packed >> 4], 1).astype(np.float32) - 8
    numbers = halves.reshape(-1, GROUP) * scales[:, None]
    return np.ascontiguousarray(numbers.reshape(-1)[:count], dtype=np.float32)
