"""Errors inside an engine, as plain values for the pipe: whose fault, and one sentence.

Knows our errors. Does not know HTTP statuses.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ClusterError, NonFiniteLossError

Kind = Literal["value", "too_long", "non_finite", "shards", "internal"]


class Wrong(Exception):  # noqa: N818 - the client's, not this program's
    """A request that only the engine can see to be wrong."""

    def __init__(self, message: str, param: str, kind: Kind = "value") -> None:
        super().__init__(message)
        self.param = param
        self.kind = kind


class Cancelled(Exception):  # noqa: N818 - asked for
    """Nobody waits for the answer any more."""


def described(error: BaseException) -> dict[str, Any]:
    """Return an error as plain values; of what is nobody's fault but ours no message travels."""
    if isinstance(error, Wrong):
        return {"kind": error.kind, "message": str(error), "param": error.param}
    if isinstance(error, NonFiniteLossError):
        return {"kind": "non_finite", "message": str(error)}
    if isinstance(error, ClusterError):
        # Its own message names directories.
        return {"kind": "shards", "message": "every shard of the datastore must answer, but some gave none"}
    return {"kind": "internal", "message": type(error).__name__}


def where(error: BaseException) -> str:
    """Return an error's class and the line it comes from, for logs: its message may hold a client's text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_name} ({code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno})"
