"""How much stands behind a number: an interval made of a handful of users says how lucky they were, so there is none.

The bootstrap draws units: users, and for rows of nobody their request, else the row. A metric is carried by the units that it
would change with: all that have rows, those with a click and those without for an AUC, those whose requests (who themselves)
have both for a mean over requests (users).
"""

from typing import NamedTuple

import numpy as np

from adrec.metrics.intervals.significance import Difference, Interval
from adrec.stages.evaluation.measures import Frame

FEWEST = 20
"""Fewest units that must carry a metric for its interval, or a difference, to be told."""
_NONE = float("nan")


class Support(NamedTuple):
    """Of the rows of one task, or of one part of them."""

    units: int
    """with rows"""
    both: int
    """the fewer of those with a click and those without one"""
    requests: int | None
    """with a click and a row without one; None where no request holds two rows"""
    of_requests: int
    """units that these requests are of"""
    users: int | None
    """known users with both; None where nobody is known"""
    draws_counts: bool = False
    """the impressions inside the rows are drawn, whatever few units there are"""

    def behind(self, metric: str) -> int:
        """Units that carry a metric."""
        if self.draws_counts:
            return FEWEST
        if metric in {"auc", "pr_auc"}:
            return self.both
        if metric in {"auc_user", "gauc"}:
            return self.users or 0
        if "@" in metric or metric in {"auc_request", "mrr", "mrr_all"}:
            return self.of_requests
        return self.units

    def counts(self) -> dict[str, int]:
        """For people and metrics.json."""
        found = {"requests_with_both_classes": self.requests, "users_with_both_classes": self.users}
        return {name: count for name, count in found.items() if count is not None}

    def shown(self, metric: str, interval: Interval) -> Interval:
        """The interval, NaN where too little carries it, or where no draw differs from another."""
        if self.behind(metric) < FEWEST or interval.high - interval.low <= 1e-12 * max(1.0, abs(interval.value)):
            return Interval(interval.value, _NONE, _NONE)
        return interval

    def told(self, metric: str, difference: Difference) -> Difference:
        """The difference, without interval and p-value where too little carries it."""
        return Difference(difference.value, _NONE, _NONE, _NONE) if self.behind(metric) < FEWEST else difference


def support_of(frame: Frame) -> Support:
    """What carries the metrics of these rows; a label above 0 counts as a click."""
    hit = frame.labels > 0
    clicks = np.bincount(frame.users, hit, frame.user_count)
    rows = np.bincount(frame.users, minlength=frame.user_count)
    has_both = (clicks > 0) & (clicks < rows)
    requests, owners = None, 0
    if frame.requests is not None and frame.has_lists:
        inside = np.bincount(frame.requests, hit)
        mixed = (inside > 0) & (inside < np.bincount(frame.requests))
        requests, owners = int(mixed.sum()), len(np.unique(frame.users[mixed[frame.requests]]))
    known = frame.named
    users = len(np.unique(frame.users[known & has_both[frame.users]])) if known.any() else None
    both = min(int((clicks > 0).sum()), int((clicks < rows).sum()))
    return Support(int((rows > 0).sum()), both, requests, owners, users, frame.counts is not None)
