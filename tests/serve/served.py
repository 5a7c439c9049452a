"""A small trained bundle over the planted world, for the tests of the server."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import worlds
from ports import free_port

from adrec.config.base import save_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.serve import ServeConfig
from adrec.sample import generate_sample
from adrec.serve.door.keys import KEY_VARIABLE, Keys
from adrec.stages.data import preprocess
from adrec.terminal import Terminal

POLICIES = {
    "default": {"top_n": 5, "value": {"kind": "revenue"}, "limits": {"user_ad": 2}, "rules": {"clicked": "keep"}},
    "search": {"top_n": 3, "rules": {"query_match": "require"}},
}


def make_bundle(folder):
    worlds.make_world(folder / "prepared", users=40, requests=400)
    ads = pq.read_table(folder / "prepared" / "ads.parquet")
    ads = ads.append_column("bid", pa.array(np.random.default_rng(0).choice([0.5, 1.0, 2.0], len(ads))))
    ads = ads.append_column("budget", pa.array(np.full(len(ads), 50.0)))
    pq.write_table(ads, folder / "prepared" / "ads.parquet")
    worlds.make_bundle(folder, "training.epochs=2", "model.user.max_history=20")


KEY = "test-key-of-the-environment"
"""Of the servers of `client_of`."""
ADMIN = {"X-API-Key": KEY}


def settings_of(folder, store, **changes):
    values = {
        "bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "store": str(store), "policies": POLICIES,
        "device": "cpu", **changes,
    }  # fmt: skip
    return ServeConfig.model_validate(values)


def client_of(settings, **how):
    """A client, with the key, of a server in this process that asks for one."""
    from fastapi.testclient import TestClient

    from adrec.serve.app import create_app

    keys = Keys(settings.access, {KEY_VARIABLE: KEY})
    return TestClient(create_app(settings, keys=keys), headers=ADMIN, **how)


def call(address, path, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def start(folder, store, headers=None, *, wait=True, environment=None, **settings):
    port = free_port()
    config = store.with_suffix(".yaml")
    save_config(settings_of(folder, store, port=port, **settings), config)
    server = subprocess.Popen(
        [sys.executable, "-m", "adrec", "serve", "-c", str(config), "-q"],
        stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    if not wait:
        return server, address
    for _ in range(600):
        try:
            call(address, "/health/ready", headers=headers)
            return server, address
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "the server stopped"
            time.sleep(0.1)
    raise AssertionError("the server never got ready")


def make_counted_bundle(folder, **changes):
    """A small sample with counters of many keys, histories of clicks and of skips, and a bundle that reads them."""
    generate_sample(folder / "raw", impressions=2_000, seed=5)
    tables = {name: {"files": str(folder / "raw" / f"{name}.parquet")} for name in ("ads", "users")}
    counters = ["usual", {"by": ["scenario", "user"], "measures": ["clicks", "rate"], "half_lives_hours": [24]}]
    config = {
        "output": folder / "prepared", "tokenizer": {"kind": "none"}, "counters": counters,
        "source": {"format": "tables", "impressions": {"files": str(folder / "raw" / "impressions")}, **tables},
        "features": {"impressions": {"numeric": ["counter_*"]}}, "history": {"max_clicks": 20, "max_skipped": 5}, **changes,
    }  # fmt: skip
    preprocess.run(PreprocessConfig.model_validate(config), Terminal(quiet=True))
    worlds.make_bundle(folder, "training.epochs=1")
