"""Settings that meet: each pair is right, or refused before any work."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from worlds import make_world

from adrec.config.base import load_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import ConfigError
from adrec.models.net.multitask import chained, first_of_chain
from adrec.ranking.auction import second_prices
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.objectives.distil import soft_target_loss
from adrec.training.objectives.mlm import mean_cross_entropy

QUIET = Terminal(quiet=True)


def _config(world, output, **settings):
    usual = {
        "model": {"width": 8, "hidden": [8]}, "training": {"epochs": 1, "batch_rows": 128, "loggers": []},
        "baselines": {"names": []}, "device": "cpu",
    }  # fmt: skip
    return FinetuneConfig(prepared=world.path, output=output, **{**usual, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["model.interaction=dot"], ["loss.terms=[{kind: in_batch}]"]])
def test_two_processes_where_some_weights_have_no_gradient(settings, tmp_path):
    world = make_world(tmp_path / "prepared", requests=200)
    shape = ["model.width=8", "model.user.parts=[soft, target]", "training.epochs=1", "training.batch_rows=128"]
    given = [
        f"prepared={world.path}",
        f"output={tmp_path / 'bundle'}",
        "training.devices=2",
        "device=cpu",
        "baselines.names=[]",
    ]
    command = [sys.executable, "-m", "adrec", "finetune", "--quiet"]
    for setting in [*given, *shape, *settings]:
        command += ["--set", setting]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "bundle" / "bundle.json").exists()


def test_a_chain_of_three_multiplies_all_probabilities():
    logits = torch.tensor([[0.3, -1.0, 2.0], [-4.0, 0.5, 0.1]], dtype=torch.float64)
    p = torch.sigmoid(logits)
    expected = torch.stack([p[:, 0], p[:, 0] * p[:, 1], p[:, 0] * p[:, 1] * p[:, 2]], -1)
    torch.testing.assert_close(torch.sigmoid(chained(logits, (None, 0, 1))), expected)
    order = chained(logits[:, [2, 0, 1]], (2, None, 1))  # however the tasks are ordered
    torch.testing.assert_close(torch.sigmoid(order), expected[:, [2, 0, 1]])
    assert first_of_chain(0, (2, None, 1)) == 1 and first_of_chain(0, (None, 0)) == 0


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([{"name": "click", "after": "conversion"}, {"name": "conversion", "after": "click"}], "cannot come after itself"),
        (
            [
                {"name": "click"},
                {"name": "rating", "kind": "binary", "after": "dwell_seconds"},
                {"name": "dwell_seconds", "kind": "binary", "after": "conversion"},
                {"name": "conversion", "after": "rating"},
            ],
            "cannot come after itself",
        ),
        ([{"name": "click"}, {"name": "dwell_seconds"}, {"name": "conversion", "after": "dwell_seconds"}], "does not happen"),
    ],
)
def test_circles_of_tasks_are_refused(tasks, says):
    with pytest.raises(ValidationError, match=says):
        FinetuneConfig(prepared="p", output="o", tasks=tasks)
    with pytest.raises(ConfigError, match=says):
        load_config(None, FinetuneConfig, ["prepared=p", "output=o", f"tasks={tasks}"])


def test_the_least_value_is_a_rival_in_second_prices():
    value, score = np.array([[0.8, 0.5, 0.1]]), np.array([[0.4, 0.5, 0.1]])
    bid, ad = value / score, np.arange(3)[None]
    takes_part = value >= 0.3
    price = second_prices(value, score, bid, takes_part, ad, reserve=0.1, minimum=0.3)
    np.testing.assert_allclose(price[0, :2], [0.5 / 0.4, 0.3 / 0.5])
    assert np.isnan(price[0, 2])
    # Whoever bids a little less than the price would not be shown: its value is below that of the next, or the least.
    for column, rival in ((0, 0.5), (1, 0.3)):
        assert 0.999 * price[0, column] * score[0, column] < rival <= 1.001 * price[0, column] * score[0, column]


def test_the_next_category_is_the_feature_category_and_refused_without(tmp_path):
    world = make_world(tmp_path / "prepared", requests=200)
    settings = {"loss": {"next_category": 0.5}}
    finetune.run(_config(world, tmp_path / "bundle", **settings), QUIET)
    text = (world.path / "features.json").read_text(encoding="utf-8")
    (world.path / "features.json").write_text(text.replace('"category"', '"kind_of_ad"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"loss\.next_category: .* no feature 'category'"):
        finetune.run(_config(world, tmp_path / "other", **settings), QUIET)
    assert not (tmp_path / "other").exists()


def test_taste_needs_ads_that_were_not_clicked(tmp_path):
    world = make_world(tmp_path / "prepared", requests=50)
    for file in world.path.glob("impressions/*/*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["skipped_index"]), file)
    with pytest.raises(ConfigError, match=r"model\.taste: .* Set history\.max_skipped"):
        finetune.run(_config(world, tmp_path / "bundle", model={"taste": True}), QUIET)


def test_a_batch_without_a_masked_token_has_no_loss():
    logits, labels = torch.randn(0, 7, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = mean_cross_entropy(logits, labels) + soft_target_loss(logits, torch.randn(0, 7), 2.0)
    assert float(loss) == 0.0
    loss.backward()
    several = torch.randn(3, 7)
    expected = torch.nn.functional.cross_entropy(several, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(mean_cross_entropy(several, torch.tensor([1, 2, 3])), expected)
