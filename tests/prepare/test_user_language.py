"""The language of a user's interests: made by preprocess, by scoring and by the server alike, and something to count by."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows, world, write

from adrec.config.data.preprocess import TextSettings
from adrec.inference.rows import with_texts
from adrec.serve.intake.messages import UserIn
from adrec.serve.state.catalogue import users_of

INTERESTS = [["跑步"], ["running", "tea"], None, [], ["茶", "running shoes and tea"]]
EXPECTED = ["zh", "en", None, None, "en"]
SETTINGS = TextSettings(user_template="{interests}")


@dataclasses.dataclass
class Packed:
    """What the catalogue reads of a bundle."""

    text: TextSettings
    media: dict = dataclasses.field(default_factory=dict)


def bilingual(folder, **columns):
    """The world of three tables with interests; `columns` join the users."""
    made = world(folder, requests=120)
    count = len(made["users"])
    interests = [INTERESTS[number % len(INTERESTS)] for number in range(count)]
    users = made["users"].append_column("interests", pa.array(interests, pa.list_(pa.string())))
    for name, values in columns.items():
        users = users.append_column(name, pa.array(values[:count]))
    write(users, folder / "users.parquet")
    return interests


def test_it_is_made_and_counted_by(tmp_path):
    interests = bilingual(tmp_path)
    by = {"by": ["user_language", "language"], "measures": ["impressions", "clicks"]}
    prepared, _ = prepare(tmp_path, counters=[by], features={"users": {"categorical": ["user_language"]}})
    users = prepared.users()
    language = dict(zip(users["user_id"].to_pylist(), users["user_language"].to_pylist(), strict=True))
    assert [language[f"u{number}"] for number in range(len(interests))] == (EXPECTED * 2)[: len(interests)]
    assert language["u11"] is None, "a user that no users table describes"
    assert prepared.features()["users"].categories[0].values.to_pylist() == ["en", "zh"]
    spoken = dict(zip(prepared.ads()["ad_id"].to_pylist(), prepared.ads()["language"].to_pylist(), strict=True))
    table = rows(prepared).to_pylist()
    for row in table:
        own = (language[row["user_id"]], spoken[row["ad_id"]])
        before = [
            other
            for other in table
            if other["shown_at"] < row["shown_at"] and (language[other["user_id"]], spoken[other["ad_id"]]) == own
        ]
        shown = row["counter_user_language_x_language_impressions"]
        if own[0] is not None:
            assert shown == len(before) and row["counter_user_language_x_language_clicks"] == sum(
                one["click"] for one in before
            )


def test_a_log_that_knows_it_is_believed(tmp_path):
    bilingual(tmp_path, user_language=["de"] * 20)
    prepared, _ = prepare(tmp_path, user_columns=["user_language"])
    assert set(prepared.users()["user_language"].to_pylist()) == {"de", None}


def test_scoring_makes_the_same():
    users = pa.table({"user_id": list("abcde"), "interests": pa.array(INTERESTS, pa.list_(pa.string()))})
    table = with_texts(users, SETTINGS.user_template, SETTINGS)
    assert table["user_language"].to_pylist() == EXPECTED and "language" not in table.column_names


@pytest.mark.parametrize(("interests", "expected"), [(None, "zh"), (["tea"], "zh"), ([], "zh")])
def test_the_server_keeps_what_is_known_of_a_user(interests, expected):
    users = pa.table({"user_id": ["a", "b"], "interests": pa.array([["跑步"], None], pa.list_(pa.string()))})
    known = with_texts(users, SETTINGS.user_template, SETTINGS, words=True)
    described = [UserIn(user_id="a", interests=interests), UserIn(user_id="b", interests=["tea"]), UserIn(user_id="c")]
    found = users_of(known, described, None, Packed(SETTINGS))  # no features of theirs: no columns
    assert found["user_language"].to_pylist() == [expected, "en", None]
    assert np.all(np.array(found["user_id"].to_pylist()) == ["a", "b", "c"])


def test_an_old_folder_without_it_still_opens(tmp_path):
    bilingual(tmp_path)
    prepared, _ = prepare(tmp_path)
    pq.write_table(prepared.users().drop_columns(["user_language"]), prepared.path / "users.parquet")
    assert "user_language" not in prepared.users().column_names
