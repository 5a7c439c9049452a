"""What pictures, sounds or a graph of the ads are worth on the sample, whose truth is known.

`python benchmarks/modalities.py --of pictures --encoder runs/sample/encoder`: one world, models of the sample's own settings
(three networks, trees beside them) from words alone, with the modality, and told the truth (what the world makes of the ad's
hue or key and the user's age or region, as a column): what any reader of the modality could reach beside these words and
rows. AUC on the test days of all rows, of ads without an impression in training, of ads that lack the modality (`--share`
below 1), each with the paired difference to words alone (95 % intervals over users); in the end the share that the modality
closes of the gap between words alone and the truth, over all trainings (`--runs`), with its 95 % interval by drawing users.
About 10 minutes a training on a core. `--readers FOLDER ...` adds a model for each other encoder of pictures (sounds).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.metrics.intervals.bootstrap import bootstrap, of_curve, point
from adrec.metrics.intervals.paired import around, auc_difference
from adrec.sample import catalogue, generate_sample
from adrec.sample.generate import make_world
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET, SEED, DRAWS = Terminal(quiet=True), 42, 2_000
SECTIONS = {"pictures": ("image", "picture_encoder"), "sounds": ("audio", "sound_encoder")}


def main() -> None:
    """Print one line of JSON for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", choices=["pictures", "sounds", "graph"], required=True)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--share", type=float, default=1.0, help="of the ads that have it")
    parser.add_argument("--encoder", required=True, help="text encoder, frozen: adrec pretrain-mlm on the sample's texts")
    parser.add_argument("--readers", nargs="+", default=[], help="further encoders of the pictures or sounds")
    parser.add_argument("--seeds", type=int, default=3, help="networks a model")
    parser.add_argument("--runs", type=int, default=1, help="trainings of each model, of other seeds, on the same rows")
    parser.add_argument("--work", type=Path, default=Path("runs/modalities"))
    parser.add_argument("--set", dest="settings", type=json.loads, default={}, help="JSON: changes of finetune's `model`")
    given = parser.parse_args()
    data = given.work / f"{given.of}_{given.rows}_{given.share}"
    if not (data / "ads.parquet").exists():
        generate_sample(data, impressions=given.rows, seed=SEED, **{given.of: given.share})
    ways = ("without", "with", "told") if given.of in SECTIONS else ("without", "with")
    prepared = {way: _prepared(given.work, data, given.of, way, given.rows) for way in ways}
    for reader in given.readers:
        way = f"by_{Path(reader).name}"
        prepared[way] = _prepared(given.work, data, given.of, way, given.rows, reader=Path(reader))
    runs: list[dict[str, np.ndarray]] = []
    for run in range(given.runs):
        scored: dict[str, np.ndarray] = {}
        for way, folder in prepared.items():
            bundle = given.work / f"bundle_{way}"
            _train(folder, bundle, given.encoder, given.settings, given.seeds, SEED + 100 * run)
            scored[way], rows = _scores(bundle, folder)
            if way == "without":
                parts = _parts(folder, rows, data, given.of)
            _tell(way, scored, rows, parts)
        runs.append(scored)
    if given.of in SECTIONS:
        _tell_closed(runs, rows)


def _tell_closed(runs: list[dict[str, np.ndarray]], rows: pa.Table) -> None:
    """What each reader of the modality gains over words alone, in shares of what the truth gains: of each training, and of
    their mean gains with the quantiles over draws of users, which all models share."""
    label = rows["click"].to_numpy()
    users = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    count = int(users.max()) + 1
    measures = {
        f"{way} {number}": [of_curve(label, scores, users, count)]
        for number, scored in enumerate(runs)
        for way, scores in scored.items()
    }
    drawn = bootstrap(measures, users=count, replicates=DRAWS, generator=np.random.default_rng(SEED))
    seen = {name: point(group, count)["auc"] for name, group in measures.items()}

    def gain(aucs: dict[str, Any], way: str) -> np.ndarray:
        own, base = (np.stack([aucs[f"{name} {number}"] for number in range(len(runs))]) for name in (way, "without"))
        return own - base

    draws = {name: values["auc"] for name, values in drawn.items()}
    for way in runs[0]:
        if way in {"without", "told"}:
            continue
        own, told = gain(seen, way), gain(seen, "told")
        low, high = np.quantile(gain(draws, way).sum(0) / gain(draws, "told").sum(0), [0.025, 0.975])
        closed = {"each": (own / told).round(3).tolist(), "closed": round(float(own.sum() / told.sum()), 3)}
        print(json.dumps({"model": way, **closed, "interval": [round(float(low), 3), round(float(high), 3)]}), flush=True)


def _tell(way: str, scored: dict[str, np.ndarray], rows: pa.Table, parts: dict[str, np.ndarray]) -> None:
    label, truth = rows["click"].to_numpy(), rows["true_probability"].to_numpy()
    users = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    told: dict[str, Any] = {"model": way}
    for name, chosen in parts.items():
        if label[chosen].min(initial=1) == label[chosen].max(initial=0):
            continue
        own, base, clusters = scored[way][chosen], scored["without"][chosen], users[chosen]
        difference, error = auc_difference(label[chosen], own, base, clusters)
        low, high = around(difference, error, clusters=len(np.unique(clusters)))
        told[name] = {
            "rows": int(chosen.sum()), "auc": round(float(auc(label[chosen], own)), 4),
            "oracle": round(float(auc(label[chosen], truth[chosen])), 4),
            "gain": [round(float(value), 4) for value in (difference, low, high)],
        }  # fmt: skip
    print(json.dumps(told), flush=True)


