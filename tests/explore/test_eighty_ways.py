"""One made-up log written in eighty ways: `init`'s look, guess and config give the same rows, clicks and moments each time."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.disk.engine import fetch, open_engine
from adrec.explore import guess, look_at, write_configs
from adrec.prepare.sources import open_source
from adrec.prepare.sources.malformed import lines_of, set_lines_aside
from adrec.prepare.staging.quarantine import faults_of
from adrec.prepare.staging.roles import roles_of
from adrec.prepare.staging.validate import stage_table
from adrec.schema import IMPRESSIONS

WAYS = 80
ROWS = 160
SHOWN_NAMES = ["user_id", "ad_id", "shown_at", "clicked", "title", "price", "device"]
TITLES = [
    "红色跑鞋 今日优惠 包邮",
    "Coffee for two, today",
    "登山背包 轻便 防水",
    'The "best" tea',
    "Boots; warm and dry",
    "儿童自行车 六折",
]
_RNG = np.random.default_rng(19)


@dataclass(frozen=True)
class Row:
    """One impression of the log, as it is meant."""

    user: str
    ad: str
    at: datetime
    click: int
    title: str
    price: float | None
    device: str | None


def _log() -> list[Row]:
    start = datetime(2025, 10, 3, 5, tzinfo=UTC)
    seconds = np.sort(_RNG.choice(45 * 86_400, ROWS, replace=False))
    rows = []
    for number, second in enumerate(seconds):
        ad = int(_RNG.integers(0, len(TITLES)))
        price = None if number % 11 == 3 else round(float(_RNG.gamma(2.0, 500.0)) + 1.25, 2)
        device = None if number % 13 == 5 else str(_RNG.choice(["phone", "tablet", "desktop"]))
        moment = start + timedelta(seconds=int(second))
        rows.append(Row(f"u{_RNG.integers(0, 40):03d}", f"00{ad}", moment, int(_RNG.random() < 0.3), TITLES[ad], price, device))
    return rows


LOG = _log()
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_HOUR, _DAY, _MINUTE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=1)


def _down(moment: datetime, step: timedelta) -> datetime:
    return moment - (moment - datetime(1970, 1, 1, tzinfo=UTC)) % step


def _stamp(form: str):
    return lambda moment: moment.strftime(form)


def _plain(form: str):
    """Without leading zeros."""
    return lambda m: form.format(Y=m.year, m=m.month, d=m.day, H=m.hour, M=f"{m.minute:02d}", S=f"{m.second:02d}",
                                 I=(m.hour - 1) % 12 + 1, p="AM" if m.hour < 12 else "PM")  # fmt: skip


def _excel(moment: datetime) -> float:
    return (moment - datetime(1899, 12, 30, tzinfo=UTC)) / timedelta(days=1)


MOMENTS = {
    "ISO": (_stamp("%Y-%m-%dT%H:%M:%SZ"), None),
    "ISO with a space": (_stamp("%Y-%m-%d %H:%M:%S"), None),
    "ISO with an offset": (lambda m: m.astimezone(timezone(2 * _HOUR)).isoformat(), None),
    "ISO with a zone's name": (lambda m: m.astimezone(_SHANGHAI).strftime("%Y-%m-%d %H:%M:%S Asia/Shanghai"), None),
    "ISO with fractions": (_stamp("%Y-%m-%d %H:%M:%S.000"), None),
    "date alone": (_stamp("%Y-%m-%d"), _DAY),
    "seconds": (lambda m: str(int(m.timestamp())), None),
    "milliseconds": (lambda m: str(int(m.timestamp() * 1000)), None),
    "microseconds": (lambda m: str(int(m.timestamp()) * 10**6), None),
    "nanoseconds": (lambda m: str(int(m.timestamp()) * 10**9), None),
    "YYYYMMDDHHMMSS": (_stamp("%Y%m%d%H%M%S"), None),
    "YYYYMMDDHHMM": (_stamp("%Y%m%d%H%M"), _MINUTE),
    "YYYYMMDDHH": (_stamp("%Y%m%d%H"), _HOUR),
    "YYYYMMDD": (_stamp("%Y%m%d"), _DAY),
    "YYMMDDHH": (_stamp("%y%m%d%H"), _HOUR),
    "Excel's serial": (lambda m: f"{_excel(m):.10f}", None),
    "German": (_stamp("%d.%m.%Y %H:%M:%S"), None),
    "German, two digits a year": (_stamp("%d.%m.%y %H:%M"), _MINUTE),
    "day first": (_stamp("%d/%m/%Y %H:%M:%S"), None),
    "day first, short": (_plain("{d}/{m}/{Y} {H}:{M}"), _MINUTE),
    "day first, dashes": (_stamp("%d-%m-%Y %H:%M"), _MINUTE),
    "month first": (_plain("{m}/{d}/{Y} {H}:{M}:{S}"), None),
    "month first, 12 hours": (_plain("{m}/{d}/{Y} {I}:{M}:{S} {p}"), None),
    "slashes, year first": (_stamp("%Y/%m/%d %H:%M"), _MINUTE),
    "RFC 2822": (_stamp("%a, %d %b %Y %H:%M:%S +0000"), None),
    "RFC 2822, GMT": (_stamp("%a, %d %b %Y %H:%M:%S GMT"), None),
    "web server": (_stamp("%d/%b/%Y:%H:%M:%S +0000"), None),
    "C": (_stamp("%a %b %d %H:%M:%S %Y"), None),
    "month names": (_stamp("%B %d, %Y %I:%M %p"), _MINUTE),
    "Chinese": (_plain("{Y}年{m}月{d}日 {H}:{M}:{S}"), None),
    "Chinese, with signs": (lambda m: f"{m.year}年{m.month}月{m.day}日 {m.hour}时{m.minute}分{m.second}秒", None),
    "midnights without a clock": (lambda m: m.strftime("%d.%m.%Y" if m.hour < 3 else "%d.%m.%Y %H:%M"), "midnights"),
    "date and clock apart": (lambda m: (m.strftime("%d.%m.%Y"), m.strftime("%H:%M:%S")), None),
    "date and hour apart": (lambda m: (m.strftime("%Y-%m-%d"), str(m.hour)), _HOUR),
}
LABELS = {
    "0/1": ("0", "1"), "true/false": ("false", "true"), "True/False": ("False", "True"), "yes/no": ("no", "yes"),
    "t/f": ("f", "t"), "Y/N": ("N", "Y"), "0.0/1.0": ("0.0", "1.0"), "-1/1": ("-1", "1"), "是/否": ("否", "是"),
    "Clicked/Not Clicked": ("Not Clicked", "Clicked"), "clicked/skipped": ("skipped", "clicked"),
}  # fmt: skip
NULLS = ["", "\\N", "NULL", "NaN", "-", "N/A", "(null)", "?", "null", "#N/A"]
CATEGORIES_TOO = {"N/A", "#N/A"}
"""Words that mean nothing among numbers, and may be one of a few values among categories."""
NUMBERS = {
    "point": lambda x: f"{x:.2f}",
    "comma": lambda x: f"{x:.2f}".replace(".", ","),
    "commas and point": lambda x: f"{x:,.2f}",
    "points and comma": lambda x: f"{x:,.2f}".translate(str.maketrans(",.", ".,")),
    "apostrophes": lambda x: f"{x:,.2f}".replace(",", "'"),
}


def _text(rows, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return sink.getvalue()


def _objects(rows):
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _put(name, **options):
    """A file of CSV; `encoding` and what `packed` does to its bytes come last."""

    def write(folder, rows):
        above, below = options.get("above", ""), options.get("below", "")
        listed = rows[1:] if options.get("headerless") else rows
        text = above + _text(listed, options.get("delimiter", ","), options.get("end", "\n"), options.get("quoting", 0)) + below
        text = text.rstrip("\n") if options.get("cut") else text
        packed = options.get("packed", bytes)
        (folder / name).write_bytes(packed(text.encode(options.get("encoding", "utf-8"))))
        return folder / name

    return write


def _zip(folder, rows):
    with zipfile.ZipFile(folder / "log.zip", "w") as archive:
        archive.writestr("export/part-0.csv", _text(rows[:70]))
        archive.writestr("export/part-1.csv", _text([rows[0], *rows[70:]]))
        archive.writestr("__MACOSX/export/._part-0.csv", b"\0")
    return folder / "log.zip"


def _spark(folder, rows):
    out = folder / "out"
    out.mkdir()
    for number, start in enumerate(range(1, len(rows), 50)):
        name = f"part-{number:05d}-5b1c7a90-0000-4a4a-9b9b-00000000abcd-c000.csv"
        (out / name).write_text(_text([rows[0], *rows[start : start + 50]]), encoding="utf-8")
        (out / f".{name}.crc").write_bytes(b"crc\0")
    (out / "part-00009-5b1c7a90-0000-4a4a-9b9b-00000000abcd-c000.csv").write_bytes(b"")
    (out / "_SUCCESS").write_text("")
    (out / ".DS_Store").write_bytes(b"\0")
    return out


def _hive(folder, rows):
    for number, start in enumerate(range(1, len(rows), 80)):
        part = folder / "log" / f"dt={number}"
        part.mkdir(parents=True)
        (part / "000000_0").write_text(_text([rows[0], *rows[start : start + 80]], "\x01"), encoding="utf-8")
    return folder / "log"


def _parquet(folder, rows):
    table = pa.table({name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])})
    pq.write_table(table, folder / "log.parquet")
    return folder / "log.parquet"


def _structs(folder, rows):
    found = [{"who": {"user_id": row.pop("user_id"), "device": row.pop("device")},
              "event_params": [{"key": key, "value": {"string_value": value}} for key, value in row.items()]}
             for row in _objects(rows)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(found), folder / "log.parquet")
    return folder / "log.parquet"


def _json(name, dump):
    def write(folder, rows):
        (folder / name).write_text(dump(_objects(rows)), encoding="utf-8")
        return folder / name

    return write


def _nested(objects):
    found = [{"user": {"user_id": row.pop("user_id")}, "ad": {"ad_id": row.pop("ad_id"), "title": row.pop("title")}, **row}
             for row in objects]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in found)


def _workbook(folder, rows):
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    book.active.append(["Exported for you"])
    sheet = book.create_sheet("Log")
    for row in rows:
        sheet.append([cell or None for cell in row])
    book.save(folder / "log.xlsx")
    return folder / "log.xlsx"


LAYOUTS = {
    "commas": _put("log.csv"),
    "semicolons": _put("log.csv", delimiter=";"),
    "tabs in .csv": _put("log.csv", delimiter="\t"),
    "bars": _put("log.csv", delimiter="|"),
    "tsv": _put("log.tsv", delimiter="\t"),
    "txt": _put("log.txt"),
    "txt of tabs": _put("log.txt", delimiter="\t"),
    "no ending": _put("log", delimiter="\x01"),
    "all quoted": _put("log.csv", quoting=csv.QUOTE_ALL),
    "CRLF": _put("log.csv", end="\r\n"),
    "lone CR": _put("log.csv", end="\r"),
    "no final line end": _put("log.csv", cut=True),
    "a byte order mark": _put("log.csv", encoding="utf-8-sig", delimiter=";"),
    "UTF-16": _put("log.csv", encoding="utf-16", delimiter="\t"),
    "GBK": _put("log.csv", encoding="gbk"),
    "gzip": _put("log.csv.gz", packed=gzip.compress),
    "bzip2": _put("log.csv.bz2", packed=bz2.compress),
    "xz": _put("log.tsv.xz", packed=lzma.compress, delimiter="\t"),
    "zip of parts": _zip,
    "lines above": _put("report.csv", above='Report of "October"\nAccount, 17\n\n'),
    "sep=": _put("log.csv", above="sep=;\n", delimiter=";"),
    "total below": _put("log.csv", below="Total,,,,,,\n"),
    "short total below": _put("log.csv", below="Total,160\n"),
    "headerless": _put("log.csv", headerless=True),
    "Spark": _spark,
    "Hive": _hive,
    "Parquet": _parquet,
    "structs and records": _structs,
    "JSON lines": _json("log.jsonl", lambda rows: "".join(json.dumps(row) + "\n" for row in rows)),
    "JSON array": _json("log.json", json.dumps),
    "JSON array over lines": _json("log.json", lambda rows: json.dumps(rows, indent=2, ensure_ascii=False)),
    "nested JSON": _json("log.jsonl", _nested),
    "workbook": _workbook,
}


def _way(number: int) -> tuple[str, str, str, str, str]:
    """Every choice of each kind is met, with others each time."""
    layouts, moments, labels, numbers = list(LAYOUTS), list(MOMENTS), list(LABELS), list(NUMBERS)
    return (
        layouts[number % len(layouts)],
        moments[(number * 5 + number // len(moments)) % len(moments)],
        labels[(number * 3 + number // 11) % len(labels)],
        numbers[(number + number // 5) % len(numbers)],
        NULLS[(number * 3 + number // 10) % len(NULLS)],
    )


def _written(moment: str, label: str, number: str, null: str) -> list[list[str]]:
    """The log as cells of text, its header first."""
    at, words, price = MOMENTS[moment][0], LABELS[label], NUMBERS[number]
    rows, names = [], SHOWN_NAMES
    for row in LOG:
        when = at(row.at)
        parts = list(when) if isinstance(when, tuple) else [when]
        if len(parts) == 2:
            names = ["user_id", "ad_id", "date", "hour" if moment == "date and hour apart" else "time", *SHOWN_NAMES[3:]]
        cost = null if row.price is None else price(row.price)
        rows.append([row.user, row.ad, *parts, words[row.click], row.title, cost, null if row.device is None else row.device])
    return [names, *rows]


def _meant(moment: str) -> list[datetime]:
    step = MOMENTS[moment][1]
    if step == "midnights":
        return [_down(row.at, _DAY if row.at.hour < 3 else _MINUTE) for row in LOG]
    return [row.at if step is None else _down(row.at, step) for row in LOG]


def _rows_of(folder, path, said):
    """What preprocess would stage by the config that init writes."""
    found = guess(look_at([path]).tables, said)
    (folder / "configs").mkdir()
    write_configs(folder / "configs", runs=folder / "runs", final=folder / "configs", guess=found, source=None)
    config = load_config(folder / "configs" / "preprocess.yaml", PreprocessConfig)
    extra = ["title", found_name(config, "price"), found_name(config, "device")]
    with open_engine(folder / "work", threads=1) as connection:
        raw = open_source(connection, config.source).impressions
        roles = roles_of(config)["impressions"]
        try:
            staged = stage_table(connection, raw, IMPRESSIONS, "staged", extra=extra, roles=roles)
        except duckdb.InvalidInputException:
            assert set_lines_aside(connection, raw.files)
            assert not lines_of(connection, raw.files)
            staged = stage_table(connection, raw, IMPRESSIONS, "staged", extra=extra, roles=roles)
        assert not faults_of(connection, raw, staged, "impressions")
        table = fetch(connection, "SELECT * EXCLUDE (source_file, source_row) FROM staged ORDER BY source_order")
    return table.rename_columns([name.rsplit(".", 1)[-1] for name in table.column_names]), found


def found_name(config, plain):
    """A feature's column, which may be a path or a number: price, event_params.price, column_6."""
    names = [item.column for item in config.features.impressions.numeric] + [
        item.column for item in config.features.impressions.categorical
    ]
    others = {"price": "column_", "device": "column_"}
    return next((name for name in names if name.rsplit(".", 1)[-1] == plain), None) or next(
        name for name in (names if plain == "price" else reversed(names)) if name.startswith(others[plain])
    )


