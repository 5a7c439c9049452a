"""adrec beside models of other libraries on the same rows, each in an environment of its own.

    python benchmarks/leaderboard.py --prepared runs/movielens/prepared --scored runs/movielens/scored.parquet
    python benchmarks/leaderboard.py --prepared runs/implicit/office/prepared --scored runs/implicit/office/scored.parquet

The first log has impressions: FuxiCTR's DIN, DCNv2 and FinalMLP and Torch-RecHub's DIN learn the training rows of the
prepared folder: user, ad, category, the history as of the row, the counters (as adrec has fitted them). They stop by AUC on
the validation rows and score the test rows. The second has clicks alone: RecTools' SASRec and HSTU and implicit's ALS, BPR
and cosine learn the sequences of the training and validation rows, and rank the whole catalogue behind each test row's
history. What a peer says becomes a column `baseline_<peer>` or `catalogue_rank_<peer>` of a copy of SCORED, and `adrec
evaluate` judges all alike. A peer's environment is made with pip where it is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.prepared import Prepared, open_prepared
from adrec.schema import BASELINE_PREFIX, CATALOGUE_RANK

PEERS = Path(__file__).parent / "peers"
TORCH = "torch==2.13.0"
REQUIRES = {
    "fuxictr": [TORCH, "fuxictr==2.3.10"],
    "torch_rechub": [TORCH, "torch-rechub==0.9.0"],
    "rectools": [TORCH, "rectools[torch]==0.19.0"],
    "implicit": ["implicit==0.7.3"],
}
OF_ROWS, OF_CATALOGUE = ("fuxictr", "torch_rechub"), ("rectools", "implicit")
HISTORY = 50


def main() -> None:
    """Hand out the rows, run every peer, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--scored", type=Path, required=True, help="what `adrec score` wrote of the test rows")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"), help="environments and what is exchanged")
    parser.add_argument("--seeds", type=int, default=3, help="networks a model, whose scores are averaged")
    parser.add_argument("--judge-only", action="store_true", help="take the peers' earlier answers")
    options = parser.parse_args()
    prepared, scored = open_prepared(options.prepared), pq.read_table(options.scored)
    of_catalogue = CATALOGUE_RANK in scored.schema.names
    folder = (options.work / options.prepared.resolve().parent.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (write_sequences if of_catalogue else write_rows)(prepared, folder)
    for peer in () if options.judge_only else OF_CATALOGUE if of_catalogue else OF_ROWS:
        python = environment(options.work.resolve() / "environments" / peer, REQUIRES[peer])
        subprocess.run([python, str(PEERS / f"{peer}_models.py"), str(folder), str(options.seeds)], check=True)
    for file in sorted(folder.glob("*.answer.npy")):
        answer, name = np.load(file), file.name.removesuffix(".answer.npy")
        if of_catalogue:
            ranks = np.full(len(scored), np.nan)
            ranks[asked(scored)] = answer
            scored = scored.append_column(f"{CATALOGUE_RANK}_{name}", pa.array(ranks, from_pandas=True))
        else:
            scored = scored.append_column(f"{BASELINE_PREFIX}{name}", pa.array(answer.astype(np.float32)))
    pq.write_table(scored, folder / "scored.parquet")
    settings = {"scored": folder / "scored.parquet", "output": folder / "evaluation", "report": "false"}
    judged = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    subprocess.run([sys.executable, "-m", "adrec", "evaluate", *judged], check=True)
    print(table(json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))))


