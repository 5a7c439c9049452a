"""The golden table: the same cells in CSV, TSV, JSON lines and Parquet give the same rows, or the same clear refusal."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows

from adrec.errors import DataError

FORMATS = ("csv", "tsv", "jsonl", "parquet")
TEXT_FORMATS = FORMATS[:3]
CODES = [
    "007", "1234567890123456789", "12345678901234567890123", "550e8400-e29b-41d4-a716-446655440000", "2024-01-02T10:00:00",
    "2024-01-02", "320_50", "12:30", "TRUE", "1e5", "0x1F", "+3", "-0", "1.50", ".5", "Infinity", "[x]", '{"a": 1}', "ä\u00a0ß",
    "红",
]  # fmt: skip
PLAIN = {"counters": [], "split": {"method": "random", "test_fraction": 0.0}}


def put(folder, name, columns, kind, *, encoding="utf-8", quoted=True):
    """One table in one file; cells are text, None, or numbers (JSON and Parquet keep those as numbers)."""
    file = folder / f"{name}.{kind}"
    file.parent.mkdir(parents=True, exist_ok=True)
    names, lines = list(columns), list(zip(*columns.values(), strict=True))
    if kind == "parquet":
        pq.write_table(pa.table(columns), file)
    elif kind == "jsonl":
        body = "".join(json.dumps(dict(zip(names, line, strict=True)), ensure_ascii=False) + "\n" for line in lines)
        file.write_bytes(body.encode(encoding))
    else:
        mark = "," if kind == "csv" else "\t"

        def cell(value):
            text = "" if value is None else str(value)
            return '"' + text.replace('"', '""') + '"' if quoted and (mark in text or '"' in text) else text

        body = "\n".join(mark.join(map(cell, line)) for line in [names, *lines]) + "\n"
        file.write_bytes(body.encode(encoding))
    return str(file)


def log(count, **columns):
    """A small log over two ads; `columns` replace or add some."""
    return {
        "user_id": [f"u{n % 3}" for n in range(count)],
        "ad_id": ["a", "b"] * (count // 2) + ["a"] * (count % 2),
        "shown_at": [f"2026-03-01 10:00:{n:02d}" for n in range(count)],
        "request_id": [f"r{n}" for n in range(count)],
        "click": [n % 2 for n in range(count)],
        **columns,
    }


ADS = {"ad_id": ["a", "b"], "title": ["One", "Two"]}


def read(folder, kind, impressions, ads=ADS, *, options=None, ad_options=None, encoding="utf-8", **settings):
    """The prepared folder and the result of these tables in this format."""
    source = {
        "format": "tables",
        "impressions": {"files": put(folder / kind, "log", impressions, kind, encoding=encoding), **(options or {})},
        "ads": {"files": put(folder / kind, "ads", ads, kind, encoding=encoding), **(ad_options or {})},
    }
    return prepare(folder, **{**PLAIN, "source": source, "output": str(folder / kind / "out"), "features": {}, **settings})


def told(folder, kind, *arguments, **settings):
    """The refusal, its file's ending taken out."""
    with pytest.raises(DataError) as caught:
        read(folder, kind, *arguments, **settings)
    return str(caught.value).replace(f".{kind}", "").splitlines()[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_ids_categories_and_kept_columns_keep_every_character(tmp_path, kind):
    count = len(CODES)
    table = log(count, user_id=CODES, ad_id=CODES, request_id=CODES, device=CODES, segment=CODES, extra=CODES, zone=CODES)
    ads = {"ad_id": CODES, "title": [f"Title {n}" for n in range(count)], "category": CODES, "advertiser_id": CODES}
    prepared, _ = read(
        tmp_path, kind, table, ads, keep=["extra", "zone"],
        features={"impressions": {"hashed": ["device"], "categorical": ["segment"]}, "ads": {"categorical": ["category"]}},
        counters=[{"by": ["zone"]}],
    )  # fmt: skip
    found = rows(prepared).sort_by("row_id")
    for column in ("user_id", "ad_id", "request_id", "device", "segment", "extra", "zone"):
        assert found[column].to_pylist() == CODES, column
    for column in ("ad_id", "category", "advertiser_id"):
        assert prepared.ads()[column].to_pylist() == CODES, column


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_numbers_stored_as_numbers_are_their_digits(tmp_path, kind):
    digits = [1234567890123456789, 1234567890123456790, 17, 0]
    prepared, _ = read(tmp_path, kind, log(4, user_id=digits, device=digits), features={"impressions": {"hashed": ["device"]}})
    found = rows(prepared)
    assert found["user_id"].to_pylist() == [str(value) for value in digits]
    assert [str(value) for value in found["device"].to_pylist()] == [str(value) for value in digits]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_float_id_is_the_whole_number_that_it_was(tmp_path, kind):
    floats = [17.0, 3.0, 9007199254740991.0, 0.0]
    prepared, _ = read(tmp_path, kind, log(4, user_id=floats, slot=floats), features={"impressions": {"categorical": ["slot"]}})
    assert rows(prepared)["user_id"].to_pylist() == ["17", "3", "9007199254740991", "0"]
    assert rows(prepared)["slot"].to_pylist() == ["17", "3", "9007199254740991", "0"]


def test_a_float_id_that_may_be_another_is_refused_alike(tmp_path):
    floats = [17.0, 1234567890123456789.0, 1.0, 2.0]
    problems = {kind: told(tmp_path, kind, log(4, user_id=floats)) for kind in FORMATS}
    assert all("log: column 'user_id', row 2: " in line for line in problems.values()), problems
    assert all("is a float too large to tell ids apart. Store the column as text" in line for line in problems.values()), (
        problems
    )


def test_a_missing_user_is_nobody_and_a_missing_ad_is_refused_alike(tmp_path):
    for number, word in enumerate(("\\N", "NULL", "null", "NaN", "nan", "None", "NA", "")):
        for kind in FORMATS:
            prepared, _ = read(tmp_path / f"user{number}", kind, log(4, user_id=["u", "v", word, "w"]))
            assert rows(prepared)["user_id"].to_pylist() == ["u", "v", None, "w"], (kind, word)
        problems = {kind: told(tmp_path / f"ad{number}", kind, log(4, ad_id=["a", "b", word, "a"])) for kind in FORMATS}
        assert len(set(problems.values())) == 1, problems
        shown = f"{word!r} " if word else ""
        assert f"log: column 'ad_id', row 3: {shown}is missing" in problems["csv"]


@pytest.mark.parametrize("kind", FORMATS)
def test_words_for_missing_cells_are_read_as_such_and_told(tmp_path, kind, capsys):
    table = log(
        4, request_id=["r0", "NULL", "\\N", "r3"], position=["1", "NA", "", "2"], query=["NULL", "\\N", "nan", "x"],
        segment=["None", "nan", "a", "NA"], age=["1", "NULL", "2", "3"],
    )  # fmt: skip
    features = {"impressions": {"categorical": ["segment"], "numeric": ["age"]}}
    prepared, result = read(tmp_path, kind, table, features=features)
    found = rows(prepared)
    assert [value if value in {"r0", "r3"} else "made" for value in found["request_id"].to_pylist()] == [
        "r0",
        "made",
        "made",
        "r3",
    ]
    assert found["position"].to_pylist() == [1, None, None, 2]
    assert found["query"].to_pylist()[:1] == ["NULL"] and not found["query"].to_pylist()[1]
    assert found["segment"].to_pylist() == ["None", None, "a", "NA"]
    assert found["age"].to_pylist() == [1, None, 2, 3]
    notes = "\n".join(result.manifest["notes"])
    assert (
        f"log.{kind}: column 'request_id', row 2: 'NULL' is read as a missing value (2 such cells). Set `null_values`" in notes
    )
    assert "column 'age', row 2: 'NULL'" in notes
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", FORMATS)
def test_words_for_missing_cells_are_declared(tmp_path, kind):
    table = log(4, segment=["-", "NULL", "a", "?"], query=["-", "x", "y", "NULL"])
    options = {"null_values": ["-", "?"]}
    prepared, _ = read(tmp_path, kind, table, options=options, features={"impressions": {"categorical": ["segment"]}})
    assert rows(prepared)["segment"].to_pylist() == [None, "NULL", "a", None]
    assert rows(prepared)["query"].to_pylist()[1:] == ["x", "y", "NULL"]


def test_lone_quotes_never_swallow_rows(tmp_path):
    titles = ["A", '"Sale', "B", "C", 'now"', "D"]
    ads = {"ad_id": list("abcdef"), "title": titles}
    for kind in ("csv", "tsv"):
        source = {"format": "tables", "impressions": {"files": put(tmp_path / kind, "log", log(6), kind)},
                  "ads": {"files": put(tmp_path / kind, "ads", ads, kind, quoted=False)}}  # fmt: skip
        with pytest.raises(DataError, match=rf"ads.{kind}: line 3: a lone quote would join .* Set `quote: ''`"):
            prepare(tmp_path, source=source, features={}, **PLAIN)
        source["ads"]["quote"] = ""
        prepared, _ = prepare(tmp_path, source=source, features={}, **PLAIN)
        assert prepared.ads()["title"].to_pylist() == titles
        source["ads"]["quote"] = '"'
        prepared, _ = prepare(tmp_path, source=source, features={}, **PLAIN)
        assert prepared.ads().num_rows == 3, "the config says that a quote encloses a cell"
    for kind in ("jsonl", "parquet"):
        assert read(tmp_path, kind, log(6), ads)[0].ads()["title"].to_pylist() == titles


@pytest.mark.parametrize("kind", ("csv", "tsv"))
def test_cells_of_several_lines_are_still_cells(tmp_path, kind):
    ads = {"ad_id": ["a", "b"], "title": ["One", "Two"], "description": ["first, line\nand\ta second", 'say "hi"']}
    file = tmp_path / f"ads.{kind}"
    mark = "," if kind == "csv" else "\t"
    lines = [list(ads), *zip(*ads.values(), strict=True)]
    file.write_text("\n".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines) + "\n")
    source = {"format": "tables", "impressions": {"files": put(tmp_path, "log", log(4), kind)}, "ads": {"files": str(file)}}
    prepared, _ = prepare(tmp_path, source=source, features={}, **PLAIN)
    assert prepared.ads()["description"].to_pylist() == ["first, line\nand\ta second", 'say "hi"']


