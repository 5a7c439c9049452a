"""What it costs to leave rows with their owners: AUC of federated training beside all rows in one place.

On the sample's test rows:

    python benchmarks/federated.py --work /tmp/federated --impressions 60000

Silos are the ads' categories, which are as unlike as they can be; clients of the second kind are users. Network and encoder are
those of configs/sample/finetune-private.yaml without privacy; no trees, no hybrid. A line a training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from privacy import CONFIGS, QUIET, prepare

from adrec.config.base import load_config
from adrec.config.training.federate import FederateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.stages.training import federate, finetune

BASE = ["privacy=null", "baselines.names=[]", "recall_requests=0", "training.batch_rows=512", "training.epochs=6"]
TRAININGS: dict[str, dict[str, Any]] = {
    "silos by category": {"clients": "category", "rounds": 12, "clients_per_round": 40},
    "silos, 20 % fall out": {"clients": "category", "rounds": 12, "clients_per_round": 40, "drop_out": 0.2},
    "users": {"clients": "user", "rounds": 60, "clients_per_round": 200, "algorithm": "fedavg"},
}


def main() -> None:
    """Train all that is not in the work folder yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--impressions", type=int, default=60_000)
    given = parser.parse_args()
    prepared = prepare(given.work, given.impressions)
    records = given.work / "federated.jsonl"
    done = {json.loads(line)["name"] for line in records.read_text().splitlines()} if records.exists() else set()
    config = CONFIGS / "finetune-private.yaml"
    bundle = given.work / "federated-bundle"
    overrides = [f"prepared={prepared}", f"output={bundle}", *BASE]
    for name in ["all rows in one place", *TRAININGS]:
        if name in done:
            continue
        began = time.monotonic()
        if name in TRAININGS:
            settings = {"finetune": config, "output": bundle, "overrides": overrides, **TRAININGS[name]}
            result = federate.run(FederateConfig(**settings), QUIET)
            facts: dict[str, Any] = {"clients": result.clients, "fallen": result.fallen}
        else:
            finetune.run(load_config(config, FinetuneConfig, overrides), QUIET)
            facts = {}
        row = {"name": name, **tested(prepared, bundle), **facts, "seconds": time.monotonic() - began}
        with open(records, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def tested(prepared: Path, bundle: Path) -> dict[str, float]:
    """AUC, log loss and predicted over observed clicks of the test rows."""
    folder, predictor = open_prepared(prepared), Predictor.load(bundle, device="cpu")
    rows = load_examples(folder, "test", max_history=predictor.packed.config.model.user.max_history, labels=["click"])
    held_out = HeldOut(predictor, folder, rows)
    metrics = held_out.figures(predictor.packed)["adrec"]
    ratio = held_out.scores(predictor.packed).score.mean() / rows.labels["click"].mean()
    return {"auc": metrics["auc"], "log_loss": metrics["log_loss"], "ratio": float(ratio)}


if __name__ == "__main__":
    main()
