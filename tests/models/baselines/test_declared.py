"""Cosines to what a user declared and asked for equal a loop over rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_worlds import catalog, inputs

from adrec.data.batches.collate import Texts
from adrec.models.baselines import declared
from adrec.models.baselines.declared import declared_columns
from adrec.models.baselines.tabular.design import design

RNG = np.random.default_rng(0)
ADS = RNG.normal(size=(6, 7)).astype(np.float32)
INTERESTS = RNG.normal(size=(4, 3, 7)).astype(np.float32)
INTERESTS[1, 2:] = 0  # two interests
INTERESTS[2] = 0  # none
QUERIES = {"": np.zeros(7, np.float32), "shoes": RNG.normal(size=7).astype(np.float32)}


def _cosine(one, other):
    size = np.linalg.norm(one) * np.linalg.norm(other)
    return one @ other / size if size else 0.0


@pytest.fixture
def rows():
    listed = [(user, [], [(ad, 0) for ad in range(6)]) for user in (3, 0, 2, 1, 0)]
    given = inputs(listed, catalog([f"a{i}" for i in range(6)], vectors=ADS), catalog([f"u{i}" for i in range(4)]))
    asked = np.arange(len(given)) % 2
    return replace(given, examples=replace(given.examples, query=asked.astype(np.int32), queries=("", "shoes")))


def _columns(rows, parts=(7,)):
    return declared_columns(
        rows.examples,
        rows.ads,
        lambda users: Texts(torch.from_numpy(INTERESTS[users])),
        lambda texts: Texts(torch.from_numpy(np.stack([QUERIES[text] for text in texts]))),
        parts,
    )


def test_equal_to_a_loop_in_any_chunks(rows, monkeypatch):
    whole = _columns(rows)
    monkeypatch.setattr(declared, "_CHUNK_CELLS", 8 * 7 * 4)
    chunked = _columns(rows)
    for row, (user, ad) in enumerate(zip(rows.examples.user_index, rows.examples.ad_index, strict=True)):
        told = [one for one in INTERESTS[user] if one.any()]
        near = [_cosine(one, ADS[ad]) for one in told]
        mean = np.sum([one / np.linalg.norm(one) for one in told], axis=0) if told else np.zeros(7)
        expected = {
            "interest_mean": _cosine(mean, ADS[ad]),
            "interest_nearest": max(near, default=0.0),
            "query": _cosine(QUERIES[rows.examples.queries[rows.examples.query[row]]], ADS[ad]),
        }
        for found in (whole, chunked):
            assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_each_part_of_a_vector_is_compared_by_itself(rows):
    found = _columns(rows, parts=(3, 4))
    assert list(found) == [
        "interest_mean_1", "interest_nearest_1", "query_1", "interest_mean_2", "interest_nearest_2", "query_2",
    ]  # fmt: skip
    row = 7
    user, ad = rows.examples.user_index[row], rows.examples.ad_index[row]
    near = max(_cosine(one[3:], ADS[ad, 3:]) for one in INTERESTS[user])
    assert found["interest_nearest_2"][row] == pytest.approx(near, abs=1e-6)


def test_they_follow_their_rows_into_the_design(rows):
    given = replace(rows, declared=_columns(rows))
    some = given.take(np.arange(12, 18)).compact()
    table = design(some)
    column = table.dense[:, table.names.index("interest_nearest")]
    np.testing.assert_array_equal(column, given.declared["interest_nearest"][12:18])


def test_nothing_without_vectors(rows):
    assert _columns(replace(rows, ads=catalog([f"a{i}" for i in range(6)]))) == {}
