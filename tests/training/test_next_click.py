"""The click that follows, learned from histories alone."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds import make_world

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.models.net.sequence import Hstu, SasRec
from adrec.models.text.text_vectors import TextReader
from adrec.stages.training import federate
from adrec.terminal import Terminal
from adrec.training import losses
from adrec.training.click_data import load_click_data


def test_the_softmax_over_what_others_clicked_corrected_for_how_often(monkeypatch):
    rng = np.random.default_rng(0)
    states, ads = torch.from_numpy(rng.normal(size=(4, 5, 6))), torch.from_numpy(rng.normal(size=(7, 6)))
    clicks, log_q = torch.from_numpy(rng.integers(0, 7, (4, 5))), torch.from_numpy(np.log(rng.random(7)))
    real = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    pairs = [(c, place) for c in range(4) for place in range(4) if real[c, place + 1]]
    terms = []
    for c, place in pairs:
        own = int(clicks[c, place + 1])
        logit = lambda ad, c=c, place=place: float(states[c, place] @ ads[ad]) / math.sqrt(6) - float(log_q[ad])  # noqa: E731
        rivals = [int(clicks[d, at + 1]) for d, at in pairs if d != c]
        total = math.exp(logit(own)) + sum(math.exp(logit(ad)) for ad in rivals if ad != own)
        terms.append(-math.log(math.exp(logit(own)) / total))
    expected = sum(terms) / len(terms)
    assert float(losses.next_click(states, clicks, real, ads, log_q)) == pytest.approx(expected)
    monkeypatch.setattr(losses, "MOST_NEXT", len(pairs))  # as many as there are: padding is drawn last
    assert float(losses.next_click(states, clicks, real, ads, log_q)) == pytest.approx(expected)
    assert float(losses.next_click(states[:, :1], clicks[:, :1], real[:, :1], ads, log_q)) == 0.0


@pytest.mark.parametrize("kind", [SasRec, Hstu])
def test_what_follows_what_is_learned(kind):
    """A planted walk: each ad decides the next, but for one click in five, which is any."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ads, length = 12, 10
    follows = rng.permutation(ads)
    walk = np.zeros((400, length), np.int64)
    walk[:, 0] = rng.integers(0, ads, 400)
    for place in range(1, length):
        walk[:, place] = np.where(rng.random(400) < 0.8, follows[walk[:, place - 1]], rng.integers(0, ads, 400))
    clicks, real = torch.from_numpy(walk), torch.ones(400, length, dtype=torch.bool)
    hours = torch.arange(length, 0, -1.0).expand(400, -1)
    part = kind(width=32, heads=2, length=length, layers=2, dropout=0.0)
    table = torch.nn.Embedding(ads, 32)
    log_q = torch.log(torch.bincount(clicks[:300].flatten(), minlength=ads) / 3000)
    optimizer = torch.optim.AdamW([*part.parameters(), *table.parameters()], 5e-3)
    for step in range(40):
        some = torch.arange(step % 5, 300, 5)
        loss = losses.next_click(
            part.states(table(clicks[some]), real[some], hours[some]), clicks[some], real[some], table.weight, log_q
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        states = part.states(table(clicks[300:]), real[300:], hours[300:])
        right = (states @ table.weight.T).argmax(-1) == torch.from_numpy(follows)[clicks[300:]]
    assert right.float().mean() > 0.95


def _config(world, **settings):
    model = {"width": 8, "hidden": [8], "user": {"parts": ["sasrec"], "heads": 2}}
    terms = {"terms": [{"kind": "bce"}, {"kind": "next_click", "weight": 0.5}]}
    return FinetuneConfig.model_validate(
        {"prepared": world.path, "output": world.path.parent / "b", "model": model, "loss": terms, **settings}
    )


def test_no_label_is_read_and_frequencies_are_those_of_histories(tmp_path):
    from adrec.training.build import build_model
    from adrec.training.ctr_module import CTRModule

    world = make_world(tmp_path / "prepared", requests=150, users=20)
    config = _config(world)
    data = load_click_data(config, open_prepared(world.path), TextReader(None), Terminal(quiet=True))
    assert data.train is not None
    counts = np.bincount(data.train.history_values, minlength=len(data.ads))
    np.testing.assert_allclose(data.collate.click_frequency, np.log(np.maximum(counts, 1) / counts.sum()), rtol=1e-5)
    model = build_model(config.model, data.dimensions, data.tasks, text_encoder=None, next_category=False)
    module = CTRModule(model=model, tasks=data.tasks, terms=[("next_click", 1.0)], monitor="auc")
    module.eval()
    batch = data.collate(data.train, np.arange(200, 300))
    lost = module.loss(batch, model(batch))
    flipped = batch._replace(labels=1 - batch.labels, positive=torch.zeros(0, dtype=torch.int64))
    assert float(lost.detach()) > 0 and torch.equal(lost, module.loss(flipped, model(flipped)))
    lost.backward()
    assert model.user_encoder.plain[0].place.weight.grad.abs().sum() > 0
    assert all(head.weight.grad is None or not head.weight.grad.any() for head in model.heads)


def test_what_cannot_be_learned_is_refused(tmp_path):
    world = make_world(tmp_path / "prepared", requests=60)
    with pytest.raises(ValidationError, match=r"next_click teaches the states of sasrec or hstu"):
        _config(world, model={"user": {"parts": ["soft", "gru"]}})
    with pytest.raises(ValidationError, match=r"next_click alone teaches no score"):
        _config(world, loss={"terms": [{"kind": "next_click"}]})
    (tmp_path / "finetune.yaml").write_text(
        f"prepared: {world.path}\noutput: {tmp_path / 'b'}\nmodel: {{user: {{parts: [hstu]}}}}\n"
        "loss: {terms: [{kind: bce}, {kind: next_click}]}\n"
    )
    asked = federate.FederateConfig(finetune=tmp_path / "finetune.yaml", output=tmp_path / "f")
    with pytest.raises(ConfigError, match=r"loss\.terms: next_click cannot be federated"):
        federate.run(asked, Terminal(quiet=True))
