"""What a corpus held that is no document: counted, the first kept, all written to a file where one is asked for.

Knows places and reasons. Does not know files of texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from ..files import check_target, strict_json

_KEPT = 100_000
_SHOWN_BYTES = 1 << 20  # of a line


class Rejected(NamedTuple):
    """What a reader could not take as a document."""

    where: int | str
    """Line, element or row, counted from 1, where one file is read; else ``path`` or ``path:line``."""
    reason: str


class Rejects:
    """Takes down what is left out.

    Args:
        path: A file that receives one JSON object (where, reason; line and content where there is a line) for each.
            None: no file.
        on_reject: Called with place and reason of each.
    """

    def __init__(self, path: Path | None = None, on_reject: Callable[[int | str, str], None] | None = None) -> None:
        self.first: list[Rejected] = []
        """The rows left out, the first hundred thousand of them."""
        self.count = 0
        """How many rows were left out, all of them counted."""
        self._on_reject = on_reject
        if path is not None:
            check_target(path, force=True)
        self._file: IO[str] | None = None if path is None else path.open("w", encoding="utf-8")

    @property
    def inode(self) -> tuple[int, int] | None:
        """Device and inode of the file."""
        if self._file is None:
            return None
        state = os.fstat(self._file.fileno())
        return state.st_dev, state.st_ino

    def add(self, where: int | str, reason: str, number: int | None = None, line: bytes | None = None) -> None:
        """Take one down: its place, its reason, and its line with the number of that."""
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(Rejected(where, reason))
        if self._file is not None:
            row: dict[str, object] = {"where": where, "reason": reason}
            if line is not None:
                content = line[:_SHOWN_BYTES].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
                row |= {"line": number, "content": content}
            self._file.write(strict_json(row, ascii_only=True) + "\n")
        if self._on_reject is not None:
            self._on_reject(where, reason)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
