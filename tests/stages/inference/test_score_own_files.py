"""A bundle reads new files of its log as preprocess read the log: names, separators, moments, words and roles go with it."""

import csv
import gzip
import io
import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import ConfigError, DataError, ResourceError
from adrec.stages.data import preprocess
from adrec.stages.inference import encode, explain, rank, score
from adrec.stages.training import finetune
from adrec.stages.writing import writing
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
START = datetime(2026, 3, 1, 8)
NAMES = ("person", "item no", "when", "clicked", "headline", "price", "shelf")
WORDS = np.array(["amber", "basin", "cliff", "dune", "eagle", "fern"])


def log(rows=400, seed=0):
    """A wide log in European writing: whole-number people, codes with leading zeros, labels in words."""
    rng = np.random.default_rng(seed)
    ads = rng.integers(0, 12, rows)
    titles = [" ".join(rng.permutation(WORDS)[:3]) for _ in range(12)]
    price = rng.gamma(2, 3, rows).round(2)
    click = rng.random(rows) < np.where(price > 6, 0.7, 0.1)
    moments = np.sort(rng.integers(0, 20 * 1440, rows))
    return [
        {
            "person": str(person), "item no": f"0{ad:02d}", "when": f"{START + timedelta(minutes=int(minute)):%d/%m/%Y %H:%M}",
            "clicked": "Yes" if hit else "No", "headline": titles[ad], "price": f"{cost:.2f}".replace(".", ","),
            "shelf": f"0{shelf}",
        }
        for person, ad, minute, hit, cost, shelf in zip(
            rng.integers(10**17, 10**17 + 30, rows), ads, moments, click, price, rng.integers(1, 4, rows), strict=True
        )
    ]  # fmt: skip


def write(rows, file, *, delimiter=";", names=None):
    """One file in the form that its name says, after the log's fashion."""
    names = list(rows[0]) if names is None else names
    rows = [{name: row[name] for name in names} for row in rows]
    plain = file.name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if plain.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        handle = io.StringIO()
        writer = csv.DictWriter(handle, names, delimiter="\t" if plain.endswith(".tsv") else delimiter)
        writer.writeheader()
        writer.writerows(rows)
        text = handle.getvalue()
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    rows = log()
    write(rows, folder / "log.csv")
    source = {
        "files": str(folder / "log.csv"), "delimiter": ";", "decimal": ",", "time_format": "%d/%m/%Y %H:%M",
        "columns": {"user_id": "person", "ad_id": "item no", "shown_at": "when", "click": "clicked", "title": "headline"},
        "positive": {"click": ["Yes"]},
    }  # fmt: skip
    features = {"impressions": {"numeric": ["counter_*", "price"], "categorical": ["shelf"]}}
    preprocess.run(
        PreprocessConfig.model_validate(
            {
                "output": folder / "prepared", "source": {"format": "tables", "impressions": source}, "features": features,
                "counters": "usual", "tokenizer": {"kind": "none"}, "split": {"method": "time", "test_fraction": 0.3},
            }
        ),
        QUIET,
    )  # fmt: skip
    training = [
        f"prepared={folder}/prepared", f"output={folder}/bundle", "text.reference=null", "text.lexical=0", "model.width=8",
        "training.epochs=1", "baselines.names=[]", "hybrid.kind=none",
    ]  # fmt: skip
    finetune.run(load_config(None, FinetuneConfig, training), QUIET)
    return folder, rows


def scored(trained, output, *settings):
    folder, _ = trained
    score.run(load_config(None, ScoreConfig, [f"bundle={folder}/bundle", f"output={output}", *settings]), QUIET)
    return pq.read_table(output)


def test_rows_of_the_log_score_as_their_prepared_rows_do(trained, tmp_path):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"prepared={folder}/prepared", "split=test")
    found = scored(trained, tmp_path / "b.parquet", f"prepared={folder}/prepared", f"impressions={folder}/log.csv")
    assert found.num_rows == len(rows)
    keyed = {
        (row["user_id"], row["ad_id"], row["shown_at"]): (row["logit"], row["click"], row["history_length"])
        for row in found.to_pylist()
    }
    for row in expected.to_pylist():
        logit, click, history = keyed[row["user_id"], row["ad_id"], row["shown_at"]]
        assert logit == pytest.approx(row["logit"], abs=1e-6)
        assert (click, history) == (row["click"], row["history_length"])


@pytest.mark.parametrize("name", ["new.csv", "new.csv.gz", "new.tsv", "new.jsonl", "new.parquet"])
def test_every_format_gives_the_same_scores(trained, tmp_path, name):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    write(rows, tmp_path / name)
    assert scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path / name}").equals(expected)


