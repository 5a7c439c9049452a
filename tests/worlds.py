"""A planted world with a known click probability, written as a prepared folder without going through `adrec preprocess`.

Each ad belongs to a topic, readable in its title words; each user likes two topics. A user clicks with a probability that
rises where the ad's topic is liked and with the ad's own appeal. History holds the user's earlier clicks.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.asof.attach import Attach
from adrec.data.examples import run_codes
from adrec.data.features import FeatureSet
from adrec.data.prepared import FORMAT, STATE
from adrec.schema import INDICES, TIMESTAMP
from adrec.specs import CategorySpec, FeatureSpec, HistorySpec, ListSpec, NumericSpec

TOPICS = ("garden", "football", "cooking", "travel", "music", "finance")
WORDS = {
    "garden": "rose soil spade lawn seed tulip",
    "football": "goal striker league pitch keeper derby",
    "cooking": "oven pasta sauce knife butter recipe",
    "travel": "beach flight hotel island passport tour",
    "music": "guitar concert vinyl choir melody drum",
    "finance": "loan stock pension broker bond savings",
}
START = 1_700_000_000_000_000  # microseconds


@dataclass(frozen=True)
class World:
    """Where it lies and how well anyone can do."""

    path: Path
    topic_of_ad: np.ndarray
    probability: dict[str, np.ndarray]
    """split → (N,) true click probability"""
    labels: dict[str, np.ndarray]
    appeal: np.ndarray | None = None
    """(ads,) what an ad adds to the logit by itself"""
    liked: np.ndarray | None = None
    """(users, 2) topics that each user likes"""


def make_world(
    path: Path,
    *,
    users: int = 200,
    ads: int = 60,
    requests: int = 1500,
    per_request: int = 4,
    seed: int = 0,
    max_history: int = 20,
    shuffle_labels: bool = False,
    conversions: bool = False,
    listed_words: bool = False,
    slots: dict[str, tuple[float, ...]] | None = None,
) -> World:
    """Write a prepared folder (70 % train, 15 % valid, 15 % test by time). `listed_words`: words of ads are a list feature.

    `slots`: scenario → what each slot adds to the click logit; better ads are then shown higher.
    """
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, len(TOPICS), ads)
    appeal = rng.normal(0, 0.7, ads)
    liked = np.stack([rng.permutation(len(TOPICS))[:2] for _ in range(users)])
    titles = [" ".join(rng.choice(WORDS[TOPICS[t]].split(), 3, replace=False)) for t in topic]
    ads_table = pa.table(
        {
            "ad_id": [f"a{number}" for number in range(ads)],
            "title": titles,
            "category": [f"c{t % 3}" for t in topic],
            "text": titles,
            "segmented": titles,
            "language": ["en"] * ads,
        }
    )
    interests = [TOPICS[pair[0]] for pair in liked]
    users_table = pa.table(
        {
            "user_id": [f"u{number}" for number in range(users)],
            "interests": [[word] for word in interests],
            "text": interests,
            "segmented": interests,
        }
    )
    rows: dict[str, list] = {name: [] for name in (*_FLAT, "history_index", "history_hours", "skipped_index")}
    clicks: list[list[tuple[int, int]]] = [[] for _ in range(users)]
    passed: list[list[int]] = [[] for _ in range(users)]
    for request in range(requests):
        user = int(rng.integers(users))
        shown = rng.choice(ads, per_request, replace=False)
        now = START + request * 600_000_000
        scenario = "search" if request % 3 == 0 else "social"
        if slots is not None:
            shown = shown[np.argsort(-appeal[shown] - rng.gumbel(size=per_request), kind="stable")]
        logit = -2.0 + 2.5 * np.isin(topic[shown], liked[user]) + appeal[shown]
        if slots is not None:
            logit = logit + np.array(slots[scenario])
        probability = 1 / (1 + np.exp(-logit))
        click = (rng.random(per_request) < probability).astype(np.int8)
        recent = clicks[user][-max_history:]
        for slot, ad in enumerate(shown):
            rows["user_id"].append(f"u{user}")
            rows["ad_id"].append(f"a{ad}")
            rows["shown_at"].append(now)
            rows["position"].append(slot + 1)
            rows["click"].append(click[slot])
            rows["conversion"].append(int(click[slot] and rng.random() < 0.3 + 0.4 * (topic[ad] == liked[user][0])))
            rows["request_id"].append(f"r{request}")
            rows["ad_index"].append(int(ad))
            rows["user_index"].append(user)
            rows["history_length"].append(len(clicks[user]))
            rows["true_probability"].append(probability[slot])
            rows["counter_appeal"].append(appeal[ad] + rng.normal(0, 0.3))
            rows["scenario"].append(scenario)
            rows["history_index"].append([ad for ad, _ in recent])
            rows["history_hours"].append([(now - at) / 3.6e9 for _, at in recent])
            rows["skipped_index"].append(passed[user][-5:])
        clicks[user] += [(int(ad), now) for ad in shown[click == 1]]
        passed[user] += [int(ad) for ad in shown[click == 0]]
    world = _write(
        path,
        rows,
        ads_table,
        users_table,
        topic,
        rng,
        shuffle_labels=shuffle_labels,
        conversions=conversions,
        listed_words=listed_words,
    )
    return replace(world, appeal=appeal, liked=liked)


_FLAT = {
    "user_id": pa.string(),
    "ad_id": pa.string(),
    "shown_at": TIMESTAMP,
    "position": pa.int32(),
    "click": pa.int8(),
    "conversion": pa.int8(),
    "request_id": pa.string(),
    "ad_index": pa.int32(),
    "user_index": pa.int32(),
    "history_length": pa.int32(),
    "true_probability": pa.float64(),
    "counter_appeal": pa.float32(),
    "scenario": pa.string(),
}


def _write(path, rows, ads_table, users_table, topic, rng, *, shuffle_labels, conversions, listed_words) -> World:
    columns = {name: pa.array(rows[name], kind) for name, kind in _FLAT.items()}
    columns["history_index"] = pa.array(rows["history_index"], INDICES)
    columns["history_hours"] = pa.array(rows["history_hours"], pa.list_(pa.float32()))
    columns["skipped_index"] = pa.array(rows["skipped_index"], INDICES)
    columns["row_id"] = pa.array(np.arange(len(rows["user_id"]), dtype=np.int64))
    if not conversions:
        columns.pop("conversion")
    table = pa.table(columns)
    if shuffle_labels:
        table = table.set_column(
            table.column_names.index("click"), "click", pa.array(rng.permutation(rows["click"]), pa.int8())
        )
    per_request = table.num_rows // len(set(rows["request_id"]))
    requests = table.num_rows // per_request
    cuts = [0, int(requests * 0.7) * per_request, int(requests * 0.85) * per_request, table.num_rows]
    path.mkdir(parents=True)
    splits = {}
    for name, start, stop in zip(("train", "valid", "test"), cuts[:-1], cuts[1:], strict=True):
        folder = path / "impressions" / name
        folder.mkdir(parents=True)
        part = table.slice(start, stop - start)
        half = part.num_rows // 2 // per_request * per_request
        pq.write_table(part.slice(0, half), folder / "part-00000.parquet", row_group_size=400)
        pq.write_table(part.slice(half), folder / "part-00001.parquet", row_group_size=400)
        splits[name] = part
    pq.write_table(ads_table, path / "ads.parquet")
    pq.write_table(users_table, path / "users.parquet")
    features = {
        "impressions": FeatureSet.fit(
            FeatureSpec(numeric=(NumericSpec("counter_*"),), categorical=(CategorySpec("scenario"),)), [splits["train"]]
        ),
        "ads": FeatureSet.fit(
            FeatureSpec(categorical=(CategorySpec("category"),), lists=(ListSpec("segmented"),) * listed_words), [ads_table]
        ),
        "users": FeatureSet.fit(FeatureSpec(lists=(ListSpec("interests"),)), [users_table]),
    }
    (path / "features.json").write_text(json.dumps({name: fitted.to_json() for name, fitted in features.items()}))
    manifest = {
        "format": FORMAT,
        "last": f"{np.datetime64(int(table['shown_at'].cast(pa.int64())[-1].as_py()), 'us')}Z",
        "fingerprint": f"world-{table.num_rows}",
        "splits": {name: {"rows": part.num_rows} for name, part in splits.items()},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    write_state(path, table, ads_table, users_table)
    return World(
        path,
        topic,
        {name: part["true_probability"].to_numpy() for name, part in splits.items()},
        {name: part["click"].to_numpy() for name, part in splits.items()},
    )


def write_state(path: Path, table: pa.Table, ads: pa.Table, users: pa.Table) -> None:
    """What the log of a hand-made prepared folder knew at its end."""
    runs = run_codes(table["request_id"])
    rows = table.append_column("request", pa.array(runs)).append_column("started", table["shown_at"])
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("rows", rows)
        connection.execute("CREATE TABLE events AS SELECT * FROM rows")
        attach = Attach(connection, ads=ads, users=users, history=HistorySpec(), counters=[], state=path / STATE)
        assert sum(batch.num_rows for batch in attach.run()) == table.num_rows


def topic_vectors(world: World, *, width: int = 16, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """(ads, width) float32: what a text encoder that understands the titles would give."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(TOPICS), width))
    return (centres[world.topic_of_ad] + rng.normal(0, noise, (len(world.topic_of_ad), width))).astype(np.float32)


