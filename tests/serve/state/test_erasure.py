"""A user who is to be forgotten is at once, by call or command; where the log has pseudonyms the store has nothing else."""

import hashlib
import hmac
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("fastapi")
from redis_server import needs_redis, redis_server
from served import client_of, make_counted_bundle, settings_of
from test_snapshots import assert_same, counted_anew, events_of, known
from typer.testing import CliRunner

from adrec.asof.keys import codes_of
from adrec.cli.app import app
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn
from adrec.serve.state.tally import user_numbers

KEY = "a key of the tests, long enough"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("erasure")
    make_counted_bundle(made)
    return made


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def settings(request, folder, tmp_path):
    changes = {"policies": {"default": {"limits": {"user_ad": 3, "user_lists": 9}}}}
    if request.param == "sqlite":
        yield settings_of(folder, tmp_path / "s.sqlite", **changes)
        return
    with redis_server(tmp_path) as (_, url):
        yield settings_of(folder, tmp_path / "s.sqlite", redis=url, **changes)


def assert_unknown(engine, user):
    """No click, no cap, no sum under a key of the user."""
    asof, ledger = engine.tally.asof, engine.tally.ledger
    code = codes_of(pa.array([user]), "user_id")
    for log in (asof._shared.clicks, asof._shared.skips):
        assert code[0] not in log.whole().users
    assert not ledger.seen(np.repeat(user_numbers(pa.array([user])), 20), np.arange(20)).any()
    assert not ledger.user_lists.get(user_numbers(pa.array([user]))).any()
    assert code[0] not in asof._shared.live.sums[("user",)].flat().keys


def test_a_running_server_forgets_at_once_and_knows_the_others_as_before(settings, monkeypatch):
    engine = Engine(settings)
    events = events_of(engine.live.ranker.ads.ids.to_pylist()[:20], 500)
    engine.record(events)
    assert engine.erase("u7") == sum(event.user_id == "u7" for event in events) > 2
    assert_unknown(engine, "u7")
    mine, anew = known(engine), known(counted_anew(settings, monkeypatch))
    of_users = [name for name in mine if "user" in name or name.startswith(("asof/", "lists"))]
    assert len(of_users) > 8
    for name in of_users:  # sums by ad keep what was shown, which names nobody
        if isinstance(mine[name], list):
            assert mine[name] == anew[name], name
        else:
            np.testing.assert_allclose(mine[name], anew[name], rtol=1e-9, err_msg=name)
    engine.record([EventIn(user_id="u7", ad_id=events[0].ad_id, kind="click")])  # and may come again
    assert engine.tally.last == 501


def test_a_command_reaches_a_server_that_runs(settings, monkeypatch):
    engine = Engine(settings)
    engine.record(events_of(engine.live.ranker.ads.ids.to_pylist()[:20], 500))
    options = ["--redis", settings.redis] if settings.redis else ["--store", str(settings.store)]
    done = CliRunner().invoke(app, ["events", "--json", "--quiet", *options, "--erase-user", "u7"])
    assert done.exit_code == 0 and json.loads(done.output)["upkeep"]["erased"] > 2
    engine.follower.once()
    engine._recounting.join()
    assert_unknown(engine, "u7")
    assert_same(engine, counted_anew(settings, monkeypatch))
    before = engine.tally
    engine.record([EventIn(user_id="u1", ad_id="a0", kind="click")])
    engine._recounting.join()
    assert engine.tally is before  # once is enough


def test_the_call_needs_a_key_for_admin_and_no_line_of_the_log_names_the_user(folder, tmp_path, caplog):
    settings = settings_of(folder, tmp_path / "s.sqlite")
    with client_of(settings) as client, caplog.at_level("INFO", "adrec.serve"):
        event = {"user_id": "anna@example.com", "ad_id": "a1", "kind": "click"}
        assert client.post("/v1/events", json={"events": [event]}).status_code == 200
        assert client.post("/admin/erase", json={"user_id": "anna@example.com"}, headers={"x-api-key": "no"}).status_code == 401
        answer = client.post("/admin/erase", json={"user_id": "anna@example.com"})
        assert answer.status_code == 200 and answer.json()["detail"] == "1 events are erased"
        assert '"audit": "POST /admin/erase"' in caplog.text and "anna" not in caplog.text
        assert not any(b"anna" in file.read_bytes() for file in tmp_path.glob("s.sqlite*"))


class TestPseudonyms:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        made = tmp_path_factory.mktemp("pseudonyms")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("ADREC_PRIVACY_KEY", KEY)
            make_counted_bundle(made, privacy={"pseudonymise": True})
        return made

    def test_raw_ids_are_known_and_never_kept(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY)
        names = {name: hmac.new(KEY.encode(), name.encode(), hashlib.sha256).hexdigest() for name in ("u00001", "zoe")}
        with client_of(settings_of(folder, tmp_path / "s.sqlite")) as client:
            raw = pq.read_table(folder / "raw" / "impressions")["user_id"][0].as_py()
            mine = hmac.new(KEY.encode(), raw.encode(), hashlib.sha256).hexdigest()
            ad = pq.read_table(folder / "prepared" / "ads.parquet")["ad_id"][0].as_py()
            rows = [{"user_id": user, "ad_id": ad, "shown_at": "2030-01-01T00:00:00Z"} for user in (raw, mine, "zoe")]
            answer = client.post("/v1/score", json={"rows": rows}).json()["rows"]
            assert [row["user_id"] for row in answer] == [raw, mine, "zoe"]
            assert answer[0]["logit"] == answer[1]["logit"] and not answer[0]["cold_user"] and answer[2]["cold_user"]
            event = {"user_id": "zoe", "ad_id": ad, "kind": "click", "event_id": "zoe-1", "request_id": "zoe-r"}
            assert client.post("/v1/events", json={"events": [event, event]}).json()["recorded"] == 1
            same = {**event, "user_id": names["zoe"]}
            assert client.post("/v1/events", json={"events": [same]}).json()["repeated"] == 1
            assert client.post("/v1/rank", json={"requests": [{"user_id": "zoe"}]}).json()["lists"][0]["user_id"] == "zoe"
            content = b"".join(file.read_bytes() for file in tmp_path.glob("s.sqlite*"))
            assert names["zoe"].encode() in content and b"zoe" not in content
            assert client.post("/admin/erase", json={"user_id": "zoe"}).json()["detail"] == "1 events are erased"
            content = b"".join(file.read_bytes() for file in tmp_path.glob("s.sqlite*"))
            assert names["zoe"].encode() not in content

    def test_without_the_key_raw_ids_are_refused_where_they_would_be_kept(self, folder, tmp_path, monkeypatch):
        monkeypatch.delenv("ADREC_PRIVACY_KEY", raising=False)
        with client_of(settings_of(folder, tmp_path / "s.sqlite")) as client:
            ad = pq.read_table(folder / "prepared" / "ads.parquet")["ad_id"][0].as_py()
            events = [{"user_id": user, "ad_id": ad, "kind": "click"} for user in ("0" * 64, None, "zoe")]
            refused = client.post("/v1/events", json={"events": events})
            assert refused.status_code == 422 and refused.json()["detail"][0]["where"] == "events.2.user_id"
            assert client.post("/v1/events", json={"events": events[:2]}).json()["recorded"] == 2
            assert client.post("/v1/rank", json={"requests": [{"user_id": "zoe"}]}).status_code == 200
