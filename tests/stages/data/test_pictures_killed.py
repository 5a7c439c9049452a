"""kill -9 while many small pictures are encoded: the same command goes on, and what was kept is not encoded again."""

import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import vector_worlds
import vision

from adrec.data.prepared import open_prepared
from adrec.data.vectors import file_of
from adrec.models.media.media_vectors import _AT_ONCE

# Preprocess as a process of its own whose encoder writes down every picture it is given.
COUNTED = """
import hashlib, os, sys
from pathlib import Path
from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.models.media.vision_encoder import VisionEncoder
from adrec.stages.data import preprocess
from adrec.terminal import Terminal

log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
encode = VisionEncoder.encode

def counted(self, items):
    for item in items:
        os.write(log, hashlib.md5(item.tobytes()).hexdigest().encode() + b"\\n")
    return encode(self, items)

VisionEncoder.encode = counted
preprocess.run(load_config(Path(sys.argv[1]), PreprocessConfig, []), Terminal(quiet=True))
"""


@pytest.mark.slow
def test_pictures_are_encoded_once_whatever_is_killed(tmp_path):
    count, kills = 1_500, 2
    world = vector_worlds.make(
        tmp_path / "raw", ads=count, requests=300, draw=lambda colour, seed: vision.png(colour, seed=seed)
    )
    encoder = vision.small_vit(tmp_path / "vit")
    image = {"reference": str(encoder), "cache": str(tmp_path / "cache")}
    whole = vector_worlds.prepare(world, tmp_path / "whole", ads=(), image=image | {"cache": str(tmp_path / "other")})
    config = (whole.path / "config.yaml").read_text()
    config = config.replace(str(whole.path), str(tmp_path / "prepared")).replace(
        str(tmp_path / "other"), str(tmp_path / "cache")
    )
    (tmp_path / "preprocess.yaml").write_text(config)
    (tmp_path / "run.py").write_text(COUNTED)
    log = tmp_path / "encoded.txt"
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "preprocess.yaml"), str(log)]

    def encoded():
        return [line for line in log.read_text().split() if len(line) == 32] if log.exists() else []

    for number in range(1, kills + 1):
        process = subprocess.Popen(command)
        while len(encoded()) < number * count // (kills + 1) and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()
    subprocess.run(command, check=True, timeout=600)
    times = Counter(encoded())
    blank = 1  # by which an encoder's width is found
    assert len(times) == count + blank
    assert sum(times.values()) <= count + blank + kills * _AT_ONCE  # a kill costs what was in hand
    found, expected = (np.load(file_of(folder, "ads", "picture")) for folder in (tmp_path / "prepared", whole.path))
    assert np.array_equal(found, expected)
    assert open_prepared(tmp_path / "prepared").manifest["images"]["set_aside"] == {}
    before = len(encoded())
    subprocess.run(command, check=True, timeout=600)
    assert len(encoded()) == before
