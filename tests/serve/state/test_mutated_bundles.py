"""Bundles of a stranger who has a trusted key: a server refuses each (409) or serves it, and neither falls nor looks around.

The server runs in a process of its own, so that a native crash is seen; the system tells of every look into a folder of bait.
"""

import ctypes
import json
import os
import random
import subprocess
import sys

import pytest

pytest.importorskip("fastapi")
from mutations import Mutations
from served import settings_of
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle
from adrec.config.base import load_config, save_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.disk.signatures import make_key
from adrec.stages.training.finetune import run as finetune
from adrec.terminal import Terminal

SERVER = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from adrec.config.base import load_config
from adrec.config.inference.serve import ServeConfig
from adrec.serve.app import create_app
from adrec.serve.door.keys import Keys

config = load_config(Path(sys.argv[1]), ServeConfig)
keys = Keys(config.access, {"ADREC_API_KEY": "k"})
with TestClient(create_app(config, keys=keys), headers={"x-api-key": "k"}, raise_server_exceptions=False) as client:
    def ask(*bundle):
        asked = [client.post("/admin/reload", json={"bundle": name}) for name in bundle]
        row = {"user_id": "u1", "ad_id": "a1", "query": "guitar", "shown_at": "2024-01-01T00:00:00Z"}
        asked += [
            client.post("/v1/score", json={"rows": [row]}), client.post("/v1/rank", json={"requests": [{"user_id": "u1"}]}),
            client.post("/v1/explain", json={"user": {"user_id": "u1"}, "ad_id": "a1"}),
        ]
        return [(answer.status_code, answer.text[:300]) for answer in asked]
    for line in sys.stdin:
        print(json.dumps(ask(line.strip())), flush=True)
    print(json.dumps(client.get("/metrics").text), flush=True)
"""
IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE = 0x1, 0x2, 0x20, 0x100, 0x200


class Watched:
    """The system's word on who opens what in a folder."""

    def __init__(self, folder):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.handle = self.libc.inotify_init1(os.O_NONBLOCK)
        assert self.libc.inotify_add_watch(self.handle, os.fsencode(folder), IN_ACCESS | IN_MODIFY | IN_OPEN | IN_CREATE) >= 0

    def seen(self):
        try:
            return os.read(self.handle, 100_000)
        except BlockingIOError:
            return b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated")
    make_world(root / "prepared", requests=300, users=30)
    settings = [
        f"prepared={root / 'prepared'}", f"output={root / 'bundle'}", f"text.reference={word_encoder(root / 'words')}",
        f"text.cache={root / 'cache'}", "model.width=16", "training.epochs=1", "baselines.names=[lightgbm, logistic]",
        "hybrid.kind=average",
    ]  # fmt: skip
    finetune(load_config(None, FinetuneConfig, settings), Terminal(quiet=True))
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify")
@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_and_signed_bundles(folder, tmp_path, count):
    assert open_bundle(folder / "bundle")
    bait = tmp_path / "bait"
    bait.mkdir()
    (bait / "secret").write_text('{"secret": 1}')
    make_key(tmp_path / "own.key")
    settings = settings_of(
        folder,
        tmp_path / "s.sqlite",
        policies={"default": {}},
        cache=str(tmp_path / "cache"),
        batching={"timeout_seconds": 300},
        explaining={"timeout_seconds": 300},
    )
    save_config(settings, tmp_path / "serve.yaml")
    mutations = Mutations(folder / "bundle", bait, tmp_path / "own.key", random.Random(count))
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path / "serve.yaml")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    watched, statuses = Watched(bait), {}
    try:
        for number in range(count):
            target = tmp_path / f"mutated-{number}"
            done = mutations.make(target)
            watched.seen()
            server.stdin.write(f"{target}\n")
            server.stdin.flush()
            line = server.stdout.readline()
            assert line, (done, number, server.wait(10), server.stderr.read()[-3_000:])
            answers = json.loads(line)
            assert watched.seen() == b"", (done, answers)
            assert answers[0][0] in (200, 409), (done, answers)
            assert all(status < 500 for status, _ in answers), (done, number, answers)
            assert "\\n" not in answers[0][1], (done, answers)
            statuses[answers[0][0]] = statuses.get(answers[0][0], 0) + 1
        server.stdin.close()
        metrics = json.loads(server.stdout.readline())
        assert f'adrec_reloads_total{{outcome="refused"}} {statuses[409]}.0' in metrics and 'status="500"' not in metrics
    finally:
        server.kill()
        server.wait()
    print(f"{count} bundles: {statuses}")
    assert statuses[409] > count / 2
    assert [file.name for file in bait.iterdir()] == ["secret"]
