"""Privacy: no raw id in any byte of the output, HMAC as the standard library computes it, masks, k-anonymity, retention."""

import hashlib
import hmac

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows, tables, world, write

from adrec.config.data.preprocess import PrivacySettings, Quasi
from adrec.errors import ConfigError, DataError
from adrec.prepare.staging.privacy import Privacy, protect_users
from adrec.schema import USERS

KEY = "correct horse battery staple"


def everything(folder):
    """All bytes of a folder: files as they are, and every cell of every Parquet file as text."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.name.encode()
            yield file.read_bytes()
            if file.suffix == ".parquet":
                yield str(pq.read_table(file).to_pylist()).encode()


def test_no_byte_of_the_output_holds_a_raw_id(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY)
    made = tables(0)
    secret = {"user_id": "customer-", "request_id": "session-"}
    for table in ("users", "impressions"):
        for column, prefix in secret.items():
            if column in made[table].column_names:
                values = pa.array([f"{prefix}{value}" for value in made[table][column].to_pylist()])
                made[table] = made[table].set_column(made[table].column_names.index(column), column, values)
    clicks = made["impressions"]["click"].to_pylist()
    clicks[3] = 5
    made["impressions"] = made["impressions"].set_column(4, "click", pa.array(clicks, pa.int8()))
    for name, table in made.items():
        write(table, tmp_path / f"{name}.parquet")
    prepared, _ = prepare(tmp_path, privacy={"pseudonymise": True}, validation={"max_rejected_fraction": 0.1})
    blob = b"\n".join(everything(prepared.path))
    assert b"customer-" not in blob
    assert b"session-" not in blob
    assert KEY.encode() not in blob
    known = {
        hmac.new(KEY.encode(), value.encode(), hashlib.sha256).hexdigest()
        for value in made["impressions"]["user_id"].to_pylist()
    }
    assert set(rows(prepared)["user_id"].to_pylist()) <= known


def test_pseudonyms_change_names_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY)
    world(tmp_path)
    plain, _ = prepare(tmp_path)
    private, _ = prepare(tmp_path, privacy={"pseudonymise": True}, output=str(tmp_path / "private"))
    dropped = ["user_id", "request_id"]
    assert rows(private).drop_columns(dropped).equals(rows(plain).drop_columns(dropped))


def test_another_key_builds_anew(tmp_path, monkeypatch):
    world(tmp_path)
    done = []
    for key in (KEY, KEY, KEY[::-1]):
        monkeypatch.setenv("ADREC_PRIVACY_KEY", key)
        done.append(prepare(tmp_path, privacy={"pseudonymise": True})[1].done)
    assert done == ["built", "unchanged", "built"]


@pytest.mark.parametrize("key", ["sixteen bytes ok", "k" * 64, "k" * 65, "k" * 300])
def test_hmac_is_the_standard_one(tmp_path, key):
    file = tmp_path / "key"
    file.write_text(key + "\n")
    with duckdb.connect() as connection:
        privacy = Privacy(connection, PrivacySettings(pseudonymise=True, key_file=file))
        sql = privacy.wrapper(USERS)("user_id", "v", "VARCHAR")
        found = connection.execute(f"SELECT v, {sql} FROM (VALUES ('u1'), ('用户'), (''), (NULL)) t(v)").fetchall()
    for value, pseudonym in found:
        expected = None if value is None else hmac.new(key.encode(), value.encode(), hashlib.sha256).hexdigest()
        assert pseudonym == expected


def test_a_missing_or_short_key_is_refused_without_showing_it(tmp_path, monkeypatch):
    world(tmp_path)
    monkeypatch.delenv("ADREC_PRIVACY_KEY", raising=False)
    with pytest.raises(ConfigError, match="ADREC_PRIVACY_KEY holds 0 bytes"):
        prepare(tmp_path, privacy={"pseudonymise": True})
    monkeypatch.setenv("ADREC_PRIVACY_KEY", "tooshort")
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path, privacy={"pseudonymise": True})
    assert "tooshort" not in str(caught.value)


def test_faults_do_not_show_ids(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY)
    made = world(tmp_path)
    users = pa.table({"user_id": ["secret-a", "secret-a"], "age": [1, 2]})
    write(users, tmp_path / "users.parquet")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, privacy={"pseudonymise": True})
    assert "secret" not in str(caught.value)
    assert made


def test_contacts_are_masked_in_free_text(tmp_path):
    world(tmp_path)
    titles = [
        "Write to Jo.Doe+x@mail.example.co.uk now",
        "Call +1 415-555-2671 or (010) 6552 9988",
        "电话13812345678",
        "Only 9.99 on 2026-03-01",
    ]
    ads = pa.table({"ad_id": [f"a{n}" for n in range(15)], "title": (titles * 4)[:15], "category": ["c"] * 15})
    write(ads, tmp_path / "ads.parquet")
    prepared, _ = prepare(tmp_path, privacy={"mask_contacts": True})
    assert prepared.ads()["title"].to_pylist()[:4] == [
        "Write to [EMAIL] now",
        "Call [PHONE] or [PHONE]",
        "电话[PHONE]",
        "Only 9.99 on 2026-03-01",
    ]
    blob = b"\n".join(everything(prepared.path))
    for leak in (b"Jo.Doe", b"555-2671", b"6552 9988", b"13812345678"):
        assert leak not in blob


def test_undeclared_columns_are_dropped(tmp_path):
    made = world(tmp_path)
    count = made["impressions"].num_rows
    write(made["impressions"].append_column("device_serial", pa.array(["SERIAL"] * count)), tmp_path / "impressions.parquet")
    prepared, _ = prepare(tmp_path)
    assert "device_serial" not in rows(prepared).column_names
    assert b"SERIAL" not in b"\n".join(everything(prepared.path))
    kept, _ = prepare(tmp_path, keep=["device_serial"])
    assert "device_serial" in rows(kept).column_names


def test_retention_leaves_earlier_rows_out_everywhere(tmp_path):
    made = world(tmp_path)
    prepared, _ = prepare(tmp_path, privacy={"drop_before": "2026-03-03"}, split={"method": "user", "test_fraction": 0.4})
    late = made["impressions"].filter(pa.array([moment.day >= 3 for moment in made["impressions"]["shown_at"].to_pylist()]))
    write(late, tmp_path / "late" / "impressions.parquet")
    for name in ("ads", "users"):
        write(made[name], tmp_path / "late" / f"{name}.parquet")
    expected, _ = prepare(tmp_path / "late", split={"method": "user", "test_fraction": 0.4})
    assert rows(prepared).equals(rows(expected))


def users_table(connection, seed, count):
    rng = np.random.default_rng(seed)

    def draw(options):
        return pa.array([None if value == 0 else f"v{value}" for value in rng.zipf(1.6, count) % options])

    table = pa.table({"user_index": np.arange(count), "age": draw(6), "region": draw(9), "job": draw(20)})
    connection.register("given", table)
    connection.execute("CREATE OR REPLACE TABLE users AS SELECT * FROM given")


@pytest.mark.parametrize("enforce", ["generalise", "suppress"])
@pytest.mark.parametrize("seed", range(8))
def test_k_anonymity_is_enforced(seed, enforce):
    quasi = Quasi(columns=["age", "region", "job"], k=5, enforce=enforce)
    with duckdb.connect() as connection:
        users_table(connection, seed, int(np.random.default_rng(seed).integers(5, 400)))
        report = protect_users(connection, quasi)
        groups = connection.execute("SELECT count(*) FROM users GROUP BY age, region, job").fetchall()
        assert min(size for (size,) in groups) >= 5
        assert report["after"]["smallest"] == min(size for (size,) in groups)
        assert report["after"]["exposed"] == 0
        kept = report["after"]["values"]
        users_table(connection, seed, report["before"]["users"])
        other = protect_users(connection, Quasi(columns=["age", "region", "job"], k=5, enforce="suppress"))
        assert kept >= other["after"]["values"], "generalising keeps at least as much as suppressing"


def test_k_anonymity_measured_only_or_impossible():
    with duckdb.connect() as connection:
        users_table(connection, 0, 50)
        before = connection.execute("SELECT * FROM users").fetchall()
        report = protect_users(connection, Quasi(columns=["job"], k=5, enforce="measure"))
        assert report["before"] == report["after"]
        assert connection.execute("SELECT * FROM users").fetchall() == before
        users_table(connection, 0, 3)
        with pytest.raises(DataError, match="3 users can never be in groups of 5"):
            protect_users(connection, Quasi(columns=["job"], k=5))
        with pytest.raises(DataError, match="no column 'shoe'"):
            protect_users(connection, Quasi(columns=["shoe"], k=2))
