"""Whether training fits in the memory that is free: on the machine, and in every control group around this process.

Knows sizes and what the system counts. Does not know what is trained or how.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ..errors import AdaptError

_log = logging.getLogger("tttnn")

_V1_MOST = 1 << 60
"""Version 1 of control groups writes a number of about 2^63 where there is no limit."""


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
    available = free_bytes()
    if available is not None and needed > available:
        kept = f", {reused} states kept for reuse" if reused else ""
        raise AdaptError(
            f"training must fit in memory: {trained:,} weights{kept} need {needed / 1e9:.1f} GB beside the model, and "
            f"{available / 1e9:.1f} GB are free. Choose a smaller model or train fewer weights (trainable, reuse)."
        )


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: the least of what machine and control groups leave.

    Args:
        root: Where ``proc`` is.

    Returns:
        None where the system says nothing.
    """
    counts = [*_machine(root), *_groups(root)]
    return min(counts) if counts else None


def _machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process leaves, its own and those around it, in versions 1 and 2."""
    mounts = [_Mount(line) for line in _lines(root / "proc/self/mountinfo") if " - cgroup" in line]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        for mount in mounts:
            if mount.version == 1 and "memory" in controllers.split(",") and "memory" in mount.options:
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            elif mount.version == 2 and controllers == "":
                names = ("memory.max", "memory.current", "inactive_file")
            else:
                continue
            yield from _along(mount.folders(root, group), *names)


def _along(folders: list[Path], limit: str, usage: str, cache: str) -> Iterator[int]:
    for folder in folders:
        most, used = _number(folder / limit), _number(folder / usage)
        if most is None or most >= _V1_MOST:
            continue
        # Pages of files that nobody used lately are given up before the limit is met.
        idle = next(
            (int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{cache} ")), 0
        )
        yield max(0, most - max(0, (used or 0) - idle))


class _Mount:
    """One line of mountinfo: which part of which hierarchy of control groups is seen where."""

    def __init__(self, line: str) -> None:
        fields, _, rest = line.partition(" - ")
        self._part, self._place = (_unescaped(field) for field in fields.split()[3:5])
        self.version = 2 if rest.split()[0] == "cgroup2" else 1
        self.options = rest.split()[-1].split(",")

    def folders(self, root: Path, group: str) -> list[Path]:
        """Return the folders of a group and of those around it, as far as the mount shows them."""
        top = root / self._place.lstrip("/")
        # In a container the group's name may be the machine's, while the mount shows the container's part alone.
        part = self._part.rstrip("/")
        shown = group[len(part) :] if (group + "/").startswith(part + "/") else ""
        inner = top.joinpath(*(name for name in shown.split("/") if name not in ("", "..")))
        return [inner, *(folder for folder in inner.parents if folder.is_relative_to(top))]


def _unescaped(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None where there is none, or "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None
