"""How a column is read as moments: from what its values look like, whether they fit together, and what the column is called.

Nothing is taken for a time for its looks alone: every value must fit, the years must be those of a log, and a number must be
called like a time or run like one (campaign 1511180400 is no moment of 2017). Costs a pass of regular expressions over the
different values.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_FIRST_YEAR, _LAST_YEAR = 1990, 2100
_UNITS = (("seconds", 1), ("milliseconds", 1_000), ("microseconds", 1_000_000), ("nanoseconds", 1_000_000_000))
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800
"""1990 and 2100, in seconds since 1970."""
_EXCEL = (32_874, 73_050)
"""The same years in days since 30 December 1899."""
_FEW = 5
_MOST_SHAPES = 6
TIME_NAME = re.compile(
    r"time|date|stamp|epoch|hour|(^|[_\W])(ts|dt|at|day|when|unix|seen|shown|served|clicked|created)($|[_\W])|At$|Ts$|时间|日期|时刻"
)
_NO_TIME_NAME = re.compile(
    r"(^|[_\W]|(?<=[a-z])(?=I))(id|ids|code|key|number|num|nr|no|campaign|group|adgroup|user|member|phone|zip|price|cost|spend|"
    r"amount|count|clicks|impressions|budget|bid|seconds|duration)$|Id$|ID$|uid$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?")
_DIGITS = {14: ("%Y%m%d%H%M%S",), 12: ("%Y%m%d%H%M", "%y%m%d%H%M%S"), 10: ("%Y%m%d%H",),
           8: ("%Y%m%d", "%y%m%d%H"), 6: ("%y%m%d",)}  # fmt: skip
_LENGTHS = {"%Y": 4, **dict.fromkeys(("%y", "%m", "%d", "%H", "%M", "%S"), 2)}

_MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_MONTH_FULL = "january|february|march|april|june|july|august|september|october|november|december"
_NAMED = rf"(?P<name>(?:{_MONTH_FULL}|{_MONTH}))"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<Y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})",
        r"(?P<a>\d{1,2})(?P<s>[-/.]| (?=\d+ \d{4}))(?P<b>\d{1,2})(?P=s)(?P<c>\d{4}|\d{2})(?!\d)",
        rf"(?P<d>\d{{1,2}})(?P<s>[-/. ]){_NAMED}(?P=s)(?P<Y>\d{{4}}|\d{{2}})(?!\d)",
        rf"{_NAMED}(?P<s>[-/. ])(?P<d>\d{{1,2}})(?P<t>,? ?)(?P<Y>\d{{4}})",
        rf"(?P<Y>\d{{4}})(?P<s>[-/. ]){_NAMED}(?P=s)(?P<d>\d{{1,2}})",
        r"(?P<Y>\d{4})(?P<s>年)(?P<m>\d{1,2})(?P<s2>月)(?P<d>\d{1,2})(?P<s3>日)",
        r"(?P<Y>\d{4})(?P<s>)(?P<m>\d{2})(?P<d>\d{2})(?!\d)",
    )
)
_WEEKDAY = re.compile(
    r"(?P<full>(mon|tues|wednes|thurs|fri|satur|sun)day)|(?P<short>mon|tue|wed|thu|fri|sat|sun)", re.IGNORECASE
)
_CLOCKS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?P<f>\.\d{1,9})?)?(?P<p> ?[ap]m)?(?![\d:])",
        r"(?P<H>\d{1,2})(?P<h>时|点)(?P<M>\d{1,2})(?P<n>分)(?:(?P<S>\d{1,2})(?P<x>秒))?",
        r"(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)",
        r"(?P<H>\d{1,2})(?P<p> ?[ap]m)?(?!\d)",
    )
)
_ZONE = re.compile(r"(?P<space> ?)(?:(?P<offset>[+-]\d{2}(?::?\d{2})?)|(?P<name>Z|[A-Z]{3,5}|[A-Z][A-Za-z]+/[A-Za-z_/]+))$")
_C_TIME = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d{2}:\d{2}:\d{2} ([+-]\d{4} |[A-Z]{3,4} )?\d{4}")
"""As C, and many programs after it, write a moment: the year last."""
_CLOCK_ALONE = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,9})?)?( ?[ap]m)?", re.IGNORECASE)


@dataclass(frozen=True)
class Moments:
    """How to read a column as moments."""

    keys: dict[str, Any]
    """What to write under the table: {} (ISO 8601, or stored as moments), `time_unit`, or `time_format` (one, or a list)."""
    doubt: str = ""
    """A sentence where the reading is not sure: nothing decides whether the day or the month comes first."""


def read_numbers(values: Sequence[str], column: str) -> Moments | None:
    """How numbers (as text, different ones, in order of appearance) are read as moments; None if they are none."""
    is_called_so = TIME_NAME.search(_plain(column)) is not None
    if not values or (_NO_TIME_NAME.search(column) and not is_called_so):
        return None
    whole = [value.removesuffix(".0") for value in values]
    if all(value.isdigit() for value in whole):
        lengths = {len(value) for value in whole}
        forms = _DIGITS.get(next(iter(lengths)), ()) if len(lengths) == 1 else ()
        for form in forms:
            enough = is_called_so or (len(values) >= _FEW and len(whole[0]) > 6)
            if enough and all(_fits(value, form) for value in whole):
                return Moments({"time_format": form})
    numbers = [float(value.replace(",", ".")) for value in values]
    low, high = min(numbers), max(numbers)
    is_running = len(numbers) >= 20 and _is_sorted(numbers)
    for unit, scale in _UNITS:
        if low >= _EARLIEST * scale and high < _LATEST * scale:
            is_long = scale > 1 and len(numbers) >= 20  # other numbers so long would not all lie in these years
            return Moments({"time_unit": unit}) if is_called_so or is_running or is_long else None
    has_days = any(not number.is_integer() for number in numbers) or "date" in column.lower()
    if low >= _EXCEL[0] and high < _EXCEL[1] and is_called_so and has_days:
        return Moments({"time_unit": "excel"})
    return None


def are_numbers(values: Sequence[str]) -> bool:
    """Whether all values are written as numbers, whatever their decimal mark."""
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def read_texts(values: Sequence[str]) -> Moments | None:
    """How texts (different ones, in order of appearance) are read as moments by `time_format`; None if they are none."""
    shapes: dict[str, list[tuple[int, int, int]]] = {}
    for value in values:
        shape = _shape(value)
        if shape is None or (shape[0] not in shapes and len(shapes) == _MOST_SHAPES):
            return None
        shapes.setdefault(shape[0], []).append(shape[1])
    order, doubt = _order(
        [fields for fields_of_shape in shapes.values() for fields in fields_of_shape if fields[0]], list(shapes)
    )
    if order is None:
        return None
    forms = [_ordered(shape, order) for shape in shapes]
    forms.sort(key=len, reverse=True)
    years = [_year(fields, order) for fields_of_shape in shapes.values() for fields in fields_of_shape if fields[0]]
    if years and not (min(years) >= _FIRST_YEAR and max(years) < _LAST_YEAR):
        return None
    return Moments({"time_format": forms[0] if len(forms) == 1 else forms}, doubt)


def read_joined(dates: Sequence[str], date_keys: dict[str, Any], clocks: Sequence[str]) -> dict[str, Any] | None:
    """How a date and a clock, joined by a space, are read; `date_keys` are the date's. None where they do not go together."""
    forms = {_clock_form(clock) for clock in clocks}
    if len(forms) != 1 or None in forms:
        return None
    clock = str(next(iter(forms)))
    date_form = date_keys.get("time_format")
    if date_form is None and not date_keys:
        shapes = {shape[0] for value in dates if (shape := _shape(value)) is not None}
        date_form = next(iter(shapes)) if len(shapes) == 1 else None
        if clock in {"%H:%M", "%H:%M:%S"} and date_form == "%Y-%m-%d":
            return {}
    if not isinstance(date_form, str) or any(mark in date_form for mark in ("%H", "%I", "@")):
        return None
    return {"time_format": f"{date_form} {clock}"}


