"""A planted world whose ads differ in a hidden style that no word tells: it lies in vectors, and decides the clicks."""

import json
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
STYLES = 3


@dataclass(frozen=True)
class VectorWorld:
    """The raw files, and what only the world knows."""

    folder: Path
    style: np.ndarray
    """(ads, STYLES)"""
    taste: np.ndarray
    """(users, STYLES)"""


def make(
    folder, *, ads=80, users=120, requests=2500, missing=0.0, seed=0, slots=4, kind="parquet", draw=None, as_sound=False, ages=0
):
    """Files of ads (`photo` of 8 numbers holds the style, `noise` of 4 nothing), users (`taste`, STYLES numbers) and rows.

    `draw` (three numbers from 0 to 1, seed → bytes) draws the style as a colour, in files that `image` names; or makes it a
    sound, in files that `audio` names. `ages`: so many groups of users have one taste each.
    """
    rng = np.random.default_rng(seed)
    style = rng.normal(size=(ads, STYLES))
    style /= np.linalg.norm(style, axis=1, keepdims=True)
    age = rng.integers(0, ages, users) if ages else np.arange(users)
    taste = rng.normal(size=(max(ages, users), STYLES))[age]
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    photo = (style @ rng.normal(size=(STYLES, 8)) * 3 + rng.normal(size=(ads, 8)) * 0.2 + 5).astype(np.float32)
    noise = rng.normal(size=(ads, 4)).astype(np.float32)
    gone = rng.random(ads) < missing
    user = rng.integers(0, users, requests)
    ad = np.argsort(rng.random((requests, ads)), axis=1)[:, :slots]
    logit = -1.0 + 2.5 * np.einsum("rsd,rd->rs", style[ad], taste[user])
    probability = 1 / (1 + np.exp(-logit))
    click = (rng.random(probability.shape) < probability).astype(np.int8)
    start = np.datetime64("2026-03-01", "us").astype(np.int64)
    moment = start + np.sort(rng.integers(0, 10 * DAY, requests))
    row = np.repeat(np.arange(requests), slots)
    tables = {
        "ads": {
            "ad_id": [f"a{number}" for number in range(ads)],
            "title": ["the same words"] * ads,
            "photo": [None if gone[number] else photo[number].tolist() for number in range(ads)],
            "noise": noise.tolist(),
            "style_x": style[:, 0],
        },
        "users": {"user_id": [f"u{number}" for number in range(users)], "taste": taste.astype(np.float32).tolist(), "age": age},
        "impressions": {
            "request_id": [f"r{number}" for number in row],
            "user_id": [f"u{number}" for number in user[row]],
            "ad_id": [f"a{number}" for number in ad.ravel()],
            "shown_at": pa.array(moment[row], pa.timestamp("us", "UTC")),
            "click": click.ravel(),
            "true_probability": probability.ravel(),
        },
    }
    if draw is not None:
        column, place, form = ("audio", "sounds", "wav") if as_sound else ("image", "pictures", "png")
        (folder / place).mkdir(parents=True)
        tables["ads"][column] = [None if gone[number] else f"{place}/{number}.{form}" for number in range(ads)]
        for number in np.flatnonzero(~gone):
            (folder / place / f"{number}.{form}").write_bytes(draw((style[number] + 1) / 2, seed=number))
    types = {"photo": pa.list_(pa.float32()), "noise": pa.list_(pa.float32()), "taste": pa.list_(pa.float32())}
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        table = pa.table(
            {column: pa.array(values, types[column]) if column in types else values for column, values in columns.items()}
        )
        if name != "impressions" and kind == "jsonl":
            lines = (json.dumps({key: value for key, value in line.items() if value is not None}) for line in table.to_pylist())
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        else:
            pq.write_table(table, folder / f"{name}.parquet")
    return VectorWorld(folder, style, taste)


def prepare(world: VectorWorld, output: Path, *, ads=("photo", "noise"), users=(), kind="parquet", **changes) -> Prepared:
    config = PreprocessConfig.model_validate(
        {
            "output": str(output),
            "source": {
                "format": "tables",
                "ads": {"files": str(world.folder / f"ads.{kind}")},
                "users": {"files": str(world.folder / f"users.{kind}")},
                "impressions": {"files": str(world.folder / "impressions.parquet")},
            },
            "tokenizer": {"kind": "none"},
            "text": {"ad_template": "{title}"},
            "history": {"max_clicks": 20, "max_skipped": 5},
            "features": {"ads": {"vectors": list(ads)}, "users": {"vectors": list(users)}},
            "split": {"method": "time", "valid_fraction": 0.15, "test_fraction": 0.2},
            "threads": 1,
            **changes,
        },
        context={"base": world.folder},
    )
    preprocess.run(config, QUIET)
    return open_prepared(config.output)


def train(prepared: Prepared, output: Path, *, model=None, **changes):
    config = FinetuneConfig(
        prepared=prepared.path,
        output=output,
        text={"reference": None},
        model={"width": 16, "hidden": [16], "user": {"parts": ["soft"], "max_history": 20}, **(model or {})},
        training={"epochs": 6, "batch_rows": 256, "learning_rate": 5e-3, "loggers": []},
        **{"hybrid": {"kind": "none"}, "baselines": {"names": []}, **changes},
    )
    return config, finetune.run(config, QUIET)
