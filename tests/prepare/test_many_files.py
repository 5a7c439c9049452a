"""Hundreds of files, few open handles: every row keeps its file, its number and its order."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.data.disk.engine import open_memory_engine
from adrec.errors import DataError
from adrec.prepare.sources.files import find_files, read_files
from adrec.prepare.sources.malformed import ROWS_A_FILE, lines_of, set_lines_aside

MANY = 300
FEW_HANDLES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from adrec.data.disk.engine import open_memory_engine
from adrec.prepare.sources.files import find_files, read_files
with open_memory_engine() as connection:
    read_files(connection, "v", find_files(sys.argv[1]))
    query = "SELECT count(*), count(DISTINCT source_file), sum(source_row), count(DISTINCT source_order) FROM v"
    print(connection.execute(query).fetchone())
    print(connection.execute("SELECT a FROM v ORDER BY source_order").fetchall() == [(str(n),) for n in range(900)])
"""


def put(folder, kind, number, values):
    folder.mkdir(exist_ok=True)
    file = folder / f"{number:03d}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"a": values, "b": ["x"] * len(values)}), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"a": value, "b": "x"}) + "\n" for value in values))
    else:
        mark = "\t" if kind == "tsv" else ","
        file.write_text(f"a{mark}b\n" + "".join(f"{value}{mark}x\n" for value in values))
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_three_hundred_files_need_few_handles(tmp_path, kind):
    for number in range(MANY):
        put(tmp_path / "log", kind, number, [str(3 * number + row) for row in range(3)])
    command = [sys.executable, "-c", FEW_HANDLES, str(tmp_path / "log")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == [f"({3 * MANY}, {MANY}, {6 * MANY}, {3 * MANY})", "True"]


def test_rows_are_numbered_by_file_and_ordered_over_all(tmp_path):
    lengths = [3, 1, 4, 0, 2]
    for number, length in enumerate(lengths):
        put(tmp_path / "log", "csv", number, [f"{number}-{row}" for row in range(1, length + 1)])
    files = find_files(str(tmp_path / "log"))
    with open_memory_engine() as connection:
        read_files(connection, "v", files[1:], all_files=files)
        found = connection.execute("SELECT a, source_file, source_row, source_order FROM v ORDER BY source_order").fetchall()
    expected = [
        (f"{number}-{row}", f"{number:03d}.csv", row, number * ROWS_A_FILE + row)
        for number, length in list(enumerate(lengths))[1:]
        for row in range(1, length + 1)
    ]
    assert found == expected


def test_columns_in_another_order_are_the_same_columns(tmp_path):
    (tmp_path / "0.csv").write_text("a,b\n1,x\n")
    (tmp_path / "1.csv").write_text("b,a\nx,2\n")
    (tmp_path / "2.csv").write_text("a,b\n3,x\n")
    with open_memory_engine() as connection:
        read_files(connection, "v", find_files(str(tmp_path)))
        found = connection.execute("SELECT a, b, source_file FROM v ORDER BY source_order").fetchall()
    assert found == [("1", "x", "0.csv"), ("2", "x", "1.csv"), ("3", "x", "2.csv")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_broken_lines_of_several_files_leave_the_numbers_of_the_others(tmp_path, kind):
    broken = {(0, 2), (2, 1), (2, 3), (3, 1), (3, 2)}
    for number in range(4):
        file = put(tmp_path / "log", kind, number, [f"{number}-{row}" for row in range(1, 4)])
        lines = file.read_text().splitlines()
        for row in range(1, 4):
            if (number, row) in broken:
                lines[row - 1 + (kind == "csv")] = "1,2,3" if kind == "csv" else '{"a": '
        file.write_text("\n".join(lines) + "\n")
    files = find_files(str(tmp_path / "log"))
    with open_memory_engine() as connection:
        read_files(connection, "v", files)
        assert set_lines_aside(connection, files)
        found = connection.execute("SELECT a, source_file, source_row FROM v ORDER BY source_order").fetchall()
        lines = f"SELECT source_file, source_row FROM {lines_of(connection, files)} ORDER BY source_order"
        told = connection.execute(lines).fetchall()
    every = [(number, row) for number in range(4) for row in range(1, 4)]
    assert found == [(f"{number}-{row}", f"{number:03d}.{kind}", row) for number, row in every if (number, row) not in broken]
    assert told == [(f"{number:03d}.{kind}", row) for number, row in sorted(broken)]


def test_keys_that_differ_in_case_alone_are_refused(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"A": 2}\n')
    with open_memory_engine() as connection, pytest.raises(DataError, match="'a' and 'A' differ in case alone"):
        read_files(connection, "v", find_files(str(tmp_path)))


def test_odd_keys_of_json_are_columns(tmp_path):
    keys = ["a b", 'q"q', "it's", "a.b", "$x", "a/b", "红", "*", "0"]
    (tmp_path / "log.jsonl").write_text(json.dumps(dict.fromkeys(keys, "v"), ensure_ascii=False) + "\n")
    with open_memory_engine() as connection:
        read_files(connection, "v", find_files(str(tmp_path)))
        cursor = connection.execute("SELECT * EXCLUDE (source_file, source_row, source_order) FROM v")
        assert [column[0] for column in cursor.description] == keys
        assert cursor.fetchall() == [tuple("v" for _ in keys)]
