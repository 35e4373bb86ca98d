"""Which errors are of one text, so that a run over many goes on without it.

Knows kinds of errors. Does not know what is run.
"""

from __future__ import annotations

from ..errors import AdaptError, DatastoreMismatchError, EmbeddingError, RestoreError, UnknownModelError

_OF_ONE_TEXT = (AdaptError, EmbeddingError, ValueError, IndexError)
_OF_ALL = (RestoreError, DatastoreMismatchError, UnknownModelError)


def of_one_text(error: Exception) -> bool:
    """Return whether an error can be one text's: a loss or vector that is not finite, a text that cannot be read.

    Files that are damaged, a device that fails and weights that were changed from outside are no text's: another one
    would not be spared.
    """
    return isinstance(error, _OF_ONE_TEXT) and not isinstance(error, _OF_ALL)


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