@pytest.mark.parametrize("number", range(WAYS))
def test_a_log_is_the_same_however_it_is_written(tmp_path, number):
    layout, moment, label, decimal, null = way = _way(number)
    path = LAYOUTS[layout](tmp_path, _written(moment, label, decimal, null))
    said = None
    if layout == "headerless":  # init says that there are no names, and asks
        parts = 2 if "apart" in moment else 1
        names = [f"column_{place}" for place in range(1, 8 + parts)]
        at = names[2] if parts == 1 else names[2:4]
        said = {"user_id": names[0], "ad_id": names[1], "shown_at": at, "click": names[2 + parts], "title": names[3 + parts]}
    table, found = _rows_of(tmp_path, path, said)
    if layout == "headerless":
        assert found.tables["impressions"].headerless
        table = table.rename_columns(
            ["price" if name == f"column_{5 + parts}" else "device" if name == f"column_{6 + parts}" else name
             for name in table.column_names]
        )  # fmt: skip
    assert table.num_rows == len(LOG), way
    assert table["user_id"].to_pylist() == [row.user for row in LOG], way
    assert table["ad_id"].to_pylist() == [row.ad for row in LOG], way
    assert table["click"].to_pylist() == [row.click for row in LOG], way
    assert [at.replace(tzinfo=UTC) for at in table["shown_at"].to_pylist()] == _meant(moment), way
    assert table["title"].to_pylist() == [row.title for row in LOG], way
    assert table["price"].to_pylist() == [row.price for row in LOG], way
    unknown = null if null in CATEGORIES_TOO and layout != "workbook" else None  # there #N/A is no text
    assert table["device"].to_pylist() == [row.device or unknown for row in LOG], way


def test_every_choice_is_met():
    ways = [_way(number) for number in range(WAYS)]
    for place, choices in enumerate((LAYOUTS, MOMENTS, LABELS, NUMBERS, NULLS)):
        assert {way[place] for way in ways} == set(choices)
    assert len(set(ways)) == WAYS
