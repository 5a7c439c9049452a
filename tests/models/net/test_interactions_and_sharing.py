"""Interactions and sharing against their formulas written out."""

import math

import torch

from adrec.models.net.interaction import interaction, mean_interest
from adrec.models.net.multitask import sharing


def _inputs(rows=4, width=3, extra=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, size, generator=generator) for size in (width, width, extra))


def test_cross_network_is_dcn_v2():
    user, ad, extra = _inputs()
    module = interaction("dcn", width=3, extra=2, cross_layers=2, cross_rank=2)
    found = module(user, ad, extra)
    first = torch.cat([user, ad, user * ad, (user - ad).abs(), (user * ad).sum(-1, keepdim=True) / math.sqrt(3), extra], -1)
    x = first
    for down, up in zip(module.down, module.up, strict=True):
        x = first * (x @ (up.weight @ down.weight).T + up.bias) + x
    assert torch.allclose(found, torch.cat([first, x], -1), atol=1e-6)
    assert found.shape[1] == module.out_width


def test_mmoe_mixes_experts_by_a_softmax_gate():
    x = torch.randn(5, 6)
    module = sharing("mmoe", in_width=6, hidden=[4], tasks=2, experts=3)
    for task, found in enumerate(module(x)):
        gate = torch.softmax(module.gates[task](x), -1)
        expected = sum(gate[:, [number]] * expert(x) for number, expert in enumerate(module.experts))
        assert torch.allclose(found, expected, atol=1e-6)


def test_ple_mixes_own_and_common_experts_level_by_level():
    x = torch.randn(5, 6)
    module = sharing("ple", in_width=6, hidden=[4, 3], tasks=2, experts=2)
    streams = [x, x, x]
    for level in module.levels:
        made = [[expert(stream) for expert in experts] for experts, stream in zip(level.experts, streams, strict=True)]
        after = []
        for task in range(2):
            gate = torch.softmax(level.gates[task](streams[task]), -1)
            after.append(sum(gate[:, [n]] * expert for n, expert in enumerate([*made[task], *made[2]])))
        if level.common_gate is not None:
            gate = torch.softmax(level.common_gate(streams[2]), -1)
            after.append(sum(gate[:, [n]] * expert for n, expert in enumerate([*made[0], *made[1], *made[2]])))
        else:
            after.append(streams[2])
        streams = after
    for found, expected in zip(module(x), streams, strict=False):
        assert torch.allclose(found, expected, atol=1e-6)


def test_separate_tasks_share_nothing_and_shared_ones_all():
    x = torch.randn(5, 6)
    separate = sharing("separate", in_width=6, hidden=[4], tasks=2)
    separate(x)[0].sum().backward()
    assert all(p.grad is None for p in separate.bottoms[1].parameters())
    first, second = sharing("shared", in_width=6, hidden=[4], tasks=2)(x)
    assert torch.equal(first, second)


def test_interests_have_a_mean_of_those_that_are_there():
    eye = torch.eye(3)
    interests = torch.stack([torch.stack([eye[0], eye[1]]), torch.stack([eye[1], torch.zeros(3)]), torch.zeros(2, 3)])
    padded = torch.cat([interests.flip(1), torch.zeros(3, 2, 3)], 1)
    torch.testing.assert_close(mean_interest(padded), torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
