"""Constraints that depend on one (request, ad) alone: which ads may be shown for which requests.

They are applied while retrieving, so that ineligible ads never use up a request's candidates. What depends on earlier
lists (budgets, caps) is in `ledger`; what depends on the rest of the list is in `fill`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from adrec.ranking.arrays import Bools, Ints


class Asking(NamedTuple):
    """What a block of R requests brings to the rules."""

    shown_at: Ints  # (R,) int64 microseconds
    audience: Sequence[Ints]  # per targeting rule, (R,) row of its `admits`; the last row admits only untargeted ads
    clicked_offsets: Ints  # (R + 1,) into clicked
    clicked: Ints  # ad rows the user has clicked; empty where the policy shows them again
    matched: sparse.csr_array | None = None  # (R, A) nonzero where the ad's text has a word of the query; None: not required

    def of(self, requests: Ints) -> "Asking":
        """What the requests (r,) of the block bring, in that order."""
        lengths = np.diff(self.clicked_offsets)[requests]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        place = np.repeat(self.clicked_offsets[requests] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Asking(
            self.shown_at[requests],
            [audience[requests] for audience in self.audience],
            offsets,
            self.clicked[place],
            None if self.matched is None else self.matched[requests],
        )

    def over(self, place: Ints, rows: Ints) -> "Asking":
        """The same over some rows of the catalogue; `place` (A,) where an ad stands among them, -1 nowhere."""
        clicked = place[self.clicked]
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(clicked >= 0)])
        matched = None if self.matched is None else self.matched[:, rows]
        return self._replace(clicked_offsets=before[self.clicked_offsets], clicked=clicked[clicked >= 0], matched=matched)


class Rules:
    """The rules of one policy over a catalogue of A ads.

    allowed (A,) bool: not blocked, in the vertical, bids at least the reserve. starts, ends (A,) int64 microseconds: shown
    from `starts` until before `ends`. admits: per targeting rule (V + 1, A) bool, row v for the user's value v.
    """

    def __init__(self, *, allowed: Bools, starts: Ints, ends: Ints, admits: Sequence[Bools] = ()) -> None:
        self.allowed = allowed
        self.starts = starts
        self.ends = ends
        self.admits = tuple(admits)

    def of(self, rows: Ints) -> "Rules":
        """The same over some rows of the catalogue."""
        return Rules(
            allowed=self.allowed[rows],
            starts=self.starts[rows],
            ends=self.ends[rows],
            admits=[admits[:, rows] for admits in self.admits],
        )

    def active(self, asking: Asking) -> Bools:
        """(A,) which ads are allowed and active at the moment of any request of the block."""
        if not len(asking.shown_at):
            return self.allowed
        active: Bools = self.allowed & (self.starts <= asking.shown_at.max()) & (self.ends > asking.shown_at.min())
        return active

    def let_through(self, asking: Asking, ad: Ints) -> Ints:
        """(R, C) the ads (R, C) that the rules let through, in order, then -1."""
        request = np.repeat(np.arange(len(ad)), ad.shape[1])
        is_admitted = (self.pairs(asking, request, np.maximum(ad.ravel(), 0)) & (ad.ravel() >= 0)).reshape(ad.shape)
        return np.take_along_axis(np.where(is_admitted, ad, -1), np.argsort(~is_admitted, axis=1, kind="stable"), axis=1)

    def without(self, rows: Sequence[int]) -> "Rules":
        """The same rules, and these ads for nobody."""
        allowed = self.allowed.copy()
        allowed[list(rows)] = False
        return Rules(allowed=allowed, starts=self.starts, ends=self.ends, admits=self.admits)

    def eligible(self, asking: Asking, requests: slice, ads: slice) -> Bools:
        """(r, a) bool for a block of requests and a block of catalogue rows, or every n-th row of one."""
        moment = asking.shown_at[requests, None]
        mask: Bools = self.allowed[ads] & (self.starts[ads] <= moment) & (moment < self.ends[ads])
        for admits, audience in zip(self.admits, asking.audience, strict=True):
            mask &= admits[:, ads][audience[requests]]
        offsets = asking.clicked_offsets[requests.start : requests.stop + 1]
        clicked = asking.clicked[offsets[0] : offsets[-1]]
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        place, between = np.divmod(clicked - ads.start, ads.step or 1)
        inside = (clicked >= ads.start) & (clicked < ads.stop) & (between == 0)
        mask[row[inside], place[inside]] = False
        if asking.matched is not None:
            mask &= asking.matched[requests, ads].toarray() > 0
        return mask

    def pairs(self, asking: Asking, request: Ints, ad: Ints) -> Bools:
        """(n,) bool for single pairs of a request of the block and a catalogue row."""
        moment = asking.shown_at[request]
        admitted: Bools = self.allowed[ad] & (self.starts[ad] <= moment) & (moment < self.ends[ad])
        for admits, audience in zip(self.admits, asking.audience, strict=True):
            admitted &= admits[audience[request], ad]
        key, count = request.astype(np.int64) * len(self.allowed) + ad, len(self.allowed)
        owner = np.repeat(np.arange(len(asking.clicked_offsets) - 1), np.diff(asking.clicked_offsets))
        admitted &= ~np.isin(key, owner * count + asking.clicked)
        if asking.matched is not None:
            row, column = asking.matched.nonzero()
            admitted &= np.isin(key, row.astype(np.int64) * count + column)
        return admitted

    def why_not(self, asking: Asking, request: int, ad: int) -> list[str]:
        """Every rule that keeps the ad from the request, in plain words; empty where it is eligible."""
        reasons = []
        if not self.allowed[ad]:
            reasons.append("it is blocked, outside the policy's categories, or bids below the reserve")
        if not self.starts[ad] <= asking.shown_at[request] < self.ends[ad]:
            reasons.append("it is not active at that time")
        for place, admits in enumerate(self.admits):
            if not admits[asking.audience[place][request], ad]:
                reasons.append(f"its targeting (rule {place + 1}) excludes the user")
        offsets = asking.clicked_offsets
        if ad in asking.clicked[offsets[request] : offsets[request + 1]]:
            reasons.append("the user has clicked it before")
        if asking.matched is not None and asking.matched[request, ad] == 0:
            reasons.append("its text has no word of the query")
        return reasons
