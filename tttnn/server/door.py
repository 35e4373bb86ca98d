"""The door every request comes through: who may, what is written to the log, and what an error becomes.

A plain ASGI application around another: disconnects pass it unchanged. Knows keys, the access log and error bodies.
Does not know routes' contents: the log holds no text of a request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..dispatch.refusals import Refused
from ..engines.failures import where
from .metrics import Metrics
from .streams import ClientLeft

OPEN = ("/live", "/ready")
"""Routes that need no key: what runs the server asks them."""

CLIENT_LEFT = 499
"""The status that stands in log and metrics where nobody was left to get one."""

access_log = logging.getLogger("tttnn.server.access")
_log = logging.getLogger("tttnn.server")


class Keys:
    """The keys that may ask; held as digests, compared in constant time."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [self._digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

    def tenant(self, authorization: str | None) -> str | None:
        """Return who asks: the number of the key in a header's value, "" where no key is set; None: nobody we know."""
        if not self._digests:
            return ""
        given = self._digest(_key_of(authorization or ""))
        who = None
        for number, digest in enumerate(self._digests):  # all of them, whichever it is
            if hmac.compare_digest(digest, given):
                who = str(number)
        return who


def _key_of(authorization: str) -> str:
    """Return the key of a bearer token, or the password that a browser was given."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


class Door:
    """Lets requests in, one log line each, and turns every failure into the API's error body."""

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: Metrics, routes: Sequence[str]) -> None:
        """Stand before an application.

        Args:
            app: what is behind the door.
            keys: who may; none: everybody.
            metrics: are told of every request.
            routes: paths there are; every other one counts as "other".
        """
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(12)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route = path if path in self._routes else "other"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status, sent = time.perf_counter(), CLIENT_LEFT, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        code = None
        try:
            try:
                self._admit(scope, path)
                await self._app(scope, receive, counted)
            except ClientLeft:
                status = CLIENT_LEFT
            except Refused as refused:
                code = refused.code
                await refusal(refused, _challenge(scope, refused))(scope, receive, counted)
            except HTTPException as error:
                code = "not_found" if error.status_code == 404 else "method_not_allowed"
                said = "there is no such route" if error.status_code == 404 else "the route has no such method"
                await refusal(Refused(error.status_code, code, said), error.headers)(scope, receive, counted)
            except Exception as error:
                code = "internal_error"
                _log.error("request %s failed: %s", request_id, where(error))
                if status == CLIENT_LEFT:
                    said = "the server failed at this request; its log says where"
                    await refusal(Refused(500, code, said))(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - started
            code = code or scope["state"].get("code")
            if code is not None:
                self._metrics.refused(code)
            self._metrics.answered(route, status, seconds)
            line = {
                "time": round(time.time(), 3),
                "request": request_id,
                "method": scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other",
                "route": route,
                "status": status,
                "code": code,
                "seconds": round(seconds, 6),
                "bytes": sent,
                "client": _address_of(scope),
            }
            access_log.info("%s", json.dumps(line))

    def _admit(self, scope: Scope, path: str) -> None:
        tenant = self._keys.tenant(Headers(scope=scope).get("authorization"))
        if tenant is None and path not in OPEN:
            raise Refused(401, "invalid_api_key", "a valid API key must be given as a bearer token")
        scope["state"]["tenant"] = tenant or ""


def _challenge(scope: Scope, refused: Refused) -> dict[str, str]:
    """Return how a key is to be given, for a 401.

    A browser asks in a dialog of its own where a password is named: right for somebody who opens the page, whose
    first request cannot bring a bearer token; wrong for the page's script, which has a field for it.
    """
    if refused.status != 401:
        return {}
    if "text/html" in Headers(scope=scope).get("accept", ""):
        return {"www-authenticate": 'Basic realm="tttnn: any name, the key as password", charset="UTF-8"'}
    return {"www-authenticate": 'Bearer realm="tttnn"'}


def refusal(refused: Refused, headers: Any = None) -> Response:
    """Return the response that a refusal is."""
    extra = dict(headers or {}) | refused.headers()
    return JSONResponse(refused.body(), refused.status, extra)


def _address_of(scope: Scope) -> str:
    """Return the client's address; empty where there is none, or where a proxy's header names something else."""
    address = str((scope.get("client") or ("",))[0])
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return ""
    return address
