"""Negatives of logs that hold clicks alone: who may be drawn, how often, from what was known, and always the same."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError, DataError
from adrec.schema import SPLITS
from adrec.specs import usual_counters
from adrec.stages.data.preprocess import run
from adrec.terminal import Terminal

START = np.datetime64("2026-03-01T00:00:00", "us")
HOUR = np.timedelta64(3_600_000_000, "us")


def clicks(count=400, users=20, ads=12, seed=0, skew=0.0):
    """A log of clicks in order of time, an hour apart."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, ads + 1, dtype=float) ** -skew
    return pa.table(
        {
            "user_id": np.char.add("u", rng.integers(0, users, count).astype(str)),
            "ad_id": np.char.add("a", rng.choice(ads, count, p=share / share.sum()).astype(str)),
            "shown_at": pa.array(START + np.arange(count) * HOUR, pa.timestamp("us", "UTC")),
        }
    )


def catalogue(ads=12, **columns):
    ids = [f"a{number}" for number in range(ads)]
    return pa.table({"ad_id": ids, "title": [f"thing {name}" for name in ids], **columns})


def prepare(tmp_path, log, ads=None, *, name="prepared", **settings):
    """Preprocess `log` (a table, or several as files that grow) and give all rows back in order."""
    logs = log if isinstance(log, list) else [log]
    for number, table in enumerate(logs):
        pq.write_table(table, tmp_path / f"{name}-{number}.parquet")
    source = {"format": "tables", "impressions": {"files": str(tmp_path / f"{name}-*.parquet")}}
    if ads is not None:
        pq.write_table(ads, tmp_path / "ads.parquet")
        source["ads"] = {"files": str(tmp_path / "ads.parquet")}
    config = {
        "output": str(tmp_path / name), "source": source, "tokenizer": {"kind": "none"},
        "negatives": {"per_click": 4}, "counters": ["usual"], "split": {"method": "time", "test_from": "2026-03-02"},
        "features": {"impressions": {"numeric": ["counter_*"]}},
    }  # fmt: skip
    result = run(PreprocessConfig.model_validate({**config, **settings}), Terminal(quiet=True))
    folder = open_prepared(tmp_path / name)
    parts = [pa.Table.from_batches([batch]) for split in SPLITS for batch in folder.iter(split)]
    return pa.concat_tables(parts, promote_options="default"), folder, result


def _moments(values):
    return pa.array(np.array(values, "datetime64[us]"), pa.timestamp("us", "UTC"), mask=np.array([not v for v in values]))


def rows_of(table):
    return table.to_pandas()


