"""Outputs appear whole or not at all, whenever the writer is killed; broken Parquet is one clear line."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adrec.data.disk.outputs import OutputKind
from adrec.data.disk.tables import iter_batches, parquet_files, read_table, write_table
from adrec.data.disk.writing import folder_aside, write_aside
from adrec.errors import DataError, ResourceError
from adrec.schema import ADS, IMPRESSIONS, TIMESTAMP

ANY = OutputKind("any folder", lambda folder: True)
ADS_TABLE = pa.table({"ad_id": ["a", "b"], "title": ["one", "two"]})


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".aside")]


def test_files_of_a_new_folder_are_as_readable_as_the_folder(tmp_path):
    with folder_aside(tmp_path / "bundle", ANY) as folder:
        save_file({"x": np.zeros(2, np.float32)}, folder / "model.safetensors")
        (folder / "part").mkdir()
        (folder / "part" / "secret").touch(mode=0o600)
    rights = (tmp_path / "bundle").stat().st_mode & 0o666
    for name in ("model.safetensors", "part/secret"):
        assert (tmp_path / "bundle" / name).stat().st_mode & 0o777 == rights


def test_written_table_reads_back(tmp_path):
    write_table(ADS_TABLE, tmp_path / "deep" / "er" / "ads.parquet")
    assert read_table(tmp_path / "deep" / "er" / "ads.parquet", ADS).equals(ADS_TABLE)
    assert leftovers(tmp_path / "deep" / "er") == []


def test_a_failing_writer_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "ads.parquet"
    write_table(ADS_TABLE, path)
    with pytest.raises(RuntimeError), write_aside(path) as aside:
        aside.write_bytes(b"half")
        raise RuntimeError
    assert read_table(path).equals(ADS_TABLE)
    assert leftovers(tmp_path) == []


def test_a_failing_writer_leaves_the_earlier_folder(tmp_path):
    path = tmp_path / "out"
    with folder_aside(path, ANY) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(RuntimeError), folder_aside(path, ANY) as folder:
        (folder / "a").write_text("second")
        raise RuntimeError
    assert (path / "a").read_text() == "first"
    assert leftovers(tmp_path) == []


def test_a_new_folder_replaces_the_old_wholly(tmp_path):
    path = tmp_path / "out"
    for name in ("a", "b"):
        with folder_aside(path, ANY) as folder:
            (folder / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["b"]
    assert leftovers(tmp_path) == []


WRITER = """
    import sys
    from pathlib import Path
    from adrec.data.disk.outputs import OutputKind
    from adrec.data.disk.writing import folder_aside, write_aside
    ANY = OutputKind("any folder", lambda folder: True)
    root, number = Path(sys.argv[1]), 0
    print("ready", flush=True)
    while True:
        number += 1
        with folder_aside(root / "folder", ANY) as folder:
            for part in range(5):
                (folder / f"part-{part}").write_text(str(number) * 2000)
        with write_aside(root / "file") as aside:
            aside.write_text(str(number) * 20000)
"""


def test_kill_9_at_any_moment_leaves_a_whole_output(tmp_path):
    moments = random.Random(3)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while not (tmp_path / "file").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts = [(tmp_path / "folder" / f"part-{part}").read_text() for part in range(5)]
        assert len(set(parts)) == 1 and len(parts[0]) % 2000 == 0
        body = (tmp_path / "file").read_text()
        number = body[: len(body) // 20000]
        assert body == number * 20000
    # The next run clears what the killed ones left.
    with folder_aside(tmp_path / "folder", ANY) as folder:
        (folder / "part-0").write_text("last")
    with write_aside(tmp_path / "file") as aside:
        aside.write_text("last")
    assert leftovers(tmp_path) == []
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["part-0"]


def test_full_disk_and_closed_folder_are_resource_errors(tmp_path, monkeypatch):
    import errno

    with pytest.raises(ResourceError, match="the disk is full"), write_aside(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError, match="cannot be written"), write_aside(tmp_path / "x"):
        raise OSError(errno.EROFS, "Read-only file system")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a file stands where a folder is needed"), write_aside(tmp_path / "file" / "x"):
        pass


def test_missing_file_and_folder_without_parquet(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"the folder holds no \.parquet file"):
        read_table(tmp_path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.parquet"
    path.touch()
    with pytest.raises(DataError, match=r"empty\.parquet: the file is empty"):
        read_table(path)


@settings(max_examples=40, deadline=None)
@given(keep=st.floats(0, 0.999))
def test_truncated_parquet_is_one_line(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("cut") / "ads.parquet"
    pq.write_table(pa.table({"ad_id": [str(n) for n in range(500)], "title": ["t" * 50] * 500}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError) as caught:
        read_table(path, ADS)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_end_in_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "ads.parquet"
    pq.write_table(pa.table({"ad_id": [str(n) for n in range(500)], "title": ["t" * 50] * 500}), path)
    body = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=8)):
        body[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(body))
    try:
        read_table(path, ADS)
    except DataError as error:
        assert str(path) in str(error)


def test_every_schema_fault_at_once_with_its_column(tmp_path):
    path = tmp_path / "ads.parquet"
    pq.write_table(pa.table({"title": ["t"], "starts_at": ["2026-01-01"], "bid": pa.array([1], pa.int64())}), path)
    with pytest.raises(DataError) as caught:
        read_table(path, ADS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "column 'ad_id' is missing. Columns: title, starts_at, bid." in lines[0]
    assert "column 'starts_at' is string, expected timestamp[us, UTC]. Run 'adrec preprocess' first." in lines[1]
    assert "column 'bid' is int64, expected double" in lines[2]


def test_dictionary_and_large_strings_count_as_strings(tmp_path):
    table = pa.table(
        {
            "user_id": pa.array(["u"]).dictionary_encode(),
            "ad_id": pa.array(["a"], pa.large_string()),
            "shown_at": pa.array([0], TIMESTAMP),
            "history": pa.array([["a"]], pa.large_list(pa.large_string())),
        }
    )
    write_table(table, tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet", IMPRESSIONS).num_rows == 1


def test_batches_come_in_file_order_and_size(tmp_path):
    for number in range(3):
        write_table(pa.table({"x": list(range(number * 100, number * 100 + 100))}), tmp_path / f"part-{number}.parquet")
    batches = list(iter_batches(tmp_path, batch_rows=30))
    assert max(batch.num_rows for batch in batches) <= 30
    assert [x for batch in batches for x in batch["x"].to_pylist()] == list(range(300))
    assert [file.name for file in parquet_files(tmp_path)] == [f"part-{number}.parquet" for number in range(3)]


def test_any_range_of_rows_can_be_read_alone(tmp_path):
    rng = np.random.default_rng(0)
    total = 0
    for number, rows in enumerate([30, 1, 0, 45]):
        table = pa.table({"x": np.arange(total, total + rows)})
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=7)
        total += rows
    for _ in range(200):
        start, stop = sorted(rng.integers(0, total + 10, 2).tolist())
        rows = iter_batches(tmp_path, batch_rows=int(rng.integers(1, 20)), start=start, stop=stop)
        assert [x for batch in rows for x in batch["x"].to_pylist()] == list(range(total))[start:stop]


def test_files_being_written_are_not_read(tmp_path):
    write_table(ADS_TABLE, tmp_path / "part-0.parquet")
    (tmp_path / ".part-1.parquet.1234abcd.aside").write_bytes(b"")
    (tmp_path / "_hidden.parquet").write_bytes(os.urandom(10))
    assert [file.name for file in parquet_files(tmp_path)] == ["part-0.parquet"]
