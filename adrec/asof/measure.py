"""From sums and histories to the counter columns: the one place that turns what happened into a feature."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adrec.asof.keys import KeyColumns
from adrec.asof.spec import measure_counters
from adrec.specs import CounterSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def counter_columns(
    specs: Sequence[CounterSpec],
    sums: Mapping[str, NDArray[np.generic]],
    keys: KeyColumns,
    *,
    times: Ints,
    ad: Ints,
    offsets: Ints,
    clicked: NDArray[np.integer],
    history_of_row: Ints,
) -> dict[str, NDArray[np.float32]]:
    """Every declared column, float32 (N,), of rows with ad `ad` (N,) at `times` (N,), the first moments of their requests.

    Row i's history is `clicked[offsets[h]:offsets[h + 1]]`, h = history_of_row[i]; offsets (R + 1,).
    """

    def of_history(name: str, measure: str) -> Floats:
        return history_matches(keys.dense_ad_codes(name), ad, offsets, clicked, history_of_row, measure)

    return measure_counters(specs, sums, times, of_history)


def history_matches(
    codes: Ints, ad: Ints, offsets: Ints, clicked: NDArray[np.integer], history_of_row: Ints, measure: str
) -> Floats:
    """history_count or history_share of N rows: ads of each row's history whose code (A,) is that of the row's `ad`.

    Codes are small whole numbers, -1 for ads without one, which match nothing.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    width = int(codes.max(initial=0)) + 1
    code = codes[clicked]
    pairs, counts = np.unique((owner * width + code)[code >= 0], return_counts=True)
    wanted = history_of_row * width + codes[ad]
    place = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    same = (pairs[place] == wanted) & (codes[ad] >= 0) if len(pairs) else np.zeros(len(ad), dtype=np.bool_)
    count: Floats = np.where(same, counts[place] if len(pairs) else 0, 0).astype(np.float64)
    return count / np.maximum(lengths[history_of_row], 1) if measure == "history_share" else count
