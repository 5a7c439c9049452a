"""An ad or a user to one vector: what it says, what is known of it and, for those that training saw, what it is by itself.

Shapes: N entities, E width of text vectors, D width.
"""

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import Entities
from adrec.models.net.fields import Fields
from adrec.models.net.modalities import Modalities
from adrec.models.net.semantic_ids import SemanticIds


class HashedVectors(nn.Module):
    """A vector for each code 1, 2, ... `rows` squared: a row of one table times 1 + a row of another (quotient and remainder,
    Shi et al. 2020, with the second as a deviation, so that decay leads to what codes of one row share). 0 has its own.
    """

    def __init__(self, rows: int, width: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.rows = rows
        self.first, self.second = (nn.Embedding(rows + 1, width, sparse=sparse) for _ in range(2))
        nn.init.normal_(self.first.weight, std=0.02)
        nn.init.normal_(self.second.weight, std=0.5)

    def forward(self, codes: Tensor) -> Tensor:
        """(N,) int64 → (N, width)."""
        place = (codes - 1).clamp(min=0)
        known = (codes > 0).to(codes.dtype)
        vectors: Tensor = self.first(known * (place // self.rows + 1)) * (1 + self.second(known * (place % self.rows + 1)))
        return vectors


class EntityEncoder(nn.Module):
    """An ad or a user: its text vector, its features and (optionally) a vector of its own → (N, D).

    The own vector is dropped with probability `identity_dropout` in training, in favour of the vector of whatever is unseen:
    so that one is trained, and an ad or user never seen before meets a model that knows the case (Volkovs et al. 2017).
    With `by_rows` gradients of own vectors are sparse: the rows that a batch names.
    """

    def __init__(
        self,
        *,
        text_width: int,
        fields: Fields,
        width: int,
        identities: int,
        identity_dropout: float,
        hashed: int = 0,
        by_rows: bool = False,
        dropout: float,
        modalities: Modalities | None = None,
        semantic: SemanticIds | None = None,
    ):
        super().__init__()
        self.fields, self.modalities, self.semantic = fields, modalities, semantic
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width)) if text_width else None
        self.identity: nn.Module | None = None
        if hashed:
            self.identity = HashedVectors(hashed, width, sparse=by_rows)
        elif identities:
            self.identity = nn.Embedding(identities + 1, width, sparse=by_rows)
            nn.init.normal_(self.identity.weight, std=0.02)
        self.identity_dropout = identity_dropout
        self.features = nn.Linear(fields.out_width, width) if fields.out_width else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(width, width))
        self.start = nn.Parameter(torch.zeros(width))

    def forward(self, entities: Entities, text: Tensor | None) -> Tensor:
        """N entities with text vectors (N, E) → (N, D)."""
        total = self.start.expand(len(entities.identity), -1)
        token = None
        if self.text is not None:
            assert text is not None
            token = self.dropout(self.text(text))
        if self.semantic is not None:
            assert text is not None
            total = total + self.semantic(text)
        if self.modalities is not None:
            total = total + self.modalities(entities.vectors, token)
        elif token is not None:
            total = total + token
        if self.features is not None:
            total = total + self.features(self.fields(entities.numeric, entities.categorical, entities.lists))
        if self.identity is not None:
            codes = entities.identity
            if self.training:
                codes = codes.masked_fill(torch.rand(codes.shape, device=codes.device) < self.identity_dropout, 0)
            total = total + self.identity(codes)
        vectors: Tensor = total + self.out(total)
        return vectors
