"""TransE, RotatE and ComplEx: how likely a link is, from vectors of its two entities and its relation.

Each asks a question of all entities at once: what is the tail of (head, relation), what is the head of (relation, tail)? The
question is a vector too, and the answer is how near an entity lies to it; so the same few lines train and judge all three.

# B links, K entities asked about, D width (of ComplEx and RotatE D / 2 complex numbers)
"""

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["transe", "rotate", "complex"]


class LinkModel(nn.Module):
    """Vectors of entities (E, D) and relations (R, D); RotatE's relations are D / 2 angles."""

    def __init__(self, kind: Kind, *, entities: int, relations: int, width: int, generator: torch.Generator) -> None:
        """TransE (Bordes et al. 2013, L1), RotatE (Sun et al. 2019), ComplEx (Trouillon et al. 2016). `width` is even."""
        super().__init__()
        self.kind, self.width = kind, width
        bound = (6 / width) ** 0.5
        made = torch.empty(entities, width), torch.empty(relations, width // 2 if kind == "rotate" else width)
        for table in made:
            nn.init.uniform_(table, -bound, bound, generator=generator)
        if kind == "rotate":
            nn.init.uniform_(made[1], -torch.pi, torch.pi, generator=generator)
        self.entities, self.relations = nn.Parameter(made[0]), nn.Parameter(made[1])

    def tails(self, head: Tensor, relation: Tensor, among: Tensor | None = None) -> Tensor:
        """Head (B,), relation (B,) → (B, K) scores as tails of the entities `among` (K,) or of all; higher is likelier."""
        return self._nearness(self._turned(self.entities[head], relation, back=False), among)

    def heads(self, relation: Tensor, tail: Tensor, among: Tensor | None = None) -> Tensor:
        """The same of heads."""
        return self._nearness(self._turned(self.entities[tail], relation, back=True), among)

    def links(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """(B,) scores of links."""
        asked, vectors = self._turned(self.entities[head], relation, back=False), self.entities[tail]
        if self.kind == "complex":
            return (asked * vectors).sum(-1)
        gaps = asked - vectors
        return -(gaps.abs().sum(-1) if self.kind == "transe" else _moduli(gaps).sum(-1))

    def cubes(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """The mean cube of the moduli of what a link is made of (N3, Lacroix et al. 2018), for ComplEx."""
        parts = [self.entities[head], self.relations[relation], self.entities[tail]]
        return torch.stack([_complex(part).abs().pow(3).sum(-1).mean() for part in parts]).sum()

    def _turned(self, entity: Tensor, relation: Tensor, *, back: bool) -> Tensor:
        """(B, D) where the other end of the link should lie."""
        vector = self.relations[relation]
        if self.kind == "transe":
            return entity - vector if back else entity + vector
        turn = torch.polar(torch.ones_like(vector), vector) if self.kind == "rotate" else _complex(vector)
        return torch.view_as_real(_complex(entity) * (turn.conj() if back else turn)).flatten(-2)

    def _nearness(self, asked: Tensor, among: Tensor | None) -> Tensor:
        vectors = self.entities if among is None else self.entities[among]
        if self.kind == "complex":
            return asked @ vectors.T
        if self.kind == "transe":
            return -torch.cdist(asked, vectors, p=1.0)
        return -_moduli(asked[:, None] - vectors).sum(-1)


def _moduli(vectors: Tensor) -> Tensor:
    """(..., D) → (..., D / 2), with a gradient at zero."""
    return torch.sqrt(vectors.reshape(*vectors.shape[:-1], -1, 2).square().sum(-1) + 1e-12)


def _complex(vectors: Tensor) -> Tensor:
    """(N, D) as (N, D / 2) complex numbers, real and imaginary parts beside each other."""
    return torch.view_as_complex(vectors.reshape(*vectors.shape[:-1], -1, 2).contiguous())
