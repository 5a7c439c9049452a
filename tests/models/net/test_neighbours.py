"""Attention over an ad's neighbours by their relation is KGCN's formula, row by row."""

import numpy as np
import torch

from adrec.models.net.neighbours import Neighbours


def test_neighbours_count_by_what_their_relation_means_to_the_user():
    torch.manual_seed(0)
    width, relation = 4, [0, 0, 1, 1, 2]  # of codes 0 (nothing known) to 4
    model = Neighbours(groups=relation, relations=3, width=width, dropout=0.0).eval()
    torch.nn.init.normal_(model.entities.weight)
    torch.nn.init.normal_(model.relations.weight)
    codes = torch.tensor([[1, 2, 4], [3, 0, -1], [0, -1, -1]])  # -1 pads; the last ad is linked to nothing
    users, candidates = torch.randn(2, width), torch.randn(4, width)
    context, ad = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 2])
    found = model(codes, users, candidates, context, ad).detach().numpy()
    entities, relations = (table.weight.detach().numpy() for table in (model.entities, model.relations))
    weight, bias = (values.detach().numpy() for values in (model.mix.weight, model.mix.bias))
    for row in range(4):
        user = users[context[row]].numpy()
        linked = [int(code) for code in codes[ad[row]] if code > 0]
        liking = np.exp([user @ relations[relation[code]] / width**0.5 for code in linked])
        near = sum((share * entities[code] for share, code in zip(liking / liking.sum(), linked)), np.zeros(width))
        joined = np.tanh(weight @ (candidates[row].numpy() + near) + bias)
        assert np.allclose(found[row], [*joined, joined @ user], atol=1e-5)