def is_clock(values: Sequence[str], column: str) -> bool:
    """Whether values are times of a day without the day: 06:30, or hours from 0 to 23 in a column that is called so."""
    if values and all(_CLOCK_ALONE.fullmatch(value) for value in values):
        return True
    called = re.search(r"hour|(^|_)(hr|hh)($|_)|小时|时段", column.lower()) is not None
    return called and bool(values) and all(value.isdigit() and len(value) <= 2 and int(value) < 24 for value in values)


def is_day(values: Sequence[str], keys: dict[str, Any]) -> bool:
    """Whether moments so read are days without a clock."""
    forms = keys.get("time_format")
    if forms is not None:
        return not any(mark in form for form in ([forms] if isinstance(forms, str) else forms) for mark in ("%H", "%I"))
    return not keys and all(re.fullmatch(r"\d{4}-\d{1,2}-\d{1,2}", value) for value in values)


def _plain(column: str) -> str:
    """Words of a name in lower case, apart: clickTime is click_time."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()


def _fits(value: str, form: str) -> bool:
    fields, start = {}, 0
    for mark in re.findall("%.", form):
        fields[mark] = int(value[start : start + _LENGTHS[mark]])
        start += _LENGTHS[mark]
    year = fields["%Y"] if "%Y" in fields else 2000 + fields["%y"]
    latest = _LAST_YEAR if "%Y" in fields else 2040
    clock = fields.get("%H", 0) < 24 and fields.get("%M", 0) < 60 and fields.get("%S", 0) < 60
    return _FIRST_YEAR <= year < latest and 1 <= fields["%m"] <= 12 and 1 <= fields["%d"] <= 31 and clock


def _is_sorted(numbers: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(numbers)) or all(a >= b for a, b in pairwise(numbers))


def _shape(value: str) -> tuple[str, tuple[int, int, int]] | None:
    """The format of one value, with @a, @b, @c for fields whose order is open, and these fields (0 where all are known)."""
    rest, form = value.strip(), ""
    if _C_TIME.fullmatch(rest):
        named = "%z " if "+" in rest or "-" in rest else "%Z " if len(rest.split()) == 6 else ""
        return f"%a %b %d %H:%M:%S {named}%Y", (0, 0, 0)
    weekday = _WEEKDAY.match(rest)
    if weekday:
        form, rest = ("%A" if weekday["full"] else "%a"), rest[weekday.end() :]
        gap = re.match(r",? +", rest)
        if gap is None:
            return None
        form, rest = form + gap[0], rest[gap.end() :]
    for pattern in _DATES:
        date = pattern.match(rest)
        if date is not None:
            break
    else:
        return None
    form, rest = form + _date_form(date), rest[date.end() :]
    groups = date.groupdict()
    fields = (int(groups["a"]), int(groups["b"]), int(groups["c"])) if groups.get("a") else (0, 0, 0)
    if not groups.get("a") and len(groups["Y"]) == 4 and not _FIRST_YEAR <= int(groups["Y"]) < _LAST_YEAR:
        return None
    if not rest:
        return form, fields
    gap = re.match(r"T|,? +|:|_|-|", rest)
    form, rest = form + (gap[0] if gap else ""), rest[gap.end() if gap else 0 :]
    for pattern in _CLOCKS:
        clock = pattern.match(rest)
        if clock is not None:
            break
    else:
        return None
    form, rest = form + _clock_of(clock), rest[clock.end() :]
    if rest:
        zone = _ZONE.fullmatch(rest)
        if zone is None:
            return None
        form += zone["space"] + ("%z" if zone["offset"] else "Z" if zone["name"] == "Z" else "%Z")
    return form, fields


def _date_form(date: re.Match[str]) -> str:
    form = date[0]
    groups = date.groupdict()
    if groups.get("a"):
        return f"@a{groups['s']}@b{groups['s']}@c{len(groups['c'])}"
    if groups.get("name"):
        month = "%b" if len(groups["name"]) == 3 else "%B"
        year = "%Y" if len(groups["Y"]) == 4 else "%y"
        gap = groups["s"]
        if form.startswith(groups["name"]):
            return f"{month}{gap}%d{groups['t']}{year}"
        return (
            f"{year}{gap}{month}{gap}%d"
            if form.startswith(groups["Y"]) and len(groups["Y"]) == 4
            else f"%d{gap}{month}{gap}{year}"
        )
    if groups["s"] == "年":
        return "%Y年%m月%d日"
    return f"%Y{groups['s']}%m{groups['s']}%d"


def _clock_of(clock: re.Match[str]) -> str:
    groups = clock.groupdict()
    noon = groups.get("p")
    hour = "%I" if noon else "%H"
    end = (" " if noon.startswith(" ") else "") + "%p" if noon else ""
    if groups.get("h"):
        return f"{hour}{groups['h']}%M分" + ("%S秒" if groups.get("S") else "")
    if "M" not in groups:
        return hour + end
    gap = ":" if ":" in clock[0] else ""
    second = f"{gap}%S" if groups.get("S") else ""
    fraction = ("." + ("%n" if len(groups["f"]) > 7 else "%f")) if groups.get("f") else ""
    return f"{hour}{gap}%M{second}{fraction}{end}"


def _clock_form(value: str) -> str | None:
    for pattern in (_CLOCKS[0], _CLOCKS[3]):
        clock = pattern.fullmatch(value.strip())
        if clock is not None:
            return _clock_of(clock)
    return None


def _order(fields: Sequence[tuple[int, int, int]], shapes: Sequence[str]) -> tuple[str | None, str]:
    """Which of three numbers is what (dmy, mdy or ymd; None where they are no dates), and what is not sure about it."""
    if not fields:
        return "dmy", ""
    first, second, third = ([field[place] for field in fields] for place in range(3))
    is_year_last = any("@c4" in shape for shape in shapes)
    orders = []
    for order in ("dmy", "mdy") if is_year_last else ("dmy", "mdy", "ymd"):
        limits = {"d": 31, "m": 12, "y": 9999}
        if all(
            1 <= value <= limits[mark] for mark, column in zip(order, (first, second, third), strict=True) for value in column
        ):
            orders.append(order)
    if len(orders) > 1 and "ymd" in orders and max(third) <= 31 and len({*first}) <= 2 < len({*third}):
        return "ymd", ""
    orders = [order for order in orders if order != "ymd"] or orders
    if len(orders) < 2:
        return (orders[0] if orders else None), ""
    mark = next((shape[shape.index("@a") + 2] for shape in shapes if "@a" in shape), "/")
    if mark == ".":
        return "dmy", ""
    days = {order: [_day(field, order) for field in fields] for order in orders}
    running = [order for order in orders if len({*days[order]}) >= _FEW and _is_sorted(days[order])]
    if len(running) == 1:
        return running[0], ""
    is_american = mark == "/"
    order, other = ("mdy", "dmy") if is_american else ("dmy", "mdy")
    words = {"mdy": "month first", "dmy": "day first"}
    cure = f'`time_format: "{_ordered(shapes[0], other)}"` reads it {words[other]}'
    return order, f"no day above 12 says whether day or month comes first: read as {words[order]}; {cure}"


def _day(field: tuple[int, int, int], order: str) -> int:
    value = dict(zip(order, field, strict=True))
    return (value["y"] * 100 + value["m"]) * 100 + value["d"]


def _year(field: tuple[int, int, int], order: str) -> int:
    year = dict(zip(order, field, strict=True))["y"]
    return year + (0 if year >= 100 else 2000 if year < 69 else 1900)


def _ordered(shape: str, order: str) -> str:
    long_year = "%Y" if "@c4" in shape else "%y"
    marks = {"d": "%d", "m": "%m", "y": long_year}
    for place, field in zip(("@a", "@b"), order, strict=False):
        shape = shape.replace(place, marks[field])
    return re.sub(r"@c[24]", marks[order[2]], shape)
