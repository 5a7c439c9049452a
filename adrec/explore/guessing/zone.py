"""In which time zone an audience lives: a guess from the languages of the texts and from when it is quiet."""

import math
from collections.abc import Mapping, Sequence

_ZONES: dict[str, dict[str, float]] = {
    "zh": {"Asia/Shanghai": 8},
    "en": {"America/New_York": -5, "America/Los_Angeles": -8, "Europe/London": 0, "Asia/Kolkata": 5.5, "Australia/Sydney": 10},
}
"""Where most people who read a language live, with the hours that lie between there and UTC in winter."""
_QUIETEST = 4.0
"""The hour, local time, around which hardly anybody is up."""
_NEAR = 2.5
_NIGHT_SHARE = 0.17
"""An audience of one region leaves less than this share of a day to its six quietest hours (a quarter, if all were alike)."""


def likely_zone(languages: Mapping[str, float], hours: Sequence[float]) -> tuple[str, str]:
    """An IANA name, and why. `languages` are shares of texts by language, `hours` counts by hour of the day in UTC.

    Moments that name no zone are read as UTC: where their quiet hours are those of a night already, UTC it stays.
    """
    main = max(languages, key=lambda name: languages[name], default="")
    zones = _ZONES.get(main, {})
    reader = {"zh": "Chinese", "en": "English"}.get(main, "")
    offset = _offset(hours)
    if offset is None:
        if len(zones) == 1:
            return next(iter(zones)), f"most texts are {reader}"
        return "UTC", "nothing says where the audience lives"
    quiet = f"it is quiet around {(_QUIETEST - offset) % 24:.0f}:00 in the log"
    if abs(offset) <= _NEAR:
        return "UTC", f"{quiet}, as at night, so the moments look local"
    near = {name: abs(offset - hours_off) for name, hours_off in zones.items()}
    zone = min(near, key=lambda name: near[name], default="")
    if zone and near[zone] <= _NEAR:
        return zone, f"{quiet}, and most texts are {reader}"
    return "UTC", f"{quiet}, which fits no place that the texts suggest"


def _offset(hours: Sequence[float]) -> float | None:
    """Hours that local time is ahead of the log's, in (-12, 12], from its quietest six hours; None where nights do not show."""
    total = float(sum(hours))
    if len(hours) != 24 or total < 500:
        return None
    windows = [sum(hours[(start + step) % 24] for step in range(6)) for start in range(24)]
    if min(windows) > _NIGHT_SHARE * total:
        return None
    # The centre of what is missing, as an angle: every hour of the day weighs by how far it lies below the busiest.
    top = max(hours)
    east, north = (sum((top - count) * of(2 * math.pi * (hour + 0.5) / 24) for hour, count in enumerate(hours))
                   for of in (math.cos, math.sin))  # fmt: skip
    centre = (math.atan2(north, east) * 24 / (2 * math.pi)) % 24
    ahead = (_QUIETEST - centre) % 24
    return ahead if ahead <= 12 else ahead - 24
