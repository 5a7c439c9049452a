"""Sums and rules of a server, and rounds that come to what central training would."""

import numpy as np
import pytest
import torch

from adrec.training.federated.rounds import LocalTraining, Rounds, Server, flat, put
from adrec.training.federated.sums import Summing, clipped, least_harmful, robust

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("drop_out", [0.0, 0.2])
def test_a_sum_is_that_of_who_answered(secure, drop_out):
    vectors = [RANDOM.normal(size=40) for _ in range(10)]
    total, here = Summing(secure, 0.6, drop_out, np.random.default_rng(1))(vectors)
    assert len(here) == 10 - int(10 * drop_out)
    assert np.array_equal(total, sum(np.rint(vectors[number] * 2**24) for number in here) / 2**24)


@pytest.mark.parametrize(
    "losses, trim, kept",
    [
        ([0.3, 0.2, 9.0, 0.4, 0.1], 0.2, [0, 1, 3, 4]),
        ([0.3, np.nan, 0.2, np.inf, 0.1], 0.4, [0, 2, 4]),
        ([0.3, 0.2], 0.4, [1]),
        ([5.0], 0.2, [0]),
    ],
)
def test_those_that_harm_most_are_left_out(losses, trim, kept):
    assert least_harmful(np.array(losses), trim).tolist() == kept


def test_only_masked_vectors_leave_a_client():
    sent = []
    vectors = [np.full(500, 3.25), np.full(500, -1.5), np.full(500, 8.0)]
    total, _ = Summing(
        True, 0.6, 0.0, np.random.default_rng(1), lambda number, what, content: sent.append((number, what, content))
    )(vectors)
    assert np.array_equal(total, np.full(500, 9.75))
    assert {what for _, what, _ in sent} == {"keys", "shares", "masked", "revealed"}
    for number, what, content in sent:
        if what == "masked":
            plain = np.rint(vectors[number] * 2**24).astype(np.int64).view(np.uint64)
            assert not (content == plain).any()
            assert len(np.unique(content)) == 500  # of equal numbers nothing is left
    opened = []
    Summing(False, 0.6, 0.0, np.random.default_rng(1), lambda number, what, content: opened.append((what, content)))(vectors)
    assert [what for what, _ in opened] == ["vector"] * 3 and np.array_equal(opened[0][1], vectors[0])


def test_rules_withstand_one_liar_in_five():
    honest = RANDOM.normal(1.0, 0.1, (4, 300))
    changes = np.concatenate([honest, np.full((1, 300), -1e6)])
    for found in (robust(changes, "median", trim=0.2), robust(changes, "trimmed_mean", trim=0.2)):
        assert np.abs(found - 1.0).max() < 0.4
    assert np.abs(changes.mean(0) - 1.0).max() > 1000
    assert np.linalg.norm(clipped(changes[4], 2.0)) == pytest.approx(2.0)
    assert np.array_equal(clipped(honest[0] / 100, 2.0), honest[0] / 100)
    assert robust(changes[:1], "trimmed_mean", trim=0.4) == pytest.approx(changes[0])


class Line(torch.nn.Module):
    """y = w x, in place of the click model."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(3, 1, bias=False)

    def loss(self, batch, outputs):
        return (outputs[:, 0] - batch[1]).square().mean()


def test_weights_go_out_and_come_back():
    module = Line()
    before = flat(module)
    put(module, before + np.array([1.0, 2.0, 3.0]))
    assert flat(module) == pytest.approx(before + np.array([1.0, 2.0, 3.0]), abs=1e-6)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedadam"])
def test_rounds_find_what_all_rows_say(algorithm, monkeypatch):
    """Clients whose rows lie in different places, of one truth."""
    truth = torch.tensor([0.5, -1.0, 2.0])

    def rows(number):
        x = torch.from_numpy(np.random.default_rng(number).normal(number % 3 - 1, 1.0, (64, 3))).float()
        return Rows(x, x @ truth)

    class Rows:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x)

    class Plan:
        def __init__(self, rows, *_, **__):
            self.rows = rows

        def plan(self, epoch):
            return [slice(0, 32), slice(32, 64)]

        def collate(self, draw, generator):
            return Tuple(self.rows.x[draw], self.rows.y[draw])

    class Tuple(tuple):
        def __new__(cls, *parts):
            return super().__new__(cls, parts)

    monkeypatch.setattr("adrec.training.federated.rounds.MemoryPlan", Plan)
    module = Line()
    module.model.forward = lambda batch, layer=module.model: torch.nn.functional.linear(batch[0], layer.weight)
    local = LocalTraining(1, 32, 0.05, 0.0, 0.01 if algorithm == "fedprox" else 0.0)
    server = Server(algorithm, "mean", 1.0, 0.2, 0.1)
    rounds = Rounds(module, None, None, local, server, Summing(False, 0.6, 0.0, np.random.default_rng(0)), 0)
    for number in range(120):
        rounds.run(number, [(client, rows(client)) for client in range(4)])
    assert flat(module) == pytest.approx(truth.numpy(), abs=0.15)


@pytest.mark.parametrize("lie", [-20.0, -1.0, np.nan])
def test_a_change_that_harms_is_no_part_of_the_move(lie):
    """Whether it is long, as short as the others or no number at all; what the others send may be as unlike as it likes."""
    module = torch.nn.Linear(2, 1, bias=False)
    put(module, np.zeros(2))
    changes = {1: np.array([1.0, 0.0]), 2: np.array([0.0, 1.0]), 3: lie * np.array([1.0, 1.0])}

    def corrupt(client, change):
        return changes[client]

    def judge():  # lowest at (1, 1)
        return float(((flat(module) - 1.0) ** 2).sum())

    server = Server("fedavg", "zeno", 1.0, 0.3, 0.1)
    summing = Summing(False, 0.6, 0.0, np.random.default_rng(0))
    rounds = Rounds(module, None, None, None, server, summing, 0, corrupt, judge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adrec.training.federated.rounds.changed", lambda *given: np.zeros(2))
        rounds.run(0, [(client, [None]) for client in changes])
    assert flat(module).tolist() == [0.5, 0.5]
