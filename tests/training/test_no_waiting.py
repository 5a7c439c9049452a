"""A step of training asks its device for no value: it runs where there are only shapes, and no value to be had."""

import pytest
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from worlds import make_world

from adrec.config.training.finetune import FinetuneConfig
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.ctr_module import CTRModule


@pytest.fixture
def steps(monkeypatch):
    """Every step is done once more without values; their number."""
    step, done = CTRModule.training_step, []

    def twice(self, batch, index):
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.loss(batch, self.model(batch))
        done.append(index)
        return step(self, batch, index)

    monkeypatch.setattr(CTRModule, "training_step", twice)
    return done


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"user": {"parts": ["mean", "soft", "global", "local", "gru", "target"]}}},
        {"loss": {"terms": [{"kind": "bce"}, {"kind": "listwise"}, {"kind": "bpr"}, {"kind": "in_batch"}]}},
        {"loss": {"next_category": 0.2}},
        {"model": {"user": {"parts": ["soft", "target"], "search": "category", "search_top": 3}}},
        {"model": {"user": {"parts": ["sasrec", "hstu"]}}, "loss": {"terms": [{"kind": "bce"}, {"kind": "next_click"}]}},
        {"tasks": [{"name": "click"}, {"name": "conversion", "after": "click"}]},
        {"model": {"interaction": "dcn", "position_bias": True}},
    ],
)
def test_a_step_waits_for_no_value(tmp_path, steps, settings):
    world = make_world(tmp_path / "prepared", requests=200, conversions=True)
    usual = {
        "text": {"reference": None},
        "training": {"epochs": 1, "batch_rows": 256, "loggers": []},
        "baselines": {"names": []},
    }
    model = {"width": 8, "hidden": [8], **settings.pop("model", {})}
    config = FinetuneConfig(prepared=world.path, output=tmp_path / "b", device="cpu", model=model, **usual, **settings)
    finetune.run(config, Terminal(quiet=True))
    assert steps


def test_the_check_sees_what_waits(steps, tmp_path, monkeypatch):
    asked = lambda self, batch, outputs: outputs.logits.sum() * int(batch.group.max())  # noqa: E731
    monkeypatch.setattr(CTRModule, "loss", asked)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        _trained(tmp_path)


def _trained(folder):
    world = make_world(folder / "prepared", requests=50)
    config = FinetuneConfig(
        prepared=world.path, output=folder / "b", device="cpu", text={"reference": None}, model={"width": 8, "hidden": [8]},
        training={"epochs": 1, "loggers": []}, baselines={"names": []},
    )  # fmt: skip
    finetune.run(config, Terminal(quiet=True))
