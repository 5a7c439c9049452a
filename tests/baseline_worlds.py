"""Small inputs for baseline tests: given by hand, or drawn from a planted world of topics."""

import numpy as np
import pyarrow as pa

from adrec.data.examples import Catalog, Examples
from adrec.data.ragged import Ragged
from adrec.models.baselines.base import Columns, Inputs


def catalog(ids, *, texts=None, categorical=None, numeric=None, lists=None, vectors=None) -> Catalog:
    count = len(ids)
    return Catalog(
        ids=pa.array([str(i) for i in ids], pa.string()),
        texts=pa.array(texts if texts is not None else [""] * count, pa.string()),
        numeric=np.zeros((count, 0), np.float32) if numeric is None else np.asarray(numeric, np.float32),
        categorical=np.zeros((count, 0), np.int32) if categorical is None else np.asarray(categorical, np.int32),
        lists=lists or {},
        identity=np.zeros(count, np.int32),
        vectors=None if vectors is None else np.asarray(vectors, np.float32),
    )


def inputs(requests, ads: Catalog, users: Catalog, *, columns=Columns(), numeric=None, categorical=None) -> Inputs:
    """`requests`: (user, history, [(ad, click), ...]) each."""
    rows = [(r, u, a, c) for r, (u, _, shown) in enumerate(requests) for a, c in shown]
    request, user, ad, click = (np.array(column) for column in zip(*rows))
    lengths = [len(history) for _, history, _ in requests]
    values = np.array([ad for _, history, _ in requests for ad in history], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = len(rows)
    examples = Examples(
        row_id=np.arange(count),
        request=request.astype(np.int32),
        user_index=user.astype(np.int32),
        ad_index=ad.astype(np.int32),
        shown_at=request.astype(np.int64) * 3_600_000_000,
        position=np.zeros(count, np.int32),
        labels={"click": click.astype(np.float32)},
        numeric=np.zeros((count, 0), np.float32) if numeric is None else np.asarray(numeric, np.float32),
        categorical=np.zeros((count, 0), np.int32) if categorical is None else np.asarray(categorical, np.int32),
        lists={},
        query=np.zeros(count, np.int32),
        queries=("",),
        history_length=np.array(lengths, np.int32)[request],
        history_of_row=request.astype(np.int32),
        history_offsets=offsets,
        history_values=values,
        history_hours=np.zeros(len(values), np.float32),
        skipped_offsets=np.zeros(len(offsets), np.int64),
        skipped_values=np.zeros(0, np.int32),
    )
    return Inputs(examples, ads, users, columns)


WORDS = [["phone", "battery"], ["dress", "summer"], ["loan", "rate"], ["手机", "电池续航"]]


def planted(requests=300, *, seed=0, users=60, ads=40, per_request=6, strength=3.0, prefix="") -> Inputs:
    """Every ad and every user has one of four topics; clicks favour the user's topic and a few popular ads.

    Identifiers carry `prefix`, so that another prefix makes a world of strangers with the same topics.
    """
    rng = np.random.default_rng(seed)
    topic_of_ad, topic_of_user = np.arange(ads) % 4, np.arange(users) % 4
    centres = np.random.default_rng(99).normal(size=(4, 8))
    vectors = centres[topic_of_ad] + rng.normal(0, 0.3, (ads, 8))
    appeal = np.random.default_rng(7).normal(0, 1.2, ads)
    texts = [" ".join(rng.permutation(WORDS[t])) + f" nr{i}" for i, t in enumerate(topic_of_ad)]
    listed = []
    for _ in range(requests):
        user = int(rng.integers(users))
        own = np.flatnonzero(topic_of_ad == topic_of_user[user])
        history = rng.choice(own, size=int(rng.integers(0, 6)), replace=True).tolist()
        shown = rng.choice(ads, size=per_request, replace=False)
        logit = -2.0 + strength * (topic_of_ad[shown] == topic_of_user[user]) + appeal[shown]
        clicks = (rng.random(per_request) < 1 / (1 + np.exp(-logit))).astype(int)
        listed.append((user, history, list(zip(shown.tolist(), clicks.tolist()))))
    rows = requests * per_request
    numeric = rng.normal(size=(rows, 2)).astype(np.float32)
    shown_ads = np.array([ad for _, _, shown in listed for ad, _ in shown])
    numeric[:, 0] = appeal[shown_ads] + rng.normal(0, 0.2, rows)
    return inputs(
        listed,
        catalog([f"{prefix}a{i}" for i in range(ads)], texts=texts, categorical=topic_of_ad[:, None] + 1, vectors=vectors),
        catalog([f"{prefix}u{i}" for i in range(users)]),
        columns=Columns(numeric=("counter_ad_rate", "noise"), ad_categorical=("category",)),
        numeric=numeric,
    )


def genres(lists) -> Ragged:
    lengths = [len(values) for values in lists]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(offsets, np.array([value for values in lists for value in values], np.int32))
