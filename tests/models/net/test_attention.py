"""Every attention against a plain reference written from its formula, one sequence and one place at a time."""

import math

import pytest
import torch

from adrec.data.batches.blocks import BLOCK_ROWS, make_blocks
from adrec.models.net.attention import AdditiveAttention, MultiHeadSelfAttention, TargetAttention, masked_softmax


def _inputs(n=3, length=5, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, length, width, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)[:n, :length]
    return x, mask


def test_masked_softmax_is_softmax_over_what_is_kept():
    logits = torch.tensor([[1.0, 2.0, 50.0], [3.0, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    weights = masked_softmax(logits, mask)
    total = math.exp(1) + math.exp(2)
    assert torch.allclose(weights[0], torch.tensor([math.exp(1) / total, math.exp(2) / total, 0.0]))
    assert (weights[1] == 0).all()


def test_masked_softmax_has_finite_gradients_without_any_place():
    logits = torch.zeros(2, 3, requires_grad=True)
    masked_softmax(logits, torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert torch.isfinite(logits.grad).all()


@torch.no_grad()
def test_additive_attention():
    x, mask = _inputs()
    module = AdditiveAttention(width=8, hidden=6)
    found = module(x, mask)
    for n in range(2):
        places = [i for i in range(5) if mask[n, i]]
        logits = [
            sum(
                float(module.query.weight[0, h]) * math.tanh(float(module.project.weight[h] @ x[n, i] + module.project.bias[h]))
                for h in range(6)
            )
            for i in places
        ]
        total = sum(math.exp(logit) for logit in logits)
        expected = sum(math.exp(logit) / total * x[n, i] for logit, i in zip(logits, places, strict=True))
        assert torch.allclose(found[n], expected, atol=1e-5)
    assert (found[2] == 0).all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_self_attention(heads):
    x, mask = _inputs()
    module = MultiHeadSelfAttention(width=8, heads=heads)
    bias = torch.randn(3, heads, 5, 5)
    found = module(x, mask, bias)
    wq, wk, wv = module.qkv.weight.split(8)
    bq, bk, bv = module.qkv.bias.split(8)
    d = 8 // heads
    for n in range(2):
        places = [i for i in range(5) if mask[n, i]]
        for i in places:
            mixed = []
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                q = (wq @ x[n, i] + bq)[part]
                logits = [float(q @ (wk @ x[n, j] + bk)[part]) / math.sqrt(d) + float(bias[n, head, i, j]) for j in places]
                total = sum(math.exp(logit) for logit in logits)
                values = [(wv @ x[n, j] + bv)[part] for j in places]
                mixed.append(sum(math.exp(logit) / total * v for logit, v in zip(logits, values, strict=True)))
            expected = module.out(torch.cat(mixed))
            assert torch.allclose(found[n, i], expected, atol=1e-5)


def test_self_attention_is_torch_own():
    x, mask = _inputs(n=2)
    module = MultiHeadSelfAttention(width=8, heads=2)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = module.qkv.weight.data, module.qkv.bias.data
    reference.out_proj.weight.data, reference.out_proj.bias.data = module.out.weight.data, module.out.bias.data
    expected, _ = reference(x, x, x, key_padding_mask=~mask)
    assert torch.allclose(module(x, mask)[mask], expected[mask], atol=1e-5)


def test_target_attention_is_an_mlp_over_the_four_parts():
    x, mask = _inputs()
    module = TargetAttention(width=8, hidden=6)
    query = torch.randn(4, 8)
    owner = torch.tensor([0, 1, 1, 2])
    found = module(x, mask, query, make_blocks(owner.numpy()))
    # W [x, x - q, x q, q] with W1 + W2 = of_place, W4 - W2 = of_query, W3 = of_product: choose W2 at will.
    w2 = torch.randn(6, 6)
    w1, w3, w4 = module.of_place.weight - w2, module.of_product.weight, module.of_query.weight + w2
    for b in range(4):
        expected = torch.zeros(8)
        for i in range(5):
            if not mask[owner[b], i]:
                continue
            place, q = module.narrow(x[owner[b], i]), module.narrow(query[b])
            parts = w1 @ place + w2 @ (place - q) + w3 @ (place * q) + w4 @ q + module.of_query.bias
            expected = expected + module.out(torch.nn.functional.silu(parts)) * x[owner[b], i]
        assert torch.allclose(found[b], expected, atol=1e-5)
    assert (found[3] == 0).all()


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 60])
def test_blocks_bring_every_row_back(rows):
    context = torch.randint(0, 4, (rows,), generator=torch.Generator().manual_seed(rows))
    blocks = make_blocks(context.numpy())
    assert blocks.row.shape[1] <= BLOCK_ROWS
    values = torch.arange(rows) * 10
    assert blocks.gather(blocks.spread(values)).tolist() == values.tolist()
    owners = blocks.context[:, None].expand(-1, blocks.row.shape[1])
    assert blocks.gather(owners).tolist() == context.tolist()
