"""The gate in front of every request, in two layers of plain ASGI, so that bodies stream.

`Recorder`, the outermost, gives each request its id, its log line, its place in the metrics and, whatever happens, an answer.
`Guard` lets in who may ask: host, key, scope, rate, size of the body.
"""

import ipaddress
import json
import re
import time
import traceback
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adrec.config.inference.access import Access
from adrec.serve.door.keys import Key, Keys
from adrec.serve.door.rates import Rates
from adrec.serve.watch import Watch

_OPEN = ("/", "/health/live", "/health/ready", "/openapi.json")
_OPEN_FOLDERS = ("/page", "/docs")
_EVENTS = "/v1/events"
"""They count for those of whom they tell, and need no key where there is none."""
_ASKING = ("/v1/score", "/v1/rank", "/v1/explain", "/v1/try")
"""Posts that change nothing."""
_SAID_ONCE = (b"host", b"x-api-key", b"authorization", b"content-length", b"content-type", b"x-request-id")
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


class Recorder:
    """Whatever comes is answered, counted and logged, with the request id that the client sent or a new one."""

    def __init__(self, app: Any, *, watch: Watch) -> None:
        self.app, self.watch = app, watch

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = _headers(scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12]
        is_head = scope["method"] == "HEAD"
        asked = {**scope, "method": "GET"} if is_head else scope
        facts: dict[str, Any] = {}
        asked["state"] = {**scope.get("state", {}), "facts": facts}

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(asked, receive, answer)
        except Exception as error:
            # What nobody foresaw: told by its kind and place, for its message may hold what a user sent.
            facts["error"] = _kind(error)
            if status:  # half of the answer is on its way: the connection is closed
                status = 500
                raise
            await refuse(answer, 500, f"The server failed. Its log says more under request {request_id}.")
        finally:
            self._note(asked, scope["method"], request_id, status or 499, time.perf_counter() - started)

    def _note(self, scope: dict[str, Any], method: str, request_id: str, status: int, seconds: float) -> None:
        """Count the answer, and write its line of the log; one more for what was changed."""
        path = getattr(scope.get("route"), "path", "unknown")
        facts = scope["state"]["facts"]
        change = facts.pop("change", None)
        self.watch.requests.labels(path, str(status)).inc()
        self.watch.latency.labels(path).observe(seconds)
        self.watch.log(request=request_id, method=method, path=path, status=status, ms=round(seconds * 1000, 2), **facts)
        if change is not None:
            self.watch.log(
                audit=change, at=datetime.now(UTC).isoformat(), key=facts.get("key"), request=request_id, status=status
            )


class Guard:
    """Refuses who may not ask. Without any key the catalogue and /admin are closed to everyone."""

    def __init__(self, app: Any, *, access: Access, keys: Keys, max_body_bytes: int) -> None:
        self.app, self.keys, self.limit = app, keys, max_body_bytes
        self.hosts = [host.lower() for host in access.hosts]
        self.rates = Rates(access.requests_per_second, access.burst)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Limited(receive, self.limit)
        refusal = self._refusal(scope, _headers(scope))
        if refusal is not None:
            await refuse(send, *refusal)
            return

        async def answer(message: dict[str, Any]) -> None:
            if not body.over:  # what the application makes of a body that was cut off is not the answer
                await send(message)

        try:
            await self.app(scope, body, answer)
        except _TooLargeError:
            body.over = True
        if body.over:
            await refuse(send, 413, f"The body is larger than {self.limit:,} bytes.")

    def _refusal(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | tuple[int, str, int] | None:
        unclear = _unclear(scope)
        if unclear is not None:
            return unclear
        if not self._knows(headers.get("host", "")):
            return 421, "The server is not called by this name. 'access.hosts' names those that it answers to."
        path, method, facts = scope["path"], scope["method"], scope["state"]["facts"]
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        key = self.keys.who(given) if given else None
        needed = _scope_of(method, path)
        if key is not None:
            facts["key"] = key.name
        refusal = self._forbidden(key, needed, path)
        if refusal is not None:
            return refusal
        if needed is not None:
            client = scope.get("client")
            who = f"key {key.name}" if key is not None else f"client {client[0] if client else ''}"
            seconds = self.rates.wait(who, key.requests_per_second if key is not None else None)
            if seconds:
                return 429, f"More requests than this key may send. Try again in {seconds} s.", seconds
        if needed == "admin" or (needed == "write" and path != _EVENTS):
            facts["change"] = f"{method} {scope.get('raw_path', path.encode()).decode('latin-1')}"
        length = headers.get("content-length", "0")
        if length.isdigit() and (len(length) > 15 or int(length) > self.limit):
            return 413, f"The body is larger than {self.limit:,} bytes."
        return None

    def _forbidden(self, key: Key | None, needed: str | None, path: str) -> tuple[int, str] | None:
        if needed is None:
            return None
        if self.keys:
            if key is None:
                return 401, "An API key is needed: header X-API-Key."
            return None if key.may(needed) else (403, f"This key may not: it is for '{key.scope}', and '{needed}' is needed.")
        if needed == "admin" or (needed == "write" and path != _EVENTS):
            return 403, "The catalogue and admin calls need an API key, and this server has none set."
        return None

    def _knows(self, host: str) -> bool:
        """Whether the server may be called so: a page of a foreign site reaches it only under that site's own name."""
        name = re.sub(r":\d*$", "", host.lower()).strip("[]")
        if not self.hosts:
            return bool(self.keys) or "." not in name or name.endswith(".localhost") or _is_address(name)
        return any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in self.hosts)


def _unclear(scope: dict[str, Any]) -> tuple[int, str] | None:
    """What is wrong with headers that a proxy before the server may read otherwise than the server does."""
    names = [name.lower() for name, _ in scope["headers"]]
    twice = next((name for name in _SAID_ONCE if names.count(name) > 1), None)
    if twice is not None:
        return 400, f"The header {twice.decode()} may come once."
    if b"host" not in names and scope["http_version"] != "1.0":
        return 400, "The header host is needed."
    if any(value.strip().lower() not in (b"", b"identity") for name, value in scope["headers"] if name == b"content-encoding"):
        return 415, "Encoded bodies are not read. Send the body as it is."
    return None


def _scope_of(method: str, path: str) -> str | None:
    """What a key must cover; None: nothing."""
    if path in _OPEN or path.startswith(_OPEN_FOLDERS):
        return None
    if path.startswith("/admin"):
        return "admin"
    if method in ("GET", "HEAD", "OPTIONS") or path in _ASKING:
        return "read"
    return "write"


def _headers(scope: dict[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


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


async def refuse(send: Any, status: int, detail: str, retry_after: int | None = None) -> None:
    """Answer without the application."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
