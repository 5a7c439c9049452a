"""Promised against observed, by arm and day, is what a count by hand gives, in whatever slices the events come."""

import numpy as np
import pytest

from adrec.serve.health import DAYS, Health
from adrec.serve.store import Event, events_table

DAY = 86_400_000_000


def impressions(rng, count, day, arm):
    return [
        Event(f"u{number % 50}", f"a{number % 7}", "impression", day * DAY + number, request_id=f"{arm}{day}-{number}",
              score=float(rng.uniform(0, 0.4)), arm=arm)
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [7, 100_000])
def test_health_is_a_count_by_hand(size):
    rng = np.random.default_rng(0)
    shown = [event for day in (20_000, 20_001) for arm in ("a", "b") for event in impressions(rng, 400, day, arm)]
    clicked = [event for event in shown if rng.random() < event.score]
    clicks = [event._replace(kind="click", at=event.at + 3 * DAY, score=None, arm=None) for event in clicked]
    conversions = [click._replace(kind="conversion", value=2.5) for click in clicks[::3]]
    stray = [Event("u1", "a1", "click", 20_000 * DAY, request_id="nobody's"), Event("u1", "a1", "click", 20_000 * DAY)]
    events = [*shown, *shown[:50], *clicks, *clicks[:9], *conversions, *conversions[:4], *stray]
    health = Health()
    for start in range(0, len(events), size):
        health.take(events_table(events[start : start + size]))
    found = {(row.arm, row.day): row for row in health.rows()}
    assert set(found) == {(arm, day) for arm in "ab" for day in ("2024-10-04", "2024-10-05")}
    for (arm, day), row in found.items():
        number = 20_000 + (day == "2024-10-05")
        mine = [event for event in shown if event.arm == arm and event.at // DAY == number]
        assert row.impressions == len(mine) and row.promised == pytest.approx(sum(event.score for event in mine))
        assert row.clicks == sum(event in mine for event in clicked)
        assert row.conversions == sum(event in mine for event in clicked[::3]) and row.value == 2.5 * row.conversions
        assert row.low < row.ratio < row.high and row.low < 1 < row.high  # the promises are kept here


@pytest.mark.parametrize("size", [11, 100_000])
def test_conversions_are_held_against_the_promises_of_the_impressions_that_promised_some(size):
    rng = np.random.default_rng(3)
    shown = impressions(rng, 900, 20_000, "a") + impressions(rng, 300, 20_000, "b")
    # Every third list of arm a promised clicks alone, every seventh conversions alone: one bundle served after another.
    for place, event in enumerate(shown):
        promise = float(rng.uniform(0, 0.1)) if event.arm == "a" and place % 3 else None
        clicks = None if promise is not None and place % 7 == 1 else event.score
        shown[place] = event._replace(score=clicks, score_conversion=promise)
    shown.append(shown[0]._replace(request_id="neither", score=None))
    converted = [event for event in shown if rng.random() < (event.score_conversion or 0.05)]
    clicked = [event for event in shown if rng.random() < (event.score or 0.2)]
    conversions = [event._replace(kind="conversion", at=event.at + 5 * DAY, value=1.5) for event in converted]
    clicks = [event._replace(kind="click") for event in clicked]
    events = [*shown, *clicks, *shown[:30], *conversions, *conversions[:7]]
    health = Health()
    for start in range(0, len(events), size):
        health.take(events_table(events[start : start + size]))
        again = Health()  # as a start from a snapshot
        again.go_on(health.state())
        health = again
    first, second = health.rows()
    mine = [event for event in shown[:-1] if event.arm == "a"]
    promising = [event for event in mine if event.score_conversion is not None]
    came = sum(event.score_conversion is not None for event in converted)
    assert first.impressions == 900 and first.conversions == sum(event in mine for event in converted)
    assert first.promised_conversions == pytest.approx(sum(event.score_conversion for event in promising))
    assert first.conversion_ratio == pytest.approx(first.promised_conversions / came) and came < first.conversions
    assert first.conversion_low < first.conversion_ratio < first.conversion_high
    of_clicks = sum(event.score is not None for event in clicked if event in mine)
    assert first.ratio == pytest.approx(sum(event.score or 0 for event in mine) / of_clicks) and of_clicks < first.clicks
    assert second.conversions > 0 and second.promised_conversions == 0  # came, though nobody promised any
    assert (second.conversion_ratio, second.conversion_low, second.conversion_high) == (None, None, None)


def test_only_the_newest_days_are_kept_and_a_day_without_clicks_has_no_ratio():
    rng, health = np.random.default_rng(1), Health()
    for day in range(20_000, 20_000 + DAYS + 3):
        health.take(events_table(impressions(rng, 3, day, "a")))
    rows = list(health.rows())
    assert len(rows) == DAYS and rows[-1].ratio is None and rows[-1].high is None and rows[-1].low > 0
