"""How late what happens becomes known: the distribution of delays, from a log that ends before all has happened.

Of the conversions of an hour ago only the fast ones are known, so the delays that a log shows are too short. The
reverse-time product limit sees to that: F(t) = product over s > t of (1 - n(s) / R(s)), n(s) the delays of s and R(s) those of
at most s among rows that have been watched for s or longer (Lagakos, Barraj and De Gruttola 1988; Kalbfleisch and Lawless
1989). It needs nothing of the rows where nothing happened. One sort of the delays.
"""

from dataclasses import dataclass

import numpy as np

from adrec.metrics.ties import ArrayLike, Floats

_LEAST_WATCHED = 20
"""Delays that fewer rows than this have been watched for are beyond what the log can tell."""
_LONGEST_CLOCK = 12.0
"""The clock's reading where all has happened: one in 160,000 is still to come."""


@dataclass(frozen=True)
class DelayCurve:
    """F, a step function: `share[i]` of what will happen has happened within `hours[i]` (both (T,), rising)."""

    hours: Floats
    share: Floats

    def by(self, hours: ArrayLike) -> Floats:
        """The share that has happened by then, in [0, 1]."""
        place = np.searchsorted(self.hours, np.asarray(hours, np.float64), side="right")
        return np.asarray(np.concatenate([[0.0], self.share])[place])

    def clock(self, hours: ArrayLike) -> Floats:
        """-log(1 - F): the hours on a clock on which delays are exponential with mean 1; 12 at most."""
        return np.minimum(-np.log(np.maximum(1.0 - self.by(hours), np.exp(-_LONGEST_CLOCK))), _LONGEST_CLOCK)


AT_ONCE = DelayCurve(np.zeros(1), np.ones(1))
"""Where nothing is late."""


def fit_delay_curve(delay: ArrayLike, elapsed: ArrayLike, window_hours: float | None = None) -> DelayCurve:
    """The curve of `delay` (N,) of rows that have been watched for `elapsed` (N,), in hours; each delay at most its row's
    elapsed time.

    F is 1 at the end of the window, or at the longest delay for which 20 rows have been watched: what comes later than that
    no log of this length can tell. Fewer than 20 delays: all at once.
    """
    d, e = np.asarray(delay, np.float64), np.asarray(elapsed, np.float64)
    if window_hours is not None:
        e = np.where(e >= window_hours, np.inf, e)
        d, e = d[d <= window_hours], e[d <= window_hours]
    times, counts = np.unique(d, return_counts=True)
    watched = np.searchsorted(np.sort(d), times, side="right") - np.searchsorted(np.sort(e), times, side="left")
    enough = np.flatnonzero(watched >= _LEAST_WATCHED)
    if not len(enough):
        return AT_ONCE
    times, counts, watched = times[: enough[-1] + 1], counts[: enough[-1] + 1], watched[: enough[-1] + 1]
    # A lone row at the tail must not say that nothing ever comes sooner.
    stays = np.maximum(1.0 - counts / np.maximum(watched, 1), 0.5 / np.maximum(watched, 1))
    after = np.append(np.cumprod(stays[::-1])[::-1][1:], 1.0)
    return DelayCurve(times, after)
