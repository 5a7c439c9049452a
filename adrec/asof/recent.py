"""Acts since a log ended, as a server is told of them: a few at a time, for ever, and asked about between.

They lie in layers, each about twice as large as the one over it, so that an act is moved a logarithm of times and not with
every new one. Layers are replaced, never changed, but for acts that are taken back: those are marked where they lie.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adrec.asof.history import TIMELESS, EventLog, Histories, joined
from adrec.data.arrays import ends, ranges

Ints = NDArray[np.int64]
_GONE = -1
"""Instead of an ad: the act was taken back."""


class RecentLog:
    """Acts by user and time. One thread adds; any may ask."""

    def __init__(self) -> None:
        self._layers: tuple[EventLog, ...] = ()
        self._has_gone = False

    def __len__(self) -> int:
        return sum(len(layer.ads) for layer in self._layers)

    def add(self, acts: EventLog) -> None:
        """Take in acts of any moments."""
        layers = list(self._layers)
        while layers and len(layers[-1].ads) < 2 * len(acts.ads):
            acts = _present(layers.pop()).merged(acts)
        self._layers = (*layers, acts) if len(acts.ads) else tuple(layers)

    def whole(self) -> EventLog:
        """All acts as one log."""
        acts = EventLog.empty()
        for layer in self._layers:
            acts = acts.merged(_present(layer))
        return acts

    def keep(self, mine: Callable[[EventLog], EventLog]) -> None:
        """Replace the acts by those that `mine` leaves of them."""
        acts = mine(self.whole())
        self._layers, self._has_gone = ((acts,) if len(acts.ads) else ()), False

    def histories(self, users: Ints, times: Ints, limit: int) -> Histories:
        """The newest `limit` acts of R users (codes) strictly before their moments (R,)."""
        layers = self._layers
        newest = self._newest(layers[0], users, times, limit) if layers else EventLog.empty().histories(users, times, limit)
        for layer in layers[1:]:
            newest = joined(newest, self._newest(layer, users, times, limit), limit)
        return newest

    def take_back(self, users: Ints, ads: Ints, times: Ints) -> None:
        """Drop the newest act of each (user, ad) of these, (N,), at or before its moment: a skip that became a click."""
        layers = self._layers
        moment, of_layer = np.full(len(users), TIMELESS), np.full(len(users), -1)
        places = np.zeros((len(layers), len(users)), np.int64)
        for number, layer in enumerate(layers):
            first, end = layer.before(users, times + 1)
            place, owner = ranges(first, end - first), np.repeat(np.arange(len(users)), end - first)
            same = layer.ads[place] == ads[owner]
            places[number][owner[same]] = place[same]  # places ascend: the newest stands
            there = np.unique(owner[same])
            newest = layer.times[places[number][there]]
            later = there[newest >= moment[there]]
            moment[later], of_layer[later] = layer.times[places[number][later]], number
        for number, layer in enumerate(layers):
            layer.ads[places[number][of_layer == number]] = _GONE
        self._has_gone |= bool((of_layer >= 0).any())

    def _newest(self, layer: EventLog, users: Ints, times: Ints, limit: int) -> Histories:
        histories, asked = layer.histories(users, times, limit), limit
        if not self._has_gone:
            return histories
        while True:
            owner = np.repeat(np.arange(len(users)), np.diff(histories.offsets))
            present = histories.ads != _GONE
            counts = np.bincount(owner[present], minlength=len(users))
            if bool(((counts >= limit) | (histories.lengths <= asked)).all()):
                break
            asked *= 4
            histories = layer.histories(users, times, asked)
        newest = np.minimum(counts, limit)
        place = np.flatnonzero(present)[ranges(np.cumsum(counts) - newest, newest)]
        return Histories(ends(newest), histories.ads[place], histories.times[place], counts)


def _present(layer: EventLog) -> EventLog:
    """The layer without what was taken back."""
    present = layer.ads != _GONE
    if present.all():
        return layer
    codes = np.repeat(layer.users, np.diff(layer.offsets))
    return EventLog.of(codes[present], layer.ads[present], layer.times[present])
