"""Frames between the serving process and an engine process: a length, then one JSON object.

Knows bytes and how a file descriptor travels. Does not know what a frame says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from typing import Any

_LENGTH = struct.Struct(">I")

Frame = dict[str, Any]


def encoded(frame: Frame) -> bytes:
    """Return a frame as bytes."""
    body = json.dumps(frame, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(body)) + body


class Pipe:
    """The engine's end. One thread receives; any thread sends, a frame at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Write a frame; an OSError where the other process has gone."""
        data = encoded(frame)
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> Frame | None:
        """Return the next frame; None where the other process has gone."""
        head = self._read(_LENGTH.size)
        body = None if head is None else self._read(_LENGTH.unpack(head)[0])
        return None if body is None else json.loads(body)

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return bytes(data)


class AsyncPipe:
    """The serving process's end, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connection: socket.socket) -> AsyncPipe:
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=connection))

    def send(self, frame: Frame) -> None:
        """Hand a frame to the event loop; it is lost where the other process has gone."""
        if not self._writer.is_closing():
            self._writer.write(encoded(frame))

    async def receive(self) -> Frame | None:
        """Return the next frame; None where the other process has gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            frame: Frame = json.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return frame

    async def close(self) -> None:
        """Close this end, and wait until it is."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
