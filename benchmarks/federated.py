"""What it costs to leave rows with their owners: AUC of federated training beside the same rows in one place, on test rows.

    python benchmarks/federated.py --work /tmp/federated --impressions 60000
    python benchmarks/federated.py --work /tmp/federated-mind --data mind

Silos are the ads' categories, which are as unlike as they can be, or five of whole categories, of which one may send minus
twenty times its change ("lies"), or minus its change ("undoes"); or 500 users of the sample are clients, whose rows alone the
training beside them reads. The network is that of configs/sample/finetune-private.yaml without privacy; no trees, no hybrid. A
line a training and seed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from privacy import CONFIGS, QUIET, prepare

from adrec.config.base import load_config
from adrec.config.training.federate import FederateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.data.subset import write_subset
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.stages.training import federate, finetune

Training = tuple[str, str, dict[str, Any]]
"""Name, folder of its rows, settings of federate; none: all rows in one place."""
BASE = ["privacy=null", "baselines.names=[]", "recall_requests=0", "hybrid.kind=none", "training.batch_rows=512",
        "training.learning_rate=5.0e-3"]  # fmt: skip
SILOS, USERS, LIAR = 5, 500, 1
_LIES = {"lies": 20.0, "undoes": 1.0}
_EPOCHS = {"sample": 6, "mind": 3}
_SILOS = {"clients": "category", "rounds": 12, "clients_per_round": 40}
_USERS = {"clients": "user", "rounds": 25, "clients_per_round": 50, "algorithm": "fedadam"}
_FIVE = {"clients": "silo", "rounds": 12, "clients_per_round": SILOS}
TRAININGS: dict[str, list[Training]] = {
    "sample": [
        ("all rows in one place", "prepared", {}),
        ("silos by category", "prepared", _SILOS),
        ("silos, 20 % fall out", "prepared", {**_SILOS, "drop_out": 0.2}),
        ("five silos", "silos", _FIVE),
        ("five silos, 20 % fall out", "silos", {**_FIVE, "drop_out": 0.2}),
        ("five silos, clipped", "silos", {**_FIVE, "rule": "clipped"}),
        ("five silos, one lies, clipped", "silos", {**_FIVE, "rule": "clipped"}),
        ("five silos, one lies, median", "silos", {**_FIVE, "rule": "median", "secure": False}),
        ("five silos, zeno", "silos", {**_FIVE, "rule": "zeno", "secure": False}),
        ("five silos, one lies, zeno", "silos", {**_FIVE, "rule": "zeno", "secure": False}),
        ("five silos, one undoes, zeno", "silos", {**_FIVE, "rule": "zeno", "secure": False}),
        ("500 users' rows in one place", "users", {}),
        ("500 users", "users", _USERS),
        ("500 users, 20 % fall out", "users", {**_USERS, "drop_out": 0.2}),
    ],
    "mind": [
        ("all rows in one place", "silos", {}),
        ("five silos", "silos", _FIVE),
        ("five silos, one lies", "silos", {**_FIVE, "secure": False}),
        ("five silos, one lies, clipped", "silos", {**_FIVE, "rule": "clipped"}),
        ("five silos, trimmed mean", "silos", {**_FIVE, "rule": "trimmed_mean", "secure": False}),
        ("five silos, one lies, trimmed mean", "silos", {**_FIVE, "rule": "trimmed_mean", "secure": False}),
        ("five silos, one lies, median", "silos", {**_FIVE, "rule": "median", "secure": False}),
        ("five silos, zeno", "silos", {**_FIVE, "rule": "zeno", "secure": False}),
        ("five silos, one lies, zeno", "silos", {**_FIVE, "rule": "zeno", "secure": False}),
    ],
}


def main() -> None:
    """Train all that is not in the work folder yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", choices=TRAININGS, default="sample")
    parser.add_argument("--impressions", type=int, default=60_000, help="of the sample")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="names of trainings that contain one of these")
    given = parser.parse_args()
    folders = dict(_folders(given.work, given.data, prepare(given.work, given.impressions, given.data)))
    records = given.work / "federated.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    ran = {(row["name"], row.get("seed", 0)) for row in done}
    for seed in range(given.seeds):
        for name, rows, settings in TRAININGS[given.data]:
            if (name, seed) in ran or not any(word in name for word in given.only):
                continue
            began = time.monotonic()
            fixed = [f"training.epochs={_EPOCHS[given.data]}", f"seed={seed}"]
            lies = next((times for word, times in _LIES.items() if word in name), 0.0)
            facts = trained(folders[rows], given.work / "federated-bundle", settings, fixed, lies=lies)
            tests = tested(folders[rows], given.work / "federated-bundle")
            row = {"name": name, "seed": seed, **tests, **facts, "seconds": time.monotonic() - began}
            with open(records, "a") as handle:
                handle.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def trained(prepared: Path, bundle: Path, settings: dict[str, Any], fixed: list[str], *, lies: float) -> dict[str, Any]:
    """Write `bundle`; how many clients there were, and how often they fell out. `lies`: so many times minus its change."""
    config = CONFIGS / "finetune-private.yaml"
    overrides = [f"prepared={prepared}", f"output={bundle}", *BASE, *fixed]
    if not settings:
        finetune.run(load_config(config, FinetuneConfig, overrides), QUIET)
        return {}
    seed = int(fixed[-1].partition("=")[2])
    federated = FederateConfig(finetune=config, output=bundle, overrides=overrides, seed=seed, **settings)
    result = federate.run(federated, QUIET, corrupt=partial(_lie, lies) if lies else None)
    return {"clients": result.clients, "fallen": result.fallen}


