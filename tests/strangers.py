"""Made-up logs with the columns and habits of what people really have; each function gives tables by file name."""

import numpy as np

WORDS = ["amber", "basin", "cliff", "dune", "eagle", "fern", "glade", "heath", "islet", "knoll", "lagoon", "mesa"]
START = np.datetime64("2027-05-03T06:00:00", "s")


def base(rows=900, users=60, ads=40, seed=0, rate=0.2):
    """Who saw which ad when, whether it was clicked, and what belongs to ads and users."""
    rng = np.random.default_rng(seed)
    ad, user = rng.integers(0, ads, rows), rng.integers(0, users, rows)
    titles = np.array([" ".join(rng.choice(WORDS, 4)) for _ in range(ads)])
    moments = START + np.sort(rng.integers(0, 20 * 86_400, rows)).astype("timedelta64[s]")
    return {
        "rng": rng,
        "ad": ad,
        "user": user,
        "time": moments,
        "click": (rng.random(rows) < rate).astype(int),
        "title": titles[ad],
        "titles": titles,
        "brand": rng.integers(100, 112, ads)[ad],
        "price": np.round(rng.gamma(2, 20, ads), 2)[ad],
        "age": rng.integers(18, 70, users)[user],
        "city": rng.choice(["Lowmere", "Highford", "Eastwick"], users)[user],
        "device": rng.choice(["phone", "desktop", "tablet"], rows),
        "slot": rng.integers(0, 5, rows),
    }


def text(moments, form="%Y-%m-%d %H:%M:%S"):
    return [moment.astype(object).strftime(form) for moment in moments]


def ids(prefix, numbers):
    return [f"{prefix}{number}" for number in numbers]


def mobile_installs():
    """No user, no ad by name; whole-number codes; the label is an install and its moment is in the table."""
    b = base()
    done = b["click"] == 1
    return {
        "clicks_sample.csv": {
            "ip": b["rng"].integers(1, 800, 900),
            "app": b["rng"].integers(1, 30, 900),
            "device": b["rng"].integers(1, 4, 900),
            "os": b["rng"].integers(1, 18, 900),
            "channel": b["rng"].integers(100, 140, 900),
            "click_time": text(b["time"]),
            "attributed_time": [when if yes else "" for when, yes in zip(text(b["time"]), done, strict=True)],
            "is_attributed": b["click"],
        }
    }


def ratings_with_items():
    b = base()
    return {
        "ratings.csv": {
            "userId": b["user"] + 1,
            "movieId": b["ad"] + 1,
            "rating": b["rng"].choice([1, 2, 3, 3.5, 4, 5], 900),
            "timestamp": b["time"].astype(np.int64),
        },
        "movies.csv": {
            "movieId": np.arange(40) + 1,
            "title": b["titles"],
            "genres": np.where(np.arange(40) % 2, "Drama|War", "Comedy|Kids"),
        },
        "tags.csv": {"userId": [1, 2, 2], "movieId": [1, 1, 2], "tag": ["slow", "dull", "fine"]},
        "links.csv": {"movieId": np.arange(40) + 1, "imdbId": np.arange(40) + 113_000},
    }


def shop_events():
    """Views, carts and purchases, a row each: nothing says what was shown."""
    b = base()
    return {
        "2027-May.csv": {
            "event_time": text(b["time"], "%Y-%m-%d %H:%M:%S UTC"),
            "event_type": b["rng"].choice(["view", "cart", "purchase"], 900, p=[0.8, 0.12, 0.08]),
            "product_id": b["ad"] + 44_600_000,
            "category_code": np.where(b["ad"] % 2, "apparel.shoes", "kitchen.kettle"),
            "brand": ids("brand", b["brand"]),
            "price": b["price"],
            "user_id": b["user"] + 541_312_000,
            "user_session": [f"{n:032x}" for n in b["rng"].integers(0, 2**40, 900)],
        }
    }


def event_log():
    """Impressions and clicks are rows of their own in one file."""
    b = base()
    clicked = np.flatnonzero(b["click"])
    order = np.argsort(np.concatenate([b["time"], b["time"][clicked] + 9]), kind="stable")
    both = {
        "ts": np.concatenate([b["time"], b["time"][clicked] + 9]),
        "visitor": np.concatenate([b["user"], b["user"][clicked]]),
        "creative_id": np.concatenate([b["ad"], b["ad"][clicked]]),
        "event": np.array(["impression"] * 900 + ["click"] * len(clicked)),
    }
    return {
        "events.csv": {
            "ts": text(both["ts"][order]),
            "visitor": ids("v", both["visitor"][order]),
            "creative_id": ids("cr", both["creative_id"][order]),
            "event": both["event"][order],
        }
    }


