"""What the user clicked set against what the user was shown and did not click: click rates by category, nearness to either.

Needs skipped ads in the prepared folder (`history.max_skipped`); a history alone says what is liked, never what is not.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.data.arrays import ranges
from adrec.data.examples import Ragged
from adrec.models.baselines.base import Floats, Inputs
from adrec.models.baselines.similarity import STATISTICS, history_similarities, picked_cells

_STRENGTH = 3.0
"""Impressions at the user's own rate that are added before a rate is taken."""


def preference_columns(inputs: Inputs) -> dict[str, Floats]:
    """`like_<column>` for every categorical and list column of ads, and `skipped_<statistic>` cosines where there are vectors.

    A row's values do not depend on the others, so they are there for rows of whom nobody skipped anything, too.
    """
    skipped = inputs.skipped_as_history()
    columns = {
        f"like_{name}": like_rate(inputs, skipped, _single(inputs.ads.categorical[:, place]))
        for place, name in enumerate(inputs.columns.ad_categorical)
    }
    columns.update({f"like_{name}": like_rate(inputs, skipped, lists) for name, lists in inputs.ads.lists.items()})
    if inputs.ads.vectors is not None:
        cosines = history_similarities(skipped, inputs.ads.vectors)
        columns.update({f"skipped_{name}": cosines[:, place] for place, name in enumerate(STATISTICS)})
    return columns


def like_rate(clicked: Inputs, skipped: Inputs, values: Ragged) -> Floats:
    """(N,) the user's click rate among earlier ads that share a value with the candidate, the mean over the candidate's values.

    (clicks + s r) / (clicks + skips + s) for each value, with r the user's rate over all values, (clicks + 1) / (shown + 2).
    A candidate without a known value gets r. `values` lists the codes of each ad; code 0 is unknown.
    """
    examples = clicked.examples
    likes, dislikes = _counts(clicked, values), _counts(skipped, values)
    clicks, skips = np.diff(examples.history_offsets), np.diff(examples.skipped_offsets)
    own = ((clicks + 1) / (clicks + skips + 2))[examples.history_of_row]
    candidate = values.take(examples.ad_index)
    row = np.repeat(np.arange(len(clicked)), candidate.lengths)
    known = candidate.values > 0
    row, code = row[known], candidate.values[known]
    place = examples.history_of_row[row]
    liked, disliked = picked_cells(likes, place, code), picked_cells(dislikes, place, code)
    rate = (liked + _STRENGTH * own[row]) / (liked + disliked + _STRENGTH)
    count = np.bincount(row, minlength=len(clicked))
    total = np.bincount(row, rate, len(clicked))
    return np.where(count > 0, total / np.maximum(count, 1), own).astype(np.float32)


def _counts(inputs: Inputs, values: Ragged) -> sparse.csr_matrix:
    """(R, K) how often each code occurs among the ads of each history."""
    examples = inputs.examples
    offsets, ads = examples.history_offsets, examples.history_values
    history = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lengths = values.lengths[ads]
    code = values.values[ranges(values.offsets[ads], lengths)]
    ones = np.ones(len(code), np.float32)
    shape = (len(offsets) - 1, int(values.values.max(initial=0)) + 1)
    return sparse.csr_matrix((ones, (np.repeat(history, lengths), code)), shape=shape)


def _single(codes: NDArray[np.int32]) -> Ragged:
    """One value an ad."""
    return Ragged(np.arange(len(codes) + 1, dtype=np.int64), codes)
