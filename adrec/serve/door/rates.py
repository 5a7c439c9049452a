"""How often a key, or a client, may ask: a bucket of tokens each, filled at a rate. Costs a dictionary look-up a request."""

import math
import time
from collections import OrderedDict

_MOST_CLIENTS = 10_000


class Rates:
    """The buckets of those who asked last."""

    def __init__(self, per_second: float | None, burst: int) -> None:
        self._per_second, self._burst = per_second, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, who: str, per_second: float | None = None) -> int:
        """Seconds until `who` may ask again; 0: now, and one request is taken off. `per_second`: a rate of its own."""
        rate = per_second or self._per_second
        if rate is None:
            return 0
        now = time.monotonic()
        left, at = self._left.pop(who, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * rate)
        allowed = left >= 1
        self._left[who] = (left - 1 if allowed else left, now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((1 - left) / rate))
