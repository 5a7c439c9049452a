"""What is taken for a moment, and what only looks like one."""

import pytest

from adrec.explore.look.moments import is_clock, read_joined, read_numbers, read_texts


@pytest.mark.parametrize(
    ("values", "column", "keys"),
    [
        (["14102100", "14102101"], "hour", {"time_format": "%y%m%d%H"}),
        (["2031051306", "2031051307"], "shown_at", {"time_format": "%Y%m%d%H"}),
        (["1511180400", "1511180401"], "ts", {"time_unit": "seconds"}),
        (["1624843756147"], "showTime", {"time_unit": "milliseconds"}),
        (["47980.25", "47981.5"], "date", {"time_unit": "excel"}),
        ([str(20310501 + day) for day in range(9)], "x", {"time_format": "%Y%m%d"}),
        (["1511180400", "1511180401"], "campaign", None),
        ([str(1511180400 + n) for n in range(500)], "campaign_id", None),
        (["1511180400", "1602345678", "1511180400"], "item", None),
        (["1000014754", "1000014755"], "userId", None),
        (["15706", "15704"], "C14", None),
        (["45000", "47000"], "price", None),
        (["141021", "141022"], "zip", None),
    ],
)
def test_numbers_are_moments_only_where_they_run_or_are_called_like_them(values, column, keys):
    found = read_numbers(values, column)
    assert (found.keys if found else None) == keys


@pytest.mark.parametrize(
    "values", [["192.168.0.1"], ["1.2.3"], ["12 13 14"], ["5/6/7"], ["40.13.2031"], ["99/99/2031"], ["Tuesday"], ["12.5"]]
)
def test_texts_that_look_a_little_like_dates_are_none(values):
    assert read_texts(values) is None


def test_the_whole_column_decides_whether_the_day_comes_first():
    assert read_texts(["01/02/2031", "27/02/2031"]).keys == {"time_format": "%d/%m/%Y"}
    assert read_texts(["01/02/2031", "02/27/2031"]).keys == {"time_format": "%m/%d/%Y"}
    assert read_texts(["13/02/2031", "02/27/2031"]) is None
    running = ["01/02/2031", "02/02/2031", "05/02/2031", "09/02/2031", "01/03/2031", "02/03/2031"]
    found = read_texts(running)  # in time order if the day comes first, and in no order if the month does
    assert found.keys == {"time_format": "%d/%m/%Y"} and not found.doubt


def test_what_nothing_decides_is_said_with_the_key_that_turns_it_around():
    found = read_texts(["01/02/2031", "05/02/2031", "03/04/2031"])
    assert found.keys == {"time_format": "%m/%d/%Y"}
    assert 'read as month first; `time_format: "%d/%m/%Y"` reads it day first' in found.doubt
    assert not read_texts(["01.02.2031", "03.04.2031"]).doubt, "nobody writes the month first between points"


def test_a_day_and_a_clock_of_their_own_are_one_moment():
    assert read_joined(["2031-05-13"], {}, ["06:00"]) == {}
    assert read_joined(["13.05.2031"], {"time_format": "%d.%m.%Y"}, ["6:00:01 PM"]) == {"time_format": "%d.%m.%Y %I:%M:%S %p"}
    assert read_joined(["20310513"], {"time_format": "%Y%m%d"}, ["6", "17"]) == {"time_format": "%Y%m%d %H"}
    assert read_joined(["2031-05-13"], {}, ["soon"]) is None
    assert is_clock(["0", "23"], "hour") and not is_clock(["0", "24"], "hour") and not is_clock(["0", "23"], "age")