def test_each_click_has_its_negatives_which_nobody_clicked_there(tmp_path):
    log = clicks()
    together = log.set_column(2, "shown_at", pa.array(START + (np.arange(400) // 2 * 2) * HOUR, pa.timestamp("us", "UTC")))
    together = together.set_column(0, "user_id", pa.array(np.repeat(log["user_id"].to_numpy()[::2], 2)))
    rows, folder, _ = prepare(tmp_path, together, catalogue())
    frame = rows_of(rows)
    assert folder.manifest["implicit"] is True
    assert (frame.click == ~frame.drawn).all()
    for _, request in frame.groupby("request_id"):
        clicked, drawn = request[~request.drawn].ad_id, request[request.drawn].ad_id
        assert drawn.is_unique and not set(drawn) & set(clicked)
        assert len(drawn) == 4 * clicked.nunique()
    assert not {"position", "propensity"} & set(rows.column_names)
    counts = frame[frame.drawn].ad_id.value_counts()
    expected = len(frame[frame.drawn]) / 12
    assert np.abs(counts / expected - 1).max() < 5 / np.sqrt(expected)


def test_a_small_catalogue_gives_what_it_has(tmp_path):
    rows, *_ = prepare(tmp_path, clicks(60, ads=3), catalogue(3))
    sizes = rows_of(rows).groupby("request_id").size()
    assert (sizes == 3).all()


def test_nothing_is_drawn_that_was_not_available(tmp_path):
    log = clicks(ads=6)
    begins = [None, None, "2026-03-05", None, None, None, "2026-03-06", "2026-03-06", None, None, None, None]
    ends = [None, None, None, None, None, None, None, "2026-03-08", "2026-03-02", None, None, None]
    rows, *_ = prepare(tmp_path, log, catalogue(starts_at=_moments(begins), ends_at=_moments(ends)))
    frame = rows_of(rows)
    drawn = frame[frame.drawn]
    for ad, begin, end in zip((f"a{n}" for n in range(12)), begins, ends, strict=True):
        shown = drawn[drawn.ad_id == ad].shown_at.dt.tz_localize(None)
        assert len(shown)
        assert begin is None or shown.min() >= np.datetime64(begin)
        assert end is None or shown.max() < np.datetime64(end)


def test_a_log_that_describes_its_ads_knows_each_after_its_first_click(tmp_path):
    log = clicks(ads=40)
    log = log.append_column("title", log["ad_id"])
    rows, _, result = prepare(tmp_path, log)
    frame = rows_of(rows)
    first = log.to_pandas().groupby("ad_id").shown_at.min()
    drawn = frame[frame.drawn]
    assert (drawn.shown_at > first.loc[drawn.ad_id].to_numpy()).all()
    alone = frame.groupby("request_id").size()
    assert (alone == 1).sum() == len(first)
    assert any("40 clicks are on ads that were not available before" in note for note in result.manifest["notes"])


@pytest.mark.parametrize("draw", ["uniform", "popularity"])
def test_reruns_appends_and_a_shorter_log_draw_the_same(tmp_path, draw):
    settings = {"negatives": {"per_click": 3, "draw": draw}, "append": "exact"}
    log = clicks(skew=1.0)
    whole, *_ = prepare(tmp_path, log, catalogue(), name="whole", **settings)
    again, *_ = prepare(tmp_path, log, catalogue(), name="again", **settings)
    assert whole.equals(again)
    prepare(tmp_path, log.slice(0, 360), catalogue(), name="grown", **settings)
    pieces = [log.slice(0, 360), log.slice(360)]
    grown, _, result = prepare(tmp_path, pieces, catalogue(), name="grown", **settings)
    assert result.done == "appended", result.why
    assert grown.drop_columns(["row_id"]).to_pylist() == whole.drop_columns(["row_id"]).to_pylist()
    # What comes later decides nothing of what was drawn, counted or remembered before.
    before, *_ = prepare(tmp_path, log.slice(0, 350), catalogue(), name="before", **settings)
    assert before.to_pylist() == whole.slice(0, len(before)).to_pylist()


def test_an_append_with_new_ads_is_a_rebuild(tmp_path):
    log = clicks()
    prepare(tmp_path, log.slice(0, 360), catalogue(), append="exact")
    _, _, result = prepare(tmp_path, [log.slice(0, 360), log.slice(360)], catalogue(14), append="exact")
    assert result.done == "built" and "negatives" in result.why
    prepare(tmp_path, log.slice(0, 360), catalogue(), append="fast", name="fast")
    _, _, result = prepare(tmp_path, [log.slice(0, 360), log.slice(360)], catalogue(14), append="fast", name="fast")
    assert result.done == "appended", result.why
    assert any("negatives" in line for line in result.manifest["kept"])


def test_popularity_is_that_of_the_moment(tmp_path):
    """All users click at one moment late in a skewed log: the shares of the ads are (clicks before + 1)^alpha."""
    log = clicks(300, ads=8, skew=1.5)
    late = pa.array(np.full(1500, START + 310 * HOUR), pa.timestamp("us", "UTC"))
    crowd = pa.table({"user_id": [f"v{n}" for n in range(1500)], "ad_id": ["a9"] * 1500, "shown_at": late})
    # Much later clicks on other ads, which nobody may know of.
    after = pa.table({"user_id": ["w"] * 200, "ad_id": ["a8"] * 200, "shown_at": pa.array(
        START + (320 + np.arange(200)) * HOUR, pa.timestamp("us", "UTC"))})  # fmt: skip
    settings = {"negatives": {"per_click": 1, "draw": "popularity", "alpha": 0.75}, "split": {"method": "time"}}
    rows, *_ = prepare(tmp_path, pa.concat_tables([log, crowd, after]), catalogue(10), **settings)
    frame = rows_of(rows)
    drawn = frame[frame.drawn & frame.user_id.str.startswith("v")].ad_id.value_counts()
    before = log.to_pandas().ad_id.value_counts()
    weight = np.array([(before.get(f"a{n}", 0) + 1) ** 0.75 for n in range(9)])  # a9 is the click
    expected = 1500 * weight / weight.sum()
    found = np.array([drawn.get(f"a{n}", 0) for n in range(9)])
    assert ((found - expected) ** 2 / expected).sum() < 26  # chi square of 8 degrees: 1 in 1,000
    assert "a9" not in drawn


def test_counters_and_histories_know_clicks_alone(tmp_path):
    log = clicks()
    rows, folder, _ = prepare(tmp_path, log, catalogue())
    frame, known = rows_of(rows), log.to_pandas()
    assert folder.counters() == usual_counters({"drawn", "title"})
    pick = frame.sample(60, random_state=0)
    for row in pick.itertuples():
        past = known[known.shown_at < row.shown_at]
        assert row.counter_ad_clicks == pytest.approx(np.log1p((past.ad_id == row.ad_id).sum()), rel=1e-6)
        mine = past[past.user_id == row.user_id]
        assert row.counter_user_clicks == pytest.approx(np.log1p(len(mine)), rel=1e-6)
        assert row.counter_user_x_ad_clicks == pytest.approx(np.log1p((mine.ad_id == row.ad_id).sum()), rel=1e-6)
        assert row.history_length == len(mine)
    assert folder.manifest["splits"]["train"]["clicks"] + folder.manifest["splits"]["test"]["clicks"] == 400


def test_rows_that_are_no_click_are_left_out_and_told(tmp_path):
    log = clicks()
    log = log.append_column("click", pa.array((np.arange(400) % 4 == 0).astype(np.int8)))
    rows, _, result = prepare(tmp_path, log, catalogue())
    assert rows_of(rows).click.sum() == 100
    assert any("300 rows whose click is not 1 are left out" in note for note in result.manifest["notes"])
    none = log.set_column(3, "click", pa.array(np.zeros(400, np.int8)))
    with pytest.raises(DataError, match="no row's click is 1"):
        prepare(tmp_path, none, catalogue(), name="none")


def test_clicks_alone_without_negatives_are_refused(tmp_path):
    log = clicks().append_column("click", pa.array(np.ones(400, np.int8)))
    with pytest.raises(DataError, match=r"every click is 1 \(400 of 400 rows\).*Set `negatives` in the config"):
        prepare(tmp_path, log, catalogue(), negatives=None, counters=[], features={})


def test_counters_of_what_was_shown_are_refused(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="'rate' needs to know what was shown"):
        prepare(tmp_path, clicks(), catalogue(), counters=[{"by": ["ad"], "measures": ["rate"]}])


def test_clicks_of_nobody_at_no_moment_draw_apart(tmp_path):
    log = pa.table({"ad_id": [f"a{n % 3}" for n in range(300)]})
    split = {"method": "random", "test_fraction": 0.2}
    rows, folder, _ = prepare(tmp_path, log, catalogue(30), split=split, counters=[], features={})
    frame = rows_of(rows)
    assert folder.manifest["repeated_clicks"] is None and len(frame) == 300 * 5
    drawn = frame[frame.drawn].groupby("request_id").ad_id.agg(lambda ads: tuple(sorted(ads)))
    assert drawn.nunique() > 200
    again, *_ = prepare(tmp_path, log, catalogue(30), split=split, counters=[], features={}, name="again")
    assert again.equals(rows)
    popular, *_ = prepare(
        tmp_path, log, catalogue(30), split=split, counters=[], features={}, name="popular",
        negatives={"per_click": 4, "draw": "popularity", "alpha": 1.0},
    )  # fmt: skip
    often = rows_of(popular).query("drawn").ad_id.isin(["a0", "a1", "a2"]).mean()
    assert 0.3 < often < 0.6  # two of three popular ads a request, which others are drawn before it
