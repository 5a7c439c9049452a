"""What an ad is linked to, as a user sees it: attention over its neighbours in the graph of entities by their relation.

The layer of KGCN (Wang et al. 2019): some users go by the maker, others by the genre, so a neighbour counts by how much its
relation means to the user. Paths of two links are relations of their own, so that one layer reads two steps.

# A ads, C contexts, B rows, L neighbours, V codes of the list of paths, G relations, D width
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Neighbours(nn.Module):
    """Neighbours of candidates → (B, D), and its product with the user (B, 1). An ad without any is its vector alone."""

    groups: Tensor

    def __init__(self, *, groups: Sequence[int], relations: int, width: int, dropout: float) -> None:
        """`groups` (V,): the relation of each code."""
        super().__init__()
        self.entities = nn.Embedding(len(groups), width)
        self.relations = nn.Embedding(relations, width)
        nn.init.normal_(self.entities.weight, std=0.05)
        nn.init.normal_(self.relations.weight, std=0.05)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("groups", torch.tensor(list(groups), dtype=torch.int64), persistent=False)

    def forward(self, codes: Tensor, users: Tensor, candidates: Tensor, context: Tensor, ad: Tensor) -> Tensor:
        """Codes (A, L), users (C, D), candidates (B, D), context (B,), ad (B,) → (B, D + 1)."""
        own = codes[ad]  # (B, L)
        there, place = own > 0, own.clamp(min=0)
        liking = users @ self.relations.weight.T / users.shape[-1] ** 0.5  # (C, G)
        logits = liking[context].gather(1, self.groups[place])  # (B, L)
        weights = torch.softmax(logits.masked_fill(~there, -1e4), -1) * there
        near = torch.einsum("bl,bld->bd", weights, self.dropout(self.entities(place)))
        joined = torch.tanh(self.mix(candidates + near))
        return torch.cat([joined, (joined * users[context]).sum(-1, keepdim=True)], -1)
