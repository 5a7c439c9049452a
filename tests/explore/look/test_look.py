"""What the first rows of a file say of its columns."""

import json

from adrec.explore.look import look_at


def test_columns_of_json_lines_are_seen_as_what_they_hold(tmp_path):
    lines = [
        {"id": f"{n:03d}", "when": "2026-03-01T10:00Z", "tags": ["a, b", "c"], "price": n / 2, "seen": n % 2 == 0, "note": "[x"}
        for n in range(30)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (table,) = look_at([tmp_path / "log.jsonl"]).tables
    columns = table.columns
    assert columns["tags"].separator == "" and columns["tags"].is_list
    assert columns["when"].time == {}
    assert columns["price"].is_number and not columns["price"].whole
    assert columns["seen"].is_flag
    assert not columns["note"].is_list and columns["id"].example == "000"


def test_how_a_file_is_laid_out_is_told_as_keys_of_the_config(tmp_path):
    head = "Report;October\n\nwer;was;wann;preis\n"
    rows = "".join(f"u{n};a{n % 4};{n % 28 + 1:02d}.03.2026 10:00;{n},50\n" for n in range(40))
    (tmp_path / "log.csv").write_text(head + rows + "Gesamt;;;800,00\n", encoding="utf-8-sig")
    (table,) = look_at([tmp_path / "log.csv"]).tables
    assert table.reading == {"delimiter": ";", "skip_lines": 2, "leave_out": {"wer": ["Gesamt"]}, "decimal": ","}
    assert (table.rows, table.total_rows) == (40, 40)
    assert table.columns["wann"].time == {"time_format": "%d.%m.%Y %H:%M"}
    assert (table.columns["preis"].low, table.columns["preis"].high) == (0.5, 39.5)
    assert table.head["preis"].to_pylist()[:2] == ["0.5", "1.5"]


def test_words_for_nothing_are_counted_as_nothing(tmp_path):
    prices = [r"\N" if n % 5 == 0 else "-" if n % 7 == 0 else str(n / 4) for n in range(200)]
    (tmp_path / "log.csv").write_text("user_id,price\n" + "".join(f"u{n},{price}\n" for n, price in enumerate(prices)))
    (table,) = look_at([tmp_path / "log.csv"]).tables
    price = table.columns["price"]
    assert price.is_number and price.filled == sum(word not in {r"\N", "-"} for word in prices)
    assert price.null_words == ("-", r"\N") and "-" in table.reading["null_values"]
    assert table.head["price"].null_count == 200 - price.filled


def test_a_file_without_names_is_said_to_be_one(tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"u{n},k{n % 3},2026-03-0{n % 9 + 1}\n" for n in range(30)))
    (tmp_path / "b.csv").write_text("".join(f"{word},{other}\n" for word, other in [("name", "kind"), *[("x", "y")] * 30]))
    tables = {table.files[0].name: table for table in look_at([tmp_path / "a.csv", tmp_path / "b.csv"]).tables}
    assert tables["a.csv"].headerless and tables["a.csv"].reading["header"] == ["column_1", "column_2", "column_3"]
    assert tables["a.csv"].rows == 30
    assert not tables["b.csv"].headerless and list(tables["b.csv"].columns) == ["name", "kind"]


def test_files_of_one_table_are_told_by_names_that_differ_in_numbers_or_parts(tmp_path):
    for name in ("part-00000-5b1c7a90-0000-4a4a-9b9b-00000000abcd-c000", "part-00001-5b1c7a90-0000-4a4a-9b9b-00000000abcd-c000",
                 "ads", "train_log", "test_log"):  # fmt: skip
        (tmp_path / f"{name}.csv").write_text("a,b\n1,x\n2,y\n")
    groups = [[file.name for file in table.files] for table in look_at([tmp_path]).tables]
    assert sorted(map(len, groups)) == [1, 2, 2]
    parts = next(table.parts for table in look_at([tmp_path]).tables if table.parts)
    assert parts == {"train_log.csv": "train", "test_log.csv": "test"}
