"""HTTP connections with limits that the parser keeps: bytes of line and headers, seconds to send a request, how many at once.

Uvicorn's httptools protocol has none of them: an endless header grows in memory, and whoever never finishes a request stays.
Costs a few comparisons a packet. What is refused here never reaches the application; it is counted all the same.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adrec.config.inference.access import Connections


def bounded(limits: Connections, *, max_body_bytes: int, refused: Callable[[int], None]) -> type[asyncio.Protocol]:
    """A protocol for uvicorn's `http`. `refused(status)` is told of every request that ends here."""
    waiting: dict[HttpToolsProtocol, None] = {}  # connections in no request that was read, the longest waiting first
    most = _ENCODED * max_body_bytes + limits.max_header_bytes  # endless trailers, or a body that nobody reads

    class BoundedHttp(HttpToolsProtocol):
        """One connection."""

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self._head = 0
            """bytes of the request's line and headers so far"""
            self._in_head, self._in_message = True, False
            self._bytes = 0
            """of the whole request"""
            self._clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                longest = next(iter(waiting), None)
                if longest is None:  # all are in the midst of something
                    self._refuse(503)
                    return
                waiting.pop(longest)
                refused(408)
                longest.transport.abort()
            waiting[self] = None
            self._start_clock()

        def connection_lost(self, exc: Exception | None) -> None:
            waiting.pop(self, None)
            self._stop_clock()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._start_clock()
            while data and self._in_head and not self.transport.is_closing():
                piece, data = data[: limits.max_header_bytes + 1 - self._head], data[limits.max_header_bytes + 1 - self._head :]
                self._head += len(piece)
                super().data_received(piece)
                if self._in_head and self._head > limits.max_header_bytes:
                    self._refuse(431)
                    return
            if data and not self.transport.is_closing():
                self._bytes += len(data)
                if self._bytes > most:
                    self._refuse(413)
                    return
                super().data_received(data)
            if self._in_message:
                self._start_clock()

        def on_message_begin(self) -> None:
            self._in_message, self._bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_message, self._in_head, self._head = False, True, 0
            self._stop_clock()
            waiting.pop(self, None)
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing():
                waiting[self] = None

        def send_400_response(self, msg: str) -> None:
            refused(400)
            super().send_400_response(msg)

        def _start_clock(self) -> None:
            if self._clock is None and not self.transport.is_closing():
                self._clock = self.loop.call_later(limits.read_seconds, self._too_slow)

        def _stop_clock(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _too_slow(self) -> None:
            self._clock = None
            if self._in_message or self.cycle is None or self.cycle.response_complete:
                self._refuse(408)

        def _refuse(self, status: int) -> None:
            refused(status)
            self._stop_clock()
            if self.cycle is None or self.cycle.response_complete:
                said = HTTPStatus(status).phrase
                head = f"HTTP/1.1 {status} {said}\r\ncontent-type: text/plain\r\ncontent-length: {len(said)}\r\n"
                more = "retry-after: 1\r\n" if status == 503 else ""
                self.transport.write(f"{head}{more}connection: close\r\n\r\n{said}".encode())
            self.transport.close()

    return BoundedHttp


_ENCODED = 8
"""Bytes that a byte of a body may take where it is sent in chunks of one."""
