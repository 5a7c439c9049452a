"""A small trained bundle over the planted world, for the tests of the server."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from worlds import make_world

from adrec.config.base import load_config
from adrec.config.finetune import FinetuneConfig
from adrec.config.serve import ServeConfig
from adrec.stages import finetune
from adrec.terminal import Terminal

POLICIES = {
    "default": {"top_n": 5, "value": {"kind": "revenue"}, "limits": {"user_ad": 2}, "rules": {"clicked": "keep"}},
    "search": {"top_n": 3, "rules": {"query_match": "require"}},
}


def make_bundle(folder):
    make_world(folder / "prepared", users=40, requests=400)
    ads = pq.read_table(folder / "prepared" / "ads.parquet")
    ads = ads.append_column("bid", pa.array(np.random.default_rng(0).choice([0.5, 1.0, 2.0], len(ads))))
    ads = ads.append_column("budget", pa.array(np.full(len(ads), 50.0)))
    pq.write_table(ads, folder / "prepared" / "ads.parquet")
    settings = [
        f"prepared={folder}/prepared", f"output={folder}/bundle", "training.epochs=2", "training.checkpoint_minutes=0",
        "model.width=16", "model.user.max_history=20", "baselines.names=[]",
    ]  # fmt: skip
    finetune.run(load_config(None, FinetuneConfig, settings), Terminal(quiet=True))


def settings_of(folder, store, **changes):
    values = {
        "bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "store": str(store), "policies": POLICIES,
        "device": "cpu", **changes,
    }  # fmt: skip
    return ServeConfig.model_validate(values)