def clicks_apart():
    b = base()
    clicked = np.flatnonzero(b["click"])
    return {
        "ad_impressions.csv": {
            "imp_id": ids("i", np.arange(900)),
            "cookie": ids("c", b["user"]),
            "banner": ids("b", b["ad"]),
            "banner_id": b["ad"] + 500,
            "served_at": text(b["time"]),
            "headline": b["title"],
        },
        "ad_clicks.csv": {
            "imp_id": ids("i", clicked),
            "banner_id": b["ad"][clicked] + 500,
            "click_ts": text(b["time"][clicked] + 9),
        },
    }


def report():
    """What an ad network exports: an ad and day a row."""
    rng = np.random.default_rng(1)
    shown = rng.integers(50, 5_000, 300)
    return {
        "report.csv": {
            "Day": text(START + np.arange(300).astype("timedelta64[D]") // 10 * 10, "%Y-%m-%d"),
            "Campaign": ids("Spring ", rng.integers(1, 4, 300)),
            "Ad group": ids("Group ", rng.integers(1, 9, 300)),
            "Headline": [f"{WORDS[n % 12]} {WORDS[n % 7]} for you" for n in rng.integers(0, 30, 300)],
            "Impr.": shown,
            "Clicks": rng.binomial(shown, 0.03),
            "Cost": np.round(rng.random(300) * 40, 2),
            "Conversions": rng.integers(0, 3, 300),
        }
    }


def headline_tests():
    rng = np.random.default_rng(2)
    shown = rng.integers(900, 5_000, 240)
    return {
        "packages.csv": {
            "": np.arange(240),
            "clickability_test_id": [f"{n:024x}" for n in np.arange(240) // 4],
            "headline": [f"Why {WORDS[n % 12]} and {WORDS[n % 11]} are not {n}" for n in range(240)],
            "impressions": shown,
            "clicks": rng.binomial(shown, 0.02),
        }
    }


def three_tables():
    """Keys that are called otherwise in each table, and the click's opposite beside it."""
    b = base()
    first = np.array([np.flatnonzero(b["ad"] == n)[0] for n in range(40)])
    person = np.array([np.flatnonzero(b["user"] == n)[0] for n in range(60)])
    return {
        "raw_sample.csv": {
            "user": b["user"] + 7_000,
            "time_stamp": b["time"].astype(np.int64),
            "adgroup_id": b["ad"] + 300,
            "pid": ids("4305_", b["slot"]),
            "nonclk": 1 - b["click"],
            "clk": b["click"],
        },
        "ad_feature.csv": {
            "adgroup_id": np.arange(40) + 300,
            "cate_id": b["brand"][first] % 5,
            "brand": b["brand"][first],
            "price": b["price"][first],
        },
        "user_profile.csv": {
            "userid": np.arange(60) + 7_000,
            "age_level": b["age"][person] // 10,
            "occupation": b["user"][person] % 2,
        },
    }


def one_visit_a_person():
    """No ad; a person's name, places and a slot in words, none of which is a title."""
    b = base(users=300)
    return {
        "ad_click_dataset.csv": {
            "id": b["user"],
            "full_name": ids("Ann Lee ", b["user"]),
            "age": b["age"],
            "gender": np.where(b["user"] % 2, "Female", "Male"),
            "device_type": b["device"],
            "ad_position": b["rng"].choice(["Top", "Side", "Bottom"], 900),
            "browsing_history": b["rng"].choice(["Shopping", "News", "Education"], 900),
            "time_of_day": b["rng"].choice(["Morning", "Night"], 900),
            "click": b["click"],
        }
    }


def chinese():
    b = base()
    return {
        "日志.csv": {
            "用户编号": ids("u", b["user"]),
            "创意ID": ids("c", b["ad"]),
            "请求时间": text(b["time"]),
            "广告标题": [f"夏季 {t} 限时优惠" for t in b["title"]],
            "品牌": ids("品牌", b["brand"]),
            "出价": b["price"],
            "是否点击": np.where(b["click"] == 1, "是", "否"),
            "城市": b["city"],
        }
    }


def day_and_clock():
    b = base()
    return {
        "log.csv": {
            "member_no": b["user"],
            "advert": ids("x", b["ad"]),
            "date": text(b["time"], "%Y-%m-%d"),
            "time": text(b["time"], "%H:%M:%S"),
            "response": np.where(b["click"] == 1, "1", "-1"),
            "ad_colour": np.array(["red", "green", "blue", "grey"])[b["ad"] % 4],
            "home_town": b["city"],
        }
    }


ALL = {
    function.__name__: function
    for function in (
        mobile_installs,
        ratings_with_items,
        shop_events,
        event_log,
        clicks_apart,
        report,
        headline_tests,
        three_tables,
        one_visit_a_person,
        chinese,
        day_and_clock,
    )
}
