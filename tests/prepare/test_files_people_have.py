"""Files as people have them: separators, archives, workbooks, encodings, nested fields, lines around the table, moments."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_worlds

from adrec.config.data.sources import TableInput
from adrec.data.disk.engine import fetch, open_engine
from adrec.errors import AdrecError, ConfigError, DataError
from adrec.prepare.sources.base import Reading
from adrec.prepare.sources.malformed import lines_of, set_lines_aside
from adrec.prepare.sources.tables import open_table
from adrec.prepare.staging.convert import converted, filled

HEADER = ["user", "ad", "title", "price"]
ROWS = [["p1", "007", "Kaffee, süß", "1.5"], ["p2", "k2", "山水茶", "20"], ["p3", "k3", 'say "hi"', "0.25"]]


def delimited(rows, delimiter=",", end="\n"):
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator=end).writerows(rows)
    return sink.getvalue()


def read(tmp_path, file, *columns, work="work", **keys):
    """Cells of a table as they are before they are typed."""
    table = TableInput.model_validate({"files": str(file), **keys}, context={"base": tmp_path})
    with open_engine(tmp_path / work) as connection:
        raw = open_table(connection, "v", table)
        listed = ", ".join(f'"{column}"' for column in columns or HEADER)
        query = f"SELECT {listed} FROM {raw.view} ORDER BY source_order"
        try:
            rows = connection.execute(query).fetchall()
        except duckdb.InvalidInputException:
            assert set_lines_aside(connection, raw.files)
            rows = connection.execute(query).fetchall()
            assert not lines_of(connection, raw.files), "what the config leaves out is no fault"
        return [list(row) for row in rows]


TEXT = delimited([HEADER, *ROWS])
LATIN = [HEADER, *[[cell.replace("山水茶", "thé") for cell in row] for row in ROWS]]
CHINESE = [HEADER, *[[cell.replace("süß", "甜") for cell in row] for row in ROWS]]
WRITTEN = {
    "semicolons": ("log.csv", delimited([HEADER, *ROWS], ";").encode(), {"delimiter": ";"}),
    "tabs in .csv": ("log.csv", delimited([HEADER, *ROWS], "\t").encode(), {"delimiter": "\t"}),
    "bars in .txt": ("log.txt", delimited([HEADER, *ROWS], "|").encode(), {"format": "csv", "delimiter": "|"}),
    "no ending": ("part-00000", TEXT.encode(), {"format": "csv"}),
    "a byte order mark": ("log.csv", TEXT.encode("utf-8-sig"), {}),
    "CRLF": ("log.csv", delimited([HEADER, *ROWS], end="\r\n").encode(), {}),
    "lone CR": ("log.csv", delimited([HEADER, *ROWS], end="\r").encode(), {}),
    "no final line end": ("log.csv", TEXT.rstrip("\n").encode(), {}),
    "UTF-16": ("log.csv", TEXT.encode("utf-16"), {"encoding": "utf-16"}),
    "gzip": ("log.csv.gz", gzip.compress(TEXT.encode()), {}),
    "bzip2": ("log.csv.bz2", bz2.compress(TEXT.encode()), {}),
    "xz": ("log.csv.xz", lzma.compress(TEXT.encode()), {}),
    "no header": ("log.csv", delimited(ROWS).encode(), {"header": HEADER}),
    "no header, with a mark": ("log.csv", delimited(ROWS).encode("utf-8-sig"), {"header": HEADER}),
    "lines above": ("log.csv", ('Report "A, B\n\n' + TEXT).encode(), {"skip_lines": 2}),
    "lines above, CRLF": ("log.csv", ("sep=;\r\n" + delimited([HEADER, *ROWS], ";", "\r\n")).encode(),
                          {"skip_lines": 1, "delimiter": ";"}),
    "lines above, no header": ("log.csv", ("A report\n" + delimited(ROWS)).encode(), {"skip_lines": 1, "header": HEADER}),
    "a total below": ("log.csv", (TEXT + "Total,,,21.75\n").encode(), {"leave_out": {"user": ["Total"]}}),
    "a total of few cells": ("log.csv", (TEXT + "Total,3\n").encode(), {"leave_out": {"user": ["Total"]}}),
    "JSON lines": ("log.json", "".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in ROWS).encode(), {}),
    "a JSON array": ("log.json", json.dumps([dict(zip(HEADER, row, strict=True)) for row in ROWS]).encode(), {}),
    "a JSON array over many lines": ("log.json", json.dumps([dict(zip(HEADER, row, strict=True)) for row in ROWS], indent=1,
                                                            ensure_ascii=False).encode("utf-8-sig"), {}),
    "JSON objects over many lines": ("log.json", "\n".join(json.dumps(dict(zip(HEADER, row, strict=True)), indent=2)
                                                           for row in ROWS).encode(), {}),
    "a JSON array in gzip": ("log.json.gz", gzip.compress(json.dumps([dict(zip(HEADER, row, strict=True))
                                                                      for row in ROWS]).encode()), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_same_rows_however_they_are_written(tmp_path, kind):
    name, content, keys = WRITTEN[kind]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path, tmp_path / name, **keys) == ROWS


@pytest.mark.parametrize(
    ("encoding", "rows"), [("gbk", CHINESE), ("gb18030", CHINESE), ("cp1252", LATIN), ("big5", CHINESE[:2])]
)
def test_other_encodings_are_read_and_guessed_in_the_refusal(tmp_path, encoding, rows):
    file = tmp_path / "log.csv"
    if encoding == "big5":
        rows = [
            HEADER,
            ["p1", "k1", "臺灣咖啡優惠專區", "1"],
            ["p2", "k2", "運動鞋買一送一", "2"],
            ["p3", "k3", "限時免運費活動", "3"],
        ]
    file.write_text(delimited(rows), encoding=encoding)
    assert read(tmp_path, file, encoding=encoding) == rows[1:]
    if encoding != "gb18030":
        with pytest.raises(DataError, match=f"(?s)log.csv.*`encoding` in the config .{encoding}"):
            read(tmp_path, header_in_other_encoding(tmp_path, rows, encoding), work="other")


def header_in_other_encoding(folder, rows, encoding):
    file = folder / "other" / "log.csv"
    file.parent.mkdir()
    named = {"gbk": "广告标题", "cp1252": "Straße", "big5": "廣告標題"}[encoding]
    file.write_text(delimited([[*HEADER[:3], named], *rows[1:]]), encoding=encoding)
    return file


def test_an_archive_of_several_parts_is_one_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("out/part-1.csv", delimited([HEADER, *ROWS[2:]]))
        archive.writestr("out/part-0.csv", delimited([HEADER, *ROWS[:2]]))
        archive.writestr("__MACOSX/out/._part-0.csv", b"\0\1")
        archive.writestr("out/_SUCCESS", b"")
        archive.writestr("out/.DS_Store", b"\0")
    assert read(tmp_path, tmp_path / "log.zip") == ROWS
    table = TableInput.model_validate({"files": "log.zip"}, context={"base": tmp_path})
    with open_engine(tmp_path / "again") as connection:
        raw = open_table(connection, "v", table)
        assert raw.files == (tmp_path / "log.zip",)
        told = connection.execute("SELECT source_file, source_row FROM v ORDER BY source_order").fetchall()
    assert told == [("part-0.csv", 1), ("part-0.csv", 2), ("part-1.csv", 1)]


def test_a_workbook_keeps_its_types(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    from datetime import datetime

    book = openpyxl.Workbook()
    book.active.title = "Notes"
    sheet = book.create_sheet("Log")
    sheet.append(["user", "ad", "seen", "click", "price", "title"])
    sheet.append(["p1", 7, datetime(2031, 5, 13, 6, 0, 1), True, 2.5, 'a "b", c'])
    sheet.append([None, 8.0, datetime(2031, 5, 14), False, None, "山水"])
    book.save(tmp_path / "log.xlsx")
    columns = ("user", "ad", "seen", "click", "price", "title")
    assert read(tmp_path, tmp_path / "log.xlsx", *columns) == [
        ["p1", "7", "2031-05-13 06:00:01", "true", "2.5", 'a "b", c'],
        [None, "8", "2031-05-14", "false", None, "山水"],
    ]
    with pytest.raises(DataError, match="has no sheet 'Lgo'. Sheets: Notes, Log. Mend `sheet`"):
        read(tmp_path, tmp_path / "log.xlsx", work="other", sheet="Lgo")


def test_a_folder_of_parts_passes_over_what_is_no_part(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for number, row in enumerate(ROWS):
        (folder / f"part-0000{number}-5b1c.csv").write_text(delimited([HEADER, row]))
        (folder / f".part-0000{number}-5b1c.csv.crc").write_bytes(b"crc\0")
    (folder / "part-00009-5b1c.csv").write_bytes(b"")
    for name in ("_SUCCESS", ".DS_Store", "part-00000-5b1c.csv.crc", "desktop.ini"):
        (folder / name).write_bytes(b"\0\1")
    assert read(tmp_path, folder) == ROWS
    assert read(tmp_path, folder / "*", work="glob") == ROWS


def test_a_hive_folder_without_endings_or_header(tmp_path):
    for day, row in zip(("2031-05-13", "2031-05-14", "2031-05-15"), ROWS, strict=True):
        (tmp_path / "log" / f"dt={day}").mkdir(parents=True)
        (tmp_path / "log" / f"dt={day}" / "000000_0").write_text("\x01".join(row) + "\n")
    found = read(tmp_path, tmp_path / "log", *HEADER, "dt", format="csv", delimiter="\x01", header=HEADER, quote="")
    assert found == [[*row, day] for row, day in zip(ROWS, ("2031-05-13", "2031-05-14", "2031-05-15"), strict=True)]


NESTED = [
    {"user": {"id": "p1", "geo": {"city": "Köln"}}, "ads": [{"id": 1}],
     "params": [{"key": "page", "value": {"string_value": "a"}}, {"key": "n", "value": {"int_value": 7}}]},
    {"user": {"id": "p2", "geo": None}, "ads": [], "params": [{"key": "n", "value": {"int_value": 8}}]},
]  # fmt: skip
PATHS = ["user.id", "user.geo.city", "params.page", "params.n"]
FIELDS = [["p1", "Köln", "a", "7"], ["p2", None, None, "8"]]


@pytest.mark.parametrize("kind", ["jsonl", "array", "csv", "parquet", "map"])
def test_fields_inside_cells_are_columns(tmp_path, kind):
    if kind == "jsonl":
        file = tmp_path / "log.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    elif kind == "array":
        file = tmp_path / "log.json"
        file.write_text(json.dumps(NESTED, indent=2))
    elif kind == "csv":
        file = tmp_path / "log.csv"
        file.write_text(delimited([list(NESTED[0]), *[[json.dumps(cell) for cell in row.values()] for row in NESTED]]))
    else:
        file = tmp_path / "log.parquet"
        table = pa.Table.from_pylist(NESTED)
        if kind == "map":
            pairs = [[("page", "a"), ("n", "7")], [("n", "8")]]
            table = table.set_column(2, "params", pa.array(pairs, pa.map_(pa.string(), pa.string())))
        pq.write_table(table, file)
    assert read(tmp_path, file, *PATHS) == FIELDS
    columns = {"user_id": "user.id", "page": "params.page"}
    assert read(tmp_path, file, "user_id", "page", "user.geo.city", work="named", columns=columns) == [
        ["p1", "a", "Köln"],
        ["p2", None, None],
    ]
    if kind != "parquet":  # a path that no row of the first ones holds, but later ones might
        assert read(tmp_path, file, "late", work="late", columns={"late": "params.late"}) == [[None], [None]]
    with pytest.raises(DataError, match="column 'user_.id' .for user_id. is missing. Columns: .*user.id"):
        read(tmp_path, file, work="missing", columns={"user_id": "user_.id"})


def test_several_columns_are_one_cell(tmp_path):
    (tmp_path / "log.csv").write_text("day,clock,C14,C17,click\n2031-05-13,06:00,15,,0\n2031-05-14,,15,50,1\n,,,,0\n")
    columns = {"shown_at": ["day", "clock"], "ad_id": ["C14", "C17"]}
    found = read(tmp_path, tmp_path / "log.csv", "shown_at", "ad_id", "C14", columns=columns)
    assert found == [["2031-05-13 06:00", "15", "15"], ["2031-05-14", "15|50", "15"], [None, None, None]]


MOMENTS = [
    ("14102100", {"time_format": "%y%m%d%H"}, "2014-10-21T00:00:00"),
    ("2031051306", {"time_format": "%Y%m%d%H"}, "2031-05-13T06:00:00"),
    (2031051306, {"time_format": "%Y%m%d%H"}, "2031-05-13T06:00:00"),
    (20310513.0, {"time_format": "%Y%m%d"}, "2031-05-13T00:00:00"),
    ("20310513.0", {"time_format": "%Y%m%d"}, "2031-05-13T00:00:00"),
    ("47980.25", {"time_unit": "excel"}, "2031-05-12T06:00:00"),
    (47980.2500115741, {"time_unit": "excel"}, "2031-05-12T06:00:01"),
    ("1936418401000000000", {"time_unit": "nanoseconds"}, "2031-05-13T06:00:01"),
    ("Tue, 13 May 2031 08:00:01 +0200", {"time_format": "%a, %d %b %Y %H:%M:%S %z"}, "2031-05-13T06:00:01"),
    ("13/May/2031:06:00:01 +0000", {"time_format": "%d/%b/%Y:%H:%M:%S %z"}, "2031-05-13T06:00:01"),
    ("2031年5月13日 6时0分1秒", {"time_format": "%Y年%m月%d日 %H时%M分%S秒"}, "2031-05-13T06:00:01"),
    ("5/13/2031 6:00:01 PM", {"time_format": ["%d/%m/%Y", "%m/%d/%Y %I:%M:%S %p"]}, "2031-05-13T18:00:01"),
    ("2031-05-13T06:00:01Z", {"time_format": ["%d/%m/%Y", "iso"]}, "2031-05-13T06:00:01"),
    ("13/05/2031 08:00", {"time_format": "%d/%m/%Y %H:%M", "time_zone": "Europe/Berlin"}, "2031-05-13T06:00:00"),
]


@pytest.mark.parametrize(("cell", "keys", "moment"), MOMENTS)
def test_moments_in_every_common_writing(tmp_path, cell, keys, moment):
    stored = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE"}[type(cell)]
    reading = Reading(**keys)
    with open_engine(tmp_path) as connection:
        connection.register("cells", pa.table({"seen": [cell]}))
        value = converted(reading, "seen", filled(reading, "seen", stored, "moment"), stored, "TIMESTAMP", "moment")
        assert fetch(connection, f"SELECT {value} AS moment FROM cells")["moment"][0].as_py().isoformat() == moment


@pytest.mark.parametrize(
    ("name", "content", "keys", "words"),
    [
        ("log.csv", "user;ad\np1;k1\n", {}, "header is one name, 'user;ad'. Set `delimiter: ';'`"),
        ("log.txt", "user\tad\np1\tk1\n", {}, r'Set `format: csv` and `delimiter: "\\t"`'),
        ("log.csv", "user,user\np1,k1\n", {}, "occurs twice in the header. Name the columns in `header`.*skip_lines: 1"),
        ("log.csv", "\nuser,ad\np1,k1\n", {}, "Set `skip_lines`"),
        ("log.csv", "user,ad\np1,k1\n", {"skip_lines": 9}, "skip_lines passes over 9"),
        ("log.zip", "PK", {}, "no whole zip archive"),
        ("log.xlsx", "PK", {}, "no whole workbook"),
        ("log.csv", "user,ad\np1,k1\n", {"columns": {"x": "usr"}}, "column 'usr' .for x. is missing"),
    ],
)
def test_what_cannot_be_read_names_the_key_that_helps(tmp_path, name, content, keys, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(AdrecError, match=f"(?s){name}.*{words}"):
        read(tmp_path, tmp_path / name, "user", **keys)


def test_a_delta_table_is_refused(tmp_path):
    (tmp_path / "log" / "_delta_log").mkdir(parents=True)
    pq.write_table(pa.table({"user": ["p1"]}), tmp_path / "log" / "part-0.parquet")
    with pytest.raises(DataError, match="is a Delta table"):
        read(tmp_path, tmp_path / "log")


def test_headers_of_the_config_have_different_names(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="names 'a' twice"):
        TableInput.model_validate({"files": "log.csv", "header": ["A", "a"]}, context={"base": tmp_path})


def test_an_array_of_json_within_little_memory(tmp_path):
    """The engine would set half a gigabyte aside for objects that a small file cannot hold."""
    made = raw_worlds.world(tmp_path)
    lines = raw_worlds.write(made["impressions"], tmp_path / "lines.jsonl").read_text().splitlines()
    (tmp_path / "log.json").write_text(f"[{','.join(lines)}]")
    source = raw_worlds.config(tmp_path).model_dump(mode="json", exclude_unset=True)["source"]
    source["impressions"]["files"] = str(tmp_path / "log.json")
    prepared, _ = raw_worlds.prepare(tmp_path, source=source, memory_limit_gb=0.5)
    assert sum(prepared.rows(split) for split in ("train", "valid", "test")) == len(made["impressions"])
