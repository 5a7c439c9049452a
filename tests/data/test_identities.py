"""Which ads have a vector of their own, by how often they were shown, and where it lies when they are many."""

import numpy as np
import pyarrow as pa
import torch

from adrec.data.identities import NOBODYS, OwnVectors
from adrec.models.net.entity_encoder import HashedVectors

IDS = pa.array([f"a{number}" for number in range(5000)])
SHOWN = pa.array(np.arange(5000, 0, -1))


def test_a_row_each_in_order_and_none_for_the_rare_and_the_unknown():
    own = OwnVectors.of(IDS, SHOWN, min_count=4991, most_rows=None)
    assert (own.rows, own.hashed) == (10, 0)
    assert own.codes(pa.array(["a9", "a10", "new", "a0", None])).tolist() == [10, 0, 0, 1, 0]
    assert OwnVectors.of(IDS, SHOWN, min_count=1, most_rows=5000).rows == 5000
    assert NOBODYS.codes(IDS[:3]).tolist() == [0, 0, 0]


def test_of_many_the_code_is_of_the_identifier_alone():
    own = OwnVectors.of(IDS, SHOWN, min_count=2, most_rows=100)
    assert (own.rows, own.hashed) == (0, 100)
    codes = own.codes(IDS)
    assert codes[-1] == 0, "shown once"
    assert (codes[:-1] >= 1).all() and (codes <= 100 * 100).all()
    later = OwnVectors.of(IDS[::-1], SHOWN[::-1], min_count=1, most_rows=100)
    assert later.codes(IDS)[:-1].tolist() == codes[:-1].tolist(), "whatever its rank has become"
    assert own.codes(pa.array(["new"])).tolist() == [0]
    # Few share both rows: 5,000 in 10,000 places meet at random.
    assert len(np.unique(codes[:-1])) > 0.9 * 10_000 * (1 - np.exp(-0.5))


def test_every_code_has_a_vector_and_the_unseen_has_its_own():
    torch.manual_seed(0)
    table = HashedVectors(7, 16)
    vectors = table(torch.arange(50))
    assert len(torch.unique(vectors, dim=0)) == 50
    assert sum(weight.numel() for weight in table.parameters()) == 2 * 8 * 16
    alone = table(torch.tensor([0]))
    alone.sum().backward()
    touched = [weight.grad.abs().sum(1).nonzero()[:, 0].tolist() for weight in table.parameters()]
    assert touched == [[0], [0]], "what stands for the unseen is no other's"


def test_hashed_vectors_can_tell_each_ad_apart():
    """A click rate for each of 400 ads, no feature, learned through two tables of 40 rows."""
    torch.manual_seed(1)
    own = OwnVectors.of(IDS[:400], SHOWN[:400], min_count=1, most_rows=40)
    codes = torch.from_numpy(own.codes(IDS[:400]).astype(np.int64))
    wanted = torch.randn(400)
    table, head = HashedVectors(40, 16), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*table.parameters(), *head.parameters()], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        lost = ((head(table(codes))[:, 0] - wanted) ** 2).mean()
        lost.backward()
        optimizer.step()
    assert float(lost.detach()) < 0.25 * float(wanted.var())
