"""Whether training fits in the memory that is free.

Knows sizes and the system's count of free bytes. Does not know what is trained or how.
"""

from __future__ import annotations

import logging

from ..errors import AdaptError

_log = logging.getLogger("tttnn")


def require_memory(weights: int, trained: int, *, best: bool, reused: int, rounded: bool) -> None:
    """Refuse training that cannot fit beside the model, on the CPU; a CUDA device reports for itself when it is full.

    Needed in float32: working weights, two moments and gradients, one block more for the best state, and one for each
    state kept for reuse. Training on rounded weights takes two bytes for each weight besides; the second copy of those
    that are trained is paid for by gradients in bfloat16.

    Args:
        weights: Elements of the model that lie in the machine's memory.
        trained: Those of them that are trained.
        best: Whether a guard keeps the best state.
        reused: States kept for reuse.
        rounded: Whether weights are rounded ahead to bfloat16.

    Raises:
        AdaptError: More is needed than is free.
    """
    needed = 4 * trained * (4 + best + reused) + 2 * weights * rounded
    _log.info(
        "training %d of %d million weights needs %.2f GB beside the model, %.2f GB of it for states kept",
        trained // 10**6,
        weights // 10**6,
        needed / 1e9,
        4 * trained * (best + reused) / 1e9,
    )
    available = _free_bytes()
    if available is not None and needed > available:
        kept = f", {reused} states kept for reuse" if reused else ""
        raise AdaptError(
            f"training must fit in memory: {trained:,} weights{kept} need {needed / 1e9:.1f} GB beside the model, and "
            f"{available / 1e9:.1f} GB are free. Choose a smaller model or train fewer weights (trainable, reuse)."
        )


def _free_bytes() -> int | None:
    """Return what the system says is free; None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
