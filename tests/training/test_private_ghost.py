"""Ghost norms and clipped sums of a language model equal those of a loop that trains each unit alone."""

import pytest
import torch
from torch import nn

from adrec.errors import ConfigError
from adrec.training.private.ghost import watched


class Words(nn.Module):
    """A small language model whose words have one vector for coming in and going out."""

    def __init__(self, words=30, width=8):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Embedding(6, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, words)
        self.out.weight = self.words.weight

    def forward(self, ids):
        place = torch.arange(ids.shape[1]).expand_as(ids)
        states = self.norm(self.words(ids) + self.places(place))
        mixed = torch.relu(self.mix(states)) + states.mean(1, keepdim=True)
        return self.out(self.mix(mixed))  # one layer twice


def losses(model, ids):
    logits = model(ids)
    lost = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none", ignore_index=0)
    return lost.view(ids.shape).sum(1)


def test_norms_and_sums_equal_those_of_a_loop():
    torch.manual_seed(0)
    model = Words().double()
    ids = torch.randint(1, 30, (7, 6))
    ids[2, 4:] = 0
    ids[3] = ids[3, 0]  # one word in all places
    alone = []
    for row in ids:
        model.zero_grad()
        losses(model, row[None]).sum().backward()
        alone.append({name: value.grad.clone() for name, value in model.named_parameters()})
    expected = torch.stack([torch.sqrt(sum(g.square().sum() for g in own.values())) for own in alone])
    with watched(model, len(ids)) as ghost:
        losses(model, ids).sum().backward()
    norms = ghost.norms()
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=1e-9)
    factors = (1.0 / norms).clamp(max=1.0)
    for name, total in ghost.summed(factors).items():
        torch.testing.assert_close(
            total, sum(f * own[name] for f, own in zip(factors, alone, strict=True)), rtol=1e-6, atol=1e-9
        )
    assert not model.mix._forward_hooks


def test_a_layer_that_cannot_be_told_apart_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=r"nothing tells units apart in '1\.weight'"), watched(model, 4):
        pass
    with pytest.raises(ConfigError, match="Linear of this encoder mixes units"), watched(model[:1], 4):
        model[:1](torch.ones(2, 3))


def test_bert_equals_the_loop():
    from transformers import BertConfig, BertForMaskedLM

    from adrec.models.text.language_model import LanguageModel

    torch.manual_seed(1)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                        max_position_embeddings=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = LanguageModel(BertForMaskedLM(config)).double()
    tokens = torch.randint(1, 40, (5, 8))
    texts = torch.zeros_like(tokens)
    texts[1, 5:] = -1
    positions = torch.arange(8).expand(5, 8).contiguous()
    places = torch.tensor([[1, 3], [0, 2], [4, 4], [6, 7], [2, 5]])

    def lost(rows):
        states = model(tokens[rows], texts[rows], positions[rows])
        chosen = states.gather(1, places[rows][..., None].expand(-1, -1, states.shape[-1]))
        target = tokens[rows].gather(1, places[rows])
        logits = model.logits(chosen)
        return nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)

    alone = []
    for row in range(5):
        model.zero_grad()
        lost(torch.tensor([row])).sum().backward()
        alone.append({n: v.grad.clone() if v.grad is not None else torch.zeros_like(v) for n, v in model.named_parameters()})
    expected = torch.stack([torch.sqrt(sum(g.square().sum() for g in own.values())) for own in alone])
    with watched(model, 5) as ghost:
        lost(torch.arange(5)).sum().backward()
    torch.testing.assert_close(ghost.norms(), expected, rtol=1e-6, atol=1e-9)
    for name, total in ghost.summed(torch.ones(5).double()).items():
        torch.testing.assert_close(total, sum(own[name] for own in alone), rtol=1e-6, atol=1e-9)
