"""From the items of a history to the next: EASE (closed form) and transitions (what followed what), for clicks alone.

Both are small, hard to beat where clicks are all there is, and read the history at the moment of the request. Their
strengths (ridge, fading of older clicks) are those that rank the validation clicks best among all known ads.
Cost of EASE: one inverse of an A x A matrix, A the clicked ads; above MOST_ADS it is left out.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs, LacksNothing, load_state, positions, save_state
from adrec.models.baselines.collaborative.neighbours import ClickMatrix, in_blocks
from adrec.models.match.histories import history_matrix

MOST_ADS = 20_000
_MANY_ADS = 6_000
"""Ads above which one ridge is tried: each costs an inverse."""
_JUDGED = 2_000
"""Validation clicks that choose the strengths."""
_TIE = 1e-6
"""What popularity adds, at most: it orders equals, and those whose user has no history."""
_FEW_REPEATS = 0.01
"""Share of the validation clicks on ads of their history up to which strengths are chosen among the others alone."""
HALF_LIVES: tuple[float | None, ...] = (None, 20.0, 8.0, 3.1, 1.0)
"""Clicks after which an earlier one counts half; None: all alike."""


class ItemModel(LacksNothing, ABC):
    """score(u, i) = sum over the clicks j of u's history of w_j B_ji, w_j halved every `half_life` clicks back."""

    name: ClassVar[str]
    is_probability: ClassVar[bool] = False

    def __init__(
        self,
        *,
        half_life: float | None = None,
        strength: float = 0.0,
        ads: NDArray[np.str_] | None = None,
        clicks: Floats | None = None,
        weights: Any = None,
    ) -> None:
        self.half_life, self.strength = half_life, strength
        self.ads = np.zeros(0, np.str_) if ads is None else ads
        self.clicks = np.zeros(0, np.float32) if clicks is None else clicks
        self.weights = sparse.csr_matrix((len(self.ads), len(self.ads)), dtype=np.float32) if weights is None else weights

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Learn B. `valid` chooses the strengths; without it they stay as they are."""
        matrix = ClickMatrix.of(inputs)
        self.ads = matrix.ads
        self.clicks = np.asarray(matrix.clicks.sum(axis=0), np.float32).ravel()
        if valid is None:
            self.weights = self.learned(inputs, matrix, self.strength)
            return
        best = -1.0
        histories, targets, barred = _held_out(valid, matrix.ads, seed)
        for strength in self.strengths(len(matrix.ads)):
            weights = self.learned(inputs, matrix, strength)
            for half_life, rows in histories.items():
                scores = _product(rows, weights) + self.ties
                scores[barred] = -np.inf
                reached = _mean_reciprocal_rank(scores, targets)
                if reached > best:
                    best, self.half_life, self.strength, self.weights = reached, half_life, strength, weights

    def adopt(self, other: Self) -> None:
        """Take over the strengths that validation clicks chose."""
        self.half_life, self.strength = other.half_life, other.strength

    @abstractmethod
    def strengths(self, ads: int) -> tuple[float, ...]:
        """What to try."""

    @abstractmethod
    def learned(self, inputs: Inputs, matrix: ClickMatrix, strength: float) -> Any:
        """B (A, A) of the ads of `matrix`, sparse or dense."""

    @property
    def ties(self) -> Floats:
        """(A,) what popularity adds."""
        return np.asarray(_TIE * self.clicks / max(float(self.clicks.max(initial=1.0)), 1.0), np.float32)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) 0 for an ad that nobody clicked in training."""
        place = positions(inputs.ads.ids, self.ads)
        rows = history_matrix(inputs.examples, place, len(self.ads), half_life=self.half_life)
        ties = self.ties

        def interest(block: slice, wanted: NDArray[np.int64]) -> Floats:
            found: Floats = _product(rows[block], self.weights)[:, wanted] + ties[wanted]
            return found

        return in_blocks(inputs, place, interest)

    def save(self, folder: Path) -> None:
        """Strengths, ads and B."""
        arrays = {"ads": self.ads, "clicks": self.clicks}
        if sparse.issparse(self.weights):
            arrays |= {name: getattr(self.weights, name) for name in ("data", "indices", "indptr")}
        else:
            arrays["weights"] = self.weights
        save_state(folder, {"half_life": self.half_life, "strength": self.strength}, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        ads, weights = arrays["ads"], arrays.get("weights")
        if weights is None:
            parts = tuple(arrays[name] for name in ("data", "indices", "indptr"))
            weights = sparse.csr_matrix(parts, shape=(len(ads), len(ads)))
        return cls(**values, ads=ads, clicks=arrays["clicks"], weights=weights)


class Ease(ItemModel):
    """B = -P / diag P off the diagonal and 0 on it, P = (X'X + ridge I)^-1, X (U, A) who clicked what: the linear
    autoencoder that predicts each ad from all others (Steck 2019, equations 7 and 8).
    """

    name: ClassVar[str] = "ease"

    def __init__(self, *, strength: float = 100.0, **more: Any) -> None:
        super().__init__(strength=strength, **more)

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """A catalogue small enough."""
        few = len(ClickMatrix.of(inputs).ads) <= MOST_ADS
        return "" if few else f"a catalogue of at most {MOST_ADS:,} clicked ads"

    def strengths(self, ads: int) -> tuple[float, ...]:
        """Ridges."""
        return (5.0, 20.0, 100.0, 300.0) if ads <= _MANY_ADS else (200.0,)

    def learned(self, inputs: Inputs, matrix: ClickMatrix, strength: float) -> Floats:
        """By a Cholesky factor, in place."""
        from scipy.linalg import lapack

        gram = np.asfortranarray((matrix.clicks.T @ matrix.clicks).toarray(), dtype=np.float64)
        np.fill_diagonal(gram, gram.diagonal() + strength)
        factor, _ = lapack.dpotrf(gram, lower=1, overwrite_a=1)
        inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
        lower = np.tril(inverse)
        inverse = lower + np.tril(inverse, -1).T
        weights: Floats = (-inverse / inverse.diagonal()[None, :]).astype(np.float32)
        np.fill_diagonal(weights, 0.0)
        return weights


class ItemTransitions(ItemModel):
    """B_ji = sum over sequences of 1 / (places from j to a later i), over the root of (clicks of j x clicks of i).

    Weighted sequential rules with a cosine norm (after Kamehkhosh, Jannach and Ludewig 2017). Sequences are each row's
    history and the click that followed, and what the first history of a user holds.
    """

    name: ClassVar[str] = "item_transitions"

    def __init__(self, *, half_life: float | None = 3.1, **more: Any) -> None:
        super().__init__(half_life=half_life, **more)

    def strengths(self, ads: int) -> tuple[float, ...]:
        """None to choose."""
        return (0.0,)

    def learned(self, inputs: Inputs, matrix: ClickMatrix, strength: float) -> sparse.csr_matrix:
        """Pairs, summed."""
        place = positions(inputs.ads.ids, matrix.ads)
        pairs = [_to_clicks(inputs), _within_first(inputs)]
        before, after, weight = (np.concatenate([pair[at] for pair in pairs]) for at in range(3))
        shape = (len(matrix.ads), len(matrix.ads))
        counts = sparse.csr_matrix((weight.astype(np.float32), (place[before], place[after])), shape=shape)
        occurrences = np.bincount(place[_occurrences(inputs)], minlength=shape[0])
        scale = sparse.diags(1 / np.sqrt(np.maximum(occurrences, 1)).astype(np.float32))
        return sparse.csr_matrix(scale @ counts @ scale)


def _to_clicks(inputs: Inputs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Ad, later ad and weight of each (click of a history, click of the row)."""
    examples = inputs.examples
    rows = np.flatnonzero(inputs.clicks > 0)
    histories = examples.histories.take(examples.history_of_row[rows])
    lengths = histories.lengths
    back = np.repeat(histories.offsets[1:], lengths) - np.arange(len(histories.values))  # 1 is the newest
    return histories.values, np.repeat(examples.ad_index[rows], lengths), 1.0 / back


def _firsts(inputs: Inputs) -> NDArray[np.int64]:
    """A row of each user: the first click's."""
    rows = np.flatnonzero(inputs.clicks > 0)
    return rows[np.unique(inputs.examples.user_index[rows], return_index=True)[1]]


def _within_first(inputs: Inputs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Ad, later ad and weight of each pair inside the history of a user's first click: no row of its own tells of it."""
    examples = inputs.examples
    histories = examples.histories.take(examples.history_of_row[_firsts(inputs)])
    lengths = histories.lengths
    ends = np.repeat(histories.offsets[1:], lengths)
    places = np.arange(len(histories.values))
    later = ends - places - 1  # how many follow in the same history
    before = np.repeat(places, later)
    gap = np.arange(len(before)) - np.repeat(np.cumsum(later) - later, later) + 1
    return histories.values[before], histories.values[before + gap], 1.0 / gap


def _occurrences(inputs: Inputs) -> NDArray[Any]:
    """Ad of every click, in rows and in the first histories."""
    examples = inputs.examples
    firsts = examples.histories.take(examples.history_of_row[_firsts(inputs)])
    return np.concatenate([examples.ad_index[inputs.clicks > 0], firsts.values])


def _held_out(
    valid: Inputs, ads: NDArray[np.str_], seed: int
) -> tuple[dict[float | None, sparse.csr_matrix], NDArray[np.int64], tuple[NDArray[Any], NDArray[Any]]]:
    """Histories of T validation clicks on known ads, by half-life; the ads (T,); and cells (T, A) that are no candidates: what
    was clicked before, in a log where hardly anybody clicks an ad again.
    """
    place = positions(valid.ads.ids, ads)
    rows = np.flatnonzero((valid.clicks > 0) & (place[valid.examples.ad_index] >= 0))
    if len(rows) > _JUDGED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _JUDGED, replace=False))
    some = valid.take(rows)
    targets = place[some.examples.ad_index]
    of_row = some.examples.history_of_row
    histories = {life: history_matrix(some.examples, place, len(ads), half_life=life)[of_row] for life in HALF_LIVES}
    before, ad = histories[None].nonzero()
    is_target = targets[before] == ad
    if is_target.sum() > _FEW_REPEATS * len(targets):
        return histories, targets, (before[:0], ad[:0])
    return histories, targets, (before[~is_target], ad[~is_target])


def _mean_reciprocal_rank(scores: Floats, targets: NDArray[np.int64]) -> float:
    if not len(targets):
        return 0.0
    reached = scores[np.arange(len(targets)), targets][:, None]
    rank = 1 + (scores > reached).sum(axis=1) + ((scores == reached).sum(axis=1) - 1) / 2
    return float(np.mean(1 / rank))


def _product(rows: sparse.csr_matrix, weights: Any) -> Floats:
    """(R, A) dense."""
    product = rows @ weights
    return np.asarray(product.toarray() if sparse.issparse(product) else product, dtype=np.float32)