@pytest.mark.parametrize("kind", ("csv", "tsv"))
def test_quotes_inside_cells_are_plain_characters(tmp_path, kind):
    ads = {"ad_id": ["a", "b"], "title": ['6" pipe', "it is 5' 7\" tall"]}
    source = {"format": "tables", "impressions": {"files": put(tmp_path, "log", log(4), kind)},
              "ads": {"files": put(tmp_path, "ads", ads, kind, quoted=False)}}  # fmt: skip
    assert prepare(tmp_path, source=source, features={}, **PLAIN)[0].ads()["title"].to_pylist() == ads["title"]


@pytest.mark.parametrize("kind", FORMATS)
def test_zones_of_moments_are_honoured(tmp_path, kind):
    texts = [
        "2026-03-01 10:00:00 Europe/Berlin", "2026-03-01 10:00:00 CET", "2026-03-01T17:00:00+0800",
        "2026-03-01 17:00:00 +08:00",
        "2026-03-01T09:00:00Z", "2026-03-01 09:00:00 Z", "2026-03-01T17:00:00+08:00[Asia/Shanghai]", "2026-03-01 17:00:00+08",
        "2026-03-01 09:00:00 UTC", "2026-03-01 09:00", "2026-03-01 09:00:00.0",
    ]  # fmt: skip
    prepared, _ = read(tmp_path, kind, log(len(texts), shown_at=texts))
    assert {moment.isoformat() for moment in rows(prepared)["shown_at"].to_pylist()} == {"2026-03-01T09:00:00+00:00"}


