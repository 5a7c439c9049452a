"""The gate: labels as of the cut, repeated rows, rows in two parts, histories taken after the fact."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from raw_worlds import START, prepare, rows, tables, write

from adrec.data.batches.dataset import Sampling, StreamedPlan
from adrec.data.examples import load_examples
from adrec.data.labels import LabelCut, labels_as_of

HOUR = 3_600_000_000
SPLIT = {"method": "time", "valid_from": "2026-03-03", "test_from": "2026-03-04"}


def put(folder, made):
    for name, table in made.items():
        write(table, folder / f"{name}.parquet")


def moments(table):
    return table["shown_at"].cast(pa.int64()).to_numpy()


def with_conversions(seed=0):
    """Half of the clicks convert, up to three days later; clicks have a moment too, up to a day later."""
    made = tables(seed, requests=200)
    log = made["impressions"]
    rng = np.random.default_rng(seed)
    clicked = log["click"].to_numpy() == 1
    converted = clicked & (rng.random(len(log)) < 0.5)
    for name, happened, most in (("clicked_at", clicked, 24), ("converted_at", converted, 72)):
        moment = moments(log) + rng.integers(0, most * HOUR, len(log))
        log = log.append_column(name, pa.array(moment, mask=~happened).cast(pa.timestamp("us", "UTC")))
    made["impressions"] = log.append_column("conversion", pa.array(converted).cast(pa.int8()))
    return made


def known(found, part, label, column, cut):
    """What a trainer knew of the label at the cut, row by row."""
    table = found.filter(pc.equal(found["split"], part))
    late = np.array([moment is not None and moment >= cut for moment in table[column].to_pylist()])
    return np.where(late, 0, table[label].to_numpy())


def test_training_reads_labels_as_they_were_when_the_next_part_began(tmp_path):
    put(tmp_path, with_conversions())
    history = {"clicked_at": "clicked_at", "converted_at": "converted_at"}
    prepared, result = prepare(tmp_path, split=SPLIT, history=history, features={})
    table = rows(prepared)
    valid_from, test_from = (datetime(2026, 3, day, tzinfo=UTC) for day in (3, 4))
    of_train = load_examples(prepared, "train", cut=prepared.label_cut(["train"]))
    for label, column in (("click", "clicked_at"), ("conversion", "converted_at")):
        expected = known(table, "train", label, column, valid_from)
        assert of_train.labels[label].tolist() == expected.tolist()
        final = load_examples(prepared, "train").labels[label]
        assert 0 < final.sum() - expected.sum() == result.manifest["immature"]["train"][label]["rows"]
        assert final.sum() == result.manifest["immature"]["train"][label]["of"]
    both = load_examples(prepared, "train", "valid", cut=prepared.label_cut(["train", "valid"]))
    expected = [known(table, part, "conversion", "converted_at", test_from) for part in ("train", "valid")]
    assert both.labels["conversion"].tolist() == np.concatenate(expected).tolist()
    assert prepared.label_cut(["train", "valid", "test"]) is None
    immature = result.manifest["immature"]["train"]["conversion"]
    said = f"{immature['rows']:,} of {immature['of']:,} conversions of training rows happened at or after 2026-03-03 00:00 UTC"
    assert any(said in str(line) for line in result.render())


def test_streamed_training_rows_have_the_same_labels(tmp_path):
    put(tmp_path, with_conversions(1))
    history = {"clicked_at": "clicked_at", "converted_at": "converted_at"}
    prepared, _ = prepare(tmp_path, split=SPLIT, history=history, features={})
    cut = prepared.label_cut(["train"])
    labels = ("click", "conversion")
    plan = StreamedPlan(
        prepared, ["train"], lambda examples, *_: examples, sampling=Sampling("click", negative_rate=0.5), batch_rows=10_000,
        seed=0, shuffle_rows=10_000, max_history=5, labels=labels, cut=cut,
    )  # fmt: skip
    streamed, whole = plan.read(plan.plan(0)[0].groups), load_examples(prepared, "train", cut=cut)
    for label in labels:
        assert streamed.labels[label].tolist() == whole.labels[label].tolist()
    clicks = whole.labels["click"].sum()
    assert plan.rows == pytest.approx(clicks + 0.5 * (len(whole) - clicks)), "what is drawn goes by the labels as of the cut"


@pytest.mark.parametrize(
    "split", [{"method": "random"}, {"method": "user", "test_fraction": 0.4}, {"method": "leave_last_out"}]
)
def test_a_split_that_is_not_in_time_order_has_no_cut(tmp_path, split):
    put(tmp_path, with_conversions())
    prepared, result = prepare(tmp_path, split=split, history={"converted_at": "converted_at"}, features={})
    assert (result.manifest["cuts"], result.manifest["immature"]) == ({}, {})
    assert prepared.label_cut(["train"]) is None


def test_labels_as_of_leaves_the_rest_alone():
    cut = LabelCut(datetime(2026, 3, 3, tzinfo=UTC), {"conversion": "at", "click": "absent"})
    at = pa.array(
        [START.item(), datetime(2026, 3, 3), datetime(2026, 3, 9), None, datetime(2026, 3, 9)], pa.timestamp("us", "UTC")
    )
    table = pa.table(
        {"conversion": pa.array([1, 1, None, 1, 0], pa.int8()), "at": at, "click": pa.array([1, 1, 1, 1, 1], pa.int8())}
    )
    found = labels_as_of(table, cut)
    assert found["conversion"].to_pylist() == [1, 0, None, 1, 0]
    assert found["conversion"].type == pa.int8() and found["click"].equals(table["click"])
    assert labels_as_of(table, None) is table


def messages(result):
    return {finding["kind"]: finding for finding in result.manifest["findings"]}


def test_repeats_are_counted(tmp_path):
    made = tables(0)
    log = made["impressions"]
    put(tmp_path, made)
    clean = prepare(tmp_path)[1]
    assert not messages(clean), "rows of a clean log are not told"
    made["impressions"] = pa.concat_tables([log, log.slice(0, 7), log.slice(0, 2)])
    put(tmp_path, made)
    found = messages(prepare(tmp_path)[1])
    count = log.num_rows + 9
    assert (found["repeats"]["rows"], found["repeats"]["of"]) == (9, count)
    assert f"9 of {count:,} rows repeat an earlier row exactly" in found["repeats"]["message"]


def test_another_slot_or_label_is_no_repeat(tmp_path):
    made = tables(0)
    log = made["impressions"]
    again = log.slice(0, 5).set_column(5, "position", pa.array([20 + at for at in range(5)], pa.int32()))
    made["impressions"] = pa.concat_tables([log, again])
    put(tmp_path, made)
    assert not messages(prepare(tmp_path)[1])


def test_rows_in_two_parts_are_counted(tmp_path):
    made = tables(0)
    log = made["impressions"].drop_columns(["request_id"])
    made["impressions"] = pa.concat_tables(
        [
            log.append_column("side", pa.array(["train"] * log.num_rows)),
            log.slice(0, 6).append_column("side", pa.array(["test"] * 6)),
        ]
    )
    put(tmp_path, made)
    split = {"method": "column", "column": "side", "in_time_order": False}
    found = messages(prepare(tmp_path, split=split)[1])
    assert (found["shared_rows"]["rows"], found["shared_rows"]["of"]) == (6, 6)
    assert "training rows too" in found["shared_rows"]["message"]


@pytest.mark.parametrize("kind", ["true", "own", "all"])
def test_histories_taken_after_the_fact_are_told(tmp_path, kind):
    made = tables(0, requests=150, ads=60, slots=96)
    log = made["impressions"].sort_by("shown_at")
    user, ad, click = (log[name].to_pylist() for name in ("user_id", "ad_id", "click"))
    everything = {one: sorted({a for u, a, c in zip(user, ad, click, strict=True) if u == one and c}) for one in set(user)}
    past, given = {}, []
    for number, one in enumerate(user):
        before = [a for a in past.get(one, []) if a != ad[number]]
        given.append({"true": before, "own": [*before, *([ad[number]] if click[number] else [])], "all": everything[one]}[kind])
        if click[number]:
            past.setdefault(one, []).append(ad[number])
    made["impressions"] = log.append_column("history", pa.array(given, pa.list_(pa.string())))
    put(tmp_path, made)
    found = messages(prepare(tmp_path)[1])
    assert ("history_after_the_fact" in found) == (kind != "true")
    if kind != "true":
        assert "Set history.source to clicks" in found["history_after_the_fact"]["message"]
        assert not messages(prepare(tmp_path, history={"source": "clicks"})[1])


def test_what_is_found_is_in_the_manifest_and_said_again(tmp_path, capsys):
    made = tables(0)
    made["impressions"] = pa.concat_tables([made["impressions"], made["impressions"].slice(0, 3)])
    put(tmp_path, made)
    for done in ("built", "unchanged"):
        prepared, result = prepare(tmp_path)
        assert result.done == done
        lines = [line for line in capsys.readouterr().err.splitlines() if "repeat" in line]
        assert len(lines) == 1 and lines[0].startswith("warning: 3 of ")
    assert json.loads((prepared.path / "manifest.json").read_text())["findings"][0]["rows"] == 3


def later_world(folder, *, starts=None):
    """Ads a12 to a14 are first shown on the third day, and so are queries that begin with `late`."""
    made = tables(3, requests=120)
    log = made["impressions"]
    day = (moments(log) - START.astype(np.int64)) // (24 * HOUR)
    late = np.isin(log["ad_id"].to_numpy(zero_copy_only=False), ["a12", "a13", "a14"])
    log = log.filter(pa.array(~late | (day >= 2)))
    day = (moments(log) - START.astype(np.int64)) // (24 * HOUR)
    queries = [f"late shoes {number % 3}" if after else f"shoes {number % 4}" for number, after in enumerate(day >= 2)]
    made["impressions"] = log.append_column("query", pa.array(queries))
    extra = pa.table({"ad_id": ["never"], "title": ["Catalogue words only"], "category": ["news"]})
    made["ads"] = pa.concat_tables([made["ads"], extra])
    if starts is not None:
        made["ads"] = made["ads"].append_column("starts_at", pa.array(starts, pa.timestamp("us", "UTC")))
    put(folder, made)
    return made


def test_texts_that_exist_only_after_the_cut_are_held_out(tmp_path):
    made = later_world(tmp_path)
    prepared, _ = prepare(tmp_path, split=SPLIT, tokenizer={"kind": "wordpiece", "vocab_size": 300})
    corpus = prepared.corpus().to_pylist()
    late = {text["text"] for text in corpus if text["later"]}
    by_id = dict(zip(prepared.ads()["ad_id"].to_pylist(), prepared.ads()["text"].to_pylist(), strict=True))
    shown = dict.fromkeys(made["impressions"]["ad_id"].to_pylist())
    assert {by_id[one] for one in ("a12", "a13", "a14") if one in shown} | {f"late shoes {n}" for n in range(3)} == late
    assert by_id["never"] not in late, "a line of the catalogue that nobody dated"
    assert all(text["held_out"] for text in corpus if text["later"])
    assert any(not text["held_out"] for text in corpus)
    words = json.loads((prepared.path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "shoes" in words and "late" not in words
    assert prepared.later(pa.array([by_id["a12"], by_id["never"]])).to_pylist() == [True, False]


def test_an_ad_that_started_before_the_cut_was_known_and_one_that_starts_after_it_was_not(tmp_path):
    day = {number: datetime(2026, 3, number, tzinfo=UTC) for number in (1, 9)}
    starts = [None] * 12 + [day[1], day[9], None, day[9]]
    later_world(tmp_path, starts=starts)
    prepared, _ = prepare(tmp_path, split=SPLIT)
    table = prepared.ads()
    late = dict(zip(table["ad_id"].to_pylist(), prepared.later(table["text"].combine_chunks()).to_pylist(), strict=True))
    assert {one for one, is_late in late.items() if is_late} == {"a13", "a14", "never"}


def test_without_time_order_no_text_is_later(tmp_path):
    later_world(tmp_path)
    prepared, _ = prepare(tmp_path, split={"method": "random"})
    assert not any(prepared.corpus()["later"].to_pylist())
    assert not any(prepared.later(prepared.ads()["text"].combine_chunks()).to_pylist())


@pytest.mark.parametrize("split", [SPLIT, {"method": "random"}])
def test_a_wide_table_gives_ads_and_users_their_latest_value_before_the_cut(tmp_path, split):
    made = tables(5, requests=150)
    log = made["impressions"]
    rng = np.random.default_rng(5)
    bid = pa.array(rng.integers(1, 100, len(log)).astype(float), mask=rng.random(len(log)) < 0.3)
    band = pa.array(rng.choice(["young", "old", None], len(log)).tolist(), pa.string())
    title = pc.binary_join_element_wise("Offer", log["ad_id"], " ")
    log = log.append_column("title", title).append_column("bid", bid).append_column("band", band)
    log = log.take(rng.permutation(len(log)))
    write(log, tmp_path / "log.parquet")
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "log.parquet")}}
    prepared, _ = prepare(tmp_path, source=source, features={}, counters=[], user_columns=["band"], split=split)
    cut = datetime(2026, 3, 3, tzinfo=UTC)
    for table, key, column in ((prepared.ads(), "ad_id", "bid"), (prepared.users(), "user_id", "band")):
        expected = {}
        for number, row in enumerate(log.select([key, "shown_at", column]).to_pylist()):
            if row[column] is not None:
                known = (split != SPLIT or row["shown_at"] < cut, row["shown_at"], number)
                expected[row[key]] = max(expected.get(row[key], ((False,), None)), (known, row[column]))
        found = dict(zip(table[key].to_pylist(), table[column].to_pylist(), strict=True))
        assert found == {one: expected[one][1] if one in expected else None for one in found}