def tested(prepared: Path, bundle: Path) -> dict[str, float]:
    """AUC, also within requests, log loss and predicted over observed clicks of the test rows."""
    folder, predictor = open_prepared(prepared), Predictor.load(bundle, device="cpu")
    rows = load_examples(folder, "test", max_history=predictor.packed.config.model.user.max_history, labels=["click"])
    held_out = HeldOut(predictor, folder, rows)
    metrics = held_out.figures(predictor.packed)["adrec"]
    ratio = held_out.scores(predictor.packed).score.mean() / rows.labels["click"].mean()
    return {**{name: metrics[name] for name in ("auc", "auc_request", "log_loss") if name in metrics}, "ratio": float(ratio)}


def _lie(times: float, client: int, change: NDArray[np.float64]) -> NDArray[np.float64]:
    return -times * change if client == LIAR else change


def _folders(work: Path, data: str, prepared: Path) -> Iterator[tuple[str, Path]]:
    """The prepared folder, and those made of it: the rows of some users; a column of silos."""
    yield "prepared", prepared
    whole = open_prepared(prepared)
    few, made = work / "users", work / "silos"
    yield few.name, few
    if data == "sample" and not few.exists():
        users = np.random.default_rng(0).permutation(np.unique(_column(prepared, "train", "user_index")))[:USERS]
        masks = {split: np.isin(_column(prepared, split, "user_index"), users) for split in ("train", "valid")}
        write_subset(whole, few, masks)
    yield made.name, made
    if made.exists():
        return
    write_subset(whole, made, {})
    categories = whole.ads()["category"].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    silo = _silos(categories[_column(prepared, "train", "ad_index")])
    for file in (made / "impressions").glob("*/*.parquet"):
        table = pq.read_table(file)
        names = [silo.get(name, 0) for name in categories[table["ad_index"].to_numpy()].tolist()]
        file.unlink()  # a link to that of the whole
        pq.write_table(table.append_column("silo", pa.array(names, pa.int64()).cast(pa.string())), file, row_group_size=65_536)


def _silos(categories: NDArray[np.str_]) -> dict[str, int]:
    """Category → silo: each goes, the largest first, to whichever has fewest rows."""
    values, counts = np.unique(categories, return_counts=True)
    sizes, silo = np.zeros(SILOS), {}
    for at in np.argsort(-counts):
        silo[str(values[at])] = int(sizes.argmin())
        sizes[sizes.argmin()] += counts[at]
    return silo


def _column(prepared: Path, split: str, name: str) -> NDArray[np.int64]:
    return np.concatenate([batch[name].to_numpy() for batch in open_prepared(prepared).iter(split, [name])]).astype(np.int64)


if __name__ == "__main__":
    main()
