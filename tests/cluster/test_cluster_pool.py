"""Workers of a local Ray: every result once, whatever dies; faults with their part; files that a node cannot see."""

import os
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_work import squares

from adrec.cluster import pool as pools
from adrec.cluster.files import blocks_of, distinct, inventory, is_here, relocated
from adrec.cluster.pool import Pool
from adrec.cluster.session import PlacedWorker, session
from adrec.cluster.worker import Worker
from adrec.config.base import load_config
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.score import ScoreConfig
from adrec.errors import ConfigError, DataError, ResourceError
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
TWO = ClusterConfig(workers=2)


def pool_of(factory, payload, **options):
    return Pool(TWO, factory, payload, QUIET, **options)


def test_workers_of_a_local_ray(tmp_path, monkeypatch):
    """One Ray for all that it shows: starting one, and its workers, takes most of the time."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("adrec.cluster.files.BLOCK", 30_000)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "weights").write_bytes(os.urandom(100_000))
    payload = {"folder": str(tmp_path), "bundle": str(bundle), "deadly": [3], "wrong": [20]}
    with session(TWO):
        pool = pool_of(squares, payload, reads=[bundle, None], of="file")
        (wanted,) = pool.reads  # a node that sees another version of a file is sent this one
        pool.reads = [wanted._replace(files=tuple((name, size, changed + 1) for name, size, changed in wanted.files))]
        with pool:
            made = dict(pool.each(range(9)))
            assert {number: result[0] for number, result in made.items()} == {number: number**2 for number in range(9)}
            assert pool.losses == 1  # task 3 killed its worker: it was made again, and no other
            assert all(len((tmp_path / f"made-{number}").read_text().split()) == 1 for number in range(9))
            assert [result[0] for result in pool.in_order(iter(range(10, 17)), 7)] == [n**2 for n in range(10, 17)]
            ((place, content),) = {result[1:] for result in made.values()}
            assert place != str(bundle) and content == (bundle / "weights").read_bytes()
            fault = r"^log.csv: row 20: 'shown_at' is empty. Fill it. \(file 20, node [\d.]+\)$"
            with pytest.raises(DataError, match=fault):
                list(pool.each(range(19, 22)))
        assert not Path(place).exists()  # nothing stays on the node
        stood = []
        for number in range(2):  # a pool that ends well leaves its workers to the next, which gives them other work
            (tmp_path / str(number)).mkdir()
            with pool_of(squares, {"folder": str(tmp_path / str(number))}) as pool:
                assert sorted(result for _, result in pool.each(range(6))) == [n**2 for n in range(6)]
                stood.append({worker.actor._actor_id for worker in pool._begun.values()})
            assert len(list((tmp_path / str(number)).iterdir())) == 6
        assert stood[1] and stood[1] <= stood[0]


@pytest.mark.slow
def test_a_bug_of_ours_shows_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    with pool_of(squares, {"folder": str(tmp_path), "buggy": [1]}) as pool, pytest.raises(RuntimeError, match="KeyError: 1"):
        list(pool.each(range(2)))


@pytest.mark.slow
def test_a_task_that_ends_every_worker_is_told(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    with pool_of(squares, {"folder": str(tmp_path), "always": [1]}) as pool, pytest.raises(ResourceError) as fault:
        list(pool.each(range(3)))
    assert str(fault.value).startswith(f"part 1: {pools.MOST_LOSSES} workers ended at it") and "memory_gb" in str(fault.value)


@pytest.mark.slow
def test_an_address_where_nothing_answers_is_one_line():
    pytest.importorskip("ray")
    cluster = ClusterConfig(address="127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"^cluster: no Ray answers at '127.0.0.1:1' .* ray start --head\.$"):
        Pool(cluster, squares, {}, QUIET).__enter__()


@pytest.mark.parametrize("is_of_result", [True, False], ids=["a result", "a task"])
def test_a_full_disk_is_told_in_one_line(is_of_result):
    exceptions = pytest.importorskip("ray.exceptions")
    full = exceptions.OutOfDiskError("The object cannot be created.")
    fault = exceptions.RayTaskError("do", "Traceback", full) if is_of_result else full

    def get(asked):
        raise fault

    pool = pool_of(squares, None, of="partition")
    pool._ray = SimpleNamespace(get=get, exceptions=exceptions)
    actor = SimpleNamespace(do=SimpleNamespace(remote=lambda task: None))
    pool._actors, pool._begun = {0: actor}, {0: PlacedWorker(actor, "a node", "10.0.0.7")}
    shared = pools._Shared(queue.Queue(), queue.Queue())
    shared.waiting.put(pools._Task(0, {"name": "12"}))
    pool._serve(0, shared)
    lost = shared.results.get(timeout=5)
    assert isinstance(lost.error, ResourceError)
    said = "partition 12, node 10.0.0.7: the disk is too full for what Ray keeps on its way."
    assert str(lost.error).startswith(said)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("adrec.cluster.session.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"^cluster: Ray is not installed. Run: pip install .*\[cluster\]'$"):
        Pool(TWO, squares, {}, QUIET).__enter__()


def test_ray_is_imported_by_those_who_ask_for_a_cluster_alone():
    program = "import sys, adrec.cluster.pool, adrec.cluster.worker; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_addresses_of_a_config():
    settings = ["bundle=b", "prepared=p", "split=test", "output=o"]
    loaded = load_config(None, ScoreConfig, [*settings, "cluster.address=ray://head:10001", "cluster.gpus=0.25"])
    assert loaded.cluster == ClusterConfig(address="ray://head:10001", gpus=0.25)
    assert load_config(None, ScoreConfig, [*settings, "cluster={}"]).cluster == ClusterConfig()
    with pytest.raises(ConfigError, match=r"cluster.address: .*local, auto, host:6379 or ray://"):
        load_config(None, ScoreConfig, [*settings, "cluster.address=head"])


def test_a_worker_puts_blocks_together(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_bytes(bytes(range(256)) * 300)
    (tmp_path / "in" / "none").touch()
    wanted = inventory(tmp_path / "in")
    assert is_here(wanted) == str(tmp_path / "in")
    worker = Worker("test")
    worker.folder = tmp_path / "node"
    places = {worker.receive(0, *block) for block in blocks_of(wanted)}
    assert places == {str(tmp_path / "node" / "input-0")}
    copies = inventory(tmp_path / "node" / "input-0").files
    assert [(name, size) for name, size, _ in copies] == [(name, size) for name, size, _ in wanted.files]
    assert (tmp_path / "node" / "input-0" / "deep" / "file").read_bytes() == bytes(range(256)) * 300
    (tmp_path / "in" / "none").unlink()
    assert is_here(wanted) is None


def test_paths_move_with_their_inputs(tmp_path):
    value = {"a": ["/data/log.csv", "/data", "/database", 3, None], "b": {"c": "/data/x"}}
    moved = {"a": ["/node/0/log.csv", "/node/0", "/database", 3, None], "b": {"c": "/node/0/x"}}
    assert relocated(value, {"/data": "/node/0"}) == moved
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").touch()
    assert distinct([tmp_path / "in" / "file", tmp_path / "in", None, tmp_path / "gone"]) == [tmp_path / "in"]
