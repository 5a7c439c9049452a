"""A planted world whose ads differ in what they are linked to: makers and the makers' countries decide clicks, no word does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
DAY = 86_400_000_000
MAKERS, COUNTRIES, PLACES = 12, 4, 6


@dataclass(frozen=True)
class GraphWorld:
    """The raw files, and what only the world knows."""

    folder: Path
    maker: np.ndarray
    """(ads,)"""
    country: np.ndarray
    """(MAKERS,)"""
    liked_maker: np.ndarray
    """(users,)"""
    cold: np.ndarray
    """(ads,) shown on the last days alone"""


def make(folder, *, ads=120, users=100, requests=2500, cold=0.35, seed=0, slots=4, unlinked=0):
    """Files of ads, users, rows, entities (names of makers), links (maker → country) and ad_links (ad → maker, ad → place).

    Places mean nothing. The first `unlinked` ads have no links.
    """
    rng = np.random.default_rng(seed)
    maker, country = rng.integers(0, MAKERS, ads), np.arange(MAKERS) % COUNTRIES
    liked_maker, liked_country = rng.integers(0, MAKERS, users), rng.integers(0, COUNTRIES, users)
    is_cold = rng.random(ads) < cold
    start = np.datetime64("2026-03-01", "us").astype(np.int64)
    moment = np.sort(rng.integers(0, 10 * DAY, requests))
    user = rng.integers(0, users, requests)
    order = rng.random((requests, ads))
    order[moment < 8 * DAY] += np.where(is_cold, 10.0, 0.0)
    ad = np.argsort(order, axis=1)[:, :slots]
    logit = -2.0 + 3.0 * (maker[ad] == liked_maker[user][:, None])
    logit = logit + 2.0 * (country[maker[ad]] == liked_country[user][:, None])
    probability = 1 / (1 + np.exp(-logit))
    row = np.repeat(np.arange(requests), slots)
    linked = np.arange(unlinked, ads)
    tables = {
        "ads": {"ad_id": [f"a{number}" for number in range(ads)], "title": ["the same words"] * ads},
        "users": {"user_id": [f"u{number}" for number in range(users)]},
        "impressions": {
            "request_id": [f"r{number}" for number in row],
            "user_id": [f"u{number}" for number in user[row]],
            "ad_id": [f"a{number}" for number in ad.ravel()],
            "shown_at": pa.array(start + moment[row], pa.timestamp("us", "UTC")),
            "click": (rng.random(probability.shape) < probability).astype(np.int8).ravel(),
            "true_probability": probability.ravel(),
        },
        "entities": {
            "entity_id": [f"m{number}" for number in range(MAKERS)],
            "name": [f"Maker {number}" for number in range(MAKERS)],
        },
        "links": {
            "head": [f"m{number}" for number in range(MAKERS)],
            "relation": ["country"] * MAKERS,
            "tail": [f"c{number}" for number in country],
        },
        "ad_links": {
            "ad_id": [f"a{number}" for number in (*linked, *linked)],
            "relation": ["made_by"] * len(linked) + ["shown_in"] * len(linked),
            "entity_id": [f"m{number}" for number in maker[linked]] + [f"p{number}" for number in linked % PLACES],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return GraphWorld(folder, maker, country, liked_maker, is_cold)


def source(world: GraphWorld, *tables: str) -> dict:
    return {
        "format": "tables",
        **{name: {"files": str(world.folder / f"{name}.parquet")} for name in ("ads", "users", "impressions")},
        "tables": {name: {"files": str(world.folder / f"{name}.parquet")} for name in tables},
    }


def prepare(world: GraphWorld, output: Path, *, tables=("entities", "links", "ad_links"), hops=2, **changes) -> Prepared:
    lists = [{"column": "graph", "paths": hops, "max_items": 16}] if hops else []
    config = PreprocessConfig.model_validate(
        {
            "output": str(output),
            "source": source(world, *tables),
            "tokenizer": {"kind": "none"},
            "text": {"ad_template": "{title}"},
            "history": {"max_clicks": 20},
            "features": {"ads": {"lists": lists}},
            "split": {"method": "time", "valid_fraction": 0.15, "test_fraction": 0.2},
            "threads": 1,
            **changes,
        },
        context={"base": world.folder},
    )
    preprocess.run(config, QUIET)
    return open_prepared(config.output)


def train(prepared: Prepared, output: Path, *, model=None, training=None, **changes):
    config = FinetuneConfig(
        prepared=prepared.path,
        output=output,
        text={"reference": None},
        model={"width": 16, "hidden": [16], "user": {"parts": ["soft"], "max_history": 20}, **(model or {})},
        training={"epochs": 6, "batch_rows": 256, "learning_rate": 5e-3, "loggers": [], **(training or {})},
        **{"hybrid": {"kind": "none"}, "baselines": {"names": []}, "recall_requests": 0, **changes},
    )
    return config, finetune.run(config, QUIET)
