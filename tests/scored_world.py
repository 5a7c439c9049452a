"""A small scored table whose labels were drawn from known probabilities, for the tests of evaluate and its report."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def scored_columns(*, requests=400, seed=0, noise=0.5, users=80):
    """Columns by name. The world (labels, users, ads) is fixed; `seed` and `noise` only change the scores."""
    world, rng = np.random.default_rng(7), np.random.default_rng(seed)
    size = world.integers(1, 8, requests)
    request = np.repeat(np.arange(requests), size)
    rows = len(request)
    user = world.integers(0, users, requests)[request]
    ad = world.integers(0, 40, rows)
    logit = world.normal(0, 0.9, 40)[ad] + world.normal(0, 0.7, rows) + 0.4 * world.normal(0, 1, users)[user] - 1.5
    chance = 1 / (1 + np.exp(-logit))
    click = (world.random(rows) < chance).astype(np.int8)
    found = logit + rng.normal(0, noise, rows)
    start = np.datetime64("2026-11-09", "us") + (np.arange(requests) * (4 * 86400e6 / requests)).astype("timedelta64[us]")
    position = np.arange(rows) - np.repeat(np.cumsum(size) - size, size) + 1
    return {
        "row_id": np.arange(rows),
        "user_id": np.array([f"u{u}" for u in user]),
        "ad_id": np.array([f"a{a}" for a in ad]),
        "request_id": np.array([f"r{r}" for r in request]),
        "shown_at": pa.array(start[request], pa.timestamp("us", "UTC")),
        "position": position.astype(np.int32),
        "propensity": np.full(rows, 1 / 40),
        "scenario": np.array(["social", "search"])[world.integers(0, 2, requests)[request]],
        "click": click,
        "logit": found.astype(np.float32),
        "score": (1 / (1 + np.exp(-found))).astype(np.float32),
        "cold_ad": ad > 33,
        "cold_user": user > 70,
        "history_length": world.integers(0, 60, requests)[request].astype(np.int32),
        "baseline_item": (1 / (1 + np.exp(1.4 - 0.4 * world.normal(0, 0.9, 40)[ad]))).astype(np.float32),
        "baseline_cosine": world.normal(0, 1, rows).astype(np.float32),
        "true_probability": chance,
    }


def write_scored(path, *, without=(), **options):
    """Write the columns (`without` some) as Parquet; options may also be whole columns that replace or join them."""
    shape = {name: options.pop(name) for name in ("requests", "seed", "noise", "users") if name in options}
    columns = scored_columns(**shape) | options
    pq.write_table(pa.table({name: values for name, values in columns.items() if name not in without}), path)
    return path


def write_ads(path):
    """The ads of the world, in two languages."""
    zh, ads = "春季特惠 限时折扣", range(40)
    table = {
        "ad_id": [f"a{a}" for a in ads],
        "title": [f"{zh} {a}" if a % 3 == 0 else f"Great offer <b>{a}</b> & more" for a in ads],
        "category": [["cars", "食品", "travel"][a % 3] for a in ads],
        "language": ["zh" if a % 3 == 0 else "en" for a in ads],
        "advertiser_id": [f"adv{a % 7}" for a in ads],
        "bid": [0.1 * (1 + a % 5) for a in ads],
    }
    pq.write_table(pa.table(table), path)
    return path
