"""Semantic ids: a few codes an ad, from its text alone, that ads of like text share, those that nobody has seen among them.

Residual k-means (RQ-k-means, after the RQ-VAE of TIGER, Rajput et al. 2023): the nearest of so many centres, then the nearest
to what is left of the vector, level by level. Each code of each level has a trained vector; an ad's are summed. Where an own
vector learns what one ad is worth, these learn what ads of a kind are worth, ever finer. Centres are fitted to the vectors of
training's ads (`fit_centres`) and stay; nearest is decided in double precision, so that no batch decides it otherwise.

Shapes: N ads, E width of text vectors, D width, L levels, K codes a level.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MOST_POINTS = 256
"""Vectors a code that centres are fitted to, drawn where there are more: further ones move none of them."""
FAR = 1e6
"""Where centres lie that no vector asked for: a text that is like none of training's still goes to the nearest of theirs, whose
vector has learned something."""


class SemanticIds(nn.Module):
    """The sum of the vectors of an ad's codes; zero for a text that is blank."""

    centres: Tensor

    def __init__(self, *, text_width: int, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.codes = codes
        self.register_buffer("centres", torch.zeros(levels, codes, text_width))
        self.table = nn.Embedding(levels * codes, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """(N, E) → (N, D)."""
        codes = self.ids(text)
        first = self.codes * torch.arange(codes.shape[1], device=text.device)
        vectors: Tensor = self.table(codes + first).sum(1)
        return torch.where(text.any(-1, keepdim=True), vectors, 0.0)

    def ids(self, text: Tensor) -> Tensor:
        """(N, E) → codes (N, L) int64."""
        left, codes = text.double(), []
        for centres in self.centres.double():
            codes.append((centres.square().sum(-1) - 2 * left @ centres.T).argmin(-1))
            left = left - centres[codes[-1]]
        return torch.stack(codes, -1)


def fit_centres(vectors: NDArray[np.float32], *, levels: int, codes: int, seed: int) -> NDArray[np.float32]:
    """Centres (L, K, E) of residual k-means over vectors (N, E), blank ones left out. Of more codes than vectors the others lie
    `FAR` from all; zeros where there are none."""
    from sklearn.cluster import KMeans  # a slow import

    rng = np.random.default_rng(seed)
    left = vectors[vectors.any(1)].astype(np.float64)
    if len(left) > MOST_POINTS * codes:
        left = left[np.sort(rng.choice(len(left), MOST_POINTS * codes, replace=False))]
    centres = np.zeros((levels, codes, vectors.shape[1]), np.float32)
    for level in range(levels):
        count = min(codes, len(np.unique(left.round(6), axis=0)))  # what is left may differ by rounding alone
        if not count:
            break
        fitted = KMeans(count, n_init=1, max_iter=25, random_state=seed + level).fit(left)
        centres[level, :count], centres[level, count:] = fitted.cluster_centers_, FAR
        left = left - centres[level][fitted.labels_]
    return centres
