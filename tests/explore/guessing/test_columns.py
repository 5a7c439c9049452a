"""What init makes of logs of every kind: columns by name and by what they hold, whose they are, what a row is."""

import csv
import re

import numpy as np
import pytest
import strangers

from adrec.explore import guess, look_at


def write(folder, tables):
    """CSV files as a spreadsheet would write them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return folder


def guessed(folder, tables, **said):
    return guess(look_at([write(folder, tables)]).tables, said)


def kept(found, role="impressions"):
    """The columns of a table that are used for nothing."""
    return {finding.column for finding in found.findings if finding.table == role and finding.meaning == "not used"}


EXPECTED = {
    "mobile_installs": (
        "impressions",
        {"click": "is_attributed", "shown_at": "click_time", "scenario": "channel"},
        {"impressions": ["ip", "app", "device", "os", "scenario"]},
    ),
    "ratings_with_items": (
        "ratings",
        {"user_id": "userId", "ad_id": "movieId", "rating": "rating", "shown_at": "timestamp"},
        {"ads": ["category"]},
    ),
    "shop_events": (
        "impressions",
        {
            "user_id": "user_id", "ad_id": "product_id", "click": "event_type", "shown_at": "event_time",
            "category": "category_code", "advertiser_id": "brand",
        },
        {"ads": ["price", "category", "advertiser_id"]},
    ),
    "event_log": ("events", {"user_id": "visitor", "ad_id": "creative_id", "shown_at": "ts"}, {}),
    "clicks_apart": (
        "events",
        {"user_id": "cookie", "ad_id": "banner_id", "shown_at": "served_at", "title": "headline", "request_id": "imp_id"},
        {"ads": ["banner"]},
    ),
    "report": (
        "counts",
        {
            "ad_id": "Headline", "title": "Headline", "impressions": "Impr.", "clicks": "Clicks", "spend": "Cost",
            "conversions": "Conversions", "shown_at": "Day",
        },
        {"impressions": ["Campaign", "Ad group"]},
    ),
    "headline_tests": (
        "counts",
        {"ad_id": "headline", "title": "headline", "impressions": "impressions", "clicks": "clicks"},
        {"impressions": ["clickability_test_id"]},
    ),
    "three_tables": (
        "impressions",
        {"user_id": "user", "ad_id": "adgroup_id", "click": "clk", "shown_at": "time_stamp"},
        {"impressions": ["pid"], "ads": ["price", "category", "advertiser_id"], "users": ["age_level", "occupation"]},
    ),
    "one_visit_a_person": (
        "impressions",
        {"user_id": "id", "click": "click"},
        {"impressions": ["device_type", "ad_position", "browsing_history", "time_of_day"], "users": ["age", "gender"]},
    ),
    "chinese": (
        "impressions",
        {
            "user_id": "用户编号", "ad_id": "创意ID", "click": "是否点击", "shown_at": "请求时间", "title": "广告标题",
            "advertiser_id": "品牌", "bid": "出价",
        },
        {"ads": ["bid", "advertiser_id"], "users": ["城市"]},
    ),
    "day_and_clock": (
        "impressions",
        {"user_id": "member_no", "ad_id": "advert", "click": "response", "shown_at": ["date", "time"]},
        {"ads": ["ad_colour"], "users": ["home_town"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_logs_of_every_kind(tmp_path, kind):
    shape, names, features = EXPECTED[kind]
    found = guessed(tmp_path, strangers.ALL[kind]())
    assert found.shape == shape
    assert found.names["impressions"] == names
    every = {role: [column for columns in kinds.values() for column in columns] for role, kinds in found.features.items()}
    assert {role: columns for role, columns in every.items() if columns} == features


def test_every_kind_has_an_expectation():
    assert set(EXPECTED) == set(strangers.ALL)


def test_two_moments_two_tables_and_their_join(tmp_path):
    found = guessed(tmp_path, strangers.clicks_apart())
    assert found.names["clicks"] == {"request_id": "imp_id", "ad_id": "banner_id", "clicked_at": "click_ts"}
    assert found.joined_on == {"clicks": ["request_id", "ad_id"]}
    log = guessed(tmp_path / "one", strangers.event_log())
    assert log.reading["impressions"] == {"leave_out": {"event": ["click"]}}
    assert log.reading["clicks"] == {"leave_out": {"event": ["impression"]}, "within": "30 minutes"}
    assert log.joined_on == {"clicks": ["user_id", "ad_id"]}


@pytest.mark.parametrize(
    ("yes", "no", "positive"),
    [
        ("Yes", "No", None), ("t", "f", None), ("TRUE", "FALSE", None), ("1.0", "0.0", None), ("1", "-1", ["1"]),
        ("Clicked", "Not clicked", ["Clicked"]), ("Bought", "Not Bought", ["Bought"]), ("click", "impression", ["click"]),
        ("已点击", "未点击", ["已点击"]), ("2", "1", ["2"]), ("converted", "none", ["converted"]),
    ],
)  # fmt: skip
def test_labels_in_words(tmp_path, yes, no, positive):
    base = strangers.base()
    label = np.where(base["click"] == 1, yes, no)
    found = guessed(tmp_path, {"log.csv": {"uid": base["user"], "sku": strangers.ids("s", base["ad"]), "was_clicked": label}})
    assert found.names["impressions"]["click"] == "was_clicked"
    assert found.reading["impressions"].get("positive") == ({"click": positive} if positive else None)


def test_a_flag_that_is_filled_only_where_clicked_is_empty_elsewhere(tmp_path):
    base = strangers.base()
    found = guessed(
        tmp_path, {"log.csv": {"uid": base["user"], "sku": base["ad"], "clicked": np.where(base["click"], "1", "")}}
    )
    assert found.shape == "impressions" and found.reading["impressions"]["defaults"] == {"click": 0}


def test_only_ones_are_clicks_alone_and_so_is_a_table_without_a_label(tmp_path):
    base = strangers.base()
    pair = {"uid": base["user"], "sku": base["ad"]}
    assert guessed(tmp_path / "a", {"log.csv": {**pair, "click": np.ones(900, int)}}).shape == "clicks"
    assert guessed(tmp_path / "b", {"orders.csv": {**pair, "order_date": strangers.text(base["time"])}}).shape == "clicks"
    shown = guessed(tmp_path / "c", {"impressions.csv": {**pair, "served_at": strangers.text(base["time"])}})
    assert shown.shape == "unlabelled" and "click" in {gap.canonical for gap in shown.gaps}


def test_a_gender_of_0_and_1_is_no_label(tmp_path):
    base = strangers.base()
    found = guessed(tmp_path, {"log.csv": {"uid": base["user"], "sku": base["ad"], "male": base["user"] % 2}})
    assert "click" not in found.names["impressions"]


@pytest.mark.parametrize("name", ["campaign_id", "brand_id", "advertiser_code", "phone_hash"])
def test_numbers_that_could_be_seconds_are_no_times(tmp_path, name):
    base = strangers.base()
    codes = 1_500_000_000 + base["ad"] * 86_400
    found = guessed(tmp_path, {"log.csv": {"uid": base["user"], "sku": base["ad"], name: codes, "clk": base["click"]}})
    assert "shown_at" not in found.names["impressions"]


def test_titles_are_words_that_all_rows_of_an_ad_share(tmp_path):
    base = strangers.base()
    log = {
        "uid": base["user"], "sku": base["ad"], "clk": base["click"],
        "home_city": np.where(base["user"] % 2, "New Harbour", "Old Mill Town"),
        "search_phrase": [" ".join(base["rng"].choice(strangers.WORDS, 5)) for _ in range(900)],
        "copy_line": base["title"], "when": strangers.text(base["time"], "%d.%m.%Y %H:%M:%S"),
    }  # fmt: skip
    names = guessed(tmp_path, {"log.csv": log}).names["impressions"]
    assert names["title"] == "copy_line" and names["shown_at"] == "when"
    del log["copy_line"]
    assert "title" not in guessed(tmp_path / "none", {"log.csv": log}).names["impressions"]


def test_what_gives_the_click_away_is_left_out_and_what_only_helps_is_not(tmp_path):
    base = strangers.base()
    yes, rng = base["click"] == 1, base["rng"]
    log = {
        "uid": base["user"], "sku": base["ad"], "clk": base["click"],
        "charged_amount": np.where(yes, rng.random(900) + 0.1, 0.0),
        "landing_variant": np.where(yes, rng.choice(["a", "b"], 900), ""),
        "status_code": np.where(yes, 302, 200), "engagement": np.where(yes, rng.random(900) + 5, rng.random(900)),
        "hint": rng.random(900) + 0.7 * yes,
    }  # fmt: skip
    found = guessed(tmp_path, {"log.csv": log})
    assert kept(found) == {"charged_amount", "landing_variant", "status_code", "engagement"}
    assert found.features["impressions"]["numeric"] == ["hint"]
    reasons = {finding.column: finding.why for finding in found.findings}
    assert "filled only where the ad was clicked" in reasons["charged_amount"]
    assert "tells the click by itself" in reasons["engagement"]


def test_row_numbers_constants_and_people_are_passed_over(tmp_path):
    base = strangers.base()
    log = {
        "": np.arange(900), "uid": base["user"], "sku": base["ad"], "clk": base["click"], "version": ["v1"] * 900,
        "note": [""] * 900, "e-mail": [f"p{n}@example.org" for n in base["user"]],
        "event_uuid": [f"{n:032x}" for n in base["rng"].permutation(900)],
    }  # fmt: skip
    found = guessed(tmp_path, {"log.csv": log})
    assert all(not columns for kinds in found.features.values() for columns in kinds.values())


def test_whose_a_column_is_needs_repeats(tmp_path):
    base = strangers.base(rows=400, users=4000, ads=30)
    log = {
        "uid": base["user"], "sku": base["ad"], "clk": base["click"], "v1": base["ad"] % 3,
        "v2": base["rng"].integers(0, 3, 400), "v3": base["user"] % 3,
    }  # fmt: skip
    found = guessed(tmp_path, {"log.csv": log})
    assert found.features["ads"]["categorical"] == ["v1"]
    # Hardly any user comes twice: nothing shows that v3 is theirs.
    assert found.features["impressions"]["categorical"] == ["v2", "v3"] or found.features["users"]["categorical"] == ["v3"]


def test_codes_and_measures_among_whole_numbers(tmp_path):
    base = strangers.base()
    rng = base["rng"]
    codes = ["C1", "C17", "site_code", "os", "weekday", "occupation", "zip"]
    measures = ["I1", "I2", "age", "num_visits", "days_active", "income", "screen_width"]
    log = {"clk": base["click"], **{name: rng.integers(0, 90, 900) for name in codes}}
    log |= {name: rng.poisson(30, 900) for name in measures} | {"I2": rng.integers(0, 4, 900)}
    found = guessed(tmp_path, {"log.csv": log})
    assert set(found.features["impressions"]["categorical"]) == set(codes)
    assert set(found.features["impressions"]["numeric"]) == set(measures)


def test_positions_from_zero_are_said_and_positions_in_words_are_categories(tmp_path):
    base = strangers.base()
    log = {"uid": base["user"], "sku": base["ad"], "clk": base["click"], "position": base["slot"]}
    assert guessed(tmp_path / "a", {"log.csv": log}).reading["impressions"]["first_position"] == 0
    log["position"] = base["slot"] + 1
    assert "first_position" not in guessed(tmp_path / "b", {"log.csv": log}).reading["impressions"]
    log["position"] = base["rng"].choice(["top", "side"], 900)
    found = guessed(tmp_path / "c", {"log.csv": log})
    assert found.names["impressions"]["own_position"] == "position"
    assert found.features["impressions"]["categorical"] == ["own_position"]


def test_what_the_user_says_goes_first_and_null_means_none(tmp_path):
    base = strangers.base()
    log = {"uid": base["user"], "sku": base["ad"], "clk": base["click"], "ip": base["user"] % 50, "shop": base["ad"] % 7}
    found = guessed(tmp_path, {"log.csv": log}, ad_id=["shop", "sku"], user_id=None)
    assert found.names["impressions"] == {"ad_id": ["shop", "sku"], "click": "clk"}
    assert {gap.canonical for gap in found.gaps} == {"shown_at", "title"}


def test_a_single_user_and_a_shared_device_name_nobody(tmp_path):
    base = strangers.base()
    one = guessed(tmp_path / "a", {"log.csv": {"user_id": ["all"] * 900, "sku": base["ad"], "clk": base["click"]}})
    assert one.names["impressions"] == {"ad_id": "sku", "click": "clk", "own_user_id": "user_id"}
    device = np.where(base["rng"].random(900) < 0.7, "unknown", strangers.ids("d", base["user"]))
    shared = guessed(tmp_path / "b", {"log.csv": {"device_id": device, "sku": base["ad"], "clk": base["click"]}})
    assert "user_id" not in shared.names["impressions"]
    assert next(gap for gap in shared.gaps if gap.canonical == "user_id").candidates == ("device_id",)


def test_histories_are_lists_of_ads(tmp_path):
    base = strangers.base()
    past = ["^".join(str(n) for n in base["rng"].integers(0, 40, size)) for size in base["rng"].integers(0, 5, 900)]
    log = {"uid": base["user"], "sku": base["ad"], "clk": base["click"], "click_sequence": past}
    assert guessed(tmp_path / "a", {"log.csv": log}).names["impressions"]["history"] == "click_sequence"
    log["click_sequence"] = [re.sub(r"(\d+)", r"9000\1", text) for text in past]  # of ads that this log never shows
    other = guessed(tmp_path / "b", {"log.csv": log})
    assert other.features["impressions"]["lists"] == ["click_sequence"]
