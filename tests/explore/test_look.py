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
