"""Somebody planted in a log is in nothing that adrec keeps after `adrec forget`, and no later build brings them back."""

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import raw_worlds
import yaml
from pydantic import ValidationError

from adrec.config.data.forget import ForgetConfig
from adrec.config.inference.serve import StoreConfig
from adrec.data.disk.lock import output_lock
from adrec.data.disk.row_files import row_writer
from adrec.data.prepared import open_prepared
from adrec.data.text.vector_cache import cached_vectors
from adrec.errors import ConfigError, DataError, ResourceError
from adrec.prepare.staging.forgotten import Forgotten
from adrec.serve.store import Event, open_store
from adrec.stages.data import forget, preprocess
from adrec.stages.registry.daily import _forgotten
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
PLANTED = "planted-person"
INTEREST, QUERY = "knitting for whales", "a very private question"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A log in which one user is planted, its config as YAML, and the tables. Nobody else's temporary files, nor a mirror."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "mirror"))
    made = raw_worlds.tables(requests=120)
    log = made["impressions"]
    at = log.column_names.index("user_id")
    users = pc.if_else(pc.equal(log["user_id"], "u3"), PLANTED, log["user_id"])
    query = pc.if_else(pc.equal(log["user_id"], "u3"), QUERY, "shoes")
    made["impressions"] = log.set_column(at, "user_id", users).append_column("query", query)
    people = made["users"]
    named = pc.if_else(pc.equal(people["user_id"], "u3"), PLANTED, people["user_id"])
    interests = pc.if_else(pc.equal(people["user_id"], "u3"), f"{INTEREST}, shoes", "shoes")
    made["users"] = people.set_column(0, "user_id", named).append_column("interests", interests)
    for name, table in made.items():
        raw_worlds.write(table, tmp_path / f"{name}.parquet")
    return made


def config(folder, **privacy):
    settings = raw_worlds.config(folder, privacy={"forgotten": str(folder / "forgotten.txt"), **privacy})
    file = folder / "preprocess.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    return settings, file


def holding(folder, words):
    """Files below `folder` that hold any of `words`, in any decoded or decompressed form."""
    found = []
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if file.suffix == ".parquet":
            data = str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as held:
                data = b"".join(held.read(name) for name in held.namelist())
            data = data.replace(b"\0", b"")  # numpy's strings are UTF-32
        elif tarfile.is_tarfile(file):
            raise AssertionError("look into archives too")
        if any(word.encode() in data for word in words):
            found.append(file.name)
    return found


def test_a_planted_person_is_in_nothing_that_is_kept(world, tmp_path):
    settings, file = config(tmp_path)
    preprocess.run(settings, QUIET)
    assert "users.parquet" in holding(settings.output, [PLANTED])
    store = StoreConfig(store=tmp_path / "events.sqlite")
    opened = open_store(store)
    opened.record([Event(PLANTED, "a1", "click", 10**15, event_id="1"), Event("u1", "a1", "click", 10**15, event_id="2")])
    opened.close()
    scored = pa.table(
        {"user_id": [PLANTED, "u1", PLANTED, "u2"], "ad_id": ["a,1", 'a"2', "a3", "a4"], "score": [0.1, 0.2, 0.3, 0.4]}
    )
    tables = [tmp_path / name for name in ("s.parquet", "s.csv", "s.tsv.gz", "s.jsonl", "s.jsonl.gz")]
    for table in tables:
        with row_writer(table, scored.schema, "scored", called=table) as writer:
            writer.write_table(scored)
    before = {table.name: table.read_bytes() for table in tables}
    texts = [INTEREST, "shoes", QUERY, f"{INTEREST}, shoes"]
    cache = tmp_path / "cache"
    cached_vectors(texts + ["others"], fingerprint="f", encode=lambda new: np.ones((len(new), 3)), folder=cache)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    pq.write_table(pa.table({"id": ["u1", PLANTED]}), bundle / "seen.parquet")
    np.savez(bundle / "arrays.npz", users=np.array(["u1", PLANTED]), factors=np.zeros(2))
    (bundle / "metrics.json").write_text('{"auc": 0.7}')

    asked = ForgetConfig(
        users=[PLANTED, PLANTED, "never-seen"], preprocess=file, store=store, tables=tables, bundles=[bundle], cache=cache
    )
    result = forget.run(asked, QUIET)

    assert holding(settings.output, [PLANTED, INTEREST, QUERY]) == [] and result.left == ()
    assert result.users == 2 and result.events == 1 and set(result.rows.values()) == {2}
    assert [Path(name).name for name in result.to_train_again] == ["arrays.npz", "seen.parquet"]
    assert holding(tmp_path, [PLANTED]) == ["arrays.npz", "seen.parquet", "impressions.parquet", "users.parquet"], "the raw log"
    assert pa.csv.read_csv(tables[1]).to_pydict() == {"user_id": ["u1", "u2"], "ad_id": ['a"2', "a4"], "score": [0.2, 0.4]}
    assert pq.read_table(tables[0])["user_id"].to_pylist() == ["u1", "u2"]
    for table in tables[1:]:
        assert table.read_bytes() != before[table.name]
    encoded = []
    cached_vectors(
        texts + ["others"], fingerprint="f", folder=cache, encode=lambda new: encoded.extend(new) or np.ones((len(new), 3))
    )
    assert sorted(encoded) == sorted(texts), "theirs are made anew, nobody else's"

    # The log as it is without them gives the same folder, and a later build does not bring them back.
    rest = {name: table.filter(pc.not_equal(table["user_id"], PLANTED)) for name, table in world.items() if name != "ads"}
    for name, table in rest.items():
        raw_worlds.write(table, tmp_path / "rest" / f"{name}.parquet")
    raw_worlds.write(world["ads"], tmp_path / "rest/ads.parquet")
    alone, _ = raw_worlds.prepare(tmp_path / "rest")
    assert raw_worlds.rows(open_prepared(settings.output)).equals(raw_worlds.rows(alone))
    again = preprocess.run(settings, QUIET)
    assert again.done == "unchanged" and again.manifest["privacy"]["forgotten"]["users"] == 2
    assert _forgotten(open_prepared(settings.output)) != "" == _forgotten(alone), "daily starts from nothing"
    assert PLANTED not in (tmp_path / "forgotten.txt").read_text()


