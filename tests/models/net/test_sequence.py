"""Causal readers of a history: the papers' formulas, written out place by place, and what no state may know."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.models.net.sequence import BUCKETS, Hstu, SasRec, newest
from adrec.models.net.user_encoder import UserEncoder

WIDTH, HEADS, LENGTH = 8, 2, 6
KINDS = {"sasrec": SasRec, "hstu": Hstu}


def made(kind, *, layers=2, length=LENGTH):
    torch.manual_seed(0)
    part = KINDS[kind](width=WIDTH, heads=HEADS, length=length, layers=layers, dropout=0.1).double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def clicks(seed, contexts=3, places=LENGTH):
    rng = np.random.default_rng(seed)
    hours = np.sort(rng.exponential(40, (contexts, places)), axis=1)[:, ::-1].copy()
    return torch.from_numpy(rng.normal(size=(contexts, places, WIDTH))), torch.from_numpy(hours)


def numbers(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def normed(x, weight=1.0, bias=0.0):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * weight + bias


def plain_sasrec(w, x):
    """(L, D) of one history, place by place."""
    x = x + w["place.weight"][: len(x)]
    for layer in range(2):
        name = f"blocks.{layer}."
        inner = np.stack([normed(row, w[f"{name}before.weight"], w[f"{name}before.bias"]) for row in x])
        q, k, v = np.split(inner @ w[f"{name}mix.qkv.weight"].T + w[f"{name}mix.qkv.bias"], 3, axis=1)
        mixed = np.zeros_like(x)
        for place in range(len(x)):
            for head in range(HEADS):
                own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                scores = np.array([math.exp(q[place, own] @ k[j, own] / math.sqrt(WIDTH / HEADS)) for j in range(place + 1)])
                mixed[place, own] = (scores / scores.sum()) @ v[: place + 1, own]
        x = x + mixed @ w[f"{name}mix.out.weight"].T + w[f"{name}mix.out.bias"]
        inner = np.stack([normed(row, w[f"{name}between.weight"], w[f"{name}between.bias"]) for row in x])
        hidden = np.maximum(inner @ w[f"{name}forward_layers.0.weight"].T + w[f"{name}forward_layers.0.bias"], 0)
        x = x + hidden @ w[f"{name}forward_layers.3.weight"].T + w[f"{name}forward_layers.3.bias"]
    return np.stack([normed(row, w["norm.weight"], w["norm.bias"]) for row in x])


def plain_hstu(w, x, hours):
    """(L, D) of one history, pair by pair."""
    silu = lambda value: value / (1 + np.exp(-value))  # noqa: E731
    x = x + w["place.weight"][: len(x)]
    for layer in range(2):
        name = f"blocks.{layer}."
        inner = np.stack([normed(row, w[f"{name}before.weight"], w[f"{name}before.bias"]) for row in x])
        u, v, q, k = np.split(silu(inner @ w[f"{name}uvqk.weight"].T + w[f"{name}uvqk.bias"]), 4, axis=1)
        pooled = np.zeros_like(x)
        for i in range(len(x)):
            for j in range(i + 1):
                bucket = min(int(math.log2(4 * abs(hours[i] - hours[j]) + 1)), BUCKETS - 1)
                for head in range(HEADS):
                    own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                    bias = w[f"{name}apart.weight"][i - j, head] + w[f"{name}gap.weight"][bucket, head]
                    pooled[i, own] += silu(q[i, own] @ k[j, own] + bias) / LENGTH * v[j, own]
        gated = np.stack([normed(row) for row in pooled]) * u
        x = x + gated @ w[f"{name}out.weight"].T + w[f"{name}out.bias"]
    return np.stack([normed(row, w["norm.weight"], w["norm.bias"]) for row in x])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, LENGTH])
def test_states_are_those_of_the_formulas(kind, count):
    part, (x, hours) = made(kind), clicks(1)
    real = torch.arange(LENGTH) < count
    with torch.inference_mode():
        states = part.states(x, real.expand(3, -1), hours).numpy()
    for row in range(3):
        one, age = x[row, :count].numpy(), hours[row, :count].numpy()
        expected = plain_sasrec(numbers(part), one) if kind == "sasrec" else plain_hstu(numbers(part), one, age)
        np.testing.assert_allclose(states[row, :count], expected, atol=1e-9)


@given(st.sampled_from(sorted(KINDS)), st.integers(1, LENGTH - 1), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_later_click_changes_no_earlier_state(kind, place, seed):
    """Neither another click, nor another time of it, nor whether it is there."""
    part, (x, hours), (others, times) = made(kind), clicks(seed), clicks(seed + 1)
    real = torch.ones(3, LENGTH, dtype=torch.bool)
    changed, moved = torch.cat([x[:, :place], others[:, place:]], 1), torch.cat([hours[:, :place], times[:, place:]], 1)
    with torch.inference_mode():
        before = part.states(x, real, hours)
        for further in (real, torch.arange(LENGTH).expand(3, -1) < place):
            after = part.states(changed, further, moved)
            torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-10, rtol=0)
        assert not torch.allclose(part.states(changed, real, moved)[:, place:], before[:, place:])


def test_the_newest_places_whatever_the_padding():
    mask = torch.arange(7) < torch.tensor([[0], [2], [3], [5]])
    places, real = newest(mask, 3)
    assert [row[keep].tolist() for row, keep in zip(places, real, strict=True)] == [[], [0, 1], [0, 1, 2], [2, 3, 4]]
    assert newest(mask[:, :2], 3)[0].shape == (4, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_is_the_state_after_the_newest_click(kind):
    torch.manual_seed(0)
    encoder = UserEncoder(width=WIDTH, parts=[kind], heads=HEADS, length=3, layers=1).eval()
    x, hours = (part.float() for part in clicks(3))
    mask = torch.arange(LENGTH) < torch.tensor([[0], [2], [5]])
    none = torch.zeros(3, 1, dtype=torch.bool)
    with torch.inference_mode():
        read = encoder(x, mask, hours, torch.zeros(3, WIDTH), torch.zeros(3, 1, WIDTH), none)
        states = encoder.plain[0].states(x[2:, 2:5], mask[2:, 2:5], hours[2:, 2:5])
    assert torch.equal(read.last[0][0], encoder.empty)
    torch.testing.assert_close(read.last[0][2], states[0, 2])
    assert read.causal[0].places[2].tolist() == [2, 3, 4]