def make_bundle(folder: Path, *settings: str) -> None:
    """A small click model without text over the world at `folder`/prepared, as `folder`/bundle; `settings` as of --set."""
    from adrec.config.base import load_config
    from adrec.config.training.finetune import FinetuneConfig
    from adrec.stages.training import finetune
    from adrec.terminal import Terminal

    usual = [
        f"prepared={folder}/prepared",
        f"output={folder}/bundle",
        "training.epochs=1",
        "training.checkpoint_minutes=0",
        "model.width=16",
        "baselines.names=[]",
    ]
    finetune.run(load_config(None, FinetuneConfig, [*usual, *settings]), Terminal(quiet=True))


def make_market(folder: Path, *, requests: int = 600) -> Path:
    """A world at `folder`/prepared whose ads bid, half of them with a budget of 2, and a bundle beside it; `folder`."""
    make_world(folder / "prepared", users=40, requests=requests)
    ads = pq.read_table(folder / "prepared" / "ads.parquet")
    rng = np.random.default_rng(0)
    bids = rng.choice([0.05, 0.5, 1.0, 2.0], len(ads))
    budgets = np.where(rng.random(len(ads)) < 0.5, 2.0, np.nan)
    ads = ads.append_column("bid", pa.array(bids)).append_column("budget", pa.array(budgets, mask=np.isnan(budgets)))
    pq.write_table(ads, folder / "prepared" / "ads.parquet")
    make_bundle(folder, "model.user.max_history=20")
    return folder


def word_encoder(folder: Path, *, width: int = 12, seed: int = 0) -> Path:
    """A word-vector encoder that understands the world's titles: words of a topic lie near each other."""
    from adrec.models.text.text_encoder import TextEncoder
    from adrec.models.text.word_vectors import WordTokenizer, WordVectors

    rng = np.random.default_rng(seed)
    words, vectors = [], []
    for topic in TOPICS:
        centre = rng.normal(size=width)
        for word in [topic, *WORDS[topic].split()]:
            words.append(word)
            vectors.append(centre + rng.normal(0, 0.3, width))
    backbone = WordVectors.from_array(np.array(vectors, np.float32))
    TextEncoder(backbone=backbone, tokenizer=WordTokenizer(words), dimension=width).save(folder)
    return folder
