"""Vectors that other models made of an ad or a user (its picture, its sound, its place in a graph) inside the click model.

Each column of vectors is a modality. They come standardised; a row of zeros is a missing one. In training whole vectors are
dropped at the door, so that what stands for a missing one is learned, whether or not any is missing in the log.

Shapes: N ads or users, A ads, B rows, C contexts, H history, D width of the model, V width of a modality, K tasks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import Batch, Entities
from adrec.models.net.attention import MultiHeadSelfAttention
from adrec.models.net.interaction import mean_of_history

Fusion = Literal["concatenation", "gated", "cross_attention", "late"]
HEADS = 4
"""Of the attention between modalities."""


def there(vectors: Tensor) -> Tensor:
    """(N, V) → (N,) bool, which are not missing."""
    return (vectors != 0).any(-1)


def dropped(entities: Entities, share: float) -> Entities:
    """The entities with that share of the vectors of each modality missing."""
    if not share or not entities.vectors:
        return entities
    kept = [vectors * (torch.rand(len(vectors), 1, device=vectors.device) >= share) for vectors in entities.vectors]
    return entities._replace(vectors=tuple(kept))


class Modality(nn.Module):
    """One modality → (N, D): its own projection, and a learned vector where it is missing."""

    def __init__(self, *, vector_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(vector_width, width)
        self.dropout = nn.Dropout(dropout)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, V) → (N, D)."""
        return torch.where(there(vectors)[:, None], self.dropout(self.project(vectors)), self.missing)


class Modalities(nn.Module):
    """The text and all modalities of an ad or a user → what they add to its vector, (N, D).

    `concatenation`: their projections are added, which is a linear map of the vectors end to end. `gated`: each vector adds as
    much as a gate that sees all of them lets through (Arevalo et al. 2017, gated multimodal units). `cross_attention`: text and
    vectors are tokens, each of which looks at the others that are there (Vaswani et al. 2017; Tsai et al. 2019).
    """

    def __init__(self, *, widths: Sequence[int], width: int, dropout: float, fusion: Fusion) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Modality(vector_width=own, width=width, dropout=dropout) for own in widths])
        gated, attends = fusion == "gated", fusion == "cross_attention"
        self.gates = nn.ModuleList([nn.Linear(width * len(widths), width) for _ in widths]) if gated else None
        heads = HEADS if width % HEADS == 0 else 1
        self.mix = MultiHeadSelfAttention(width=width, heads=heads, dropout=dropout) if attends else None

    def forward(self, vectors: Sequence[Tensor], text: Tensor | None) -> Tensor:
        """(N, V) each, the projected text (N, D) or None → (N, D)."""
        made = [part(own) for part, own in zip(self.parts, vectors, strict=True)]
        if self.gates is not None:
            seen = torch.cat(made, -1)
            made = [torch.sigmoid(gate(seen)) * torch.tanh(own) for gate, own in zip(self.gates, made, strict=True)]
        tokens = torch.stack([*made, *([text] if text is not None else [])], 1)  # (N, T, D)
        if self.mix is not None:
            known = torch.stack([there(own) for own in vectors], 1)
            known = torch.cat([known, known.new_ones(len(known), tokens.shape[1] - known.shape[1])], 1)
            tokens = tokens + self.mix(tokens, known)
        return tokens.sum(1)


class LateFusion(nn.Module):
    """Each modality by itself to the logits: a small network over its matches, the candidate's vector and the mean click's.

    The parts are added in the end, so that none can speak about another: the baseline that other fusions must beat.
    """

    def __init__(self, *, widths: Sequence[int], match_widths: Sequence[int], width: int, tasks: int, dropout: float) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Modality(vector_width=own, width=width, dropout=dropout) for own in widths])
        self.towers = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(3 * width + match, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, tasks))
                for match in match_widths
            ]
        )

    def forward(
        self, vectors: Sequence[Tensor], matches: Sequence[Tensor], history: Tensor, mask: Tensor, context: Tensor, ad: Tensor
    ) -> Tensor:
        """(A, V) each, matches (B, columns) each → (B, K)."""
        logits = []
        for part, tower, own, match in zip(self.parts, self.towers, vectors, matches, strict=True):
            made = part(own)  # (A, D)
            clicked = mean_of_history(made[history], mask & there(own)[history])[context]
            candidate = made[ad]
            logits.append(tower(torch.cat([candidate, clicked, candidate * clicked, match], -1)))
        return torch.stack(logits).sum(0)


class Crosses(nn.Module):
    """What each feature of a user and of the moment makes of each modality of the ad: sum of products → (B, K).

    A factorisation machine between those fields and the modalities (Rendle 2010; a factor a pair of fields, Juan et al. 2016).
    "The young like red pictures" is one product here; layers over both side by side have to build it out of bends, for which
    the clicks of a usual log are too few. A missing vector adds nothing.
    """

    def __init__(self, *, widths: Sequence[int], users: nn.Module, moments: nn.Module, rank: int, tasks: int) -> None:
        """`users`, `moments`: features of the two → (N, M R K), M modalities."""
        super().__init__()
        self.rank, self.tasks = rank, tasks
        self.users, self.moments = users, moments
        self.parts = nn.ModuleList([nn.Linear(own, rank * tasks, bias=False) for own in widths])

    def forward(self, batch: Batch) -> Tensor:
        """(B, K)."""
        made = torch.cat([part(own) for part, own in zip(self.parts, batch.ads.vectors, strict=True)], -1)  # (A, M R K)
        people = batch.users
        users = self.users(people.numeric, people.categorical, people.lists, people.vectors)[batch.context]
        products = (users + self.moments(batch.numeric, batch.categorical, batch.lists)) * made[batch.ad]
        logits: Tensor = products.view(len(products), -1, self.tasks).sum(1)
        return logits
