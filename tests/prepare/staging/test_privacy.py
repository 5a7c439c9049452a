"""Privacy: no raw id in any byte of the output, HMAC as the standard library computes it, masks, k-anonymity, retention."""

import hashlib
import hmac
import json
import tempfile
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from quasi_worlds import users_table
from raw_worlds import config, prepare, rows, tables, world, write

from adrec.cli.options import faults_shown
from adrec.config.data.preprocess import PrivacySettings, Quasi
from adrec.errors import ConfigError, DataError, concealed
from adrec.prepare.own_files import LogForm
from adrec.prepare.staging.privacy import Privacy, protect_users
from adrec.prepare.text.contacts import masked
from adrec.schema import USERS
from adrec.stages.data.preprocess import run
from adrec.terminal import Terminal

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


CONTACTS = {
    "ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ": "[EMAIL]",
    "john&#64;example.com": "[EMAIL]",
    "john&amp;#64;example&period;com": "[EMAIL]",
    "jo\u200bhn@exam\u200dple.com": "[EMAIL]",
    "john [at] example [dot] com": "[EMAIL]",
    "john<b>@</b>example.com": "[EMAIL]",
    "张伟@163.com": "[EMAIL]",
    "联系müller@bücher.de谢谢": "联系[EMAIL]谢谢",
    "请发邮件到foo@bar.com领取优惠券": "请发邮件到[EMAIL]领取优惠券",
    "иван@почта.рф": "[EMAIL]",
    "名字@公司.中国": "[EMAIL]",
    "call 0086 138 1234 5678": "call [PHONE]",
    "+44 20 7946 0958 or 020 7946 0958": "[PHONE] or [PHONE]",
    "+33 1 42 68 53 00": "[PHONE]",
    "电话：010－65529988": "电话:[PHONE]",
    "１３８１２３４５６７８": "[PHONE]",
    "138\u200b1234\u200b5678": "[PHONE]",
    "(212) 555-2368": "[PHONE]",
}
NO_CONTACTS = [
    "mail me @ 5pm today", "price 1,299.00 - 2,499.00", "ISBN 978-3-16-148410-0", "2026-03-01 12:30", "20000mAh 256GB",
    "follow @adrec", "order 20261129093012", "buy 3 get 1 free 50% 2024/2025", "", "Ｆｕｌｌ ｗｉｄｔｈ", "R&amp;D", None,
]  # fmt: skip


def test_contacts_are_masked_as_a_reader_finds_them():
    texts = [*CONTACTS, *NO_CONTACTS]
    found = masked(pa.array(texts * 2), ["CN", "US", "GB"]).to_pylist()
    assert found == [*CONTACTS.values(), *NO_CONTACTS] * 2
    assert masked(pa.array(["01 42 68 53 00", "030 901820"]), ["FR", "DE"]).to_pylist() == ["[PHONE]", "[PHONE]"]
    assert masked(pa.array(["01 42 68 53 00"]), []).to_pylist() == ["01 42 68 53 00"]


def test_long_texts_without_contacts_cost_little():
    began = time.monotonic()
    masked(pa.array(["a" * 200_000 + "@", "@" * 50_000, "a@" * 50_000, "1 " * 50_000, "a.@b." * 20_000]), ["CN", "US"])
    assert time.monotonic() - began < 20


def test_masks_reach_every_text_and_what_is_typed_later(tmp_path):
    """In lists, queries and descriptions of a log; and in the words of whoever asks the finished bundle."""
    made = world(tmp_path)
    users = made["users"].append_column(
        "interests", pa.array([["tea", "ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ"], None] * 5, pa.list_(pa.string()))
    )
    write(users, tmp_path / "users.parquet")
    queries = pa.array((["call 138\u200b1234\u200b5678", None, "shoes"] * 99)[: made["impressions"].num_rows])
    write(made["impressions"].append_column("query", queries), tmp_path / "impressions.parquet")
    prepared, _ = prepare(tmp_path, privacy={"mask_contacts": True})
    assert prepared.users()["interests"].to_pylist()[:2] == [["tea", "[EMAIL]"], None]
    assert set(rows(prepared)["query"].to_pylist()) == {"call [PHONE]", None, "shoes"}
    blob = b"\n".join(everything(prepared.path))
    for leak in ("john", "ｊｏｈｎ", "138\u200b1234", "13812345678"):
        assert leak.encode() not in blob
    form = LogForm.from_json(json.loads(json.dumps(LogForm.of(prepared.config, prepared.has).to_json())))
    assert form.masked(["ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", None, "tea"]) == ["[EMAIL]", None, "tea"]


SECRET, MAIL = "customer-77", "jo.doe@example.com"
GOOD_LINE = "customer-1,a1,2026-03-01T00:00:00Z,0,1,r1,9.5"
HEADER = "user_id,ad_id,shown_at,click,position,request_id,price_seen"


def _csv(*lines, header=HEADER):
    return (
        "\n".join([header, *[GOOD_LINE.replace("customer-1", f"customer-{n}") for n in range(1, 20)], *lines]).encode() + b"\n"
    )