@pytest.mark.parametrize("moment", ["2026-03-01 10:00:00 Foo/Bar", "2026-03-01 10:00:00 CST", "2026-03-01 10:00:00 PM", "soon"])
def test_zones_that_nobody_knows_are_refused_alike(tmp_path, moment):
    problems = {told(tmp_path, kind, log(4, shown_at=["2026-03-01", moment, "2026-03-01", "2026-03-01"])) for kind in FORMATS}
    assert len(problems) == 1, problems
    assert f"column 'shown_at', row 2: {moment!r} is not a timestamp." in problems.pop()


def test_other_encodings_are_declared(tmp_path):
    titles = ["红色跑鞋", "超值优惠，速来"]
    for encoding in ("gbk", "utf-16", "utf-8"):
        for kind in TEXT_FORMATS:
            folder = tmp_path / encoding
            given = {"encoding": encoding} if encoding != "utf-8" else {}
            prepared, _ = read(folder, kind, log(4), {"ad_id": ["a", "b"], "title": titles},
                               options=given, ad_options=given, encoding=encoding)  # fmt: skip
            assert prepared.ads()["title"].to_pylist() == titles
    problems = {kind: told(tmp_path / "not", kind, log(4), {**ADS, "title": titles}, encoding="gbk") for kind in TEXT_FORMATS}
    assert all(": line " in line and "is not UTF-8 text" in line and "`encoding`" in line for line in problems.values()), (
        problems
    )
    codes = pa.array([title.encode("gbk") for title in titles], pa.binary())
    problem = told(tmp_path / "not", "parquet", log(4), {**ADS, "title": codes})
    assert "ads: column 'title', row 1: " in problem and "is not UTF-8 text" in problem
    with pytest.raises(DataError, match="utf_16|utf-16.*Set `encoding`"):
        read(tmp_path / "wrong", "csv", log(4), {**ADS, "title": titles}, ad_options={"encoding": "utf-16"})