def test_order_extra_and_missing_columns_do_not_matter(trained, tmp_path):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    names = ["note", "price", "headline", "item no", "shelf", "when", "person"]
    write([{**row, "note": f"00{number}"} for number, row in enumerate(rows)], tmp_path / "new.csv", names=names)
    found = scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path}/new.csv")
    assert found["logit"].equals(expected["logit"])
    assert found["note"].to_pylist()[:2] == ["000", "001"]
    assert "click" not in found.column_names
    assert set(found.column_names[:7]) == {"note", "price", "title", "ad_id", "shelf", "shown_at", "user_id"}
    assert (found["ad_id"][0].as_py(), found["shelf"][0].as_py()) == (rows[0]["item no"], rows[0]["shelf"])
    write(rows, tmp_path / "less.csv", names=["person", "item no", "when", "headline"])
    assert np.isfinite(scored(trained, tmp_path / "c.parquet", f"impressions={tmp_path}/less.csv")["logit"].to_numpy()).all()


def test_canonical_names_and_types_are_read_too(trained, tmp_path):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    names = {"person": "user_id", "item no": "ad_id", "when": "shown_at", "headline": "title"}
    table = pa.Table.from_pylist([{names.get(name, name): value for name, value in row.items()} for row in rows])
    moments = pa.array([datetime.strptime(row["when"], "%d/%m/%Y %H:%M") for row in rows], pa.timestamp("ms", "UTC"))
    table = table.set_column(table.column_names.index("shown_at"), "shown_at", moments).drop_columns(["clicked"])
    people = pa.array([int(row["person"]) for row in rows], pa.int64())
    table = table.set_column(table.column_names.index("user_id"), "user_id", people)
    pq.write_table(table, tmp_path / "new.parquet")
    found = scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path}/new.parquet")
    assert found["logit"].equals(expected["logit"])
    assert found["user_id"].equals(expected["user_id"])


def test_a_column_of_another_name_is_named_on_the_spot(trained, tmp_path):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    write([{"visitor" if name == "person" else name: value for name, value in row.items()} for row in rows], tmp_path / "n.csv")
    with pytest.raises(DataError) as fault:
        scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path}/n.csv")
    assert str(fault.value).startswith(f"{tmp_path}/n.csv: column 'user_id' is missing. Columns: item no, when, clicked, ")
    assert str(fault.value).endswith("Say what it is called: `--set columns.user_id=NAME`.")
    found = scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path}/n.csv", "columns.user_id=visitor")
    assert found.equals(expected)
    config = load_config(
        None, ScoreConfig, [f"bundle={folder}/bundle", "output=x", "impressions.files=n.csv", "columns.ad_id=y"]
    )
    assert config.model_dump(mode="json")["impressions"] == {"files": str(Path.cwd() / "n.csv")}
    with pytest.raises(DataError, match="'nowhere' \\(for user_id\\) is missing"):
        scored(trained, tmp_path / "c.parquet", f"impressions={tmp_path}/n.csv", "columns.user_id=nowhere")


def test_another_writing_is_said_beside_the_files(trained, tmp_path):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    iso = [{**row, "when": str(datetime.strptime(row["when"], "%d/%m/%Y %H:%M")), "price": row["price"].replace(",", ".")}
           for row in rows]  # fmt: skip
    write(iso, tmp_path / "iso.csv", delimiter=",")
    settings = [
        f"impressions.{key}" for key in (f"files={tmp_path}/iso.csv", "delimiter=null", "decimal='.'", "time_format=null")
    ]
    assert scored(trained, tmp_path / "b.parquet", *settings).equals(expected)
    with pytest.raises(ConfigError, match="impressions"):
        scored(trained, tmp_path / "c.parquet", f"impressions.files={tmp_path}/iso.csv", "impressions.thousands=','")


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("when", "yesterday", "column 'when', row 7: 'yesterday' is not a timestamp"),
        ("price", "cheap", "column 'price', row 7: 'cheap' is not a number of its range"),
        ("item no", "", "column 'item no', row 7: is missing"),
    ],
)
def test_faults_name_file_row_column_and_cure(trained, tmp_path, column, cell, problem):
    _, rows = trained
    broken = [{**row, column: cell} if number in {6, 9} else row for number, row in enumerate(rows)]
    write(broken, tmp_path / "new.csv")
    with pytest.raises(DataError) as fault:
        scored(trained, tmp_path / "b.parquet", f"impressions={tmp_path}/new.csv")
    assert str(fault.value).startswith(f"new.csv: {problem} (2 rows in all). ")
    assert "\n" not in str(fault.value) and list(tmp_path.glob("*.parquet")) == []


def test_a_line_that_is_no_row_is_named(trained, tmp_path):
    _, rows = trained
    file = write(rows, tmp_path / "new.csv")
    lines = file.read_text().splitlines()
    lines[5] += ";more"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"^new\.csv: line 6: has too many cells\. Mend that line\.$"):
        scored(trained, tmp_path / "b.parquet", f"impressions={file}")


