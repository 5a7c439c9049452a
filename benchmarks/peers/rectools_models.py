"""SASRec and HSTU of RecTools on the sequences of `leaderboard.py`; run in an environment with rectools[torch].

Settings are chosen on the newest tenth of the training sequences, whose last item is held out; then all of them are learned.
RecTools asks for the lists of users whose sequences it is given, whoever they are: the test rows' histories are such users.
"""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel

DEPTH = 200  # places that are asked for: what lies behind them counts as none of ten
MODELS = {"sasrec": (SASRecModel, {}), "hstu": (HSTUModel, {"relative_time_attention": False})}
SETTINGS = [{"n_factors": 64, "epochs": epochs, "dropout_rate": dropout} for epochs in (10, 30) for dropout in (0.2, 0.5)]


def interactions(values: np.ndarray, offsets: np.ndarray) -> pd.DataFrame:
    lengths = np.diff(offsets)
    place = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: values,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(place, unit="h"),
        }
    )


def fitted(kind: str, settings: dict[str, float], learned: pd.DataFrame, seed: int) -> SASRecModel | HSTUModel:
    torch.manual_seed(seed)
    np.random.seed(seed)
    make, more = MODELS[kind]
    return make(
        n_blocks=2, n_heads=2, session_max_len=20, loss="softmax", lr=1e-3, batch_size=128, recommend_torch_device="cpu",
        **settings, **more,
    ).fit(Dataset.construct(learned))  # fmt: skip


def scores_of(models: list[SASRecModel | HSTUModel], asked: pd.DataFrame, ads: int) -> np.ndarray:
    """(N, ads) mean over the models of 1 / place, 0 behind DEPTH. Users whose items are all unknown have none."""
    total = np.zeros((int(asked[Columns.User].max()) + 1, ads))
    for model in models:
        known = asked[asked[Columns.Item].isin(model.data_preparator.get_known_item_ids())]
        lists = model.recommend(
            users=known[Columns.User].unique(), dataset=Dataset.construct(known), k=DEPTH, filter_viewed=False
        )  # fmt: skip
        total[lists[Columns.User], lists[Columns.Item]] += 1 / lists[Columns.Rank]
    return total / len(models)


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) place of the target among all, 1 the first, ties in the middle."""
    own = scores[np.arange(len(target)), target][:, None]
    return (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1) + 1


def main(folder: Path, seeds: int) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    given = np.load(folder / "sequences.npz")
    values, offsets, ads = given["values"], given["offsets"], int(given["ads"])
    whole = interactions(values, offsets)
    users = len(offsets) - 1
    held = np.arange(int(0.9 * users), users)  # users come in the order of their last row
    is_last = np.zeros(len(values), dtype=bool)
    is_last[offsets[1:][held] - 1] = True
    before = whole[~is_last]
    behind = before[before[Columns.User] >= held[0]].assign(**{Columns.User: lambda rows: rows[Columns.User] - held[0]})
    asked = interactions(given["asked_values"], given["asked_offsets"])
    for kind in MODELS:
        measured = []
        for settings in SETTINGS:
            place = ranks(scores_of([fitted(kind, settings, before, 0)], behind, ads), values[is_last])
            measured.append((float((place <= 10).mean()), settings))
        value, settings = max(measured, key=lambda run: run[0])
        models = [fitted(kind, settings, whole, seed) for seed in range(seeds)]
        np.save(folder / f"rectools_{kind}.answer.npy", ranks(scores_of(models, asked, ads), given["target"]))
        print(f"RecTools {kind}: validation recall@10 {value:.4f} with {settings}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
