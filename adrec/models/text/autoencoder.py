"""An autoencoder that squeezes an ad (text vector and features) into a few numbers, for small and fast retrieval indexes.

Hinton & Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks" (2006).

# A ads, D width of text vectors, F numeric features, C categorical features, K code width
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdInputs(NamedTuple):
    """What is squeezed. Any part may have no column."""

    text: Tensor  # (A, D) float32
    numeric: Tensor  # (A, F) float32, standardised
    categorical: Tensor  # (A, C) int64


class AdErrors(NamedTuple):
    """Reconstruction errors; a part without columns is 0."""

    text: Tensor  # () 1 - cosine, in [0, 2]
    numeric: Tensor  # () mean squared error, in squared standard deviations
    categorical: Tensor  # () nats per feature


class AdAutoencoder(nn.Module):
    """A linear map and a two-layer correction down, two layers up. Categories enter as embeddings and leave as logits.

    `start_from` sets the linear map to principal components, the best linear code of the text vectors (Baldi & Hornik, 1989);
    the correction starts at zero.
    """

    def __init__(
        self,
        *,
        text_dimension: int,
        numeric: int,
        cardinalities: Sequence[int],
        width: int,
        hidden: int = 128,
        embedding: int = 8,
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in cardinalities)
        entering = text_dimension + numeric + embedding * len(cardinalities)
        self.linear = nn.Linear(entering, width)
        self.correction = nn.Sequential(nn.Linear(entering, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.zeros_(cast(Tensor, self.correction[2].weight))
        nn.init.zeros_(cast(Tensor, self.correction[2].bias))
        self.decoder = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.text_head = nn.Linear(hidden, text_dimension)
        self.numeric_head = nn.Linear(hidden, numeric)
        self.category_heads = nn.ModuleList(nn.Linear(hidden, size) for size in cardinalities)

    def forward(self, ads: AdInputs) -> Tensor:
        """Codes (A, K) of unit length, so that the inner product is the cosine."""
        embedded = [table(ads.categorical[:, place]) for place, table in enumerate(self.embeddings)]
        entering = torch.cat([functional.normalize(ads.text, dim=1), ads.numeric, *embedded], dim=1)
        return functional.normalize(cast(Tensor, self.linear(entering) + self.correction(entering)), dim=1)

    def start_from(self, directions: Tensor, mean: Tensor) -> None:
        """Codes start as `(unit text vector - mean) @ directions.T`. `directions` (K, D) orthonormal, `mean` (D,)."""
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[: len(directions), : directions.shape[1]] = directions
            self.linear.bias.zero_()
            self.linear.bias[: len(directions)] = -directions @ mean

    def errors(self, ads: AdInputs) -> AdErrors:
        """How far the reconstruction is off."""
        hidden = self.decoder(self(ads))  # (A, hidden)
        zero = hidden.new_zeros(())
        text = (1 - functional.cosine_similarity(self.text_head(hidden), ads.text, dim=1)).mean() if ads.text.shape[1] else zero
        numeric = functional.mse_loss(self.numeric_head(hidden), ads.numeric) if ads.numeric.shape[1] else zero
        losses = [
            functional.cross_entropy(head(hidden), ads.categorical[:, place]) for place, head in enumerate(self.category_heads)
        ]
        return AdErrors(text, numeric, torch.stack(losses).mean() if losses else zero)


def code_loss(codes: Tensor, text: Tensor) -> Tensor:
    """Squared difference of the cosines between ads, codes against text vectors: neighbours must stay neighbours."""
    full = functional.normalize(text, dim=1)
    return (codes @ codes.T - full @ full.T).pow(2).mean()
