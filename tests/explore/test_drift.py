"""Drift: quiet where nothing changed, told where something was planted, exact where tables are the same."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from adrec.explore.drift import compare_tables, judged
from adrec.metrics.drift import distance

KINDS = ["shop", "news", "video", "games"]


def log(rng, *, rows=1500, users=150, share=(0.4, 0.3, 0.2, 0.1), shift=0.0, rate=0.1, persons=1.0):
    """Impressions whose rows of a user hang together: taste and activity are the user's."""
    activity = rng.lognormal(0, 1, users)
    user = rng.choice(users, rows, p=activity / activity.sum())
    taste = rng.dirichlet(np.array(share) * 4, users)
    kind = (taste[user].cumsum(1) < rng.random(rows)[:, None]).sum(1)
    price = rng.normal(0, persons, users)[user] + rng.normal(shift, 1, rows)
    click = rng.random(rows) < np.clip(rate * np.exp(rng.normal(0, 0.5, users)[user]), 0, 1)
    return pa.table(
        {
            "user_id": [f"u{number}" for number in user],
            "ad_id": [f"a{number}" for number in rng.integers(0, 40, rows)],
            "kind": np.array(KINDS)[np.minimum(kind, 3)],
            "price": price,
            "slot": rng.integers(1, 5, rows),
            "click": click.astype(np.int8),
            "score": 1 / (1 + np.exp(-(rng.normal(0, 0.4, users)[user] - 2))),
        }
    )


def compared(before, after, **settings):
    with duckdb.connect() as connection:
        connection.register("before", before)
        connection.register("after", after)
        table, drifts = compare_tables(connection, "before", "after", "impressions")
    return table, {drift.column: drift for drift in judged(drifts, **{"least_psi": 0.1, "least_change": 0.1, **settings})}


@pytest.mark.parametrize("pairs", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_pairs_of_one_world_are_quiet(pairs):
    rng = np.random.default_rng(0)
    alarms = [any(drift.drifted for drift in compared(log(rng), log(rng))[1].values()) for _ in range(pairs)]
    assert np.mean(alarms) <= 0.05


@pytest.mark.slow
def test_chance_alone_is_no_drift_by_its_p_value_either():
    """What is beyond chance, whatever its size: at most about one pair in twenty, though rows of a user hang together."""
    rng = np.random.default_rng(1)
    settings = {"least_psi": 0.0, "least_change": 0.0}
    alarms = [any(one.drifted for one in compared(log(rng), log(rng), **settings)[1].values()) for _ in range(100)]
    assert np.mean(alarms) <= 0.12


@pytest.mark.parametrize(
    ("change", "column", "mover"),
    [
        ({"share": (0.1, 0.3, 0.2, 0.4)}, "kind", {"shop", "games"}),
        ({"shift": 1.5}, "price", None),
        ({"rate": 0.2}, "click", {"1", "0"}),
    ],
)
def test_what_was_planted_is_told(change, column, mover):
    told = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, found = compared(log(rng, rows=4000), log(rng, rows=4000, **change))
        told += found[column].drifted
        assert not found["slot"].drifted
        if mover is not None:
            assert {one.value for one in found[column].movers[:2]} == mover
    assert told >= 9


def test_the_same_rows_in_another_order_are_identical():
    table = log(np.random.default_rng(0))
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    found, drifts = compared(table, shuffled)
    assert found.identical and not drifts and not found.changed


def test_columns_that_differ_are_named():
    table = log(np.random.default_rng(0))
    other = table.drop_columns(["slot"]).append_column("fresh", pa.array(np.zeros(len(table))))
    price = other["price"].to_numpy().copy()
    price[3] += 1e-9
    other = other.set_column(other.schema.get_field_index("price"), "price", pa.array(price))
    found, _ = compared(table, other)
    assert not found.identical
    assert (found.only_before, found.only_after, found.changed) == (["slot"], ["fresh"], ["price"])
    assert found.unseen["user_id"] == 0.0


def test_cells_that_changed_places_are_a_difference():
    table = log(np.random.default_rng(0))
    swapped = table.set_column(2, "kind", table["kind"].take(np.random.default_rng(1).permutation(len(table))))
    found, _ = compared(table, swapped)
    assert not found.identical and found.changed == [], "each column holds the same values, rows do not"


def test_missing_values_lists_texts_and_empty_tables_are_compared():
    rng = np.random.default_rng(0)
    count = 3000
    before = pa.table(
        {"a": rng.normal(size=count), "w": [["x"] * n for n in rng.integers(0, 3, count)], "t": rng.choice(["é'", "b"], count)}
    )
    holes = np.where(rng.random(count) < 0.4, None, 1.0)
    after = before.set_column(
        0, "a", pa.array([None if hole is None else value for hole, value in zip(holes, before["a"].to_pylist())])
    )
    _, found = compared(before, after)
    assert found["a"].drifted and found["a"].missing[1] == pytest.approx(0.4, abs=0.05)
    assert found["a"].movers[0].value == "(missing)"
    assert not found["w"].drifted and not found["t"].drifted
    table, drifts = compared(before, before.slice(0, 0))
    assert table.rows == (count, 0) and not drifts


def test_distances_by_hand():
    before, after = np.array([50.0, 50.0]), np.array([70.0, 30.0])
    found = distance(before, after)
    assert found.psi == pytest.approx(0.2 * np.log(0.7 / 0.5) - 0.2 * np.log(0.3 / 0.5))
    middle = np.array([0.6, 0.4])
    halves = [np.sum(one * np.log2(one / middle)) for one in (before / 100, after / 100)]
    assert found.js == pytest.approx(sum(halves) / 2)
    assert found.low <= found.js <= found.high
    from scipy.stats import chi2_contingency

    assert found.p_value == pytest.approx(chi2_contingency([before, after], correction=False).pvalue)
    assert distance(before, before).p_value == 1.0 and distance(before, before).low == 0.0
    assert np.isnan(distance(before, before * 0).psi)
    assert distance(np.array([100.0, 0]), np.array([0, 100.0])).js == pytest.approx(1.0)
