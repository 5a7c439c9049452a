"""The gate in front of every request: body size, API key, and the clock around the answer. Plain ASGI, so bodies stream."""

import hmac
import json
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from adrec.serve.watch import Watch

_OPEN = ("/", "/health/live", "/health/ready", "/page.css", "/page.js")


class Guard:
    """`key` None asks for none. /admin and changes to ads always need one that is set."""

    def __init__(self, app: Any, *, watch: Watch, key: str | None, max_body_bytes: int) -> None:
        self.app, self.watch, self.key, self.limit = app, watch, key, max_body_bytes

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = uuid.uuid4().hex[:12]
        scope.setdefault("state", {})["facts"] = {}

        body = _Limited(receive, self.limit)

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if body.over:
                return  # what the application makes of a body that was cut off is not the answer
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await _refuse(answer, *refusal)
        else:
            try:
                await self.app(scope, body, answer)
            except _TooLargeError:
                body.over = True
            except Exception as error:
                # What nobody foresaw: told by its kind and place, for its message may hold what a user sent.
                scope["state"]["facts"]["error"] = _kind(error)
                if status:  # half of the answer is on its way: the connection is closed
                    status = 500
                    self._told(scope, request_id, status, started)
                    raise
                await _refuse(answer, 500, f"The server failed. Its log says more under request {request_id}.")
            if body.over:
                body.over = False
                await _refuse(answer, 413, f"The body is larger than {self.limit:,} bytes.")
        self._told(scope, request_id, status, started)

    def _told(self, scope: dict[str, Any], request_id: str, status: int, started: float) -> None:
        """Count the answer, and write its line of the log."""
        seconds = time.perf_counter() - started
        route = scope.get("route")
        path = getattr(route, "path", "unknown")
        self.watch.requests.labels(path, str(status)).inc()
        self.watch.latency.labels(path).observe(seconds)
        self.watch.log(
            request=request_id,
            method=scope["method"],
            path=path,
            status=status,
            ms=round(seconds * 1000, 2),
            **scope["state"]["facts"],
        )

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and path not in _OPEN and not hmac.compare_digest(given.encode(), self.key.encode()):
            return 401, "An API key is needed: header X-API-Key."
        if self.key is None and path.startswith("/admin"):
            return 403, "Admin calls need an API key, and this server has none set."
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            return 413, f"The body is larger than {self.limit:,} bytes."
        return None


class _TooLargeError(Exception):
    """A streamed body went over the limit."""


class _Limited:
    """`receive` that stops at a number of bytes."""

    def __init__(self, receive: Any, limit: int) -> None:
        self.receive, self.left, self.over = receive, limit, False

    async def __call__(self) -> Any:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            self.over = True
            raise _TooLargeError
        return message


def _kind(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return " ".join([type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last)])


async def _refuse(send: Any, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
