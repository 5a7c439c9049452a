"""Long ones: 200 reloads under load with no failed request and every bad bundle refused; kill -9 twenty times, both stores."""

import http.client
import json
import shutil
import signal
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from ports import free_port
from redis_server import needs_redis, redis_server
from safetensors.numpy import load_file, save_file
from served import call, make_bundle, start

from adrec.bundle import save_bundle

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("long")
    make_bundle(made)
    return made


def post(address, path, body):
    """Status and answer, with the key."""
    headers = {"content-type": "application/json", "x-api-key": "secret"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def bad_bundles(folder, tmp_path):
    """Broken in four ways: altered weights, a missing file, no manifest, and digests that fit weights that do not."""
    for name in ("altered", "missing", "unsealed"):
        shutil.copytree(folder / "bundle", tmp_path / name)
    weights = tmp_path / "altered" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (tmp_path / "missing" / "features.json").unlink()
    (tmp_path / "unsealed" / "bundle.json").write_text("{}")
    with save_bundle(tmp_path / "forged", seed=1) as made:
        shutil.copytree(folder / "bundle", made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundle.json"))
        tensors = {name: values * np.float32(1.1) for name, values in load_file(made / "model.safetensors").items()}
        save_file(tensors, made / "model.safetensors")
    return ["altered", "missing", "unsealed", "forged"]


@pytest.mark.slow
def test_200_reloads_under_load_fail_no_request_and_bad_bundles_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", "secret")
    bad = bad_bundles(folder, tmp_path)
    shutil.copytree(folder / "bundle", tmp_path / "twin")
    server, address = start(folder, tmp_path / "store.sqlite", {"x-api-key": "secret"})
    statuses, done, lock = {}, threading.Event(), threading.Lock()

    def load(number):
        while not done.is_set():
            for path, body in (
                ("/v1/score", {"rows": [{"user_id": f"u{number}", "ad_id": f"a{number}"}]}),
                ("/v1/rank", {"requests": [{"user_id": f"u{number}"}]}),
            ):
                try:
                    status, answer = post(address, path, body)
                    status = status if answer.get("rows") or answer.get("lists") else "empty"
                except OSError as error:
                    status = repr(error)
                with lock:
                    statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            status, answer = post(
                address, "/admin/reload", {"bundle": str(tmp_path / "twin" if number % 2 else folder / "bundle")}
            )
            assert status == 200, answer
            status, answer = post(address, "/admin/reload", {"bundle": str(tmp_path / bad[number % len(bad)])})
            assert status == 409 and "earlier bundle goes on" in answer["detail"] and "\n" not in answer["detail"], answer
    finally:
        done.set()
        for thread in threads:
            thread.join()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    print(f"requests while reloading 200 times: {statuses}")
    assert set(statuses) == {200} and statuses[200] > 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=needs_redis)])
def test_kill_9_twenty_times_under_events_loses_none_that_was_acknowledged(folder, tmp_path, kind):
    acknowledged, lock = [], threading.Lock()
    redis_port = free_port()
    settings = {"redis": f"redis://127.0.0.1:{redis_port}/0"} if kind == "redis" else {}

    def run(address, writer, life):
        for number in range(10_000):
            name = f"{life}-{writer}-{number}"
            event = {"user_id": f"u{writer}", "ad_id": f"a{number % 60}", "kind": "click", "event_id": name}
            try:
                if call(address, "/v1/events", {"events": [event]})["recorded"] == 1:
                    with lock:
                        acknowledged.append(name)
            except (OSError, ValueError, http.client.HTTPException):
                return  # the server is gone

    def lives():
        for life in range(20):
            server, address = start(folder, tmp_path / "store.sqlite", **settings)
            before = len(acknowledged)
            threads = [threading.Thread(target=run, args=(address, writer, life)) for writer in range(4)]
            for thread in threads:
                thread.start()
            while len(acknowledged) < before + 40:
                assert server.poll() is None
            server.kill()
            server.wait()
            for thread in threads:
                thread.join()
        server, address = start(folder, tmp_path / "store.sqlite", **settings)
        for start_at in range(0, len(acknowledged), 1000):
            names = acknowledged[start_at : start_at + 1000]
            events = [{"user_id": "u0", "ad_id": "a0", "kind": "click", "event_id": name} for name in names]
            answer = call(address, "/v1/events", {"events": events})
            assert (answer["recorded"], answer["repeated"]) == (0, len(names))
        server.send_signal(signal.SIGTERM)
        server.wait(60)

    if kind == "redis":
        with redis_server(tmp_path, redis_port):
            lives()
    else:
        lives()
    print(f"{kind}: 20 kills, {len(acknowledged)} events acknowledged, all there")
    assert len(acknowledged) >= 800
