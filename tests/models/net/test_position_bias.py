"""What slots do and what a placement is worth are told apart, where each placement has its slots."""

import numpy as np
import pytest
import torch
from torch import nn

from adrec.models.net.position_bias import PositionBias

EFFECTS, WORTH = np.array([0.0, 0.6, 0.2, -0.1, -0.4]), np.array([-2.0, -1.0])


def planted(rows=60_000):
    """Placement 0 has four slots, placement 1 the first alone."""
    rng = np.random.default_rng(0)
    place = (rng.random(rows) < 0.2).astype(int)
    slot = np.where(place == 1, 1, rng.integers(1, 5, rows))
    click = rng.random(rows) < 1 / (1 + np.exp(-(WORTH[place] + EFFECTS[slot])))
    return torch.from_numpy(place), torch.from_numpy(slot), torch.from_numpy(click).float()


def test_a_placement_of_one_slot_keeps_its_clicks_when_the_slot_is_not_told():
    place, slot, click = planted()
    worth, bias = nn.Embedding(2, 1), PositionBias(slots=5, placements=2, placement=0)
    nn.init.zeros_(worth.weight)
    groups = [{"params": worth.parameters(), "lr": 0.03}, {"params": bias.parameters(), "lr": 0.003}]
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        rows = torch.randint(0, len(place), (1_024,), generator=generator)
        logits = worth(place[rows])[:, 0] + bias(slot[rows], place[rows][:, None])
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, click[rows]).backward()
        optimizer.step()
    for number in range(2):
        rows = place == number
        promised = torch.sigmoid(worth(place[rows])).mean().detach()
        assert float(promised) == pytest.approx(float(click[rows].mean()), rel=0.07), number
    table = bias.table().detach()
    assert np.ptp(table[0, 1:5].numpy() - EFFECTS[1:]) < 0.35, "slots differ as they do, by 1.0"
    assert float(table[1, 1].abs()) < 1e-5 and not table[:, 0].any()


def test_weights_of_before_there_were_counts_still_load():
    one, other = (PositionBias(slots=3, placements=2, placement=0) for _ in range(2))
    nn.init.normal_(one.bias)
    stored = {name: value for name, value in one.state_dict().items() if name != "counts"}
    other.load_state_dict(stored)
    assert torch.equal(other.bias, one.bias) and not other.counts.any()
