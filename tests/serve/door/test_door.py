"""Who gets in: keys, scopes, rates, hosts, sizes of headers, half-open connections, and the manners of HTTP."""

import hashlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from served import ADMIN, KEY, call, make_bundle, settings_of, start

from adrec.config.inference.access import Access
from adrec.errors import ConfigError
from adrec.serve.app import create_app
from adrec.serve.door.keys import Keys, refuse_open_server
from adrec.serve.door.rates import Rates

ROW = {"rows": [{"user_id": "u1", "ad_id": "a1"}]}
EVENT = {"events": [{"user_id": "u1", "ad_id": "a1", "kind": "click"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("door")
    make_bundle(made)
    return made


@pytest.fixture
def opened(folder, tmp_path, monkeypatch):
    """A client of a server with the given settings, and with a key in the environment unless the test takes it away."""
    monkeypatch.setenv("ADREC_API_KEY", KEY)
    clients = []

    def open_with(**settings):
        client = TestClient(create_app(settings_of(folder, tmp_path / "store.sqlite", **settings)))
        client.__enter__()
        clients.append(client)
        return client

    yield open_with
    for client in clients:
        client.__exit__(None, None, None)


def key_file(folder, entries):
    file = folder / "keys.yaml"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def test_scopes_of_several_keys(opened, tmp_path, monkeypatch):
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    digest = hashlib.sha256(b"writer-key").hexdigest()
    entries = [
        {"name": "app", "key": "reader-key"},
        {"name": "crm", "sha256": digest, "scope": "write"},
        {"name": "ops", "key": "admin-key", "scope": "admin"},
        {"name": "gone", "key": "old-key", "scope": "admin", "until": "2020-01-01"},
    ]
    file = key_file(tmp_path, entries)
    client = opened(access={"keys": str(file)})

    def status(method, path, body, key):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return client.request(method, path, json=body, headers=headers).status_code

    calls = [
        ("POST", "/v1/score", ROW), ("GET", "/metrics", None), ("POST", "/v1/events", EVENT),
        ("PUT", "/v1/ads/new", {"title": "guitar"}), ("DELETE", "/v1/ads/new", None), ("POST", "/admin/reload", {}),
    ]  # fmt: skip
    allowed = {None: 0, "wrong": 0, "old-key": 0, "reader-key": 2, "writer-key": 5, "admin-key": 6}
    for key, count in allowed.items():
        refused = 403 if key in ("reader-key", "writer-key") else 401
        assert [status(*one, key) for one in calls] == [200] * count + [refused] * (6 - count)
    assert client.get("/health/ready").status_code == client.get("/").status_code == client.get("/docs").status_code == 200


def test_keys_rotate_without_a_restart(opened, tmp_path, monkeypatch):
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    file = key_file(tmp_path, [{"name": "app", "key": "first-key"}])
    client = opened(access={"keys": str(file)})
    assert client.post("/v1/score", json=ROW, headers={"x-api-key": "first-key"}).status_code == 200
    key_file(tmp_path, [{"name": "app", "key": "first-key"}, {"name": "app2", "key": "second-key"}])
    time.sleep(1.1)
    assert client.post("/v1/score", json=ROW, headers={"x-api-key": "second-key"}).status_code == 200
    file.write_text("[", encoding="utf-8")  # half written: what was read holds
    time.sleep(1.1)
    assert client.post("/v1/score", json=ROW, headers={"x-api-key": "second-key"}).status_code == 200
    key_file(tmp_path, [{"name": "app2", "key": "second-key"}])
    time.sleep(1.1)
    assert client.post("/v1/score", json=ROW, headers={"x-api-key": "first-key"}).status_code == 401


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"name": "a", "key": "schlüssel"}], "no header carries"),
        ([{"name": "a", "key": "two words"}], "no header carries"),
        ([{"name": "a"}], "either 'key' or 'sha256'"),
        ([{"name": "a", "key": "x", "scope": "all"}], "scope"),
        ({"name": "a"}, "list of keys"),
        (["a"], "list of keys"),
        ([{"name": "a", "key": "same"}, {"name": "b", "key": "same"}], "the key of a again"),
    ],
)
def test_keys_that_are_none_are_refused_at_the_start(tmp_path, entries, says):
    with pytest.raises(ConfigError, match=says):
        Keys(Access(keys=key_file(tmp_path, entries)), {})


def test_a_key_of_the_environment_must_be_ascii():
    with pytest.raises(ConfigError, match="ADREC_API_KEY"):
        Keys(Access(), {"ADREC_API_KEY": "密钥"})


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True), ("ads.example", True)],
)
def test_an_open_server_does_not_start_unless_told(host, is_open):
    nothing = Keys(Access(), {})
    if is_open:
        with pytest.raises(ConfigError, match="access.without_key=anyone"):
            refuse_open_server(host, nothing, Access())
    refuse_open_server(host, nothing, Access(without_key="anyone"))
    refuse_open_server(host, Keys(Access(), {"ADREC_API_KEY": "x"}), Access())


