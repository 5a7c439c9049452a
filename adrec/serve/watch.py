"""What operators see: Prometheus metrics and one structured log line a request, without user ids in the clear."""

import hashlib
import json
import logging
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from adrec.serve.state.tally import Tally

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_HEALTH = {
    "impressions": "Impressions with the score of their list.", "promised": "Clicks that the scores promised.",
    "clicks": "Clicks that came.", "ratio": "Promised over observed clicks.", "low": "Lower end of its interval at 95 %.",
    "high": "Upper end of its interval.", "promised_conversions": "Conversions that the lists promised.",
    "conversions": "Conversions that came.", "conversion_ratio": "Promised over observed conversions.",
    "conversion_low": "Lower end of its interval at 95 %.", "conversion_high": "Upper end of its interval.",
    "value": "What they were worth.",
}  # fmt: skip
_logger = logging.getLogger("adrec.serve")


class Watch:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # processor seconds and memory
        self.requests = Counter(
            "adrec_requests_total", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.latency = Histogram("adrec_latency_seconds", "Time to answer.", ["path"], buckets=_SECONDS, registry=self.registry)
        self.model = Histogram("adrec_model_seconds", "Time of one pass.", ["what"], buckets=_SECONDS, registry=self.registry)
        self.batch = Histogram(
            "adrec_batch_size", "Requests in one pass.", ["what"], buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=self.registry
        )
        self.queue = Gauge("adrec_queue_length", "Requests that wait.", ["what"], registry=self.registry)
        self.scores = Histogram(
            "adrec_score",
            "Click probabilities given out.",
            buckets=tuple(step / 20 for step in range(1, 21)),
            registry=self.registry,
        )
        self.events = Counter("adrec_events_total", "Events recorded.", ["kind"], registry=self.registry)
        self.reloads = Counter("adrec_reloads_total", "Reloads by outcome.", ["outcome"], registry=self.registry)
        self.counted = Gauge("adrec_last_event", "Number of the last event that was counted.", registry=self.registry)
        self.set_aside = Gauge("adrec_events_set_aside", "Rows of the store that are no events.", registry=self.registry)
        self.health = {
            name: Gauge(f"adrec_health_{name}", what, ["arm", "day"], registry=self.registry) for name, what in _HEALTH.items()
        }
        self._salt = secrets.token_bytes(16)

    def state(self, tally: Tally, waiting: Mapping[str, int]) -> None:
        """What the events add up to now, and how many requests wait in each queue."""
        for what, count in waiting.items():
            self.queue.labels(what).set(count)
        self.counted.set(tally.last)
        self.set_aside.set(tally.set_aside)
        for gauge in self.health.values():
            gauge.clear()
        for row in tally.health.rows():
            for name, gauge in self.health.items():
                value = getattr(row, name)
                gauge.labels(row.arm, row.day).set(float("nan") if value is None else value)

    def text(self) -> bytes:
        """The metrics in Prometheus' format."""
        return generate_latest(self.registry)

    def masked(self, user_id: str) -> str:
        """A name for a user that means something only within this process's log."""
        return hashlib.blake2b(user_id.encode(), key=self._salt, digest_size=6).hexdigest()

    def answered(self, facts: dict[str, Any], scores: Iterable[float], arms: Sequence[str]) -> None:
        """Count the scores given out, and note in the request's `facts` how many answers came from each arm."""
        for score in scores:
            self.scores.observe(score)
        facts["arms"] = {arm: arms.count(arm) for arm in sorted(set(arms))}

    def log(self, **facts: object) -> None:
        """One line of JSON on stderr."""
        _logger.info(json.dumps(facts))


def log_to_stderr() -> None:
    """Let the log lines reach stderr as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.handlers = [handler]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
