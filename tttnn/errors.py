"""Every exception tttnn raises of its own, and how messages name several things. Knows nothing of what raises them.

Builtins stay builtins: a wrong id is an IndexError, a missing file a FileNotFoundError, a bad argument or a closed
store a ValueError. A message is *subject, rule, value*; for files *path: where, what*; then the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable


class TttnnError(Exception):
    """Base of all errors of tttnn."""


class ConfigError(TttnnError, ValueError):
    """A setting has a value it may not have."""


class StoreError(TttnnError):
    """A text store cannot be used."""


class StoreCorruptError(StoreError):
    """Bytes of a store disagree with a checksum, a size or a table."""


class StoreVersionError(StoreError):
    """The store was written by a newer format."""


class IndexCorruptError(TttnnError):
    """An index or passage file disagrees with its manifest."""


class DatastoreLockedError(TttnnError):
    """Another builder holds the datastore."""


class DatastoreMismatchError(TttnnError, ValueError):
    """Store, index and embedder do not belong together."""


class EmbeddingError(TttnnError):
    """An embedding is not finite; the message names the document."""


class UnknownModelError(TttnnError, ValueError):
    """There is no such demo model, hub id or directory, or what it holds is not a whole model of the kind."""


class AdaptError(TttnnError, RuntimeError):
    """Adapting to a query failed; the weights are restored."""


class NonFiniteLossError(AdaptError):
    """The loss or gradient became NaN or infinite; the message names the neighbor."""


class RestoreError(AdaptError):
    """A parameter moved, changed shape or was written since it was captured."""


class RefusedError(TttnnError, RuntimeError):
    """A trainer behind a queue does not answer: too many wait, a deadline would be missed, its engine ended.

    Attributes:
        code: why, in a word: queue_full, queue_too_long, would_miss_deadline, draining, engine_died, internal_error.
        retry_after: seconds after which it may be asked again; None: it is of no use.
    """

    def __init__(self, message: str, code: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class ClusterError(TttnnError, RuntimeError):
    """Shards are missing and the caller did not accept a partial answer."""


class DeviceError(TttnnError, RuntimeError):
    """A CUDA call failed, or this build has no CUDA."""


class MissingExtraError(TttnnError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def some(names: Iterable[str]) -> str:
    """Return the first names and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
