"""Logs of strangers, from `adrec init` to ranked lists with no edit, and the model beside plain models on the same split.

    python benchmarks/strangers.py FOLDER [FOLDER ...] [--only NAME ...] [--work FOLDER]

Each file or folder inside FOLDER is a log. `init` writes its configs, the commands it prints are run as printed. Beside the
model stand a logistic regression (one-hot) and LightGBM with its own defaults, written here, on the columns that the config
declares and nothing else: no counters, no histories, no texts. The difference is that of the AUC on test rows, model less the
better of the two, with a paired 95 % interval (rows of a user, or of a request where users are few, are drawn together). Under
200 test rows it is reported only.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LEAST_ROWS = 200
LEAST_GROUPS = 20
DRAWS = 1000


def main() -> None:
    """Walk through the logs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps configs and runs")
    options = parser.parse_args()
    logs = [path.resolve() for folder in options.folders for path in sorted(folder.iterdir()) if path.suffix != ".py"]
    logs = [path for path in logs if path.stem != "README" and not path.name.startswith((".", "_"))]
    print(f"{'log':<34} {'ran':<10} {'min':>4} {'test rows':>10} {'model':>6} {'simple':>7}  difference [95 %]", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for path in logs:
            if not options.only or path.stem in options.only:
                print(f"{path.name[:34]:<34} {line_of(path, (options.work or Path(scratch)) / path.stem)}", flush=True)


def line_of(path: Path, work: Path) -> str:
    """The rest of the table's line for one log."""
    work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    told = adrec(work, "init", str(path), "--output", "configs")
    if told.returncode:
        return f"init: {told.stderr.strip()[-200:]}"
    ran = "init"
    for command, config in re.findall(r"^\s+adrec (\S+) --config (\S+)", told.stdout, re.MULTILINE):
        done = adrec(work, command, "--config", config)
        if done.returncode:
            refusal = " ".join(done.stderr.strip().removeprefix("error: ").split())[-160:]
            return f"{ran:<10} {(time.perf_counter() - start) / 60:>4.1f}  {command} refuses: {refusal}"
        ran = command
    minutes = (time.perf_counter() - start) / 60
    return f"{ran:<10} {minutes:>4.1f} {compared(work)}"


def adrec(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command, run in `work`."""
    environment = {**os.environ, "ADREC_CACHE": str(work / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "adrec", *arguments], cwd=work, env=environment, capture_output=True, text=True
    )


def compared(work: Path) -> str:
    """Rows, both AUCs, and the paired difference."""
    from adrec.data.prepared import open_prepared
    from adrec.metrics.classification import auc

    prepared = open_prepared(next(work.glob("runs/*/prepared")))
    if prepared.is_implicit:
        return "clicks alone: see docs/data/implicit.md"
    scored = pq.read_table(next(work.glob("runs/*/scored.parquet")))
    train, test = (pa.concat_tables(rows_of(prepared, split)) for split in (("train", "valid"), ("test",)))
    label, weight = numbers(test, "click"), numbers(test, "weight", 1.0)
    known = ~np.isnan(label)
    own = np.asarray(scored["logit"].to_numpy())
    simple = {name: fitted for name, fitted in plain_models(prepared, train, test).items() if fitted is not None}
    aucs = {name: auc(label[known], score[known], weight[known]) for name, score in simple.items()}
    if not aucs or np.isnan(list(aucs.values())).any():
        return f"{known.sum():>10,}  the test rows have one class"
    best = max(aucs, key=lambda name: aucs[name])
    model = auc(label[known], own[known], weight[known])
    groups = np.arange(known.sum())  # of what is drawn: users, where there are enough of them, requests, or rows
    for column in ("request_id", "user_index"):
        codes = np.unique(np.asarray(test[column].to_pylist())[known], return_inverse=True)[1]
        groups = codes if codes.max(initial=0) >= LEAST_GROUPS else groups
    low, high = interval(label[known], own[known], simple[best][known], weight[known], groups)
    verdict = "reported only" if known.sum() < LEAST_ROWS else "BELOW" if high < 0 else ""
    return (
        f"{known.sum():>10,} {model:>6.3f} {aucs[best]:>7.3f}  {model - aucs[best]:+.3f} [{low:+.3f}, {high:+.3f}]"
        f" {best} {verdict}"
    )


def rows_of(prepared, splits) -> list[pa.Table]:
    """The prepared rows with the columns of their ads and users beside them."""
    tables = []
    for split in splits:
        if not prepared.split_files(split):
            continue
        table = pa.Table.from_batches(list(prepared.iter(split)))
        for name, index in ((prepared.ads(), "ad_index"), (prepared.users(), "user_index")):
            joined = name.take(table[index])
            for column in joined.column_names:
                if column not in table.column_names:
                    table = table.append_column(column, joined[column])
        tables.append(table)
    shared = set.intersection(*(set(table.column_names) for table in tables))
    return [table.select(sorted(shared)) for table in tables]


def plain_models(prepared, train: pa.Table, test: pa.Table) -> dict[str, np.ndarray | None]:
    """(N,) scores of test rows by models of the declared columns alone."""
    import lightgbm
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features = prepared.config.features
    specs = (features.impressions, features.ads, features.users)
    numeric = [item.column for spec in specs for item in spec.numeric if item.column in train.column_names]
    numeric = [name for name in numeric if not name.startswith("counter_") and name != "history_length"]
    coded = [item.column for spec in specs for item in (*spec.categorical, *spec.hashed) if item.column in train.column_names]
    coded = [name for name in coded if name not in numeric]
    if not numeric and not coded:
        coded = ["ad_id", "user_id"]
    label = numbers(train, "click")
    known = np.flatnonzero(~np.isnan(label))
    y, weight = label[known].astype(int), numbers(train, "weight", 1.0)[known]

    def table(rows: pa.Table) -> np.ndarray:
        return np.column_stack(
            [numbers(rows, name) for name in numeric]
            + [np.asarray(pc.fill_null(pc.cast(rows[name], pa.string()), "").to_pylist(), object) for name in coded]
        )

    x, z = table(train)[known], table(test)
    places = list(range(len(numeric))), list(range(len(numeric), x.shape[1]))
    parts = make_column_transformer(
        (make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), places[0]),
        (OneHotEncoder(handle_unknown="ignore", min_frequency=2), places[1]),
    )
    linear = make_pipeline(parts, LogisticRegressionCV(scoring="roc_auc", max_iter=1000))
    linear.fit(x, y, logisticregressioncv__sample_weight=weight)
    codes = [{value: number for number, value in enumerate(np.unique(x[:, place]))} for place in places[1]]

    def coded_table(rows: np.ndarray) -> np.ndarray:
        columns = [rows[:, place].astype(float) for place in places[0]]
        columns += [np.array([code.get(v, -1) for v in rows[:, place]]) for place, code in zip(places[1], codes, strict=True)]
        return np.column_stack(columns)

    trees = lightgbm.LGBMClassifier(verbose=-1, random_state=0)
    trees.fit(coded_table(x), y, sample_weight=weight, categorical_feature=places[1])
    return {"logistic": linear.decision_function(z), "lightgbm": trees.predict(coded_table(z), raw_score=True)}


def interval(label, first, second, weight, groups) -> tuple[float, float]:
    """95 % of the paired difference, groups drawn with replacement."""
    from adrec.metrics.classification import auc

    random, (_, code) = np.random.default_rng(0), np.unique(groups, return_inverse=True)
    gaps = []
    for _ in range(DRAWS):
        drawn = random.poisson(1.0, code.max() + 1)[code] * weight
        keep = drawn > 0
        gaps.append(auc(label[keep], first[keep], drawn[keep]) - auc(label[keep], second[keep], drawn[keep]))
    low, high = np.nanpercentile(gaps, [2.5, 97.5])
    return float(low), float(high)


def numbers(table: pa.Table, name: str, default: float = np.nan) -> np.ndarray:
    """(N,) float64; the default where there is no such column."""
    if name not in table.column_names:
        return np.full(len(table), default)
    return np.asarray(pc.cast(table[name], pa.float64()).to_numpy(zero_copy_only=False))


if __name__ == "__main__":
    main()
