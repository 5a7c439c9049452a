"""The gradient of a unit is what the unit alone would give, and a sample is drawn as the accountant believes."""

import numpy as np
import pytest
import torch
from worlds import make_world, word_encoder

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.privacy.noise import Noise
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.ctr_module import CTRModule
from adrec.training.private.gradients import UnitLoss, clipped_gradients
from adrec.training.private.units import PoissonPlan, apart, chunks_of

PENALTY = 0.03
MODELS = {
    "soft": {"user": {"parts": ["soft"]}},
    "target": {"user": {"parts": ["soft", "target"], "skipped": True}, "interaction": "dcn"},
    "searched": {"user": {"parts": ["soft", "target"], "search": "hashed", "search_top": 3}},
    "causal": {"user": {"parts": ["sasrec", "hstu"], "heads": 2, "layers": 1}},
    "attention": {"user": {"parts": ["global", "local", "mean"], "heads": 2}, "interaction": "dcn", "identities": ["ads"]},
}


def learn(tmp_path, model, tasks=("click", "conversion")):
    make_world(tmp_path / "prepared", users=25, requests=120, conversions=True, listed_words=True)
    config = FinetuneConfig.model_validate(
        {
            "prepared": tmp_path / "prepared",
            "output": tmp_path / "bundle",
            "text": {"reference": str(word_encoder(tmp_path / "encoder")), "cache": str(tmp_path / "cache")},
            "model": {"width": 8, "hidden": [8], "dropout": 0.0, **model},
            "tasks": [{"name": name} for name in tasks],
        }
    )
    prepared = open_prepared(config.prepared)
    encoder = open_text_encoder(config, prepared)
    data = load_click_data(config, prepared, text_reader(config, encoder), Terminal(quiet=True))
    torch.manual_seed(3)
    network = build_model(config.model, data.dimensions, data.tasks, text_encoder=None, next_category=False)
    if network.ad_encoder.identity is not None:
        network.ad_encoder.identity_dropout = 0.0
    with torch.no_grad():
        for parameter in network.parameters():  # nothing at 0, or a gradient could be lost unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = CTRModule(model=network, tasks=data.tasks, terms=[("bce", 1.0)], monitor="auc")
    module.train()
    return module, data


def of_the_loop(module, data, rows):
    """name → gradient of one unit's loss, from a batch that holds nothing but its rows."""
    module.zero_grad()
    batch = data.collate(data.train, rows)
    outputs = module.model(batch)
    loss = module.loss(batch, outputs._replace(list_squares=None)) * len(rows) + PENALTY * outputs.list_squares.sum()
    loss.backward()
    zero = {name: torch.zeros_like(value) for name, value in module.model.named_parameters()}
    return {
        f"model.{name}": value.grad.clone() if value.grad is not None else zero[name]
        for name, value in module.model.named_parameters()
    }, float(loss.detach())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by", ["user", "row"])
def test_equal_those_of_a_loop_over_units(name, by, tmp_path):
    module, data = learn(tmp_path, MODELS[name])
    unit = data.train.user_index.astype(np.int64) if by == "user" else np.arange(len(data.train)) // 1
    rows = np.flatnonzero(unit < 9) if by == "user" else np.arange(40, 60)
    rows = rows[np.argsort(unit[rows], kind="stable")]
    code = np.unique(unit[rows], return_inverse=True)[1]
    batch = data.collate(data.train, rows)
    alone = [of_the_loop(module, data, rows[code == number]) for number in range(code.max() + 1)]
    loss = UnitLoss(module.model, module.loss, PENALTY)
    assert 0.0 < loss.shares["model.wide.weight"] < 1.0  # the line's part of what is cut
    for own, _ in alone:
        own["model.wide.weight"] *= loss.shares["model.wide.weight"]
    norms = np.array([float(torch.sqrt(sum(g.square().sum() for g in own.values()))) for own, _ in alone])
    clip = float(np.median(norms))
    made = clipped_gradients(loss, type("U", (), {"batch": batch, "chunks": chunks_of(batch, code, 4)})(), clip)
    assert np.sort(made.norms.numpy()) == pytest.approx(np.sort(norms), rel=1e-5)
    assert float(made.loss) == pytest.approx(sum(value for _, value in alone), rel=1e-5)
    for parameter, total in made.total.items():
        expected = sum(own[parameter] * min(1.0, clip / norm) for (own, _), norm in zip(alone, norms, strict=True))
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6, msg=lambda text, at=parameter: f"{at}: {text}")


def test_units_are_drawn_alone_and_whole_users_are_cut(tmp_path):
    _, data = learn(tmp_path, {}, tasks=("click",))
    unit = data.train.user_index.astype(np.int64)
    unit = np.unique(unit, return_inverse=True)[1]
    plan = PoissonPlan(data.train, data.collate, unit, 0.3, 5, 400, 8, Noise(seed=1))
    assert plan.expected == pytest.approx(0.3 * (unit.max() + 1))
    sizes, most = [], 0
    for step in range(plan.count):
        chunks = plan.collate(step, np.random.default_rng(0)).chunks
        sizes.append(sum(len(chunk.row) for chunk in chunks))
        most = max([most, *(int(chunk.real.sum(1).max()) for chunk in chunks)])
    deviation = np.sqrt(0.3 * 0.7 * plan.units)
    assert most == 5
    assert np.mean(sizes) == pytest.approx(plan.expected, abs=4 * deviation / 20)
    assert np.std(sizes) == pytest.approx(deviation, rel=0.15)
    nobody = PoissonPlan(data.train, data.collate, unit, 0.0, 5, 1, 8, Noise(seed=1)).collate(0, np.random.default_rng(0))
    assert nobody.chunks == ()


def test_nothing_that_a_batch_carries_is_forgotten(tmp_path):
    _, data = learn(tmp_path, MODELS["target"])
    batch = data.collate(data.train, np.arange(12))._replace(matches=torch.rand(12, 3))
    [chunk] = chunks_of(batch, np.repeat(np.arange(4), 3), 8)
    stacked = apart(batch, chunk)
    assert [name for name in batch._fields if getattr(batch, name) is not None and getattr(stacked, name) is None] == []
    assert torch.equal(stacked.matches.flatten(0, 1), batch.matches)
    assert torch.equal(stacked.numeric.flatten(0, 1), batch.numeric)
