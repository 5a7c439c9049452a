"""Rows that break their contract are told in one line before they are a file."""

from math import inf, nan

import pyarrow as pa
import pytest

from adrec.data.disk.checks import check_rows
from adrec.errors import DataError
from adrec.schema import SCORED

GOOD = pa.table(
    {
        "user_id": ["u1", "u2", "u3"],
        "ad_id": ["a1", "a2", "a3"],
        "logit": pa.array([-1.0, 0.0, 88.0], pa.float32()),
        "score": pa.array([0.0, 0.5, 1.0], pa.float32()),
        "history_length": pa.array([0, None, 3], pa.int32()),
        "own": pa.array([nan, inf, None]),
    }
)


def with_cells(column, values, kind):
    return GOOD.set_column(GOOD.column_names.index(column), column, pa.array(values, kind))


def test_what_keeps_the_contract_passes_with_the_users_own_columns():
    check_rows(GOOD, SCORED, where="s.parquet", cure="")
    check_rows(GOOD.slice(0, 0), SCORED, where="s.parquet", cure="")
    check_rows(pa.concat_tables([GOOD, GOOD]), SCORED, where="s.parquet", cure="")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (with_cells("logit", [0.0, nan, nan], pa.float32()), "column 'logit', row 1,002: nan is not a finite number"),
        (with_cells("logit", [0.0, 0.0, -inf], pa.float32()), "column 'logit', row 1,003: -inf is not a finite number"),
        (with_cells("score", [0.5, 1.5, -1.0], pa.float32()), "column 'score', row 1,002: 1.5 is not from 0 to 1"),
        (with_cells("score", [None, 0.5, 0.5], pa.float32()), "column 'score', row 1,001: an empty cell where every row needs"),
        (with_cells("logit", [0.0, 0.0, None], pa.float32()), "column 'logit', row 1,003: an empty cell"),
        (with_cells("history_length", [0, -1, 0], pa.int32()), "column 'history_length', row 1,002: -1 is not from 0 to inf"),
        (with_cells("logit", [0.0, 0.0, 0.0], pa.float64()), "column 'logit' is double, expected float. Train again."),
        (GOOD.drop_columns(["score"]), "column 'score' is missing"),
    ],
)
def test_a_fault_is_one_line_with_file_column_row_and_cure(rows, words):
    with pytest.raises(DataError) as fault:
        check_rows(rows, SCORED, where="s.parquet", cure="Train again.", first_row=1000)
    assert str(fault.value).startswith(f"s.parquet: {words}")
    assert "\n" not in str(fault.value)