def test_rows_describe_ads_that_nobody_knows(trained, tmp_path):
    folder, rows = trained
    new = [{**row, "item no": "999", "headline": "never seen before"} for row in rows[:5]]
    write([*new, *rows[5:8]], tmp_path / "new.csv")
    found = scored(trained, tmp_path / "b.parquet", f"prepared={folder}/prepared", f"impressions={tmp_path}/new.csv")
    assert found["cold_ad"].to_pylist() == [True] * 5 + [False] * 3
    write(rows, tmp_path / "bare.csv", names=["person", "item no", "when"])
    with pytest.raises(DataError, match=r"bare\.csv: says nothing of its ads but their ids\. Name a file of `ads`"):
        scored(trained, tmp_path / "c.parquet", f"impressions={tmp_path}/bare.csv")
    bare = scored(trained, tmp_path / "c.parquet", f"impressions={tmp_path}/bare.csv", f"prepared={folder}/prepared")
    assert bare.num_rows == len(rows)


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_standard_input_is_read_and_its_format_seen(trained, tmp_path, monkeypatch, name):
    folder, rows = trained
    expected = scored(trained, tmp_path / "a.parquet", f"impressions={folder}/log.csv")
    file = write(rows, tmp_path / name)
    with open(file, "rb") as handle:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(handle))
        assert scored(trained, tmp_path / "b.parquet", "impressions=-").equals(expected)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input: holds nothing"):
        scored(trained, tmp_path / "c.parquet", "impressions=-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", name]


def test_the_bundle_names_no_folder_of_the_machine_that_made_it(trained):
    folder, _ = trained
    kept = json.loads((folder / "bundle/schema.json").read_text())["log"]
    assert str(folder) not in json.dumps(kept)
    assert kept["tables"]["impressions"]["input"]["columns"]["ad_id"] == "item no"


def test_rank_encode_and_explain_read_the_same_files(trained, tmp_path):
    folder, rows = trained
    ads = {row["item no"]: {"item no": row["item no"], "headline": row["headline"]} for row in rows}
    write(list(ads.values()), tmp_path / "ads.csv")
    write(rows[:40], tmp_path / "requests.csv", names=["person", "when", "shelf"])
    usual = [f"bundle={folder}/bundle", f"ads={tmp_path}/ads.csv"]
    ranking = [*usual, f"requests={tmp_path}/requests.csv", f"history={folder}/log.csv", f"output={tmp_path}/lists.parquet"]
    rank.run(load_config(None, RankConfig, [*ranking, "top_n=3"]), QUIET)
    assert pq.read_table(tmp_path / "lists.parquet").num_rows == 40 * 3
    encode.run(load_config(None, EncodeConfig, [*usual, f"output={tmp_path}/vectors"]), QUIET)
    assert pq.read_table(tmp_path / "vectors/ads.parquet")["ad_id"].to_pylist() == list(ads)
    why = [f"bundle={folder}/bundle", f"impressions={folder}/log.csv", "rows=1", f"output={tmp_path}/why"]
    explain.run(load_config(None, ExplainConfig, why), QUIET)
    assert json.loads((tmp_path / "why/explanations.json").read_text())["rows"][0]["user_id"] == rows[0]["person"]


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.jsonl", "s.csv.gz"])
def test_the_ending_of_the_output_is_its_format(trained, tmp_path, name):
    folder, rows = trained
    usual = [f"impressions={folder}/log.csv", "shard_rows=150", "chunk_rows=64"]
    expected = scored(trained, tmp_path / "a.parquet", *usual)
    config = load_config(None, ScoreConfig, [f"bundle={folder}/bundle", f"output={tmp_path}/{name}", *usual])
    for _ in range(2):  # what adrec wrote it may replace
        with writing(config, QUIET):
            score.run(config, QUIET)
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    if name.endswith(".jsonl"):
        found = [json.loads(line) for line in text.splitlines()]
    else:
        found = list(csv.DictReader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ","))
    assert len(found) == len(rows) and list(found[0]) == expected.column_names
    assert [row["user_id"] for row in found] == expected["user_id"].to_pylist()
    assert [float(row["score"]) for row in found] == pytest.approx(expected["score"].to_pylist(), abs=1e-6)
    moments = [datetime.fromisoformat(row["shown_at"]) for row in found]
    assert moments == expected["shown_at"].to_pylist()
    (tmp_path / name).write_text("user_id,note\n1,mine\n")
    with pytest.raises(ResourceError, match="is not a table of scores that adrec wrote"), writing(config, QUIET):
        pass


def test_standard_output_carries_rows_and_nothing_else(trained, tmp_path):
    folder, rows = trained
    command = [sys.executable, "-m", "adrec", "score", "--bundle", str(folder / "bundle"), "--set", "impressions=-", "-o", "-"]
    done = subprocess.run(command, input=(folder / "log.csv").read_bytes(), capture_output=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    found = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [row["user_id"] for row in found] == [row["person"] for row in rows]
    assert b"Scored 400 rows" in done.stderr
    assert list(tmp_path.iterdir()) == []
