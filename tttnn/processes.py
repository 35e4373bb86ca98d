"""What every worker process does of itself: it ends with the one that started it.

Knows processes. Does not know what is done in them.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process when the one that started it is gone, even by a signal that leaves it no time to say so.

    A pipe says it too, but is read only between pieces of work, and one of these can take minutes.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent-watch", daemon=True).start()
