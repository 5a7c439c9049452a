"""`preprocess` on several nodes: the prepared folder of one machine, to the bit, also while a worker is killed."""

import os
import signal
import threading

import pytest
from raw_worlds import config
from test_chaos import processes
from test_shared_work import files_of, write_log

from adrec.config.data.inspect import InspectConfig
from adrec.stages.data import inspect, preprocess
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow
QUIET = Terminal(quiet=True)


def test_the_folder_of_one_machine(cluster, tmp_path):
    write_log(tmp_path, "csv", bad=True, parts=6)
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")}, "impressions": {"files": str(tmp_path / "log")},
    }  # fmt: skip
    killer = threading.Timer(6.0, lambda: [os.kill(pid, signal.SIGKILL) for pid in processes("ray::Worker")[:1]])
    killer.start()
    for name, shared in (("single", None), ("shared", {"address": cluster.address, "workers": 2})):
        settings = {"validation": {"max_rejected_fraction": 0.2}, "output": str(tmp_path / name), "source": source}
        preprocess.run(config(tmp_path, **settings, cluster=shared), QUIET)
    killer.cancel()
    alone, others = (files_of(tmp_path / name, but=["config.yaml"]) for name in ("single", "shared"))
    assert alone == others
    assert inspect.run(InspectConfig(path=tmp_path / "single", against=tmp_path / "shared"), QUIET).identical
