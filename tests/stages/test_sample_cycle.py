"""The whole cycle on the built-in world: near the oracle with the true clicks, at chance with shuffled ones."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.base import load_config
from adrec.config.commands import config_model
from adrec.sample import generate_sample
from adrec.stages.data import preprocess
from adrec.stages.inference import score
from adrec.stages.training import finetune, pretrain
from adrec.terminal import Terminal

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sample"
QUIET = Terminal(quiet=True)
STAGES = {"preprocess": preprocess, "pretrain": pretrain, "finetune": finetune, "score": score}


def run(command: str, *overrides: str) -> None:
    config = load_config(CONFIGS / f"{command}.yaml", config_model(command), overrides)
    STAGES[command].run(config, QUIET)


def scored(folder: Path) -> pa.Table:
    run("score", f"bundle={folder / 'bundle'}", f"prepared={folder / 'prepared'}", f"output={folder / 'scored.parquet'}")
    return pq.read_table(folder / "scored.parquet")


@pytest.mark.slow
def test_the_demo_comes_near_the_oracle(tmp_path):
    run("preprocess", f"output={tmp_path / 'prepared'}")
    run("pretrain", f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'encoder'}")
    run(
        "finetune", f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'bundle'}",
        f"text.reference={tmp_path / 'encoder'}", "baselines.names=[]",
    )  # fmt: skip
    table = scored(tmp_path)
    click = table["click"].to_numpy()
    oracle = roc_auc_score(click, table["true_probability"].to_numpy())
    reached = roc_auc_score(click, table["score"].to_numpy())
    assert reached >= 0.5 + 0.9 * (oracle - 0.5), f"{reached:.4f} of {oracle:.4f}"


@pytest.mark.parametrize(
    ("impressions", "share"),
    [
        pytest.param(20_000, 0.8, id="reduced"),
        pytest.param(None, 0.9, id="whole", marks=pytest.mark.slow),  # the sample of the repository: 94 %
    ],
)
def test_the_configs_that_init_writes_come_near_the_oracle(impressions, share, tmp_path, monkeypatch):
    """The sample's files as a stranger's: `adrec init`, then what it prints, as it prints it."""
    monkeypatch.chdir(tmp_path)
    files = CONFIGS.parents[1] / "data" / "sample"
    if impressions is not None:
        files = tmp_path / "log"
        generate_sample(files, impressions=impressions, seed=42)
    done = CliRunner().invoke(app, ["init", str(files), "--output", "configs"])
    commands = re.findall(r"^ +adrec (\S+ --config \S+)$", done.output, re.MULTILINE)
    assert commands.pop().split()[0] == "daily", "what to do tomorrow"
    assert [command.split()[0] for command in commands] == [
        "preprocess",
        "pretrain-mlm",
        "finetune",
        "score",
        "evaluate",
        "rank",
    ]
    for command in commands:
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, (command, done.output)
    (metrics,) = (tmp_path / "runs").rglob("evaluation/metrics.json")
    runs = json.loads(metrics.read_text(encoding="utf-8"))["tasks"]["click"]["runs"]
    reached, oracle = (runs[name]["metrics"]["auc"]["value"] for name in ("model", "oracle"))
    assert reached >= 0.5 + share * (oracle - 0.5), f"{reached:.4f} of {oracle:.4f}"


@pytest.mark.slow
def test_shuffled_labels_are_at_chance(tmp_path):
    """No leak from labels, counters or histories: with clicks shuffled over all rows nothing can be learned."""
    raw = tmp_path / "raw"
    generate_sample(raw, impressions=100_000, seed=9)
    part = next((raw / "impressions").iterdir())
    table = pq.read_table(part)
    order = np.random.default_rng(0).permutation(len(table))
    for name in ("click", "conversion", "converted_at", "dwell_seconds"):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), table[name].take(order))
    # A conversion that now lies before its impression would be a fault of the data, not a leak.
    table = table.drop_columns(["conversion", "converted_at", "dwell_seconds"])
    pq.write_table(table, part)
    run(
        "preprocess", f"output={tmp_path / 'prepared'}", f"source.impressions.files={raw / 'impressions'}",
        f"source.ads.files={raw / 'ads.parquet'}", f"source.users.files={raw / 'users.parquet'}", "history.converted_at=null",
    )  # fmt: skip
    run(
        "finetune", f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'bundle'}",
        "text.reference=null", "training.epochs=2", "baselines.names=[logistic,lightgbm]",
    )  # fmt: skip
    table = scored(tmp_path)
    click = table["click"].to_numpy()
    for name in ("score", "baseline_logistic", "baseline_lightgbm"):
        assert 0.48 < roc_auc_score(click, table[name].to_numpy()) < 0.52, name
