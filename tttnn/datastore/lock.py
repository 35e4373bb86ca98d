"""One writer of a datastore directory at a time; readers are not held.

Knows the lock's file. Does not know what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DatastoreLockedError
from ..files import explained, lock_file, require_regular

LOCK = ".lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a datastore directory against other writers; readers are not held.

    Raises:
        DatastoreLockedError: Another process or thread holds it.
    """
    require_regular(path / LOCK)
    with explained(path), open(path / LOCK, "a") as file:
        try:
            lock_file(file)
        except BlockingIOError:
            raise DatastoreLockedError(f"{path}: another builder is at work. Wait until it ends.") from None
        yield
