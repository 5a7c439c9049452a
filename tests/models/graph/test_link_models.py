"""Models of links: questions against their papers' formulas, filtered ranks against a loop, a graph they must learn."""

import numpy as np
import pytest
import torch

from adrec.metrics.link_prediction import filtered_ranks, hits_at, mean_reciprocal_rank
from adrec.models.graph.link_models import LinkModel
from adrec.models.graph.link_training import LinkTraining, link_ranks, train_links

KINDS = ["transe", "rotate", "complex"]


def as_complex(vectors):
    return vectors[..., 0::2] + 1j * vectors[..., 1::2]


def formula(model, head, relation, tail):
    """One link at a time, in numpy."""
    h, t = (model.entities.detach().numpy().astype(np.float64)[end] for end in (head, tail))
    r = model.relations.detach().numpy().astype(np.float64)[relation]
    if model.kind == "transe":
        return -np.abs(h + r - t).sum()
    if model.kind == "rotate":
        return -np.abs(as_complex(h) * np.exp(1j * r) - as_complex(t)).sum()
    return (as_complex(h) * as_complex(r) * as_complex(t).conj()).sum().real


@pytest.mark.parametrize("kind", KINDS)
def test_heads_tails_and_links_are_the_papers_formula(kind):
    model = LinkModel(kind, entities=5, relations=3, width=6, generator=torch.Generator().manual_seed(0))
    head, relation, tail = torch.tensor([0, 3]), torch.tensor([2, 1]), torch.tensor([4, 0])
    tails, heads, links = model.tails(head, relation), model.heads(relation, tail), model.links(head, relation, tail)
    for row in range(2):
        h, r, t = int(head[row]), int(relation[row]), int(tail[row])
        assert links[row].item() == pytest.approx(formula(model, h, r, t), abs=1e-4)
        for other in range(5):
            assert tails[row, other].item() == pytest.approx(formula(model, h, r, other), abs=1e-4)
            assert heads[row, other].item() == pytest.approx(formula(model, other, r, t), abs=1e-4)
    assert torch.allclose(model.tails(head, relation, torch.tensor([4, 1])), tails[:, [4, 1]])


def test_filtered_ranks_are_a_loops():
    rng = np.random.default_rng(0)
    known = np.unique(rng.integers(0, [6, 2, 6], (25, 3)), axis=0)
    scores = rng.integers(0, 4, (len(known), 6)).astype(float)  # with ties
    found = filtered_ranks(scores, known[:, 2], known[:, :2], known[:, :2], known[:, 2])
    for row, (head, relation, tail) in enumerate(known):
        others = [e for e in range(6) if e != tail and (head, relation, e) not in set(map(tuple, known.tolist()))]
        better = sum(scores[row, e] > scores[row, tail] for e in others)
        equal = sum(scores[row, e] == scores[row, tail] for e in others)
        assert found[row] == 1 + better + equal / 2
    assert mean_reciprocal_rank(np.zeros(0)) != mean_reciprocal_rank(np.zeros(0))
    assert hits_at(np.array([1.0, 1.5, 3.0]), 1) == 1 / 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_graph_is_learned(kind):
    """Things of five kinds: a thing's kind decides its colour, its maker and its shelf. A colour that was held out follows from
    the maker and the shelf; at chance the MRR is about .1.
    """
    things, kinds = 40, 5
    kind_of = np.arange(things) % kinds
    links = np.concatenate(
        [np.stack([np.arange(things), np.full(things, r), things + r * kinds + kind_of], 1) for r in range(3)]
    )
    held = np.flatnonzero((links[:, 1] == 0) & (links[:, 0] >= 30))
    train, test = np.delete(links, held, axis=0), links[held]
    loss = "cross_entropy" if kind == "complex" else "self_adversarial"
    plan = LinkTraining(
        kind=kind, width=8, epochs=50, batch_links=32, loss=loss, negatives=60, learning_rate=0.04, n3=0.01, margin=2.0
    )
    model = train_links(train, entities=things + 3 * kinds, relations=3, settings=plan, seed=0)
    again = train_links(train, entities=things + 3 * kinds, relations=3, settings=plan, seed=0)
    assert torch.equal(model.entities, again.entities)
    assert mean_reciprocal_rank(link_ranks(model, test, links)) > 0.6