def test_bytes_of_parquet_are_text_in_utf_8(tmp_path):
    titles = ["红色跑鞋", "Two"]
    prepared, _ = read(
        tmp_path, "parquet", log(4), {**ADS, "title": pa.array([title.encode() for title in titles], pa.binary())}
    )
    assert prepared.ads()["title"].to_pylist() == titles


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_are_numbers_where_a_role_says_so(tmp_path, kind):
    prices = ["1.5", "007", "1e3", "true"]
    features = {"impressions": {"numeric": ["price", "cost_*"], "categorical": ["price"]}}
    prepared, _ = read(
        tmp_path, kind, log(4, price=prices, cost_a=prices, code=prices), features=features, keep=["code", "cost_a"]
    )
    found = rows(prepared)
    assert found["price"].to_pylist() == found["cost_a"].to_pylist() == [1.5, 7.0, 1000.0, 1.0]
    assert found["code"].to_pylist() == prices


@pytest.mark.parametrize("cell", ["1,000", "320_50", "ten", "NaN"])
def test_a_bad_number_is_one_line_alike(tmp_path, cell):
    settings = {"features": {"impressions": {"numeric": ["price"]}}}
    problems = {told(tmp_path, kind, log(4, price=["1", "2", cell, "4"]), **settings) for kind in FORMATS}
    assert len(problems) == 1, problems
    assert f"log: column 'price', row 3: {cell!r} is " in problems.pop()
    prepared, _ = read(tmp_path / "some", "csv", log(4, price=["1", "2", cell, "4"]), **settings,
                       validation={"max_rejected_fraction": 0.3})  # fmt: skip
    assert rows(prepared)["price"].to_pylist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("kind", FORMATS)
def test_decimal_and_thousands_marks_are_declared(tmp_path, kind):
    settings = {"features": {"impressions": {"numeric": ["price"]}}}
    table = log(4, price=["1.234,5", "0,5", "-7", "1.000.000"])
    prepared, _ = read(tmp_path, kind, table, options={"decimal": ",", "thousands": "."}, **settings)
    assert rows(prepared)["price"].to_pylist() == [1234.5, 0.5, -7.0, 1_000_000.0]
    with pytest.raises(DataError, match="row 3: '1.5' is not a number"):
        read(tmp_path, kind, log(4, price=["1", "2", "1.5", "3"]), options={"decimal": ",", "thousands": "."}, **settings)