def test_without_a_key_asking_is_open_and_the_catalogue_closed(opened, monkeypatch):
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    client = opened()
    assert client.post("/v1/score", json=ROW).status_code == client.post("/v1/events", json=EVENT).status_code == 200
    for method, path in (("PUT", "/v1/ads/a1"), ("DELETE", "/v1/ads/a1"), ("POST", "/admin/reload"), ("POST", "/admin/other")):
        assert client.request(method, path, json={}).status_code == 403


def test_a_rate_for_each_key(opened, tmp_path, monkeypatch):
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    file = key_file(
        tmp_path, [{"name": "slow", "key": "slow-key", "requests_per_second": 0.01}, {"name": "free", "key": "free-key"}]
    )
    client = opened(access={"keys": str(file), "burst": 3})
    answers = [client.get("/v1/about", headers={"x-api-key": "slow-key"}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
    assert all(client.get("/v1/about", headers={"x-api-key": "free-key"}).status_code == 200 for _ in range(9))
    assert client.get("/health/live").status_code == 200


def test_rates_fill_again(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("adrec.serve.door.rates.time.monotonic", lambda: now[0])
    rates = Rates(2.0, 4)
    assert [rates.wait("a") for _ in range(5)] == [0, 0, 0, 0, 1]
    now[0] += 1.0
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 1]
    assert rates.wait("b") == 0
    for number in range(20_000):
        rates.wait(str(number))
    assert len(rates._left) <= 10_000


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8080", True), ("localhost", True), ("[::1]:8080", True), ("adrec", True),
        ("evil.example.com", False), ("evil.example.com:8080", False),
    ],
)  # fmt: skip
def test_foreign_names_are_refused_without_a_key(opened, monkeypatch, host, known):
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    assert opened().get("/v1/about", headers={"host": host}).status_code == (200 if known else 421)


def test_named_hosts(opened):
    client = opened(access={"hosts": ["ads.example.com", "*.shop.example"]})
    hosts = {"ads.example.com": 200, "ADS.example.com:443": 200, "a.shop.example": 200, "shop.example": 421, "localhost": 421}
    assert {host: client.get("/health/live", headers={"host": host}).status_code for host in hosts} == hosts


def test_preflight_works_with_a_key_and_refusals_carry_the_origin(opened):
    client = opened(cors_origins=["https://shop.example"])
    origin = {"origin": "https://shop.example"}
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key,content-type"}
    preflight = client.options("/v1/rank", headers=asked)
    assert preflight.status_code == 200 and "x-api-key" in preflight.headers["access-control-allow-headers"]
    refused = client.post("/v1/score", json=ROW, headers=origin)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://shop.example"
    assert client.post("/v1/score", json=ROW, headers={**origin, **ADMIN}).status_code == 200
    assert (
        "access-control-allow-origin"
        not in client.post("/v1/score", json=ROW, headers={"origin": "https://x.y", **ADMIN}).headers
    )


def test_request_ids_are_kept_and_changes_audited(opened, caplog):
    caplog.set_level("INFO", "adrec.serve")
    client = opened()
    sent = client.put("/v1/ads/n1", json={"title": "guitar"}, headers={"x-request-id": "call-17", **ADMIN})
    assert sent.headers["x-request-id"] == "call-17"
    assert client.get("/health/live", headers={"x-request-id": "\x1b[31m"}).headers["x-request-id"].isalnum()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "adrec.serve"]
    [audit] = [line for line in lines if "audit" in line]
    assert audit["audit"] == "PUT /v1/ads/n1" and audit["key"] == "environment" and audit["request"] == "call-17"
    assert audit["status"] == 200 and audit["at"].startswith("20")
    assert "\x1b" not in caplog.text


def test_manners(opened):
    client = opened()
    client.headers.update(ADMIN)
    for path in ("/", "/health/live", "/v1/ads/a1", "/metrics"):
        get, head = client.get(path), client.head(path)
        assert head.status_code == get.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/ads/nothing").status_code == client.get("/v1/ads/nothing").status_code == 404
    assert client.delete("/v1/ads/nothing").status_code == 404
    odd = "shop/1%2F2"
    assert client.put(f"/v1/ads/{odd}", json={"title": "guitar concert", "bid": 3}).status_code == 200
    assert client.get(f"/v1/ads/{odd}").json()["bid"] == 3
    assert client.post("/v1/score", json={"rows": [{"user_id": "u", "ad_id": "shop/1/2"}]}).status_code == 200
    assert client.delete("/v1/ads/shop/1/2").status_code == 200
    ends = {"title": "t", "starts_at": "2026-01-02T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z"}
    refused = client.put("/v1/ads/x", json=ends)
    assert refused.status_code == 422 and "after 'starts_at'" in refused.text
    escaped = client.get("/v1/ads/%1B]0;owned%07")
    assert escaped.status_code == 404 and "\x1b" not in escaped.json()["detail"]
    wrong = client.delete("/v1/score")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"


