"""The candidates of several channels of retrieval in one list. numpy alone: what judges lists loads no model."""

from collections.abc import Sequence

import numpy as np

from adrec.ranking.arrays import Ints


def merge_channels(channels: list[Ints], k: int, shares: Sequence[float] | None = None) -> Ints:
    """(R, k) ads of several ranked lists (R, K_i) in turn, repeats left out; -1 marks empty places, at the end of the result.

    `shares`: one number >= 0 a channel, in proportion to which they have their turns; equal ones by default (the first of each,
    the second of each, ...). A channel without a share fills what the others leave empty.
    """
    depth = max(channel.shape[1] for channel in channels)
    woven = np.full((len(channels[0]), depth, len(channels)), -1, dtype=np.int64)
    for number, channel in enumerate(channels):
        woven[:, : channel.shape[1], number] = channel
    with np.errstate(divide="ignore"):
        due = np.arange(1, depth + 1)[:, None] / np.asarray([1.0] * len(channels) if shares is None else shares)
    flat = woven.reshape(len(woven), -1)[:, np.argsort(due.ravel(), kind="stable")]
    order = np.argsort(flat, axis=1, kind="stable")  # equal ads keep their turn, so the first of a run is the earliest
    ordered = np.take_along_axis(flat, order, axis=1)
    repeated = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    kept = np.argsort(repeated | (flat < 0), axis=1, kind="stable")[:, :k]
    merged = np.take_along_axis(np.where(repeated, -1, flat), kept, axis=1)
    result: Ints = np.full((len(flat), k), -1, dtype=np.int64)
    result[:, : merged.shape[1]] = merged
    return result
