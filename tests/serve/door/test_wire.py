"""What two servers could read in two ways on the wire, encoded bodies, odd JSON: none is 5xx, and none is half understood."""

import gzip
import json
import socket
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("fastapi")
from served import ADMIN, KEY, call, client_of, make_bundle, settings_of, start

ROW = json.dumps({"rows": [{"user_id": "u1", "ad_id": "a1"}]}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("wire")
    make_bundle(made)
    return made


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("wires") / "store.sqlite"
    process, address = start(folder, store, environment={"ADREC_API_KEY": KEY})
    yield address
    process.terminate()
    process.wait(30)


def said(address, content):
    """What the server says to bytes, until it closes or says no more."""
    host, port = address.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(content)
            while piece := connection.recv(65_536):
                found += piece
        except ConnectionError:
            pass
    return found


def head(*more, line="POST /v1/score HTTP/1.1", host="host: a", key=KEY):
    usual = [line, *([host] if host else []), f"x-api-key: {key}", "content-type: application/json", "connection: close"]
    return "\r\n".join([*usual, *more, "", ""]).encode()


LENGTH = f"content-length: {len(ROW)}"
CHUNKS = b"".join(b"1\r\n%c\r\n" % byte for byte in ROW) + b"0\r\n\r\n"
WIRE = {
    "plain": (head(LENGTH) + ROW, 200),
    "in chunks of one byte": (head("transfer-encoding: chunked") + CHUNKS, 200),
    "HTTP/1.0 without a host": (head(LENGTH, line="POST /v1/score HTTP/1.0", host="") + ROW, 200),
    "HTTP/1.1 without a host": (head(LENGTH, host="") + ROW, 400),
    "two hosts": (head(LENGTH, "host: evil.example.com") + ROW, 400),
    "two keys": (head(LENGTH, "x-api-key: other") + ROW, 400),
    "two lengths": (head(LENGTH, "content-length: 5") + ROW, 400),
    "a length twice": (head(LENGTH, LENGTH) + ROW, 400),
    "a length and chunks": (head(LENGTH, "transfer-encoding: chunked") + ROW, 400),
    "an unknown coding": (head("transfer-encoding: xchunked") + ROW, 400),
    "chunks and more": (head("transfer-encoding: chunked, identity") + CHUNKS, 400),
    "a signed length": (head("content-length: +5") + ROW, 400),
    "an endless length": (head("content-length: " + "9" * 40) + ROW, 400),
    "a folded header": (head(LENGTH, "x-a: b\r\n c") + ROW, 400),
    "a space before the colon": (head(LENGTH, "x-api-key : b") + ROW, 400),
    "bare line feeds": ((head(LENGTH) + ROW).replace(b"\r\n", b"\n"), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another method": (b"CONNECT evil:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a websocket": (head("upgrade: websocket", "sec-websocket-version: 13", line="GET /v1/score HTTP/1.1"), 405),
    "a way around": (head(LENGTH, line="POST /health/../admin/reload HTTP/1.1", key="no") + ROW, 401),
    "another way around": (head(LENGTH, line="POST /docs/%2e%2e/admin/reload HTTP/1.1", key="no") + ROW, 404),
    "gzip": (head("content-encoding: gzip", f"content-length: {len(gzip.compress(ROW))}") + gzip.compress(ROW), 415),
}


@pytest.mark.parametrize("name", WIRE)
def test_the_wire(server, name):
    content, status = WIRE[name]
    found = said(server, content)
    assert found.startswith(b"HTTP/1.1 %d" % status), found[:400]
    assert found.count(b"HTTP/1.1 ") == 1  # nothing behind it was taken for a second request


def test_requests_behind_one_another_are_answered_in_order(server):
    ids = "".join(f"GET /health/live HTTP/1.1\r\nhost: a\r\nx-request-id: r{number}\r\n\r\n" for number in range(50))
    found = said(server, ids.encode() + head(line="GET /health/live HTTP/1.1"))
    places = [found.index(f"x-request-id: r{number}\r\n".encode()) for number in range(50)]
    assert places == sorted(places) and found.count(b"HTTP/1.1 200") == 51


BODIES = {
    "a name twice": (b'{"rows": [{"user_id": "u1", "ad_id": "a1", "ad_id": "zzz"}]}', 400),
    "deep": (b"[" * 500_000, 400),
    "deep objects": (b'{"a":' * 150_000, 400),
    "a long number": (b'{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"position": %s}}]}' % (b"9" * 900_000), 400),
    "a long exponent": (b'{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"position": 1e%s}}]}' % (b"9" * 90_000), 422),
    "many columns": (json.dumps({"rows": [{"ad_id": "a1", "context": {f"k{n}": n for n in range(50_000)}}]}).encode(), 422),
    "many rows": (json.dumps({"rows": [{}] * 100_000}).encode(), 413),
    "half a pair": (b'{"rows": [{"user_id": "\\ud800", "ad_id": "a1"}]}', 422),
    "a prototype": (b'{"rows": [{"user_id": "u1", "ad_id": "a1"}], "__proto__": {}}', 422),
    "no end": (b'{"rows": [{"user_id": "u1"', 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(server, name):
    content, status = BODIES[name]
    found = said(server, head(f"content-length: {len(content)}") + content)
    assert found.startswith(b"HTTP/1.1 %d" % status), found[:400]
    assert len(found) < 10_000
    assert call(server, "/v1/score", json.loads(ROW), ADMIN)["rows"]


def test_events_that_have_not_happened_are_refused_and_fade_nothing(folder, tmp_path):
    now = datetime.now(UTC)
    with client_of(settings_of(folder, tmp_path / "s.sqlite")) as client:

        def status(at):
            event = {"user_id": "u1", "ad_id": "a1", "kind": "impression", "at": at, "score": 0.5, "request_id": f"r{at}"}
            return client.post("/v1/events", json={"events": [event]})

        assert status((now + timedelta(hours=20)).isoformat()).status_code == 200  # clocks differ
        refused = status((now + timedelta(days=2)).isoformat())
        told = {"where": "events.0.at", "what": "lies in the future"}
        assert refused.status_code == 422 and refused.json()["detail"] == [told]
        for year in range(2100, 2130):
            assert status(f"{year}-01-01T00:00:00Z").status_code == 422
        assert status("1970-01-01T00:00:00Z").json()["late"] == 1
        days = {row["day"] for row in client.get("/v1/about").json()["health"]}
        assert max(days) <= str((now + timedelta(days=1)).date())