def test_the_page_can_be_turned_off_and_the_docs_need_no_network(opened):
    docs = opened()
    html = docs.get("/docs").text
    assert "http" not in html.replace("http-equiv", "") and docs.get("/docs/swagger-ui-bundle.js").status_code == 200
    assert docs.get("/docs/other.js").status_code == 404
    closed = opened(page=False)
    assert {closed.get(path, headers=ADMIN).status_code for path in ("/", "/page.js", "/docs")} == {404}


# ------------------------------------------------------------------------------------------- the wire


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("wire") / "store.sqlite"
    limits = {"max_connections": 200, "max_header_bytes": 8_192, "read_seconds": 2.0}
    process, address = start(folder, store, connections=limits, environment={"ADREC_API_KEY": KEY})
    yield address
    process.terminate()
    process.wait(30)


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answered(connection):
    """What comes until the server closes."""
    found = b""
    try:
        while piece := connection.recv(65_536):
            found += piece
    except ConnectionError:
        pass
    return found


def test_endless_headers_end_early(server):
    """Sixty megabytes of one header, of many headers, and of a request line: refused after the first kilobytes."""
    for head in (b"GET /health/live HTTP/1.1\r\nx: ", b"GET /health/live HTTP/1.1\r\n", b"GET /"):
        piece = b"x-more: 1\r\n" * 6_000 if head.endswith(b"\n") else b"a" * 65_536
        with connect(server) as connection:
            connection.sendall(head)
            sent = 0
            try:
                while sent < 60_000_000:
                    sent += connection.send(piece)
            except (ConnectionError, OSError):
                pass
            assert sent < 20_000_000
            assert answered(connection)[:12] in (b"HTTP/1.1 431", b"")
    began = time.monotonic()
    assert call(server, "/health/live")["done"] and time.monotonic() - began < 1
    assert 'path="unread",status="431"' in metrics(server)


def metrics(server):
    with connect(server) as connection:
        connection.sendall(f"GET /metrics HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n".encode())
        return answered(connection).decode()


def test_a_request_that_never_ends_is_ended(server):
    half_a_body = f"POST /v1/score HTTP/1.1\r\nx-api-key: {KEY}\r\ncontent-length: 99\r\nhost: a\r\n\r\n{{".encode()
    beginnings = [b"", b"\r\n", b"GET /health/live HT", half_a_body]
    open_ones = [connect(server) for _ in beginnings]
    for connection, beginning in zip(open_ones, beginnings, strict=True):
        connection.sendall(beginning)
    began = time.monotonic()
    for connection in open_ones:
        assert answered(connection)[:12] in (b"HTTP/1.1 408", b"")
        connection.close()
    assert time.monotonic() - began < 6
    with connect(server) as connection:  # the second request of a connection, too
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\nGET /health/li")
        assert answered(connection).startswith(b"HTTP/1.1 200")


def test_300_slow_connections_leave_good_clients_alone(server):
    """More of them than connections are allowed, each with a byte now and then; the good ones are answered as before."""

    def good(number):
        began = time.monotonic()
        assert call(server, "/v1/score", ROW, ADMIN)["rows"]
        return time.monotonic() - began

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(good, range(8)))
        before = sorted(pool.map(good, range(40)))
        slow = []
        for _ in range(300):
            connection = connect(server)
            connection.sendall(b"POST /v1/score HTTP/1.1\r\nhost: a\r\nx: ")
            slow.append(connection)
        during = sorted(pool.map(good, range(40)))
        for connection in slow:
            try:
                connection.send(b"y")
            except OSError:
                continue
        during += sorted(pool.map(good, range(40)))
    for connection in slow:
        connection.close()
    assert sorted(during)[72] < max(3 * before[36], 0.25)


def test_two_requests_of_one_packet_and_a_large_body(server):
    with connect(server) as connection:
        one = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
        connection.sendall(one * 3 + one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        assert answered(connection).count(b"HTTP/1.1 200") == 4
    rows = {"rows": [{"user_id": "u1", "ad_id": "a1", "query": "x" * 900}] * 900}
    assert len(call(server, "/v1/score", rows, ADMIN)["rows"]) == 900


def test_tls(folder, tmp_path):
    import ssl
    import subprocess
    import urllib.request

    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl here")
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    process, address = start(folder, tmp_path / "store.sqlite", wait=False, tls=tls)
    try:
        url = address.replace("http://127.0.0.1", "https://localhost") + "/health/live"
        for _ in range(300):
            try:
                with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        raise AssertionError("no answer over TLS")
    finally:
        process.terminate()
        process.wait(30)
