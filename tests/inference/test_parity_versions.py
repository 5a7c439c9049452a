"""What changes of ads and users is known as of the row: in preprocess, score, the ranker and the server alike."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_parity import (
    QUIET,
    SPLIT,
    TRAINING,
    answers_agree,
    asked,
    assert_same_inputs,
    engine_over,
    score_agrees,
    trained_rows,
)

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.rank import Policy
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.inference.known import known_of
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.requests import split_requests
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import open_source
from adrec.sample import generate_sample
from adrec.schema import SPLITS
from adrec.serve.intake.messages import AdIn, EventIn, ExplainRequest, ScoreRequest, UserIn
from adrec.stages.data import preprocess
from adrec.stages.training import finetune

COUNTERS = [
    "usual",
    {"by": ["tier"], "measures": ["rate", "impressions"]},
    {"by": ["age_band", "category"], "measures": ["rate"]},
    {"by": ["user", "tier"], "measures": ["impressions"]},
]
FEATURES = {
    "impressions": {"numeric": ["counter_*", {"column": "history_length", "transform": "log1p"}], "categorical": ["scenario"]},
    "ads": {
        "numeric": [{"column": "price*", "missing_indicator": True}],
        "categorical": ["category", "language", "tier"],
        "lists": [{"column": "badges", "separator": "|", "min_count": 1}],
    },
    "users": {"categorical": ["age_band"]},
}
KEPT = ("user_id", "ad_id", "shown_at", "request_id", "scenario")
VERSIONED = ("ad@price", "ad@tier", "ad@badges", "user@age_band")


def make_raw(folder):
    """The sample with versions: prices of most ads change twice, some ads are not known before a moment; so ages."""
    generate_sample(folder, impressions=4000, seed=3)
    rng = np.random.default_rng(0)
    log = pq.read_table(folder / "impressions").drop_columns(["position"])
    ads, users = pq.read_table(folder / "ads.parquet").drop_columns(["price"]), pq.read_table(folder / "users.parquet")
    ends = pc.min_max(log["shown_at"].cast(pa.int64())).as_py()
    span = ends["max"] - ends["min"]

    def versions(table, share, make):
        parts = []
        for number, (low, high) in enumerate(((-0.1, 0.2), (0.3, 0.6), (0.6, 1.2))):
            rows = np.flatnonzero(rng.random(len(table)) < (1.0 if number == 0 else share))
            moment = (ends["min"] + span * rng.uniform(low, high, len(rows))).astype(np.int64)
            since = pa.array(moment, pa.int64(), mask=(rng.random(len(rows)) < 0.6) & (number == 0))
            part = make(table.take(pa.array(rows)), number)
            parts.append(part.append_column("known_from", since.cast(pa.timestamp("us", "UTC"))))
        table = pa.concat_tables(parts)
        return table.take(pa.array(rng.permutation(len(table))))

    def priced(table, number):
        price = rng.integers(1, 50, len(table)).astype(float) + 100 * number
        table = table.append_column("price", pa.array(price, mask=rng.random(len(table)) < 0.1))
        table = table.append_column("tier", pa.array(rng.choice(["low", "mid", "high"], len(table))))
        table = table.append_column("price_fixed", pa.array(np.arange(len(table)) * 0.0 + 1))
        return table.append_column("badges", pa.array(rng.choice(["new|sale", "sale", "new"], len(table))))

    def aged(table, number):
        if number == 0:
            return table
        at = table.column_names.index("age_band")
        return table.set_column(at, "age_band", pa.array(rng.choice(["18-24", "25-34", "65+"], len(table))))

    return log, versions(ads, 0.7, priced), versions(users, 0.5, aged)


def known_at(versions, key, column, who, moment):
    """Brute force: the value of the newest version at or before the moment."""
    rows = [row for row in versions if row[key] == who]
    rows = [row for row in rows if row["known_from"] is None or row["known_from"] <= moment]
    if not rows:
        return None
    return max(rows, key=lambda row: (row["known_from"] is not None, row["known_from"] or 0))[column]


def as_lists(table, key, columns):
    table = table.select([key, "known_from", *columns])
    moments = table["known_from"].cast(pa.int64())
    return table.set_column(1, "known_from", moments).to_pylist()


def joined_rows(log, ads, users):
    """One wide table: each row carries what its ad and user were like then; some cells say nothing."""
    of_ad = {}
    for row in as_lists(ads, "ad_id", ["price", "tier", "badges"]):
        of_ad.setdefault(row["ad_id"], []).append(row)
    of_user = {}
    for row in as_lists(users, "user_id", ["age_band"]):
        of_user.setdefault(row["user_id"], []).append(row)
    fixed = {row["ad_id"]: row for row in ads.select(["ad_id", "title", "category", "advertiser_id"]).to_pylist()}
    columns = {name: [] for name in ("price", "tier", "badges", "age_band", "title", "category", "advertiser_id")}
    for row in log.set_column(log.column_names.index("shown_at"), "shown_at", log["shown_at"].cast(pa.int64())).to_pylist():
        for name in ("price", "tier", "badges"):
            columns[name].append(known_at(of_ad[row["ad_id"]], "ad_id", name, row["ad_id"], row["shown_at"]))
        columns["age_band"].append(
            known_at(of_user.get(row["user_id"], []), "user_id", "age_band", row["user_id"], row["shown_at"])
        )
        for name in ("title", "category", "advertiser_id"):
            columns[name].append(fixed[row["ad_id"]][name])
    for name, values in columns.items():
        log = log.append_column(name, pa.array(values))
    return log.append_column("price_fixed", pa.array(np.ones(len(log))))


def prepare(folder, output, files, **changes):
    source = {"format": "tables", **{name: {"files": str(file)} for name, file in files.items()}}
    config = {
        "output": output, "source": source, "tokenizer": {"kind": "none"}, "counters": COUNTERS, "features": FEATURES,
        "split": SPLIT, "ad_columns": ["price", "price_fixed"], "history": {"max_clicks": 20, "max_skipped": 5}, **changes,
    }  # fmt: skip
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    return open_prepared(output)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module", params=["tables", "wide"])
def world(request, raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    log, ads, users = raw
    tables = {"ads": ads, "users": users, "impressions": log}
    if request.param == "wide":
        tables = {"impressions": joined_rows(log, ads, users)}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    files = {name: folder / f"{name}.parquet" for name in tables}
    prepared = prepare(folder, folder / "prepared", files)
    training = {"prepared": str(prepared.path), "output": str(folder / "bundle"), **TRAINING}
    training["model"] = {**TRAINING["model"], "user": {**TRAINING["model"]["user"], "search": "none"}}  # no category here
    finetune.run(FinetuneConfig.model_validate(training), QUIET)
    return folder, prepared, Predictor.load(folder / "bundle", device="cpu"), files, request.param


def all_rows(prepared):
    return pa.concat_tables([pa.Table.from_batches(list(prepared.iter(split))) for split in SPLITS])


def test_rows_know_the_version_of_their_moment(world, raw):
    _, prepared, _, _, kind = world
    table = all_rows(prepared)
    assert set(VERSIONED) <= set(table.column_names)
    features = prepared.features()
    assert set(VERSIONED) <= set(features["impressions"].columns)
    assert "price" not in features["ads"].columns
    # Where an ad is shown before anything is known of it, all of its columns change.
    assert ("price_fixed" in features["ads"].columns) == ("ad@price_fixed" not in table.column_names) == (kind == "wide")
    assert features["users"].columns == []
    log, ads, users = raw
    started = {}
    for cells in table.select(["request_id", "shown_at"]).set_column(1, "at", table["shown_at"].cast(pa.int64())).to_pylist():
        started[cells["request_id"]] = min(started.get(cells["request_id"], cells["at"]), cells["at"])
    moments = [started[request] for request in table["request_id"].to_pylist()]
    for source, key, names in ((ads, "ad_id", ("price", "tier", "badges")), (users, "user_id", ("age_band",))):
        versions = {}
        for row in as_lists(source, key, names):
            versions.setdefault(row[key], []).append(row)
        for name in names:
            found = table[f"{key[:-3]}@{name}"].to_pylist()
            expected, before = [], {}
            for who, moment in zip(table[key].to_pylist(), moments, strict=True):
                value = known_at(versions.get(who, []), key, name, who, moment)
                if kind == "wide":  # a missing cell says nothing
                    value = before[who] = before.get(who) if value is None else value
                expected.append(value)
            assert found == expected
            assert len(set(found)) > 2


def test_counters_by_a_versioned_column_count_the_value_of_each_event(world):
    _, prepared, *_ = world
    table = all_rows(prepared)
    columns = table.select(["request_id", "shown_at", "user_id", "ad@tier", "counter_tier_impressions"]).to_pylist()
    for row in columns[100::97]:
        before = [one for one in columns if one["shown_at"] < row["shown_at"] and one["request_id"] != row["request_id"]]
        expected = sum(one["ad@tier"] == row["ad@tier"] for one in before) if row["ad@tier"] else 0
        assert row["counter_tier_impressions"] == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_score_of_own_rows(world, tmp_path, split):
    folder, prepared, predictor, *_ = world
    table, examples, scores = trained_rows(prepared, predictor, split)
    score_agrees(folder, prepared, predictor, tmp_path, table.select(list(KEPT)), np.arange(len(table)), examples, scores.logit)


def test_ranker(world):
    _, prepared, predictor, *_ = world
    table, examples, scores = trained_rows(prepared, predictor)
    ads, users = prepared.ads(), prepared.users()
    catalogs = predictor.catalogs(ads, users)
    ranker = Ranker(predictor, catalogs, ads, users, {"default": Policy()}, known=known_of(prepared, catalogs.ad_table))
    done = 0
    for whole in split_requests(prepared, "test", batch_rows=400):
        bare = whole.select(["user_id", "request_id", "user_index", "shown_at", "scenario"])
        for requests in (ranker.attached(bare), whole):  # a table of requests, and requests of the split
            own = predictor.examples_of(requests)
            place = pc.index_in(table["request_id"], value_set=whole["request_id"].combine_chunks())
            here = np.flatnonzero(pc.is_valid(place).to_numpy(zero_copy_only=False))
            row = place.take(pa.array(here)).to_numpy().astype(np.int64)
            pairs = ranker.pairs(requests, own, row, examples.ad_index[here].astype(np.int64))
            assert_same_inputs(pairs, examples.take(here))
            found = predictor.score_examples(pairs, catalogs, baselines=False)
            np.testing.assert_allclose(found.logit, scores.logit[here], atol=1e-6)
        done += len(here)
    assert done == len(table)


def test_server(world, tmp_path):
    folder, prepared, predictor, *_ = world
    table, _, scores = trained_rows(prepared, predictor)
    table = table.drop_columns(["query"]) if "query" in table.column_names else table
    engine = engine_over(folder, prepared, tmp_path)
    requests = pc.rank(table["shown_at"], tiebreaker="dense").to_numpy()
    for number in np.unique(requests)[::40]:
        answers_agree(engine, table, scores, np.flatnonzero(requests == number))
    cells = table.slice(11, 1).to_pylist()[0]
    item = ExplainRequest(
        user=UserIn(user_id=cells["user_id"]), ad_id=cells["ad_id"], shown_at=cells["shown_at"], scenario=cells["scenario"]
    )
    assert engine.explain(item).logit == pytest.approx(float(scores.logit[11]), abs=1e-5)


def test_what_a_request_or_a_change_says_goes_before_what_was_known(world, tmp_path):
    folder, prepared, predictor, *_ = world
    table, _, _ = trained_rows(prepared, predictor)
    engine = engine_over(folder, prepared, tmp_path)
    spoken = pc.is_valid(table["user@age_band"]).to_numpy(zero_copy_only=False)
    row = int(np.flatnonzero(spoken)[0])
    cells = table.slice(row, 1).to_pylist()[0]

    def band_of(user):
        rows = asked(table, [row])
        live = engine.live
        _, catalogs = live.catalogs([user])
        attributes = live.ranker.known.attributes
        moment = np.array([int(cells["shown_at"].timestamp() * 1e6)])
        zero = np.zeros(1, np.int64)
        found = attributes.columns(
            ["user@age_band"], ads=live.ranker.catalogs.ad_table, users=catalogs.user_table, ad=zero, user=zero, moments=moment
        )
        assert np.isfinite(engine.score([ScoreRequest(rows=rows, users=[user])])[0]["rows"][0]["logit"])
        return found["user@age_band"].to_pylist()

    assert band_of(UserIn(user_id=cells["user_id"])) == [cells["user@age_band"]]
    assert band_of(UserIn(user_id=cells["user_id"], features={"age_band": "said"})) == ["said"]
    engine.put_ad(cells["ad_id"], AdIn(title="Another", category=None))
    live = engine.live
    found = live.ranker.known.attributes.columns(
        ["ad@price"], ads=live.ranker.catalogs.ad_table, users=live.users.slice(0, 1), user=np.zeros(1, np.int64),
        ad=np.array([live.place(cells["ad_id"])]), moments=np.array([int(cells["shown_at"].timestamp() * 1e6)]),
    )  # fmt: skip
    assert found["ad@price"].to_pylist() == live.ads["price"].take([live.place(cells["ad_id"])]).to_pylist()


def test_live_events_count_under_the_version_of_their_moment(world, raw, tmp_path):
    folder, whole, predictor, files, _ = world
    table, _, scores = trained_rows(whole, predictor)
    table = table.drop_columns(["query"]) if "query" in table.column_names else table
    log = pq.read_table(files["impressions"])
    if "ads" not in files:
        pytest.skip("a wide log's rows bring versions that no event does")
    pq.write_table(log.filter(pc.less(log["shown_at"], table["shown_at"][0])), tmp_path / "earlier.parquet")
    prepared = prepare(folder, tmp_path / "prepared", {**files, "impressions": tmp_path / "earlier.parquet"})
    engine = engine_over(folder, prepared, tmp_path)
    requests = pc.rank(table["shown_at"], tiebreaker="dense").to_numpy()
    for number in np.unique(requests)[:60]:
        rows = np.flatnonzero(requests == number)
        if number % 10 == 1:
            answers_agree(engine, table, scores, rows)
        for cells in table.take(pa.array(rows)).to_pylist():
            told = {name: cells[name] for name in ("user_id", "ad_id", "scenario", "request_id")} | {"at": cells["shown_at"]}
            engine.record([EventIn(kind=kind, **told) for kind in ("impression", *(["click"] if cells["click"] else []))])


def test_own_tables_say_what_ads_and_users_are_like_at_any_moment(world, tmp_path):
    folder, prepared, predictor, *_ = world
    table, *_ = trained_rows(prepared, predictor)
    pq.write_table(table.select(list(KEPT)), tmp_path / "rows.parquet")
    ads = prepared.ads()
    own = ads.set_column(ads.column_names.index("price"), "price", pa.array(np.full(len(ads), 7.0)))
    pq.write_table(own, tmp_path / "ads.parquet")
    numeric = {}
    for name, more in (("own", {"prepared": str(prepared.path)}), ("alone", {})):
        config = {
            "bundle": str(folder / "bundle"), "ads": str(tmp_path / "ads.parquet"),
            "impressions": str(tmp_path / "rows.parquet"),
            "output": str(tmp_path / "scored.parquet"), **more,
        }  # fmt: skip
        source = open_source(ScoreConfig.model_validate(config), predictor)
        at = predictor.packed.features["impressions"].numeric_names.index("ad@price")
        numeric[name] = np.concatenate([chunk.examples.numeric[:, at] for chunk in source.chunks()])
        assert len(np.unique(numeric[name])) == 1
    np.testing.assert_array_equal(numeric["own"], numeric["alone"])


def test_rows_stay_what_they_are_where_a_later_version_is_unknown(world, raw, tmp_path):
    """Deleting what became known after a moment changes no row before it."""
    folder, prepared, _, files, kind = world
    table = all_rows(prepared)
    moment = table["shown_at"][len(table) * 2 // 3]
    tables = {name: pq.read_table(file) for name, file in files.items()}
    column = "shown_at" if kind == "wide" else "known_from"
    for name, cut in tables.items():
        if column in cut.column_names:
            keep = pc.fill_null(pc.less(cut[column], moment), True)
            if kind == "wide":  # the rows stay, what they say of ads and users goes
                for wide in ("price", "tier", "badges", "age_band"):
                    at = cut.column_names.index(wide)
                    cut = cut.set_column(at, wide, pc.if_else(keep, cut[wide], pa.scalar(None, cut[wide].type)))
            else:
                cut = cut.filter(keep)
                lost = set(tables[name][f"{name[:-1]}_id"].to_pylist()) - set(cut[f"{name[:-1]}_id"].to_pylist())
                if lost:  # a key is known though nothing else is: its first version, later
                    gone = tables[name].filter(pc.is_in(tables[name][f"{name[:-1]}_id"], pa.array(sorted(lost))))
                    cut = pa.concat_tables([cut, gone])
        pq.write_table(cut, tmp_path / f"{name}.parquet")
    shorter = prepare(tmp_path, tmp_path / "prepared", {name: tmp_path / f"{name}.parquet" for name in tables})
    fewer = all_rows(shorter)
    before = pc.less(table["shown_at"], moment)
    compared = [name for name in table.column_names if name.startswith(("ad@", "user@")) or "tier" in name]
    for name in [*compared, "row_id", "history_length"]:
        assert fewer.filter(before)[name].to_pylist() == table.filter(before)[name].to_pylist(), name


def test_nothing_that_changes_nothing_is_written(raw, tmp_path):
    """Versions that say the same leave the folder byte for byte what it is without them."""
    log, ads, users = raw
    first = ads.filter(pc.is_null(ads["known_from"]))
    log = log.filter(pc.is_in(log["ad_id"], first["ad_id"].combine_chunks()))
    users = users.drop_columns(["known_from"]).group_by("user_id", use_threads=False).aggregate([("age_band", "first")])
    users = users.rename_columns(["user_id", "age_band"])
    again = first.set_column(first.column_names.index("known_from"), "known_from", pa.array([log["shown_at"][9]] * len(first)))
    folders = {}
    for name, table in (("plain", first.drop_columns(["known_from"])), ("versions", pa.concat_tables([first, again]))):
        for file, rows in (("ads", table), ("users", users), ("impressions", log)):
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(rows, tmp_path / name / f"{file}.parquet")
        files = {file: tmp_path / name / f"{file}.parquet" for file in ("ads", "users", "impressions")}
        folders[name] = prepare(tmp_path, tmp_path / name / "prepared", files).path
    listed = {
        name: {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
        for name, path in folders.items()
    }
    assert list(listed["plain"]) == list(listed["versions"])
    for file in listed["plain"]:
        if file in {"manifest.json", "config.yaml"}:
            continue
        assert listed["plain"][file].read_bytes() == listed["versions"][file].read_bytes(), file
    schemas = [json.loads(files["manifest.json"].read_text())["schema"] for files in listed.values()]
    assert schemas[0] == schemas[1]
