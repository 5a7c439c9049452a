"""Two runs never mix, on one machine or on one disk of several; a kill between two renames loses nothing."""

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from adrec.data.disk import lock as locks
from adrec.data.disk import writing
from adrec.data.disk.lock import lock_path, output_lock, this_process
from adrec.data.disk.outputs import OutputKind
from adrec.data.disk.writing import folder_aside, restore, write_aside
from adrec.errors import ResourceError

ANY = OutputKind("any folder", lambda folder: True)

TWO_RENAMES = """
    import os, signal, sys
    from pathlib import Path
    from adrec.data.disk import writing
    from adrec.data.disk.outputs import OutputKind
    ANY = OutputKind("any folder", lambda folder: True)
    writing._swap = lambda aside, path: False
    last, number, rename = int(sys.argv[2]), 0, os.rename
    def counted(*given):
        global number
        number += 1
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*given)
    os.rename = counted
    with writing.folder_aside(Path(sys.argv[1]), ANY) as folder:
        (folder / "a").write_text("second")
"""


@pytest.mark.parametrize("last", [1, 2])
def test_a_kill_between_the_two_renames_of_old_systems(last, tmp_path):
    """The second rename is killed: nothing stands at the path, and the next run finds the earlier output there again."""
    path = tmp_path / "out"
    with folder_aside(path, ANY) as folder:
        (folder / "a").write_text("first")
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(TWO_RENAMES), str(path), str(last)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists() == (last == 1)
    restore(path)
    assert (path / "a").read_text() == "first"
    subprocess.run([sys.executable, "-c", textwrap.dedent(TWO_RENAMES), str(path), "9"], check=True)
    assert (path / "a").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_command_restores_before_it_looks(tmp_path, monkeypatch):
    """`preprocess` appends to what is there: an output that was half renamed away must be back before it looks."""
    from typer.testing import CliRunner

    from adrec.cli.app import app

    def sample(seed):
        run = ["sample", "--impressions", "3000", "--out", str(tmp_path / "s"), "--seed", str(seed)]
        return CliRunner().invoke(app, run)

    assert sample(1).exit_code == 0
    os.rename(tmp_path / "s", tmp_path / ".s.previous")
    monkeypatch.setattr("adrec.stages.data.sample.generate_sample", lambda *_, **__: 1 / 0)
    assert sample(2).exit_code == 1
    assert "seed: 1" in (tmp_path / "s" / "config.yaml").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_what_a_living_process_writes_aside_stays(tmp_path):
    path = tmp_path / "table"
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    me = this_process()

    def aside(process, started, host=None):
        file = tmp_path / f".table.{host or writing._host(me)}-{process}-{started}-abcdef.aside"
        file.write_text("half")
        return file

    try:
        kept = [aside(living.pid, locks._start(living.pid)), aside(1, "1", host="0" * 8)]
        gone = [aside(living.pid, "1"), aside(2**22 + 1, "1")]  # another process of that number; no process at all
        old = aside(7, "7", host="1" * 8)
        os.utime(old, (time.time() - 9 * 86_400,) * 2)
        with write_aside(path) as mine:
            mine.write_text("whole")
        assert all(file.exists() for file in kept)
        assert not any(file.exists() for file in [*gone, old])
    finally:
        living.kill()
        living.wait()
    with write_aside(path) as mine:
        mine.write_text("whole")
    assert not kept[0].exists()
    assert path.read_text() == "whole"


# ------------------------------------------------------------------------------------------------------------- locks


def write_lock(output, **changes):
    facts = {"host": platform.node(), "machine": locks._machine(), "process": os.getpid(), "started": "", "since": "today"}
    lock_path(output).write_text(json.dumps({**facts, **changes}))


def test_the_lock_lies_beside_the_output_and_goes_with_the_block(tmp_path):
    output = tmp_path / "new" / "deep" / "out"
    with output_lock(output):
        assert [file.name for file in output.parent.iterdir()] == [".out.lock"]
        with pytest.raises(ResourceError, match=rf"process {os.getpid()}, since .*Wait until it ends"), output_lock(output):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_told_and_kept(tmp_path):
    output = tmp_path / "out"
    for changes in ({"host": "elsewhere"}, {"machine": "another"}):
        write_lock(output, **changes)
        with (
            pytest.raises(ResourceError, match=r"If it no longer runs, remove .*\.out\.lock and start again"),
            output_lock(output),
        ):
            pass
        assert lock_path(output).exists()


@pytest.mark.parametrize("changes", [{"process": 2**22 + 1}, {"started": "1"}])
def test_a_lock_of_a_process_that_ended_is_taken_over(changes, tmp_path):
    output = tmp_path / "out"
    write_lock(output, **changes)
    with output_lock(output):
        assert json.loads(lock_path(output).read_text())["process"] == os.getpid()
    assert not lock_path(output).exists()


def test_a_lock_that_says_nothing_is_told(tmp_path):
    lock_path(tmp_path / "out").write_text("")
    with pytest.raises(ResourceError, match="it does not say which"), output_lock(tmp_path / "out"):
        pass


def test_disks_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with output_lock(tmp_path / "out"), pytest.raises(ResourceError, match="is writing there"), output_lock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def _race(output, tally):
    """Take the lock, prove that nobody else holds it, let it go; some end without letting go."""
    for turn in range(30):
        try:
            with output_lock(output):
                with open(tally, "a+") as handle:
                    handle.write(f"in {os.getpid()}\n")
                time.sleep(0.001)
                if turn == 17:
                    os.kill(os.getpid(), signal.SIGKILL)
                with open(tally, "a+") as handle:
                    handle.write(f"out {os.getpid()}\n")
        except ResourceError:
            time.sleep(0.002)


def test_many_processes_and_killed_ones_never_hold_it_together(tmp_path):
    output, tally = tmp_path / "out", tmp_path / "tally"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_race, args=(output, tally)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    lines = [line.split() for line in tally.read_text().splitlines()]
    dead = {str(worker.pid) for worker in workers if worker.exitcode == -signal.SIGKILL}
    holder = None
    for what, process in lines:
        if what == "in":
            assert holder is None or holder in dead, "two held the lock at once"
            holder = process
        else:
            assert holder == process
            holder = None
    assert len({process for _, process in lines}) > 1
    with output_lock(output):
        pass