@pytest.mark.parametrize("kind", FORMATS)
def test_lists_keep_their_items(tmp_path, kind):
    tags = "01|2024-01-02|x" if kind in {"csv", "tsv"} else ["01", "2024-01-02", "x"]
    settings = {"features": {"impressions": {"lists": ["tags"]}}}
    table = log(4, tags=[tags, None, tags, None], history=[None, None, '["a", "b"]', "b"])
    prepared, _ = read(tmp_path, kind, table, **settings)
    found = rows(prepared)
    assert found["tags"].to_pylist() == [["01", "2024-01-02", "x"], None, ["01", "2024-01-02", "x"], None]
    assert found["history_index"].to_pylist() == [[], [], [0, 1], [1]]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_of_any_unit_and_zone(tmp_path, unit):
    second = 1772359200  # 2026-03-01 10:00 UTC
    count = [second * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]] * 4
    for kind in (pa.timestamp(unit), pa.timestamp(unit, "UTC"), pa.timestamp(unit, "Asia/Shanghai")):
        prepared, _ = read(tmp_path / re.sub(r"\W", "-", str(kind)), "parquet", log(4, shown_at=pa.array(count, kind)))
        assert rows(prepared)["shown_at"][0].as_py().isoformat() == "2026-03-01T10:00:00+00:00"
    words = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[unit]
    for kind in FORMATS:
        prepared, _ = read(tmp_path / unit, kind, log(4, shown_at=count), options={"time_unit": words})
        assert rows(prepared)["shown_at"][0].as_py().isoformat() == "2026-03-01T10:00:00+00:00"


def test_a_moment_far_from_today_is_told(tmp_path):
    _, result = read(tmp_path, "csv", log(4, shown_at=[1_772_359_200] * 4), options={"time_unit": "milliseconds"})
    assert (
        "log.csv: column 'shown_at', row 1: 1970-01-21 is far from today (4 such rows). Check `time_unit`"
        in result.manifest["notes"][0]
    )
    _, result = read(tmp_path / "fine", "csv", log(4))
    assert result.manifest["notes"] == []


def test_a_broken_json_line_is_one_line_and_may_be_set_aside(tmp_path):
    file = put(tmp_path, "log", log(6), "jsonl")
    lines = Path(file).read_text().splitlines()
    lines[2] = lines[2][:20]
    lines.insert(4, "")
    Path(file).write_text("\n".join(lines) + "\n")
    source = {"format": "tables", "impressions": {"files": file}, "ads": {"files": put(tmp_path, "ads", ADS, "jsonl")}}
    with pytest.raises(DataError, match=r"^log.jsonl: line 3: is no JSON. Mend that line"):
        prepare(tmp_path, source=source, features={}, **PLAIN)
    prepared, result = prepare(tmp_path, source=source, features={}, validation={"max_rejected_fraction": 0.2}, **PLAIN)
    assert rows(prepared)["request_id"].to_pylist() == ["r0", "r1", "r3", "r4", "r5"]
    assert result.manifest["source_rows"]["impressions"] == {"rows": 6, "rejected": 1}
    (rejected,) = pq.read_table(prepared.path / "rejected.parquet").to_pylist()
    assert (rejected["source_row"], rejected["reason"]) == (3, "is no JSON")


def test_the_format_of_the_config_goes_before_the_ending(tmp_path):
    file = put(tmp_path, "log", log(4), "jsonl")
    (tmp_path / "log.dat").write_bytes(Path(file).read_bytes())
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "log.dat"), "format": "jsonl"},
              "ads": {"files": put(tmp_path, "ads", ADS, "csv")}}  # fmt: skip
    (tmp_path / "log.csv").write_bytes(Path(file).read_bytes())
    for name in ("log.dat", "log.csv"):
        source["impressions"]["files"] = str(tmp_path / name)
        assert rows(prepare(tmp_path, source=source, features={}, **PLAIN)[0]).num_rows == 4
