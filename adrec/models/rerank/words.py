"""What a re-ranker reads of a row: the query, the interests and the newest clicks in words, and the ad's text.

Joined once for each distinct history, not for each candidate.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined, ends, ranges
from adrec.data.examples import Examples

_BETWEEN = "; "


@dataclass(frozen=True)
class PairWords:
    """N pairs of context and ad."""

    contexts: list[str]
    ads: list[str]


def words_of(examples: Examples, ad_texts: pa.StringArray, user_texts: pa.StringArray, *, clicks: int) -> PairWords:
    """The words of N rows over catalogs with these texts; the newest of at most `clicks` clicks first, since the end is cut."""
    keys = np.stack([examples.history_of_row, examples.query], axis=1)
    distinct, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    history = distinct[:, 0]
    lengths = np.minimum(examples.histories.lengths[history], clicks)
    newest = np.repeat(examples.history_offsets[history + 1] - 1, lengths) - ranges(np.zeros(len(history), np.int64), lengths)
    titles = ad_texts.take(pa.array(examples.history_values[newest]))
    clicked = pa.ListArray.from_arrays(pa.array(ends(lengths), pa.int32()), titles)
    queries = pa.array(examples.queries, pa.string()).take(pa.array(examples.query[first]))
    interests = user_texts.take(pa.array(examples.user_index[first]))
    said = [_or_null(part) for part in (queries, interests, pc.binary_join(clicked, _BETWEEN))]
    # Behind an empty text that is cut off again: Arrow leaves out rows of which every text is null.
    joined = pc.binary_join_element_wise("", *said, _BETWEEN, null_handling="skip")
    contexts = pc.utf8_slice_codeunits(joined, len(_BETWEEN)).take(pa.array(place.reshape(-1)))
    ads = combined(ad_texts.take(pa.array(examples.ad_index)))
    return PairWords(_strings(contexts), _strings(ads))


def _or_null(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, pa.string()), texts)


def _strings(texts: pa.Array) -> list[str]:
    return [str(text) for text in texts.to_numpy(zero_copy_only=False)]
