"""A request's body, read within bounds of size and time before anything is made of it.

Knows HTTP's headers for bodies. Does not know what a body says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..config import ServeConfig
from ..dispatch.refusals import Refused
from .fields import parsed
from .streams import ClientLeft


async def json_body(request: Request, config: ServeConfig) -> Any:
    """Read the body, and return what it says.

    Raises:
        Refused: it is too long, comes too slowly, or is not JSON.
        ClientLeft: it did not come whole.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        # Also what keeps pages of other origins from asking: a browser sends this type to its own origin only.
        raise Refused(415, "invalid_content_type", "content-type must be application/json")
    if "content-encoding" in request.headers:
        raise Refused(415, "unsupported", "content-encoding is not supported")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > config.max_body_bytes:
        raise _too_large(config)
    body = bytearray()
    try:
        async with asyncio.timeout(config.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > config.max_body_bytes:
                    raise _too_large(config)
    except ClientDisconnect:
        raise ClientLeft from None
    except TimeoutError:
        raise Refused(408, "timeout", f"body must come within {config.body_seconds:g} s") from None
    return parsed(bytes(body))


def _too_large(config: ServeConfig) -> Refused:
    return Refused(413, "too_large", f"body must be at most {config.max_body_bytes} bytes")
