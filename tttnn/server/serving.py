"""A server process: a port, signals, and the order in which it ends.

Knows uvicorn and signals. Does not know routes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import TttnnError
from .app import App

_SOON = 2
"""Seconds that replies which are written have for leaving, at the end."""


class _Server(uvicorn.Server):
    """Uvicorn, which leaves the signals to `serve`."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()


class _Protocol(H11Protocol):
    """Uvicorn's HTTP, which by itself would wait for ever for a request's head, and hold a descriptor for each."""

    def __init__(self, *args: Any, head_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_seconds = head_seconds
        self._giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        """Wait for a head while one is to come; between a reply and the next byte uvicorn itself waits."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.conn.their_state is not h11.IDLE or not answered:
            self._forget()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(self._head_seconds, self.transport.close)

    def _forget(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle off only where it sees TCP, and with it a reply's head and body
    # would wait 40 ms for the client's acknowledgement of the first.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
        listening.set_inheritable(False)
    except OSError as error:
        listening.close()
        said = f"{os.strerror(error.errno or 0)}. Name another one with --port or --host"
        raise OSError(error.errno, said, f"{host}:{port}") from None
    return listening


def serve(app: App, listening: socket.socket, *, shutdown_timeout: float, on_ready: Callable[[], None]) -> None:
    """Answer requests until a signal says to end, then finish what there is.

    The first SIGTERM or SIGINT lets nobody in and finishes within `shutdown_timeout` seconds what is there; the second
    ends at once.

    Args:
        app: from `create_app`.
        listening: from `listen`.
        shutdown_timeout: seconds.
        on_ready: called when the first engine is ready.

    Raises:
        TttnnError: no engine can be started; the message says why.
    """
    asyncio.run(_serve(app, listening, shutdown_timeout, on_ready))


async def _serve(app: App, listening: socket.socket, shutdown_timeout: float, on_ready: Callable[[], None]) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            # The engines see their pipe close, and end with this process.
            os._exit(128 + signal.SIGTERM)
        loop.call_soon_threadsafe(ending.set)

    async def announce() -> None:
        await app.dispatcher.settled.wait()
        on_ready()

    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=cast(Any, partial(_Protocol, head_seconds=app.dispatcher.config.body_seconds)),
        ws="none",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_SOON,
    )
    server = _Server(config, on_signal)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    ended, failed = asyncio.ensure_future(ending.wait()), asyncio.ensure_future(app.dispatcher.failed.wait())
    announcing = asyncio.ensure_future(announce())
    try:
        await asyncio.wait({serving, ended, failed}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await app.dispatcher.drain(shutdown_timeout)
    finally:
        for waiting in (ended, failed, announcing):
            waiting.cancel()
        server.should_exit = True
        await serving
    if app.dispatcher.failure is not None:
        raise TttnnError(app.dispatcher.failure)