MALFORMED = {
    "too many cells": _csv(f"{SECRET},a1,2026-03-01,0,1,r1,9.5,{MAIL}"),
    "too few cells": _csv(f"{SECRET},a1"),
    "shifted to the right": _csv(f"x,{SECRET},{MAIL},2026-03-01,0,1,r1"),
    "an id for a click": _csv(f"u1,a1,2026-03-01,{SECRET},1,r1,9.5"),
    "a contact for a click": _csv(f"u1,a1,2026-03-01,{MAIL},1,r1,9.5"),
    "an id for a moment": _csv(f"u1,a1,{SECRET},0,1,r1,9.5"),
    "an id for a slot": _csv(f"u1,a1,2026-03-01,0,{SECRET},r1,9.5"),
    "an id for a number": _csv(f"u1,a1,2026-03-01,0,1,r1,{SECRET}"),
    "an id for an ad": _csv(f"u1,{SECRET},2026-03-01,0,1,r1,9.5"),
    "no ad": _csv(f"{SECRET},,2026-03-01,0,1,r1,9.5"),
    "no moment": _csv(f"{SECRET},a1,,0,1,r1,9.5"),
    "a lone quote": _csv(f'"{SECRET},a1,2026-03-01,0,1,r1,9.5', f"{SECRET},a1,2026-03-01,0,1,r1,9.5"),
    "text behind a quote": _csv(f'"{SECRET}"{MAIL},a1,2026-03-01,0,1,r1,9.5'),
    "no UTF-8": _csv().replace(b"customer-5", b"customer-77\xff\xfe"),
    "no header": "\n".join([GOOD_LINE.replace("customer-1", SECRET).replace("r1", MAIL)] * 9).encode(),
    "one name as a header": f"{SECRET}\n{MAIL}\n".encode(),
    "a header of other names": _csv(header=HEADER.replace("ad_id", MAIL)),
    "a NUL": _csv(f"{SECRET}\x00,a1,2026-03-01,0,1,r1,9.5"),
    "UTF-16": _csv(f"{SECRET},a1,2026-03-01,0,1,r1,9.5").decode().encode("utf-16"),
    "two kinds of ends": _csv(f"{SECRET},a1,2026-03-01,0,1,r1,{MAIL}\r").replace(b"\n", b"\r\n", 3),
    "a spelled-out label": _csv(f"{SECRET},a1,2026-03-01,maybe {MAIL},1,r1,9.5"),
    "a huge number": _csv(f"{SECRET},a1,2026-03-01,0,1,r1,{'9' * 400}"),
    "an early moment": _csv(f"{SECRET},a1,0001-01-01,0,1,r1,9.5"),
}


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("name", MALFORMED)
def test_no_malformed_input_shows_an_id_or_a_contact(tmp_path, monkeypatch, capsys, name, limit):
    """Message, log of a crash, and every byte of what is written."""
    monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    made = world(tmp_path)
    (tmp_path / "impressions.csv").write_bytes(MALFORMED[name])
    source = {
        "format": "tables",
        "impressions": {"files": str(tmp_path / "impressions.csv")},
        "ads": {"files": str(tmp_path / "ads.parquet")},
    }
    settings = config(
        tmp_path, source=source, privacy={"pseudonymise": True, "mask_contacts": True},
        validation={"max_rejected_fraction": limit}, split={"method": "random", "unit": "request"},
        counters=[], features={"impressions": {"numeric": ["price_seen"]}},
    )  # fmt: skip
    terminal = Terminal(quiet=False)
    try:
        with faults_shown(terminal):
            run(settings, terminal)
    except typer.Exit as done:
        assert done.exit_code in (1, 2)
    said = capsys.readouterr()
    written = b"\n".join([*everything(tmp_path / "prepared"), *everything(tmp_path / "tmp")])
    assert made
    for told in (said.out, said.err, written.decode("utf-8", "replace")):
        assert SECRET not in told and MAIL not in told and "jo.doe" not in told


def test_a_fault_of_ours_beside_personal_data_is_logged_without_its_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for is_personal in (True, False):
        with pytest.raises(typer.Exit), faults_shown(Terminal(quiet=True)), concealed(is_personal):
            raise ZeroDivisionError(SECRET)
        [log] = tmp_path.glob("adrec-crash-*.log")
        text = log.read_text(encoding="utf-8") + capsys.readouterr().err
        assert (SECRET in text) != is_personal and "ZeroDivisionError" in text
        log.unlink()


@pytest.mark.parametrize("seed", range(4))
def test_l_diversity_and_t_closeness_are_those_of_their_definitions(seed):
    quasi = Quasi(columns=["age", "region"], k=4, sensitive=["job"])
    with duckdb.connect() as connection:
        users_table(connection, seed, 300)
        report = protect_users(connection, quasi)
        frame = connection.execute("SELECT * FROM users").df().fillna("none")
    everybody = frame["job"].value_counts(normalize=True)
    groups = [group["job"] for _, group in frame.groupby(["age", "region"])]
    own = [group.value_counts(normalize=True).reindex(everybody.index, fill_value=0.0) for group in groups]
    assert report["sensitive"]["job"]["l"] == min(group.nunique() for group in groups)
    assert report["sensitive"]["job"]["t"] == pytest.approx(max((shares - everybody).abs().sum() / 2 for shares in own))
    with duckdb.connect() as connection, pytest.raises(DataError, match="no column 'faith'"):
        users_table(connection, seed, 50)
        protect_users(connection, Quasi(columns=["age"], sensitive=["faith"]))
