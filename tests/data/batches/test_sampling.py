"""What an epoch draws: exact counts, whole groups, reproducible, every negative of a request equally likely."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import make_world

from adrec.data.batches.dataset import MemoryPlan, Sampling, StreamedPlan
from adrec.data.batches.sampling import down_sampled, drawn_rows, every_row, positives_with_negatives, split_into
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared

worlds = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 8), min_size=n, max_size=n).map(sorted),
        st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(worlds, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_each_positive_comes_with_distinct_negatives_of_its_request(world, count, seed):
    request, label = np.array(world[0]), np.array(world[1], np.float32)
    draw = positives_with_negatives(request, label, count, np.random.default_rng(seed))
    groups = [draw.rows[draw.group == code] for code in np.unique(draw.group)]
    usable = [row for row in np.flatnonzero(label == 1) if ((request == request[row]) & (label == 0)).any()]
    assert sorted(int(rows[label[rows] == 1][0]) for rows in groups) == usable
    for rows in groups:
        positive, negative = rows[label[rows] == 1], rows[label[rows] == 0]
        assert len(positive) == 1 and len(set(negative.tolist())) == len(negative)
        assert (request[negative] == request[positive[0]]).all()
        available = int(((request == request[positive[0]]) & (label == 0)).sum())
        assert len(negative) == min(count, available)
    assert (np.diff(draw.group) >= 0).all()
    assert drawn_rows(request, label, count, 1.0) == len(draw.rows)


def test_every_negative_is_as_likely_as_any_other():
    request, label = np.zeros(6, int), np.array([1, 0, 0, 0, 0, 0], np.float32)
    generator = np.random.default_rng(0)
    times = np.zeros(6)
    for _ in range(4000):
        times[positives_with_negatives(request, label, 2, generator).rows] += 1
    assert times[0] == 4000
    # 2 of 5: p = .4, standard deviation of the count sqrt(4000 * .4 * .6) = 31.
    assert (np.abs(times[1:] - 1600) < 4 * 31).all()


def test_down_sampling_keeps_all_positives_and_the_share_of_negatives():
    label = (np.random.default_rng(1).random(20_000) < 0.1).astype(np.float32)
    request = np.repeat(np.arange(2000), 10)
    draw = down_sampled(request, label, 0.25, np.random.default_rng(2))
    assert label[draw.rows].sum() == label.sum()
    negatives = (label == 0).sum()
    assert abs((label[draw.rows] == 0).sum() - 0.25 * negatives) < 4 * np.sqrt(negatives * 0.25 * 0.75)
    assert (np.diff(draw.rows) > 0).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=80).map(sorted), st.integers(1, 12), st.booleans())
def test_batches_hold_whole_groups_once(request_codes, count, shuffled):
    request = np.array(request_codes)
    draw = every_row(request)
    parts = split_into(draw, count, np.random.default_rng(0) if shuffled else None)
    assert len(parts) == count and all(len(part.rows) for part in parts)
    for part in parts:
        for code in np.unique(request[part.rows]):
            assert (request[part.rows] == code).sum() % (request == code).sum() == 0
    if count <= len(np.unique(request)):
        assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(len(request)))
    if not shuffled and count <= len(np.unique(request)):
        assert np.concatenate([part.rows for part in parts]).tolist() == list(range(len(request)))


def test_no_group_is_an_error():
    with pytest.raises(ValueError, match="no group"):
        split_into(every_row(np.zeros(0, int)), 2, None)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(negatives=2), Sampling(negative_rate=0.5)])
def test_streaming_draws_as_much_as_memory_and_repeats_itself(tmp_path, sampling):
    prepared = open_prepared(make_world(tmp_path / "p", requests=600, users=40).path)
    examples = load_examples(prepared, "train")

    def make(found, rows, group):
        return found.row_id[rows], group

    memory = MemoryPlan(examples, make, sampling=sampling, batch_rows=64, seed=3)
    settings = {"sampling": sampling, "batch_rows": 64, "seed": 3, "max_history": 5, "labels": ("click",)}
    streamed = StreamedPlan(prepared, ("train",), make, shuffle_rows=700, **settings)
    again = StreamedPlan(prepared, ("train",), make, shuffle_rows=700, **settings)
    assert streamed.count == memory.count
    rows = []
    for epoch in range(3):
        plan = streamed.plan(epoch)
        assert len(plan) == streamed.count
        batches = [streamed.collate(piece, None)[0] for piece in plan]
        # Any batch can be made on its own: that is what resuming needs.
        for number in (len(plan) - 1, 0, len(plan) // 2):
            assert again.collate(again.plan(epoch)[number], None)[0].tolist() == batches[number].tolist()
        rows.append(np.concatenate(batches))
    assert rows[0].tolist() != rows[1].tolist()
    if sampling == Sampling():
        assert sorted(rows[0].tolist()) == examples.row_id.tolist()
        assert [draw.rows.tolist() for draw in memory.plan(1)] == [draw.rows.tolist() for draw in memory.plan(1)]
        # Rows of one batch come from all over the chunk, not from one stretch of time.
        assert np.median([np.ptp(batch) for batch in batches]) > 200


def _in_row_groups(prepared, rows):
    """The training rows, `rows` to a row group."""
    for file in prepared.split_files("train"):
        pq.write_table(pq.read_table(file), file, row_group_size=rows)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (2, 2), (1, 3), (8, 1)])
def test_ranks_and_workers_share_the_row_groups_and_make_the_same_batches(tmp_path, ranks, workers):
    prepared = open_prepared(make_world(tmp_path / "p", requests=600, users=40).path)
    _in_row_groups(prepared, 20)

    def plan():
        made = StreamedPlan(
            prepared, ("train",), lambda found, rows, group: found.row_id[rows], shuffle_rows=320, sampling=Sampling(),
            batch_rows=16, seed=3, max_history=5, labels=("click",),
        )  # fmt: skip
        read, made.read_groups = made.read, []
        made.read = lambda groups: made.read_groups.extend(groups) or read(groups)
        return made

    alone = plan()
    assert alone.lanes == 8
    whole = [alone.collate(piece, None).tolist() for piece in alone.plan(0)]
    assert sorted(row for batch in whole for row in batch) == sorted(load_examples(prepared, "train").row_id.tolist())
    assert np.ptp([len(batch) for batch in whole]) <= 16, "about equally long"
    assert sorted(alone.read_groups) == list(range(len(alone.places))), "each row group once"
    processes = ranks * workers
    for process in range(processes):
        own = plan()
        pieces = own.plan(0)
        for number in range(process, len(pieces), processes):
            assert own.collate(pieces[number], None).tolist() == whole[number]
        if 8 % processes == 0:
            assert len(own.read_groups) == len(set(own.read_groups)) <= len(own.places) / processes + 8, (
                "no more than its share"
            )


def test_a_sample_of_streamed_rows_is_of_about_the_size_asked_for(tmp_path):
    prepared = open_prepared(make_world(tmp_path / "p", requests=600, users=40).path)
    _in_row_groups(prepared, 20)
    plan = StreamedPlan(
        prepared, ("train",), lambda *_: None, shuffle_rows=320, sampling=Sampling(), batch_rows=16, seed=3, max_history=5,
        labels=("click",),
    )  # fmt: skip
    assert 150 <= len(plan.sample(200)) <= 200 and len(plan.sample(3)) <= 20
    assert len(plan.sample(10**6)) == len(load_examples(prepared, "train"))
