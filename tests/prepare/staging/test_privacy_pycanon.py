"""k, l and t are those of pycanon, where it is installed: in an environment of its own, since it takes numpy, pandas and typer
back (`pip install pycanon pytest hypothesis duckdb pyarrow pydantic pyyaml rich`).
"""

import duckdb
import pytest
from quasi_worlds import users_table

from adrec.config.data.preprocess import Quasi
from adrec.prepare.staging.privacy import protect_users

anonymity = pytest.importorskip("pycanon.anonymity")
COLUMNS = ["age", "region"]


@pytest.mark.parametrize("enforce", ["measure", "generalise", "suppress"])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_measured_is_what_pycanon_says(seed, enforce):
    with duckdb.connect() as connection:
        users_table(connection, seed, 60 + 40 * seed)
        report = protect_users(connection, Quasi(columns=COLUMNS, k=4, enforce=enforce, sensitive=["job"]))
        frame = connection.execute("SELECT * FROM users").df().fillna("none").astype(dict.fromkeys([*COLUMNS, "job"], str))
    assert report["after"]["smallest"] == anonymity.k_anonymity(frame, COLUMNS)
    assert report["sensitive"]["job"]["l"] == anonymity.l_diversity(frame, COLUMNS, ["job"])
    assert report["sensitive"]["job"]["t"] == pytest.approx(anonymity.t_closeness(frame, COLUMNS, ["job"]), abs=1e-12)
