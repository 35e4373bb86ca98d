"""What a client is told when it does not get an answer: a status, a code and one sentence.

Knows the error body of the OpenAI API and which of our errors is whose fault. Does not know requests: no sentence holds
a value that a client sent.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_MESSAGE = 1000
"""Characters of a sentence, so that a body stays far below 4 KB whatever the sentence holds."""

_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class Refused(Exception):  # noqa: N818 - what it is to the client, who may not be in error
    """A request that is not answered. `retry_after` are seconds."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:MAX_MESSAGE]
        self.param = param
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The API's name for this class of errors."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """Return what the client reads, with status 4xx or 5xx or in a stream that has begun."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def bad(message: str, *, param: str | None = None, code: str = "invalid_value") -> Refused:
    """Return a 400."""
    return Refused(400, code, message, param=param)


def named(name: str) -> str:
    """Return a field's name for a message; one that is no plain word is not repeated."""
    return name if _NAME.fullmatch(name) else "a field with that name"


def without_value(message: str) -> str:
    """Return subject and rule of one of our errors, without the value that broke it and what follows."""
    return message.split(", got ", 1)[0]


def of_engine(error: dict[str, Any]) -> Refused:
    """Return what a failed job is to its client.

    Args:
        error: as `engines.failures` wrote it: `kind`, `message`, and `document` where one is at fault.
    """
    kind, message = error["kind"], without_value(str(error["message"]))
    if kind == "non_finite":
        return Refused(422, "non_finite_loss", message, param="neighbors")
    if kind == "value":
        return bad(message, param=error.get("param"))
    if kind == "too_long":
        return bad(message, param=error.get("param"), code="context_length_exceeded")
    if kind == "shards":
        return Refused(503, "shards_missing", message, retry_after=5)
    if kind == "died":
        return Refused(503, "engine_died", message, retry_after=5)
    return Refused(500, "internal_error", "the server failed at this request; its log says where")
