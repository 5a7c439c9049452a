"""History: by the definition on random worlds, for any cutting into batches, parts and days."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_in_time_reference import HOUR, assert_same, attach, reference_history, to_table, worlds

from adrec.errors import DataError
from adrec.specs import HistorySpec


def assert_history(out, expected):
    assert out["history_index"].to_pylist() == [item[0] for item in expected]
    assert out["history_length"].to_pylist() == [item[2] for item in expected]
    assert out["skipped_index"].to_pylist() == [item[3] for item in expected]
    for found, item in zip(out["history_hours"].to_pylist(), expected, strict=True):
        assert found == pytest.approx(item[1], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.integers(1, 9))
def test_history_is_the_definition(rows, batch_rows):
    out, _ = attach(to_table(rows), batch_rows=batch_rows, specs=[])
    assert out["mark"].to_pylist() == [f"m{i}" for i in range(len(rows))]
    assert_history(out, reference_history(rows, 3, 2))


@settings(max_examples=25, deadline=None)
@given(worlds(late=True), st.integers(1, 9))
def test_late_clicks_enter_history_when_they_happen(rows, batch_rows):
    history = HistorySpec(max_clicks=3, max_skipped=2, clicked_at="clicked_at")
    out, _ = attach(to_table(rows, late=True), history=history, batch_rows=batch_rows, specs=[])
    assert_history(out, reference_history(rows, 3, 2))


def world(*rows):
    """Rows as (request, user, hour, ad, click)."""
    names = ("request", "user", "at", "ad", "click")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    return to_table([{**row, "at": int(row["at"] * HOUR), "position": 1, "conversion": 0} for row in made])


def test_a_tie_in_time_is_not_earlier():
    out, _ = attach(world((0, 0, 1, 2, 1), (1, 0, 1, 3, 1), (2, 0, 2, 4, 0)), specs=[])
    assert out["history_index"].to_pylist() == [[], [], [2, 3]]


def test_own_click_is_never_in_the_history_even_when_the_request_goes_on():
    out, _ = attach(world((0, 0, 1, 2, 1), (0, 0, 2, 3, 1), (0, 0, 3, 4, 0), (1, 0, 4, 5, 0)), specs=[])
    assert out["history_index"].to_pylist() == [[], [], [], [2, 3]]


def test_newest_are_kept_and_stand_last():
    rows = [(n, 0, n, n % 6, 1) for n in range(6)] + [(9, 0, 9, 0, 0)]
    out, _ = attach(world(*rows), specs=[])
    assert out["history_index"].to_pylist()[-1] == [3, 4, 5]
    assert out["history_hours"].to_pylist()[-1] == [6.0, 5.0, 4.0]
    assert out["history_length"].to_pylist()[-1] == 6


def test_without_request_ids_one_user_at_one_moment_is_a_request():
    table = world((0, 0, 1, 2, 1), (0, 0, 1, 3, 0), (1, 0, 2, 4, 0)).drop_columns(["request_id"])
    out, past = attach(table, specs=[])
    assert out["history_index"].to_pylist() == [[], [], [2]]
    assert (past.report.requests, past.report.empty) == (2, 1)
    some = world((0, 0, 1, 2, 1), (1, 0, 2, 3, 1), (2, 0, 3, 4, 0))
    some = some.set_column(3, "request_id", pa.array([None, "", None], pa.string()))
    assert attach(some, specs=[])[0]["history_index"].to_pylist() == [[], [2], [2, 3]]


def given_table(histories, clicks=None):
    table = world(*[(n, 0, n, n % 6, (clicks or [0] * 9)[n]) for n in range(len(histories))])
    return table.append_column("history", pa.array(histories, pa.list_(pa.string())))


def test_given_history_is_cut_to_the_newest_and_unknown_ads_are_counted():
    out, past = attach(given_table([["a1", "zz", "a2", "a3", "a4"], None, [], ["zz"]]), specs=[])
    assert out["history_index"].to_pylist() == [[2, 3, 4], [], [], []]
    assert out["history_length"].to_pylist() == [5, 0, 0, 1]
    assert "history" not in out.column_names and "history_hours" not in out.column_names
    report = past.report
    assert (report.source, report.items, report.unknown_items, report.empty, report.cut) == ("given", 6, 2, 2, 1)


def test_a_given_history_that_holds_the_answer_is_told():
    _, past = attach(given_table([["a0"], ["a0"], ["a2"]], clicks=[1, 1, 1]), specs=[])
    assert past.report.shown_in_history == 2


def test_a_given_history_that_changes_within_a_request_is_told():
    table = world((0, 0, 1, 2, 1), (0, 0, 1, 3, 0), (0, 0, 1, 4, 0))
    table = table.append_column("history", pa.array([["a1", "a2"], ["a1", "a2"], ["a2", "a1"]]))
    _, past = attach(table, specs=[])
    assert past.report.differing == 1


def test_source_clicks_leaves_a_given_history_aside():
    history = HistorySpec(max_clicks=3, source="clicks")
    out, _ = attach(given_table([["a5"], ["a5"]], clicks=[1, 0]), specs=[], history=history)
    assert out["history_index"].to_pylist() == [[], [0]]
    with pytest.raises(DataError, match="no column 'history'"):
        attach(world((0, 0, 1, 2, 1)), specs=[], history=HistorySpec(source="given"))


def test_faults_are_told():
    with pytest.raises(DataError, match="expected a list of ad ids"):
        table = world((0, 0, 2, 2, 1))
        attach(table.append_column("history", pa.array(["a1 a2"])))


@settings(max_examples=25, deadline=None)
@given(worlds(spread=False), st.data())
def test_events_from_a_moment_on_change_nothing_before_it(rows, data):
    cut = data.draw(st.sampled_from(sorted({row["at"] for row in rows})))
    before = [row for row in rows if row["at"] < cut]
    whole, _ = attach(to_table(rows), batch_rows=5)
    if before:
        alone, _ = attach(to_table(before), batch_rows=3)
        assert_same(alone, whole.slice(0, len(before)))
    flipped = [{**row, "click": 1 - (row["click"] or 0)} if row["at"] >= cut else row for row in rows]
    changed, _ = attach(to_table(flipped), batch_rows=5)
    kept = [n for n, row in enumerate(rows) if row["at"] <= cut]
    names = [name for name in whole.column_names if name != "click"]
    assert_same(changed.select(names).take(kept), whole.select(names).take(kept))