def test_what_other_commands_left_goes_or_is_named(world, tmp_path, monkeypatch):
    settings, file = config(tmp_path)
    preprocess.run(settings, QUIET)
    bundle, audit, federated = tmp_path / "bundle", tmp_path / "audit.json", tmp_path / "federated"
    mirrored, scored = tmp_path / "mirror/s3/logs/day.csv.gz", tmp_path / "mirror/s3/out/scored.csv"
    rows = pa.table({"user_id": [PLANTED, "u1"]})
    for place in (
        tmp_path / ".bundle.work/prepared/part-00000.parquet",  # of a finetune that was killed
        tmp_path / ".audit.json.work/model/users.parquet",
        tmp_path / ".scored.parquet.0123.parts/1.parquet",
        federated / "rows.parquet",
        tmp_path / "temporary/adrec-1234/input-0/part.parquet",  # of a cluster's node
        tmp_path / "temporary/strangers/part.parquet",
    ):
        raw_worlds.write(rows, place)
    (tmp_path / "temporary/adrec-crash-1.log").write_text(f"KeyError: '{PLANTED}'\n")
    (tmp_path / "temporary/adrec-half.parquet").write_bytes(b"PAR1 half a file")
    for place, text in ((mirrored, f"{PLANTED},a1\n"), (scored, f"user_id,score\n{PLANTED},0.5\nu1,0.25\n")):
        place.parent.mkdir(parents=True)
        place.write_bytes(gzip.compress(text.encode()) if place.suffix == ".gz" else text.encode())
    others = [tmp_path / f"mirror/s3/logs/{name}" for name in ("day.csv.zst", "day.parquet", "day.xls", "others.csv.zst")]
    others[0].write_bytes(pa.compress(f"{PLANTED},a1\n".encode(), "zstd", asbytes=True))
    pq.write_table(pa.table({"user": pa.array([{"id": PLANTED}])}), others[1])
    others[2].write_bytes(b"\xd0\xcf\x11\xe0\0")  # a workbook of old, which nobody looks into
    others[3].write_bytes(pa.compress(b"u1,a1\n", "zstd", asbytes=True))
    bundle.mkdir()
    (bundle / "metrics.json").write_text("{}")
    published = []
    monkeypatch.setattr(forget, "publish", published.append)
    asked = ForgetConfig(
        users=[PLANTED], preprocess=file, bundles=[bundle], tables=["s3://out/scored.csv"], cache=tmp_path / "cache",
        look_through=[audit, federated, tmp_path / "scored.parquet", tmp_path / "not-there"],
    )  # fmt: skip
    result = forget.run(asked, QUIET)
    assert result.scratch == 3 and result.copies == 4 and not mirrored.exists()
    assert [other.exists() for other in others] == [False, False, False, True]
    assert published == [scored] and scored.read_text() == "user_id,score\nu1,0.25\n"
    assert [Path(name).name for name in result.left] == ["rows.parquet", "adrec-crash-1.log", "part.parquet"]
    assert [Path(name).name for name in result.unread] == ["adrec-half.parquet"] and result.to_train_again == ()
    for name in (*result.left, *result.unread):
        Path(name).unlink()
    shutil.rmtree(tmp_path / "temporary/strangers")
    assert holding(tmp_path, [PLANTED]) == ["impressions.parquet", "users.parquet"], "the raw log"