def table(metrics: dict[str, Any]) -> str:
    """Every run by its two metrics, with adrec's lead over it (95 % interval, paired by user), as Markdown."""
    judged, names = metrics["catalogue"], ("recall@10", "ndcg@10")
    if judged is None:
        judged, names = metrics["tasks"]["click"], ("auc", "auc_user")
    lead = {(pair["against"], pair["metric"]): pair for pair in judged["comparisons"]}
    lines = [f"| | {names[0]} | adrec's lead | {names[1]} | adrec's lead |", "| --- | --- | --- | --- | --- |"]
    for run, found in judged["runs"].items():
        cells = []
        for name in names:
            pair, measured = lead.get((run, name)), found.get("metrics", found)
            leads = f"{pair['value']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f})" if pair else ""
            cells += [f"{measured[name]['value']:.4f}", leads]
        lines.append(f"| {'**adrec**' if run == 'model' else run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def environment(folder: Path, requires: list[str]) -> str:
    """The Python of an environment with these packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        extra = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"] if "PIP_FIND_LINKS" not in os.environ else []
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *extra, *requires], check=True)
    return str(python)


def write_rows(prepared: Prepared, folder: Path) -> None:
    """train.npz, valid.npz, test.npz (click, user, ad, numeric (N, F), history (N, 50) of ads, newest last) and ads.npz
    (category). Codes: 0 is nothing, 1 what training does not know."""
    tables = {split: rows_of(prepared, split) for split in ("train", "valid", "test")}
    numbers = [*sorted(name for name in tables["train"].column_names if name.startswith("counter_")), "history_length"]
    code_of_ad = codes(tables["train"]["ad_index"].to_numpy(), prepared.ads().num_rows)
    code_of_user = codes(tables["train"]["user_index"].to_numpy(), prepared.users().num_rows)
    category = pc.fill_null(prepared.ads()["category"].combine_chunks(), "").dictionary_encode().indices.to_numpy()
    by_code = np.zeros(code_of_ad.max() + 1, dtype=np.int64)
    by_code[code_of_ad] = category + 2
    by_code[:2] = 0, 1
    np.savez(folder / "ads.npz", category=by_code)
    centre, scale = np.zeros(len(numbers)), np.ones(len(numbers))
    for split, table in tables.items():
        values = np.stack([table[name].to_numpy().astype(np.float64) for name in numbers], axis=1)
        values[:, -1] = np.log1p(values[:, -1])
        values = np.nan_to_num(values)
        if split == "train":
            centre, scale = values.mean(0), np.maximum(values.std(0), 1e-6)
        np.savez(
            folder / f"{split}.npz",
            click=table["click"].to_numpy().astype(np.float32),
            user=code_of_user[table["user_index"].to_numpy()],
            ad=code_of_ad[table["ad_index"].to_numpy()],
            numeric=((values - centre) / scale).astype(np.float32),
            history=newest(table["history_index"].combine_chunks(), code_of_ad),
        )


def write_sequences(prepared: Prepared, folder: Path) -> None:
    """sequences.npz: each user's whole sequence of training and validation (values, offsets) and the test rows' histories and
    targets (asked_values, asked_offsets, target); numbers of the catalogue, whose size is `ads`."""
    learned = pa.concat_tables([rows_of(prepared, split) for split in ("train", "valid")])
    learned = learned.filter(pc.equal(learned["click"], 1))
    user = learned["user_index"].to_numpy()
    last = np.unique(user[::-1], return_index=True)[1]
    last = learned.take(np.sort(len(user) - 1 - last))
    histories, targets = last["history_index"].to_pylist(), last["ad_index"].to_pylist()
    asked_rows = rows_of(prepared, "test")
    asked_rows = asked_rows.filter(pc.equal(asked_rows["click"], 1))
    values, offsets = _flat([[*history, target] for history, target in zip(histories, targets, strict=True)])
    asked_values, asked_offsets = _flat(asked_rows["history_index"].to_pylist())
    np.savez(
        folder / "sequences.npz", values=values, offsets=offsets, asked_values=asked_values, asked_offsets=asked_offsets,
        target=asked_rows["ad_index"].to_numpy(), ads=prepared.ads().num_rows,
    )  # fmt: skip


def rows_of(prepared: Prepared, split: str) -> pa.Table:
    """The rows of a part, in order."""
    return pa.concat_tables(pq.read_table(file) for file in prepared.split_files(split))


def asked(scored: pa.Table) -> NDArray[np.bool_]:
    """(N,) which rows of SCORED are held-out clicks that were ranked in the whole catalogue."""
    ranked: NDArray[np.bool_] = pc.is_valid(scored[CATALOGUE_RANK]).to_numpy()
    return ranked


def codes(known: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) 2, 3, ... for what is `known`, 1 for the rest."""
    of_index = np.ones(count, dtype=np.int64)
    seen = np.unique(known)
    of_index[seen] = np.arange(len(seen)) + 2
    return of_index


def newest(lists: pa.ListArray, code_of_ad: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, HISTORY) codes of the newest clicks, the newest last, zeros before them."""
    ends, lengths = lists.offsets.to_numpy()[1:], np.diff(lists.offsets.to_numpy())
    back = np.arange(HISTORY, 0, -1)
    values = code_of_ad[lists.values.to_numpy()] if len(lists.values) else np.zeros(1, dtype=np.int64)
    place = np.clip(ends[:, None] - back, 0, len(values) - 1)
    return np.where(back <= lengths[:, None], values[place], 0)


def _flat(lists: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    offsets = np.cumsum([0, *(len(row) for row in lists)])
    return np.array([value for row in lists for value in row], dtype=np.int64), offsets


if __name__ == "__main__":
    main()
