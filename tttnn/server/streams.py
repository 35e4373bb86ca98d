"""Server-sent events: a job's frames as they come, comments while there is nothing to say, errors as frames.

Knows the wire format and when a client has gone. Does not know what an engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Receive, Scope, Send

from ..dispatch.dispatcher import Dispatcher
from ..dispatch.job import Job
from ..dispatch.refusals import Refused
from ..engines.pipe import Frame
from .replies import Reply

DONE = b"data: [DONE]\n\n"


class ClientLeft(Exception):  # noqa: N818 - nobody is left to be told an error
    """The one who asked has closed the connection."""


async def left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answered(receive: Receive, dispatcher: Dispatcher, job: Job) -> Frame:
    """Wait for a job's result, and give the job up when the client leaves.

    Raises:
        Refused: there is no answer.
        ClientLeft: nobody waits for it any more.
    """
    leaving = asyncio.ensure_future(left(receive))
    result = asyncio.ensure_future(job.result())
    try:
        await asyncio.wait({leaving, result}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientLeft
        return result.result()
    finally:
        leaving.cancel()
        if not result.done():
            result.cancel()
            dispatcher.cancel(job)


def event(data: Frame, name: str | None = None) -> bytes:
    """Return one event; without a name it is what OpenAI's clients read."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"


def comment(job: Job, ahead: int | None) -> bytes:
    """Return a line that says how far a job is, and that clients pass over."""
    step, of = job.step
    text = f"waiting, {ahead} before it" if ahead is not None else f"step {step}/{of}"
    return f": {text}\n\n".encode()


class Stream:
    """An ASGI response that streams one job's answer."""

    status_code = 200

    def __init__(self, dispatcher: Dispatcher, job: Job, reply: Reply, *, usage: bool, events: bool) -> None:
        """Describe a stream.

        Args:
            dispatcher: has let the job in.
            job: the work.
            reply: writes the chunks.
            usage: whether the last chunk says how many tokens there were.
            events: whether neighbors, steps and base answers are told, as named events.
        """
        self._dispatcher = dispatcher
        self._job = job
        self._reply = reply
        self._usage = usage
        self._events = events
        self._end: Frame | None = None
        """The end of a choice, held back until it is known whether it is the last chunk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; give the job up when the client leaves."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # proxies hand on what they have
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(left(receive))
        try:
            try:
                async with contextlib.aclosing(self._parts(leaving)) as parts:
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
            except Refused as refused:
                scope["state"]["code"] = refused.code  # for the log: the status is long sent
                await send({"type": "http.response.body", "body": event(refused.body()) + DONE, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            self._dispatcher.cancel(self._job)  # nothing, where it is done

    async def _parts(self, leaving: asyncio.Future[None]) -> AsyncGenerator[bytes]:
        """Yield the events of the whole answer, as bytes; a Refused where there will be no more of it."""
        job, pause = self._job, self._dispatcher.config.comment_seconds
        coming = asyncio.ensure_future(job.next())
        quiet_since = time.monotonic()
        try:
            while True:
                waited: set[asyncio.Future[Any]] = {coming, leaving}
                left_over = max(0.0, quiet_since + pause - time.monotonic())
                await asyncio.wait(waited, timeout=left_over, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    raise ClientLeft
                parts: list[bytes] = []
                if coming.done():
                    frame = coming.result()
                    parts = self._written(frame)
                    if frame["event"] != "done":
                        coming = asyncio.ensure_future(job.next())
                # Frames that are nothing to the client, like steps, do not keep a connection open: comments do.
                if not parts and time.monotonic() >= quiet_since + pause:
                    parts = [comment(job, self._ahead())]
                for part in parts:
                    yield part
                if parts:
                    quiet_since = time.monotonic()
                if parts and parts[-1] is DONE:
                    return
        finally:
            coming.cancel()

    def _ahead(self) -> int | None:
        place = self._job.place
        return None if place is None or place.began is not None else self._dispatcher.line.ahead_of(place)

    def _written(self, frame: Frame) -> list[bytes]:
        """Return what a frame is to the client."""
        kind, out = frame["event"], []
        if kind in ("neighbors", "step", "base"):
            shown = {name: value for name, value in frame.items() if name not in ("event", "job")}
            return [event(shown, kind)] if self._events else []
        if self._end is not None and kind != "done":
            out.append(event(self._end))
            self._end = None
        if kind == "begin":
            first = self._reply.begin(frame["prompt"])
            return [*out, *([event(first)] if first is not None else [])]
        if kind == "piece":
            return [*out, event(self._reply.piece(frame["prompt"], frame["text"]))]
        if kind == "end":
            self._end = self._reply.end(frame["prompt"], frame["finish_reason"])
            return out
        assert kind == "done", kind
        return [*map(event, self._last(frame["result"])), DONE]

    def _last(self, result: Frame) -> list[Frame]:
        """Return the last chunks, the very last one with the sources."""
        chunks = [chunk for chunk in (self._end, self._reply.usage(result) if self._usage else None) if chunk]
        chunks[-1]["tttnn"] = self._reply.about(self._job, result)
        return chunks
