"""Collaborative filtering by weighted cosine, user-based and item-based, as sparse products over a block of users.

The user asked about is given by the history at the moment of the impression, so a user never seen in training is served
like any other and later clicks cannot leak in. Neighbours come from training rows.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs, LacksNothing, load_state, positions, save_state, text_array
from adrec.models.match.histories import history_matrix, picked_cells, sparse_unit_rows

_BLOCK_HISTORIES = 256


class ClickMatrix:
    """Who clicked what in training: (U, A) of zeros and ones, with the identifiers of its rows and columns."""

    def __init__(self, users: NDArray[np.str_], ads: NDArray[np.str_], clicks: sparse.csr_matrix) -> None:
        self.users = users
        self.ads = ads
        self.clicks = clicks

    @classmethod
    def empty(cls) -> "ClickMatrix":
        """No user, no ad."""
        return cls(np.zeros(0, np.str_), np.zeros(0, np.str_), sparse.csr_matrix((0, 0), dtype=np.float32))

    @classmethod
    def of(cls, inputs: Inputs) -> "ClickMatrix":
        """Clicked rows and the clicks in histories together; users and ads without any click are left out."""
        clicked = np.flatnonzero(inputs.clicks > 0)
        lengths = np.diff(inputs.examples.history_offsets)
        row = np.concatenate([inputs.examples.user_index[clicked], np.repeat(inputs.user_of_history, lengths)])
        column = np.concatenate([inputs.examples.ad_index[clicked], inputs.examples.history_values])
        users, row = np.unique(row, return_inverse=True)
        ads, column = np.unique(column, return_inverse=True)
        matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(users), len(ads)))
        matrix.data[:] = 1.0
        return cls(text_array(inputs.users.ids.take(users)), text_array(inputs.ads.ids.take(ads)), matrix)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What npz stores."""
        clicks = self.clicks
        return {"users": self.users, "ads": self.ads, "indptr": clicks.indptr, "indices": clicks.indices}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "ClickMatrix":
        """From `arrays`."""
        indices, indptr = arrays["indices"], arrays["indptr"]
        shape = (len(arrays["users"]), len(arrays["ads"]))
        clicks = sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
        return cls(arrays["users"], arrays["ads"], clicks)


class UserCf(LacksNothing):
    """interest(u, i) = sum over users j who clicked i of w_uj cos(u, j), in [0, 1].

    j runs over the `neighbours` users nearest to u, u left out, and w_uj = 1 / (sum of their cosines): the share of u's
    neighbourhood, weighted by nearness, that clicked i. Resnick et al. 1994; Breese, Heckerman and Kadie 1998.
    """

    name: ClassVar[str] = "user_cf"
    is_probability: ClassVar[bool] = False

    def __init__(self, *, neighbours: int = 200, matrix: ClickMatrix | None = None) -> None:
        self.neighbours = neighbours
        self.matrix = matrix or ClickMatrix.empty()

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Remember who clicked what."""
        self.matrix = ClickMatrix.of(inputs)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) interest; 0 for an ad that no neighbour clicked."""
        known = self.matrix
        ad_place = positions(inputs.ads.ids, known.ads)
        own = positions(inputs.users.ids, known.users)[inputs.user_of_history]  # (R,)
        query = _binary_unit(history_matrix(inputs.examples, ad_place, len(known.ads)))
        others = sparse_unit_rows(known.clicks)

        def interest(block: slice, wanted: NDArray[np.int64]) -> sparse.csr_matrix:
            cosine = (query[block] @ others.T).tocoo()
            cosine.data[cosine.col == own[block][cosine.row]] = 0.0
            nearest = _largest_of_each_row(cosine.tocsr(), self.neighbours)
            total = np.asarray(nearest.sum(axis=1)).ravel()
            weighted = sparse.diags(1.0 / np.where(total > 0, total, 1.0)) @ nearest
            return sparse.csr_matrix(weighted @ known.clicks[:, wanted])

        return in_blocks(inputs, ad_place, interest)

    def save(self, folder: Path) -> None:
        """The click matrix."""
        save_state(folder, {"neighbours": self.neighbours}, self.matrix.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        return cls(neighbours=int(values["neighbours"]), matrix=ClickMatrix.from_arrays(arrays))


class ItemCf(LacksNothing):
    """interest(u, i) = sum over ads j in u's history of w_uj cos(i, j), with w_uj = 1 / (clicks in the history).

    Two ads are near where the same users clicked them; i itself is left out. Sarwar, Karypis, Konstan and Riedl 2001.
    """

    name: ClassVar[str] = "item_cf"
    is_probability: ClassVar[bool] = False

    def __init__(self, matrix: ClickMatrix | None = None) -> None:
        self.matrix = matrix or ClickMatrix.empty()

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Remember who clicked what."""
        self.matrix = ClickMatrix.of(inputs)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) interest; 0 for an ad that nobody clicked in training."""
        known = self.matrix
        ad_place = positions(inputs.ads.ids, known.ads)
        history = history_matrix(inputs.examples, ad_place, len(known.ads))
        history.data[:] = 1.0
        clicks = np.maximum(np.diff(history.indptr), 1)
        weights = sparse.csr_matrix(sparse.diags(1.0 / clicks) @ history)
        columns = sparse.csc_matrix(sparse_unit_rows(known.clicks.T.tocsr()).T)  # (U, A), each column of length 1
        by_user = columns.T.tocsr()

        def interest(block: slice, wanted: NDArray[np.int64]) -> sparse.csr_matrix:
            own = weights[block]
            # The clicked ad itself has cosine 1 with the candidate that equals it; taking its weight away leaves it out.
            return sparse.csr_matrix(own @ by_user @ columns[:, wanted] - own[:, wanted])

        return in_blocks(inputs, ad_place, interest)

    def save(self, folder: Path) -> None:
        """The click matrix."""
        save_state(folder, {}, self.matrix.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        return cls(ClickMatrix.from_arrays(load_state(folder)[1]))


def in_blocks(inputs: Inputs, ad_place: NDArray[np.int64], interest: Any) -> Floats:
    """Call `interest(histories, wanted ads)` for blocks of histories and pick each row's cell, sparse or dense."""
    result = np.zeros(len(inputs), np.float32)
    place = ad_place[inputs.examples.ad_index]
    known = np.flatnonzero(place >= 0)
    known = known[np.argsort(inputs.examples.history_of_row[known], kind="stable")]
    history = inputs.examples.history_of_row[known]
    for start in range(0, len(inputs.examples.history_offsets) - 1, _BLOCK_HISTORIES):
        low, high = np.searchsorted(history, [start, start + _BLOCK_HISTORIES])
        rows = known[low:high]
        if len(rows) == 0:
            continue
        wanted, column = np.unique(place[rows], return_inverse=True)
        values = interest(slice(start, start + _BLOCK_HISTORIES), wanted)
        place_in = history[low:high] - start
        result[rows] = picked_cells(values, place_in, column) if sparse.issparse(values) else values[place_in, column]
    return result


def _binary_unit(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix.data[:] = 1.0
    return sparse_unit_rows(matrix)


def _largest_of_each_row(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Keep the `count` largest values of each row, the lower column first among equals."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    rank = np.arange(len(row)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    largest = order[rank < count]
    return sparse.csr_matrix((matrix.data[largest], (row[largest], matrix.indices[largest])), shape=matrix.shape)