def _parts(prepared: Prepared, rows: pa.Table, data: Path, of: str) -> dict[str, np.ndarray]:
    """Which test rows: all, ads that training never showed and the others, ads that lack the modality and the others."""
    cold = cold_rows(prepared, rows)
    if of == "graph":
        known = pq.read_table(data / "ad_links.parquet")["ad_id"].to_pylist()
    else:
        ads = pq.read_table(data / "ads.parquet", columns=["ad_id", SECTIONS[of][0]])
        known = ads.filter(ads[SECTIONS[of][0]].is_valid())["ad_id"].to_pylist()
    lacks = ~np.isin(np.array(rows["ad_id"].to_pylist()), np.array(known))
    return {"all": np.ones(len(cold), bool), "cold": cold, "warm": ~cold, "lacking": lacks, "having": ~lacks}


def cold_rows(prepared: Prepared, rows: pa.Table) -> np.ndarray:
    """(N,) which rows are of ads that neither training nor validation rows showed."""
    learned = [
        batch["ad_index"].to_numpy() for split in ("train", "valid") for batch in prepared.iter(split, ["ad_index"], 1 << 20)
    ]
    return ~np.isin(rows["ad_index"].to_numpy(), np.concatenate(learned))


def _prepared(work: Path, data: Path, of: str, way: str, rows: int, *, reader: Path | None = None) -> Prepared:
    """`reader`: the encoder of pictures or sounds; None: the sample's own."""
    settings = yaml.safe_load(Path("configs/sample/preprocess.yaml").read_text(encoding="utf-8"))
    tables = {name: {"files": str((data / name).absolute())} for name in ("impressions", "ads.parquet", "users.parquet")}
    source: dict[str, Any] = {"format": "tables", **{name.removesuffix(".parquet"): files for name, files in tables.items()}}
    if way == "told":
        told = work / "told.parquet"
        pq.write_table(_with_truth(pq.read_table(data / "impressions"), of, rows), told)
        source["impressions"] = {"files": str(told.absolute())}
        settings["features"]["impressions"]["numeric"].append({"column": "truth", "transform": "none"})
    elif way == "with" and of == "graph":
        names = ("entities", "links", "ad_links")
        source["tables"] = {name: {"files": str((data / f"{name}.parquet").absolute())} for name in names}
        settings["features"]["ads"]["lists"].append({"column": "graph", "paths": 2})
    elif way not in {"without", "told"}:
        section, encoder = SECTIONS[of]
        reference = str((reader or data / encoder).absolute())
        settings[section] = {"reference": reference, "cache": str((work / "cache").absolute())}
    settings |= {"output": str((work / f"prepared_{way}").absolute()), "source": source}
    preprocess.run(PreprocessConfig.model_validate(settings), QUIET)
    return open_prepared(Path(settings["output"]))


def _with_truth(log: pa.Table, of: str, rows: int) -> pa.Table:
    """The log with what the world's click model makes of the ad's look or sound (`clicks.attraction`), of weight 1."""
    world = make_world(rows, SEED, looks=of == "pictures", keys=of == "sounds")
    places = (world.ads.table["ad_id"], log["ad_id"]), (world.users.table["user_id"], log["user_id"])
    ad, user = (pc.index_in(column, value_set=known).to_numpy() for known, column in places)
    if world.ads.look is not None:
        phase = world.ads.look[ad] - world.users.age[user] / len(catalogue.AGE_BANDS)
    else:
        assert world.ads.key is not None
        phase = world.ads.key[ad] - world.users.region[user] / len(catalogue.REGIONS)
    return log.append_column("truth", pa.array(np.cos(2 * np.pi * phase)))


def _train(prepared: Prepared, output: Path, encoder: str, model: dict[str, Any], seeds: int, seed: int) -> None:
    settings = yaml.safe_load(Path("configs/sample/finetune.yaml").read_text(encoding="utf-8"))
    settings |= {
        "prepared": str(prepared.path), "output": str(output.absolute()), "seeds": seeds, "ensemble": True,
        "seed": seed, "recall_requests": 0,
        "baselines": {"names": ["lightgbm", "logistic"]}, "text": {**settings["text"], "reference": encoder},
        "model": {**settings["model"], **model},
    }  # fmt: skip
    finetune.run(FinetuneConfig.model_validate(settings), QUIET)


def _scores(bundle: Path, prepared: Prepared) -> tuple[np.ndarray, pa.Table]:
    predictor = Predictor.load(bundle, verify=False)
    rows = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    scores = predictor.score_examples(predictor.examples_of(rows), predictor.catalogs(prepared.ads(), prepared.users()))
    return scores.score, rows


if __name__ == "__main__":
    main()