def test_scratch_of_a_living_command_is_not_taken_away(world, tmp_path):
    settings, file = config(tmp_path)
    bundle = tmp_path / "bundle"
    (tmp_path / ".bundle.work").mkdir()
    (tmp_path / ".later.previous").mkdir()
    asked = ForgetConfig(
        users=[PLANTED], preprocess=file, cache=tmp_path / "c", bundles=[bundle], look_through=[tmp_path / "later"]
    )
    with output_lock(bundle), pytest.raises(ResourceError, match="another adrec command is writing there"):
        forget.run(asked, QUIET)
    assert (tmp_path / ".bundle.work").exists()
    assert forget.run(asked, QUIET).scratch == 1 and (tmp_path / ".later.previous").exists(), "the only copy of an output"


def test_pseudonyms_are_forgotten_by_the_name_of_the_log(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", "0123456789abcdef" * 2)
    settings, file = config(tmp_path, pseudonymise=True)
    before = preprocess.run(settings, QUIET).manifest["users"]
    forget.run(ForgetConfig(users=[PLANTED], preprocess=file, cache=tmp_path / "cache"), QUIET)
    after = open_prepared(settings.output)
    assert after.manifest["users"] == before - 1 and holding(settings.output, [INTEREST, QUERY]) == []


def test_nobody_can_be_forgotten_who_would_come_back(world, tmp_path):
    settings, file = config(tmp_path)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "privacy": {}}))
    with pytest.raises(ConfigError, match=r"the next build would bring them back\. Set privacy\.forgotten"):
        forget.run(ForgetConfig(users=[PLANTED], preprocess=file), QUIET)
    assert not settings.output.exists()


def test_a_title_with_a_line_separator_is_one_cell(world, tmp_path):
    _, file = config(tmp_path)
    scored = pa.table({"user_id": [PLANTED, "u1"], "title": ["new\u2028shoes", "old\x85\x0cshoes"], "score": [0.1, 0.2]})
    tables = [tmp_path / name for name in ("s.csv", "s.jsonl")]
    for table in tables:
        with row_writer(table, scored.schema, "scored", called=table) as writer:
            writer.write_table(scored)
    result = forget.run(ForgetConfig(users=[PLANTED], preprocess=file, tables=tables, cache=tmp_path / "c"), QUIET)
    assert set(result.rows.values()) == {1}
    assert pa.csv.read_csv(tables[0]).to_pylist() == scored.slice(1).to_pylist()
    assert json.loads(tables[1].read_text()) == scored.slice(1).to_pylist()[0]


def test_ids_that_yaml_takes_for_numbers_are_to_be_quoted():
    with pytest.raises(ValidationError, match="7 is a number to YAML: write ids in quotes"):
        ForgetConfig(users=yaml.safe_load("[007]"), preprocess="p.yaml")


def test_other_peoples_files_stay(world, tmp_path):
    _, file = config(tmp_path)
    (tmp_path / "forgotten.txt").write_text("u1\nu2\n")
    with pytest.raises(ConfigError, match="is no file of 'adrec forget'"):
        forget.run(ForgetConfig(users=[PLANTED], preprocess=file), QUIET)
    (tmp_path / "forgotten.txt").unlink()
    strange = tmp_path / "strange.csv"
    strange.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"strange\.csv: is no table that score, rank or events wrote"):
        forget.run(ForgetConfig(users=[PLANTED], preprocess=file, tables=[strange], cache=tmp_path / "c"), QUIET)
    assert strange.read_text() == "a,b\n1,2\n"


def test_a_file_keeps_its_salt_and_grows(tmp_path):
    path = tmp_path / "f.txt"
    first = Forgotten.load(path).add(["a", "b"], path)
    second = Forgotten.load(path).add(["b", "c"], path)
    assert first.salt == second.salt and first.digests < second.digests and len(second.digests) == 3
    assert first.fingerprint != second.fingerprint == Forgotten.load(path).fingerprint
