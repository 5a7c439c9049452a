"""Interactions and sharing against their formulas written out."""

import math

import pytest
import torch

from adrec.data.batches.blocks import make_blocks
from adrec.models.net.interaction import TextMatch, category_match, interaction, mean_interest
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


def test_factorization_machine_sums_all_pairs_of_fields():
    user, ad, extra = _inputs()
    module = interaction("fm", width=3, extra=2)
    context = module.field(extra)
    pairs = user * ad + user * context + ad * context
    assert torch.allclose(module(user, ad, extra)[:, :3], pairs, atol=1e-6)
    assert (
        interaction("deepfm", width=3, extra=2)(user, ad, extra).shape[1] == interaction("deepfm", width=3, extra=2).out_width
    )


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


@pytest.mark.parametrize("parts", [(4,), (3, 1)])
def test_text_match_is_cosines(parts):
    generator = torch.Generator().manual_seed(1)
    ads = torch.randn(6, 4, generator=generator)
    history = torch.tensor([[0, 1, 2, 3, 4, 5, 1], [2, 0, 0, 0, 0, 0, 0], [0] * 7])
    mask = torch.tensor([[True] * 7, [True] + [False] * 6, [False] * 7])
    context, ad = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 5, 1, 2])
    module = TextMatch(parts=parts, interests=False, query=False, skipped=False)
    found = module(ads, history, mask, context, ad, make_blocks(context.numpy())) / TextMatch.SCALE
    start = 0
    for number, width in enumerate(parts):
        unit = torch.nn.functional.normalize(ads[:, start : start + width], dim=-1)
        start += width
        for row in range(4):
            clicks = [int(history[context[row], h]) for h in range(7) if mask[context[row], h]]
            columns = found[row, number * 5 : number * 5 + 5]
            if not clicks:
                assert torch.equal(columns, torch.zeros(5))
                continue
            target = unit[ad[row]]
            cosines = [float(unit[click] @ target) for click in clicks]
            best = sorted(cosines)[-3:]
            expected = [
                float(torch.nn.functional.normalize(sum(unit[click] for click in clicks), dim=0) @ target),
                float(torch.nn.functional.normalize(sum(unit[click] for click in clicks[-5:]), dim=0) @ target),
                max(cosines),
                sum(best) / len(best),
                math.log(sum(math.exp(20 * x) for x in cosines) / len(cosines)) / 20,
            ]
            assert torch.allclose(columns, torch.tensor(expected), atol=1e-5)


def test_category_match_counts_known_equal_values():
    categorical = torch.tensor([[1, 0], [1, 2], [3, 2]])
    history, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]])
    found = category_match(categorical, history, mask, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert found.tolist() == [[2 / 2, 0.0], [2 / 2, 1 / 2]]


def test_interests_count_each_by_itself():
    """A user who likes two things is as near to an ad of one of them as who likes that alone; order and padding are nothing."""
    eye = torch.eye(3)
    interests = torch.stack([torch.stack([eye[0], eye[1]]), torch.stack([eye[1], torch.zeros(3)]), torch.zeros(2, 3)])
    module = TextMatch(parts=(3,), interests=True, query=False, skipped=False)
    context, ad = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 1, 2])

    def columns(given):
        none = torch.zeros(3, 1, dtype=torch.int64)
        found = module(eye, none, none.bool(), context, ad, make_blocks(context.numpy()), interests=given)
        return found[:, -2:] / TextMatch.SCALE

    mean, nearest = columns(interests).T
    torch.testing.assert_close(mean, torch.tensor([1 / 2**0.5, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(nearest, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    padded = torch.cat([interests.flip(1), torch.zeros(3, 2, 3)], 1)
    torch.testing.assert_close(columns(padded), columns(interests))
    torch.testing.assert_close(mean_interest(padded), torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
