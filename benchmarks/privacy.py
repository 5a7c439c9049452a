"""What privacy costs: AUC and log loss on test rows at several epsilons, for rows, users and labels as units.

    python benchmarks/privacy.py --work /tmp/privacy --impressions 60000 --seeds 1
    python benchmarks/privacy.py --work /tmp/privacy-mind --data mind --seeds 3

`--data`: the built-in sample, or what configs/mind and configs/movielens read (../shared/data). Every training reads the same
prepared folder with configs/sample/finetune-private.yaml; "none" is the same network without privacy, "none, users' columns"
that network without the columns that unit `user` may not read, so that what they are worth is told from what the noise costs.
A line a training, and at the end the table of docs/measured/privacy.md: means over seeds, their standard deviation behind ±,
and how much more 1 - AUC and log loss there is than without privacy.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.data.subset import write_subset
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.sample import generate_sample
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.private.features import Declared, Refitted, own_numbers

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "sample"
DATA = ["sample", "mind", "movielens"]
UNITS: dict[str, list[str]] = {
    "row": ["privacy.unit=row"],
    "user": ["privacy.unit=user", "training.epochs=12", "privacy.units_per_step=1024"],
    "label": [
        "privacy.unit=label",
        "privacy.public=[scenario,history]",
        "training.batch_rows=512",
        "training.epochs=3",
        "training.learning_rate=5.0e-3",
    ],
}
PLAIN = ["privacy=null", "baselines.names=[]", "recall_requests=0", "training.batch_rows=512", "training.epochs=6",
         "training.learning_rate=5.0e-3"]  # fmt: skip
OF_DATA: dict[str, dict[str, list[str]]] = {
    "sample": {},
    "mind": {  # 3.2 times the rows, a request or two a user
        "none": ["training.epochs=3"],
        "row": ["training.epochs=2"],
        "user": ["training.epochs=8", "privacy.units_per_step=344"],
    },
    "movielens": {"user": ["training.epochs=24", "privacy.units_per_step=148"]},  # of 740 users
}
"""What a set asks beside what its units do, chosen on validation rows."""
QUIET = Terminal(quiet=True)


def main() -> None:
    """Run all that is not in the work folder yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", choices=DATA, default="sample")
    parser.add_argument("--impressions", type=int, default=60_000, help="of the sample")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--units", nargs="*", choices=UNITS, default=["row", "user"])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8.0, 3.0, 1.0])
    given = parser.parse_args()
    prepared = prepare(given.work, given.impressions, given.data)
    records = given.work / "records.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    for seed in range(given.seeds):
        for name, settings in trainings(given.units, given.epsilons, OF_DATA[given.data]):
            if any((row["name"], row["seed"]) == (name, seed) for row in done):
                continue
            folder = users_columns(prepared, given.work / "users-columns") if name.endswith("columns") else prepared
            row = {"name": name, "seed": seed, **measured(folder, given.work / "bundle", [*settings, f"seed={seed}"])}
            done.append(row)
            with open(records, "a") as handle:
                handle.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    plain = np.mean([row["log_loss"] for row in done if row["name"] == "none"])
    silent = 1.0 - np.mean([row["auc"] for row in done if row["name"] == "none"])
    print("| training (seeds) | AUC | more 1 - AUC | log loss | more log loss | clicks predicted / observed |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["name"] for row in done):
        rows = [row for row in done if row["name"] == name]
        auc, loss, ratio = (np.array([row[key] for row in rows]) for key in ("auc", "log_loss", "ratio"))
        more = loss.mean() / plain - 1.0
        lost = (1.0 - auc.mean()) / silent - 1.0
        print(f"| {name} ({len(rows)}) | {shown(auc, 4)} | {lost:+.1%} | {shown(loss, 4)} | {more:+.2%} | {shown(ratio, 2)} |")


def shown(values: np.ndarray, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def trainings(units: list[str], epsilons: list[float], more: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Name and settings of each."""
    yield "none", [*PLAIN, *more.get("none", [])]
    if "user" in units:
        yield "none, users' columns", [*PLAIN, *more.get("none", [])]
    for unit in units:
        for epsilon in epsilons:
            yield f"{unit}, epsilon {epsilon:g}", [*UNITS[unit], *more.get(unit, []), f"privacy.epsilon={epsilon}"]


def users_columns(prepared: Path, folder: Path) -> Path:
    """The folder without the numbers that a training with users as units leaves out."""
    if not folder.exists():
        whole = open_prepared(prepared)
        fitted = whole.features()
        for table in ("impressions", "users"):
            own = own_numbers(whole, fitted[table], "user", Declared(frozenset(), {}))
            spec = replace(fitted[table].spec, numeric=tuple(item for item in fitted[table].spec.numeric if item.column in own))
            numerics = tuple(item for item in fitted[table].numerics if item.name in own)
            fitted[table] = replace(fitted[table], spec=spec, numerics=numerics)
        write_subset(whole, folder, {})
        (folder / "features.json").unlink()  # a link to that of the whole
        (folder / "features.json").write_text(json.dumps({name: own.to_json() for name, own in fitted.items()}))
    return folder


def prepare(work: Path, impressions: int, data: str = "sample") -> Path:
    """The sample of so many rows, or other `data`, prepared."""
    folder = work / "prepared"
    if not folder.exists() and data != "sample":
        preprocess.run(load_config(ROOT / "configs" / data / "preprocess.yaml", PreprocessConfig, [f"output={folder}"]), QUIET)
    elif not folder.exists():
        generate_sample(work / "sample", impressions=impressions, seed=42)
        sources = {"impressions": "impressions", "ads": "ads.parquet", "users": "users.parquet"}
        settings = [f"source.{table}.files={work / 'sample' / file}" for table, file in sources.items()]
        preprocess.run(load_config(CONFIGS / "preprocess.yaml", PreprocessConfig, [*settings, f"output={folder}"]), QUIET)
    return folder


def measured(prepared: Path, bundle: Path, settings: list[str]) -> dict[str, Any]:
    """Train, and score the test rows."""
    began = time.monotonic()
    fixed = [f"prepared={prepared}", f"output={bundle}"]
    config = load_config(CONFIGS / "finetune-private.yaml", FinetuneConfig, [*fixed, *settings])
    result = finetune.run(config, QUIET)
    predictor = Predictor.load(bundle, device="cpu")
    folder = Refitted(open_prepared(prepared), predictor.packed.features)
    rows = load_examples(folder, "test", max_history=config.model.user.max_history, labels=["click"])
    held_out = HeldOut(predictor, folder, rows)
    metrics = held_out.figures(predictor.packed)["adrec"]
    predicted = held_out.scores(predictor.packed).score.mean() / rows.labels["click"].mean()
    lines = result.privacy["lines"] if result.privacy else []
    noise: dict[str, Any] = next((line["event"] for line in lines if line["artefact"] == "weights"), {})
    figures = {"auc": metrics["auc"], "log_loss": metrics["log_loss"], "ratio": float(predicted)}
    spent = result.privacy["spent"] if result.privacy else None
    return {**figures, "spent": spent, **noise, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
