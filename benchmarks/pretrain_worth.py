"""What pretraining is worth: a click model over a pretrained encoder, beside one over the weights that encoder started from.

    adrec preprocess --config configs/mind/preprocess.yaml --set output=runs/mind_text/prepared \\
        --set 'counters=[]' --set 'features.impressions.numeric=[]' --set 'features.ads.categorical=[]'
    python benchmarks/pretrain_worth.py --prepared runs/mind_text/prepared --work runs/mind_text/worth --seeds 1 2 3

Both arms of a seed share its start, its finetuning config and its order of rows; only pretraining lies between them. Prints
the AUC per request of each arm and seed, and the paired difference of the means with two intervals: users drawn, and users and
seeds drawn (the second also says what another start would have given). Encoders and bundles of an earlier run
in `--work` are used again: give changed settings another folder or `--name`.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from adrec.config.base import load_config
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.pretrain import PretrainConfig
from adrec.metrics import ranking
from adrec.metrics.intervals import bootstrap, significance
from adrec.stages.inference import score
from adrec.stages.training import finetune, pretrain
from adrec.terminal import Terminal

ARMS = ("start", "pretrained")
STOP_AT_ONCE = ["training.max_steps=1", "training.learning_rate=1e-12"]


def main() -> None:
    """Train both arms for every seed, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for encoders, bundles and scores")
    parser.add_argument("--pretrain", type=Path, default=Path("configs/mind/pretrain.yaml"))
    parser.add_argument("--finetune", type=Path, default=Path("configs/mind/finetune.yaml"))
    parser.add_argument("--set-pretrain", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--set-finetune", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--name", default="bundle", help="of the bundles: another finetuning config needs another")
    options = parser.parse_args()
    aucs: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    users = np.empty(0, np.int64)
    for seed in options.seeds:
        for arm in ARMS:
            values, users = one(options, seed, arm)
            aucs[arm].append(values)
        print(f"seed {seed}: " + ", ".join(f"{arm} {np.nanmean(aucs[arm][-1]):.4f}" for arm in ARMS), flush=True)
    report({arm: np.stack(values) for arm, values in aucs.items()}, users)


def one(options: argparse.Namespace, seed: int, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each request (G,), NaN where it has one class, and the code of its user (G,)."""
    encoder = options.work / f"{arm}-{seed}"
    bundle = options.work / f"{options.name}-{arm}-{seed}"
    terminal = Terminal(quiet=True)
    if not (encoder / "metrics.json").exists():
        changes = [f"prepared={options.prepared.absolute()}", f"output={encoder.absolute()}", f"seed={seed}"]
        stop = STOP_AT_ONCE if arm == "start" else []
        pretrain.run(load_config(options.pretrain, PretrainConfig, [*changes, *options.set_pretrain, *stop]), terminal)
    if not (bundle / "metrics.json").exists():
        changes = [
            f"prepared={options.prepared.absolute()}",
            f"output={bundle.absolute()}",
            f"text.reference={encoder.absolute()}",
        ]
        alone = [f"seed={seed}", "seeds=1", "ensemble=false", "hybrid.kind=none", "baselines.names=[]"]
        finetune.run(load_config(options.finetune, FinetuneConfig, [*changes, *alone, *options.set_finetune]), terminal)
    output = bundle.with_suffix(f".{options.split}.parquet")
    score.run(ScoreConfig(bundle=bundle, prepared=options.prepared, split=options.split, output=output), terminal)
    rows = pq.read_table(output, columns=["click", "score", "request_id", "user_id"])
    _, first, of_row = np.unique(rows["request_id"].to_numpy(), return_index=True, return_inverse=True)
    users = np.unique(rows["user_id"].to_numpy()[first], return_inverse=True)[1]
    return ranking.RankedGroups(rows["click"].to_numpy(), rows["score"].to_numpy(), of_row).auc(), users


def report(aucs: dict[str, np.ndarray], users: np.ndarray) -> None:
    """Means over seeds, and their paired difference with its intervals. aucs: arm -> (seeds, requests)."""
    seeds, count = len(aucs[ARMS[0]]), int(users.max()) + 1
    gains = {str(seed): aucs[ARMS[1]][seed] - aucs[ARMS[0]][seed] for seed in range(seeds)}
    generator = np.random.default_rng(0)
    drawn = bootstrap.bootstrap(
        {"gain": [bootstrap.of_groups(gains, users, count)]}, users=count, replicates=5000, generator=generator
    )["gain"]
    by_seed = np.stack([drawn[name] for name in gains])  # (seeds, draws)
    gain = float(np.mean([np.nanmean(values) for values in gains.values()]))
    picks = generator.integers(0, seeds, by_seed.shape)
    for what, draws in (
        ("users drawn", by_seed.mean(axis=0)),
        ("users and seeds drawn", np.take_along_axis(by_seed, picks, axis=0).mean(axis=0)),
    ):
        interval = significance.interval(gain, draws)
        print(f"pretraining gains {gain:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}], {what}")
    for arm in ARMS:
        means = np.nanmean(aucs[arm], axis=1)
        print(f"{arm}: mean {means.mean():.4f}, deviation over {seeds} seeds {means.std(ddof=min(1, seeds - 1)):.4f}")


if __name__ == "__main__":
    main()
