"""Labels in words, from ratings, and slots that count from 0: read as they are, with a key of the source at most."""

import pyarrow as pa
import pytest
from pydantic import ValidationError
from raw_worlds import config, prepare, rows, tables, write

from adrec.errors import DataError


def _log(folder, column, values, *, file="impressions.csv", **more):
    """Three tables whose impressions hold `values`, repeated, in `column` in place of the click; returns the cells by row."""
    made = tables()
    for name in ("ads", "users"):
        write(made[name], folder / f"{name}.parquet")
    log = made["impressions"].sort_by([("shown_at", "ascending"), ("request_id", "ascending")])
    cells = [values[at % len(values)] for at in range(len(log))]
    log = log.drop_columns(["click"]).append_column(column, pa.array(cells))
    for name, other in more.items():
        log = log.set_column(log.column_names.index(name), name, pa.array(other(log[name])))
    write(log, folder / file)
    return cells


def _source(folder, **impressions):
    source = config(folder).source.model_dump(mode="json")
    return {**source, "impressions": {"files": "impressions.csv", **impressions}}


@pytest.mark.parametrize(
    ("words", "positive", "expected"),
    [
        (["0", "1"], None, {"0": 0, "1": 1}),
        (["0.0", "1.0"], None, {"0.0": 0, "1.0": 1}),
        (["TRUE", "False", "true"], None, {"TRUE": 1, "False": 0, "true": 1}),
        (["t", "f", "T", "F"], None, {"t": 1, "f": 0, "T": 1, "F": 0}),
        (["Yes", "no", "NO", "yes"], None, {"Yes": 1, "no": 0, "NO": 0, "yes": 1}),
        (["y", "N"], None, {"y": 1, "N": 0}),
        (["-1", "1", "1.0"], [1], {"-1": 0, "1": 1, "1.0": 1}),
        (["Clicked on Ad", "clicked on ad ", "ignored"], ["Clicked on Ad"],
         {"Clicked on Ad": 1, "clicked on ad ": 1, "ignored": 0}),
        (["Yes", "No", "Maybe"], [True], {"Yes": 1, "No": 0, "Maybe": 0}),
        (["买", "不买"], ["买"], {"买": 1, "不买": 0}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["impressions.csv", "impressions.jsonl"])
def test_words_become_clicks(tmp_path, words, positive, expected, file):
    cells = _log(tmp_path, "answer", words, file=file)
    flags = {"positive": {"click": positive}} if positive else {}
    source = _source(tmp_path, files=file, columns={"click": "answer"}, **flags)
    prepared, _ = prepare(tmp_path, source=source)
    assert rows(prepared)["click"].to_pylist() == [expected[cell] for cell in cells]


def test_an_empty_cell_is_no_answer_with_words_too(tmp_path):
    cells = _log(tmp_path, "answer", ["Yes", None, "No"])
    source = _source(tmp_path, columns={"click": "answer"}, positive={"click": ["yes"]})
    prepared, _ = prepare(tmp_path, source=source)
    assert rows(prepared)["click"].to_pylist() == [{"Yes": 1, "No": 0, None: None}[cell] for cell in cells]


def test_other_words_are_refused_with_the_key_that_reads_them(tmp_path):
    _log(tmp_path, "answer", ["bought", "left"])
    with pytest.raises(DataError, match=r"column 'answer', row 1: 'bought' is not 0 or 1 .*`positive` in the source"):
        prepare(tmp_path, source=_source(tmp_path, columns={"click": "answer"}))


@pytest.mark.parametrize("ratings", [[1, 5, 4, 3, None], ["1,0", "5", "4,0", "3,9", None]])
def test_ratings_of_at_least_so_much_are_clicks_and_stay_ratings(tmp_path, ratings):
    cells = _log(tmp_path, "stars", ratings)
    source = _source(tmp_path, columns={"rating": "stars"}, at_least={"click": {"rating": 4}}, decimal=",")
    prepared, _ = prepare(tmp_path, source=source, features={})
    numbers = [None if cell is None else float(str(cell).replace(",", ".")) for cell in cells]
    found = rows(prepared)
    assert found["rating"].to_pylist() == numbers
    assert found["click"].to_pylist() == [None if number is None else int(number >= 4) for number in numbers]


def test_a_threshold_may_be_on_a_column_of_any_name(tmp_path):
    cells = _log(tmp_path, "seconds", [0.5, 30, 12.25])
    prepared, _ = prepare(tmp_path, source=_source(tmp_path, at_least={"click": {"seconds": 12.25}}))
    found = rows(prepared)
    assert found["click"].to_pylist() == [int(cell >= 12.25) for cell in cells]
    assert "seconds" not in found.column_names


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ({"at_least": {"click": {"stars": 4}}}, [1, 5], r"column 'stars' is missing, of which at_least makes 'click'"),
        ({"at_least": {"click": {"seconds": 4}}}, ["1", "many"], r"column 'seconds', row 2: 'many' is not a number"),
    ],
)
def test_thresholds_that_cannot_be_read(tmp_path, keys, values, message):
    _log(tmp_path, "seconds", values)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, source=_source(tmp_path, **keys))


def test_slots_from_zero_are_moved_to_count_from_one(tmp_path):
    _log(tmp_path, "click", [0, 1], position=lambda slots: [slot - 1 for slot in slots.to_pylist()])
    with pytest.raises(DataError, match=r"column 'position', row 1: '0' is below 1 .*first_position: 0"):
        prepare(tmp_path, source=_source(tmp_path))
    moved, _ = prepare(tmp_path, source=_source(tmp_path, first_position=0))
    _log(tmp_path, "click", [0, 1])
    plain, _ = prepare(tmp_path, source=_source(tmp_path), output="again")
    assert rows(moved)["position"].equals(rows(plain)["position"])


@pytest.mark.parametrize(
    "keys",
    [
        {"positive": {"click": ["yes"]}, "at_least": {"click": {"rating": 4}}},
        {"columns": {"click": "answer"}, "at_least": {"click": {"rating": 4}}},
        {"at_least": {"click": {"rating": 4, "stars": 2}}},
        {"positive": {"title": ["yes"]}},
        {"positive": {"click": []}},
        {"first_position": 2},
    ],
)
def test_contradictions_are_refused_before_anything_is_read(tmp_path, keys):
    with pytest.raises(ValidationError):
        config(tmp_path, source=_source(tmp_path, **keys))
