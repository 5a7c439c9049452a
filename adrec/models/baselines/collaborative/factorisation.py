"""Matrix factorisation of clicks: implicit alternating least squares, solved by a few conjugate gradient steps.

Hu, Koren and Volinsky 2008, "Collaborative filtering for implicit feedback datasets"; the conjugate gradient solver of Takács,
Pilászy and Tikk 2011, whose cost is linear in the clicks. A user is folded in from the history at the moment of the
impression (Hu et al., section 4), so unseen users need no training.
"""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs, LacksNothing, load_state, positions, save_state
from adrec.models.baselines.collaborative.neighbours import ClickMatrix
from adrec.models.match.histories import history_matrix, row_products


class ImplicitAls(LacksNothing):
    """Score x_u . y_i, near 1 where a click is expected and 0 where not; 0 for an ad nobody clicked in training.

    Minimises the sum over all pairs of c (p - x . y)^2 + regularisation (|x|^2 + |y|^2) with p = 1 and
    c = 1 + `confidence` for a click, p = 0 and c = 1 otherwise.
    """

    name: ClassVar[str] = "matrix_factorisation"
    is_probability: ClassVar[bool] = False

    def __init__(
        self,
        *,
        factors: int = 32,
        confidence: float = 20.0,
        regularisation: float = 10.0,
        sweeps: int = 15,
        ads: NDArray[np.str_] | None = None,
        ad_factors: Floats | None = None,
    ) -> None:
        self.factors = factors
        self.confidence = confidence
        self.regularisation = regularisation
        self.sweeps = sweeps
        self.ads = np.zeros(0, np.str_) if ads is None else ads
        self.ad_factors = np.zeros((0, factors), np.float32) if ad_factors is None else ad_factors

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Alternate between users and ads."""
        matrix = ClickMatrix.of(inputs)
        clicks, clicked_by = matrix.clicks, matrix.clicks.T.tocsr()
        self.ads = matrix.ads
        generator = np.random.default_rng(seed)
        self.ad_factors = generator.normal(0, 0.1, (len(matrix.ads), self.factors)).astype(np.float32)
        user_factors = np.zeros((len(matrix.users), self.factors), np.float32)
        for _ in range(self.sweeps):
            user_factors = self._solve(clicks, self.ad_factors, user_factors)
            self.ad_factors = self._solve(clicked_by, user_factors, self.ad_factors)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) x_u . y_i."""
        place = positions(inputs.ads.ids, self.ads)
        history = history_matrix(inputs.examples, place, len(self.ads))
        history.data[:] = 1.0
        user_factors = self._solve(history, self.ad_factors, np.zeros((history.shape[0], self.factors), np.float32), steps=20)
        padded = np.concatenate([self.ad_factors, np.zeros((1, self.factors), np.float32)])  # -1 reads the last row: zeros
        return row_products(user_factors, padded, inputs.examples.history_of_row, place[inputs.examples.ad_index])

    def _solve(self, clicks: sparse.csr_matrix, other: Floats, start: Floats, *, steps: int = 3) -> Floats:
        return solve(clicks, other, start, confidence=self.confidence, regularisation=self.regularisation, steps=steps)

    def save(self, folder: Path) -> None:
        """Hyper-parameters and the ads' factors; users are folded in."""
        names = ("factors", "confidence", "regularisation", "sweeps")
        save_state(folder, {name: getattr(self, name) for name in names}, {"ads": self.ads, "ad_factors": self.ad_factors})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        return cls(**values, ads=arrays["ads"], ad_factors=arrays["ad_factors"])


def solve(
    clicks: sparse.csr_matrix, other: Floats, start: Floats, *, confidence: float, regularisation: float, steps: int
) -> Floats:
    """For every row u of `clicks` (U, I): x_u of (Y'Y + confidence * sum of y_i y_i' over clicks + regularisation) x = b.

    `other` Y (I, F), `start` (U, F) the first guess, b = (1 + confidence) * sum of y_i over clicks. All rows take the same
    conjugate gradient steps side by side; a row that has converged stands still.
    """
    row = np.repeat(np.arange(clicks.shape[0]), np.diff(clicks.indptr))
    gram = other.T @ other + regularisation * np.eye(other.shape[1], dtype=np.float32)

    def apply(x: Floats) -> Floats:
        """The matrix of each row times its own vector, (U, F)."""
        projected = row_products(x, other, row, clicks.indices)
        weighted = sparse.csr_matrix((projected, clicks.indices, clicks.indptr), shape=clicks.shape)
        return np.asarray(x @ gram + confidence * (weighted @ other), dtype=np.float32)

    x = start.copy()
    residual = np.asarray((1 + confidence) * (clicks @ other), dtype=np.float32) - apply(x)
    direction = residual.copy()
    size = np.einsum("uf,uf->u", residual, residual)
    for _ in range(steps):
        curved = apply(direction)
        curvature = np.einsum("uf,uf->u", direction, curved)
        moving = size > 1e-12
        step = np.where(moving, size / np.where(moving, curvature, 1.0), 0.0)[:, None]
        x += step * direction
        residual -= step * curved
        new_size = np.einsum("uf,uf->u", residual, residual)
        direction = residual + np.where(moving, new_size / np.where(moving, size, 1.0), 0.0)[:, None] * direction
        size = new_size
    return x
