"""Sources: MIND, RecBole, Open Bandit and Criteo files as they are given, on small files made here, and on real ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from raw_worlds import prepare, rows, tables, write

from adrec.errors import AdrecError, DataError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
ALL = {"method": "time", "valid_fraction": 0, "test_fraction": 0}
PLAIN = {"counters": [], "features": {}, "split": {"method": "time", "valid_fraction": 0, "test_fraction": 0.3}}


def test_mind_files(tmp_path):
    news = [
        "N1\tsports\tfootball\tCup final\tWho won\thttps://x\t[]\t[]",
        'N2\tnews\tworld\tA "quoted title\t\thttps://x\t[]\t[]',
        "N3\tnews\tworld\tThird\tText\thttps://x\t[]\t[]",
    ]
    behaviors = [
        "7\tU1\t11/11/2019 9:05:58 AM\tN1 N9 N2\tN1-0 N2-1 N3-0",
        "5\tU2\t11/10/2019 11:00:00 PM\t\tN3-1",
        "6\tU1\t11/12/2019 12:00:01 PM\tN1 N9 N2\tN2-0",
    ]
    (tmp_path / "news.tsv").write_text("\n".join(news) + "\n")
    (tmp_path / "behaviors.tsv").write_text("\n".join(behaviors) + "\n")
    source = {"format": "mind", "behaviors": str(tmp_path / "behaviors.tsv"), "news": str(tmp_path / "news.tsv")}
    prepared, result = prepare(tmp_path, source=source, **PLAIN, ad_columns=["subcategory"])
    table = rows(prepared)
    assert table["request_id"].to_pylist() == ["5", "7", "7", "7", "6"]
    assert table["ad_id"].to_pylist() == ["N3", "N1", "N2", "N3", "N2"]
    assert table["click"].to_pylist() == [1, 0, 1, 0, 0]
    assert table["shown_at"][1].as_py().isoformat() == "2019-11-11T09:05:58+00:00"
    assert table["history_index"].to_pylist() == [[], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert prepared.ads()["title"].to_pylist()[1] == 'A "quoted title'
    assert prepared.ads()["text"].to_pylist()[1] == 'A "quoted title [SEP] news'
    assert prepared.ads()["subcategory"].to_pylist() == ["football", "world", "world"]
    assert result.manifest["history"]["unknown_items"] == 2
    assert "position" not in table.column_names, "MIND shuffles the candidates"


def test_mind_in_a_hundred_files_is_mind_in_one(tmp_path):
    (tmp_path / "news.tsv").write_text("N1\ta\tb\tt\tx\tu\t[]\t[]\nN2\ta\tb\tt\tx\tu\t[]\t[]\n")
    lines = [f"{n}\tU{n % 7}\t11/11/2019 9:{n % 60:02d}:58 AM\tN1\tN1-{n % 2} N2-0\n" for n in range(200)]
    (tmp_path / "all.tsv").write_text("".join(lines))
    (tmp_path / "cut").mkdir()
    for n in range(100):
        (tmp_path / "cut" / f"{n:02d}.tsv").write_text("".join(lines[2 * n : 2 * n + 2]))
    found = []
    for behaviors in ("all.tsv", "cut"):
        source = {"format": "mind", "behaviors": str(tmp_path / behaviors), "news": str(tmp_path / "news.tsv")}
        found.append(rows(prepare(tmp_path, source=source, **PLAIN)[0]))
    assert found[0].num_rows == 400
    assert found[0].equals(found[1])


def test_a_mind_candidate_without_a_label_or_ad(tmp_path):
    (tmp_path / "news.tsv").write_text("N1\ta\tb\tt\tx\tu\t[]\t[]\n")
    (tmp_path / "behaviors.tsv").write_text("7\tU1\t11/11/2019 9:05:58 AM\t\tN1-0 N1 N8-1\n8\tU1\tyesterday\t\tN1-0\n")
    source = {"format": "mind", "behaviors": str(tmp_path / "behaviors.tsv"), "news": str(tmp_path / "news.tsv")}
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, source=source, **PLAIN)
    text = str(caught.value)
    assert "behaviors.tsv: column 'ad_id', row 1: 'N8' is no ad's ad_id" in text
    assert "behaviors.tsv: column 'shown_at', row 2: 'yesterday' is not a timestamp" in text


def test_recbole_atomic_files(tmp_path):
    (tmp_path / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t100\n1\t11\t3\t200\n2\t10\t4\t300\n"
    )
    (tmp_path / "toy.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tToy Story\t1995\tAnimation Comedy\n11\tHeat\t1995\tAction\n"
    )
    (tmp_path / "toy.user").write_text("user_id:token\tage:float\tgender:token\n1\t24\tM\n2\t53\tF\n")
    source = {"format": "recbole", "folder": str(tmp_path)}
    prepared, _ = prepare(
        tmp_path,
        source=source,
        **{**PLAIN, "split": ALL, "features": {"users": {"numeric": ["age"], "categorical": ["gender"]}}},
        ad_columns=["release_year"],
    )
    table = rows(prepared)
    assert table["click"].to_pylist() == [1, 0, 1]
    assert table["rating"].to_pylist() == [5, 3, 4]
    assert [moment.timestamp() for moment in table["shown_at"].to_pylist()] == [100, 200, 300]
    assert prepared.ads()["title"].to_pylist() == ["Toy Story", "Heat"]
    assert prepared.ads()["category"].to_pylist() == ["Animation", "Action"]
    assert prepared.users()["age"].to_pylist() == [24, 53]
    assert prepared.users()["gender"].to_pylist() == ["M", "F"]


def test_open_bandit_files(tmp_path):
    profile = [f"user_feature_{n}" for n in range(4)]
    header = ",".join(["", "timestamp", "item_id", "position", "click", "propensity_score", *profile])
    log = [header, "0,2019-11-24 00:00:01.5+00:00,1,3,0,0.0125,a,b,c,d", "1,2019-11-24 00:00:02+00:00,0,1,1,0.25,a,b,c,d",
           "2,2019-11-24 00:00:02+00:00,0,2,0,0.5,a,b,c,e"]  # fmt: skip
    (tmp_path / "all.csv").write_text("\n".join(log) + "\n")
    items = [",item_id,item_feature_0,item_feature_1", "0,0,-0.5,red", "1,1,0.7,blue"]
    (tmp_path / "item_context.csv").write_text("\n".join(items) + "\n")
    prepared, _ = prepare(
        tmp_path,
        source={"format": "open_bandit", "folder": str(tmp_path)},
        **{**PLAIN, "split": ALL, "keep": ["user_feature_3"]},
    )
    table = rows(prepared)
    assert table["propensity"].to_pylist() == [0.0125, 0.25, 0.5]
    assert table["position"].to_pylist() == [3, 1, 2]
    users = table["user_id"].to_pylist()
    assert users[0] == users[1] != users[2]
    assert prepared.ads()["category"].to_pylist() == ["red", "blue"]
    assert table["user_feature_3"].to_pylist() == ["d", "d", "e"]


def test_criteo_lines(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        integers = ["" if rng.random() < 0.2 else str(int(rng.integers(-2, 900))) for _ in range(13)]
        hashes = ["" if rng.random() < 0.1 else f"{int(rng.integers(0, 6)):08x}" for _ in range(26)]
        lines.append("\t".join([str(number % 3 == 0 and 1 or 0), *integers, *hashes]))
    (tmp_path / "day_0.txt").write_text("\n".join(lines) + "\n")
    features = {"impressions": {"numeric": [{"column": "I1", "missing_indicator": True}], "hashed": ["C1", "C26"]}}
    prepared, _ = prepare(
        tmp_path,
        source={"format": "criteo", "files": str(tmp_path / "day_0.txt"), "seconds_per_row": 1.5},
        **{**PLAIN, "features": features},
    )
    table = rows(prepared)
    assert table.num_rows == 40
    assert [moment.timestamp() for moment in table["shown_at"].to_pylist()[:3]] == [1.5, 3.0, 4.5]
    assert table["click"].to_pylist() == [1 if number % 3 == 0 else 0 for number in range(40)]
    first = lines[0].split("\t")
    assert table["I1"][0].as_py() == (float(first[1]) if first[1] else None)
    assert table["C26"][0].as_py() == (first[-1] or None)
    assert table["ad_id"][0].as_py() == (first[13 + 3] or "none")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"format": "recbole", "folder": "."}, "no .inter file"),
        ({"format": "open_bandit", "folder": "."}, "expected one log"),
        ({"format": "criteo", "files": "log.txt", "ad_column": "C40"}, "none of C1 to C26"),
        ({"format": "criteo", "files": "log.txt"}, "no such file"),
        ({"format": "mind", "behaviors": "b.tsv", "news": "n.tsv"}, "no such file"),
    ],
)
def test_sources_that_are_not_there(tmp_path, source, words):
    with pytest.raises(AdrecError, match=words):
        prepare(tmp_path, source=source, **PLAIN)


needs_mind = pytest.mark.skipif(not (SHARED / "mind5k").is_dir(), reason="the MIND sample is not beside this checkout")


@needs_mind
def test_mind5k_figures(tmp_path):
    folder = (SHARED / "mind5k").resolve()
    source = {"format": "mind", "behaviors": str(folder / "behaviors.tsv"), "news": str(folder / "news.tsv")}
    split = {"method": "time", "valid_from": "2019-11-13 12:00:00", "test_from": "2019-11-14"}
    prepared, _ = prepare(tmp_path, source=source, counters=[], features={}, split=split, threads=0)
    manifest = prepared.manifest
    assert (manifest["requests"], manifest["rows"], manifest["clicks"]) == (5000, 189_359, 7542)
    assert (manifest["history"]["empty"], manifest["history"]["unknown_items"]) == (107, 0)
    assert manifest["source_rows"]["impressions"] == {"rows": 189_359, "rejected": 0}
    assert (manifest["users"], manifest["ads"]) == (4637, 51_282)
    assert manifest["splits"]["test"]["requests"] == 968


@needs_mind
def test_the_chinese_view_of_mind5k_says_what_it_resolves(tmp_path):
    folder = (SHARED / "mind5k").resolve()
    source = {
        "format": "mind",
        "behaviors": str(folder / "behaviors.tsv"),
        "news": str(folder / "news.tsv"),
        "translation": str(folder / "news_zh.tsv"),
    }
    prepared, result = prepare(
        tmp_path, source=source, counters=[], features={}, threads=0, validation={"max_rejected_fraction": 0.5},
        text={"ad_template": "{title}", "stop_words": False},
    )  # fmt: skip
    assert prepared.manifest["source_rows"]["impressions"] == {"rows": 189_359, "rejected": 85_880}
    history = prepared.manifest["history"]
    assert round(1 - history["unknown_items"] / history["items"], 3) == 0.991
    assert round(prepared.manifest["rows"] / 189_359, 3) == 0.546
    shown = "\n".join(str(part) for part in result.render())
    assert "99.1% of them are known ads" in shown
    assert "54.6% of them are known ads" in shown


def test_many_files_and_long_lines_fit_a_small_memory(tmp_path):
    """Every text file has a buffer from the start: sixty of them, and lines nearly as long as one."""
    made = tables(requests=120)
    log = made["impressions"]
    title = pa.array(
        [f"Offer {number % 7} " + "x" * 700_000 if number % 50 == 0 else "Offer" for number in range(log.num_rows)]
    )
    log = log.append_column("title", title)
    for number, start in enumerate(range(0, log.num_rows, 5)):
        write(log.slice(start, 5), tmp_path / "log" / f"{number:03d}.csv.gz")
    assert len(list((tmp_path / "log").iterdir())) > 50
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "log")}}
    prepared, _ = prepare(
        tmp_path, source=source, features={}, counters=[], split={"method": "user", "test_fraction": 0.4}, memory_limit_gb=0.15
    )
    assert prepared.manifest["rows"] == log.num_rows


def test_moments_of_clicks_in_text_files_are_moments(tmp_path):
    made = tables()
    log = made["impressions"]
    later = pc.add(log["shown_at"], pa.scalar(60_000_000, pa.duration("us")))
    log = log.append_column("clicked_at", pc.if_else(pc.equal(log["click"], 1), later, pa.scalar(None, later.type)))
    write(made["ads"], tmp_path / "ads.parquet")
    found = []
    for ending in ("parquet", "csv"):
        file = write(log, tmp_path / f"log.{ending}")
        source = {"format": "tables", "ads": {"files": str(tmp_path / "ads.parquet")}, "impressions": {"files": str(file)}}
        prepared, _ = prepare(
            tmp_path, source=source, features={}, history={"clicked_at": "clicked_at"}, output=str(tmp_path / ending)
        )
        found.append(rows(prepared))
    assert found[0].equals(found[1])
