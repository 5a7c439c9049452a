"""The small logs that the pages of docs name in their commands."""

import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

START = datetime(2026, 3, 1, 8)
WORDS = ("red shoes for runners", "warm blue jacket", "strong coffee beans", "light travel bag", "green tea from hills")


def write_logs(folder: Path) -> None:
    """Every file, in `folder`."""
    random = np.random.default_rng(0)
    ads = [f"ad{number}" for number in range(20)]
    titles = {ad: f"{WORDS[number % 5]} number {number}" for number, ad in enumerate(ads)}

    def shown(requests: int, start: datetime):
        for request in range(requests):
            user = int(random.integers(0, 40))
            moment = start + timedelta(minutes=7 * request)
            for slot, place in enumerate(random.permutation(len(ads))[:4]):
                clicked = random.random() < (0.5 if place % 5 == user % 5 else 0.1)
                yield {
                    "impression_id": f"i{start.day}-{request}-{slot}", "user": f"u{user}", "creative_id": ads[place],
                    "time": moment.strftime("%d/%m/%Y %H:%M"), "headline": titles[ads[place]], "slot": slot + 1,
                    "clicked": "Yes" if clicked else "No",
                }  # fmt: skip

    log = list(shown(400, START))
    save(folder / "log.csv", log)
    save(folder / "tomorrow.csv", [{k: v for k, v in row.items() if k != "clicked"} for row in shown(30, START + timedelta(2))])
    save(folder / "impressions.csv", [{key: value for key, value in row.items() if key != "clicked"} for row in log])
    clicks = [row for row in log if row["clicked"] == "Yes"]
    save(folder / "clicks.csv", [{"impression_id": row["impression_id"], "click_time": row["time"]} for row in clicks])
    save(
        folder / "purchases.csv",
        [{"customer_id": row["user"], "product_id": row["creative_id"], "bought_at": row["time"]} for row in clicks],
    )
    save(folder / "products.csv", [{"product_id": ad, "product_name": title} for ad, title in titles.items()])
    save(folder / "ratings.csv", [
        {"user_id": row["user"], "movie_id": row["creative_id"], "rating": int(random.integers(3, 6)), "timestamp": row["time"]}
        for row in log
    ])  # fmt: skip
    counts = []
    for day in range(14):
        for number, ad in enumerate(ads):
            seen = int(random.integers(200, 900))
            counts.append({
                "Ad ID": ad, "Day": f"2026-03-{day + 1:02d}", "Ad name": titles[ad], "Impressions": seen,
                "Clicks": int(random.binomial(seen, 0.01 + 0.005 * (number % 5))), "Amount spent": round(seen / 90, 2),
            })  # fmt: skip
    save(folder / "report.csv", counts)
    table = []
    for _ in range(600):
        banner, age = f"b{random.integers(0, 6)}", int(random.integers(18, 70))
        chance = 0.1 + 0.5 * (banner in {"b1", "b2"}) + 0.005 * (age - 18)
        table.append({"age": age, "banner": banner, "device": f"d{random.integers(0, 3)}", "y": int(random.random() < chance)})
    save(folder / "table.csv", table)


def save(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
