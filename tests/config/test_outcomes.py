"""An outcome is never a feature: refused by the config, wherever a feature, a calendar or a counter could read one."""

import pytest
from pydantic import ValidationError

from adrec.config.data.preprocess import PreprocessConfig
from adrec.schema import IMPRESSIONS, OUTCOMES


def config(source=None, **changes):
    table = {"files": "log.parquet"}
    source = {"format": "tables", "impressions": table, "ads": table, "users": table} | (source or {})
    return PreprocessConfig.model_validate({"output": "prepared", "source": source, **changes})


def fault(**changes) -> str:
    with pytest.raises(ValidationError) as error:
        config(**changes)
    return str(error.value)


@pytest.mark.parametrize("key", ["numeric", "categorical", "hashed", "lists"])
@pytest.mark.parametrize("column", ["click", "conversion", "rating", "dwell_seconds", "converted_at", "row_id", "clicks"])
def test_no_outcome_is_a_feature_of_the_impressions(key, column):
    assert f"impressions.{key}: '{column}' is known only after" in fault(features={"impressions": {key: [column]}})


def test_every_outcome_of_the_contract_is_on_the_list():
    assert {column.name for column in IMPRESSIONS.columns if column.outcome} <= set(OUTCOMES)
    assert "position" not in OUTCOMES
    assert config(features={"impressions": {"numeric": ["counter_*", "position"]}})


@pytest.mark.parametrize("pattern", ["*", "c*", "click*", "*_seconds", "[cx]lick", "r*"])
def test_a_pattern_that_would_take_an_outcome_is_refused(pattern):
    assert f"the pattern '{pattern}' would take " in fault(features={"impressions": {"numeric": [pattern]}})


def test_the_moments_that_the_history_names_are_outcomes_too():
    features = {"impressions": {"calendar": {"column": "bought"}}}
    assert config(features=features)
    message = fault(features=features, history={"converted_at": "bought"})
    assert "impressions.calendar: 'bought'" in message
    assert "by: 'tapped'" in fault(counters=[{"by": ["user", "tapped"]}], history={"clicked_at": "tapped"})
    assert "would take bought" in fault(features={"impressions": {"numeric": ["b*"]}}, history={"converted_at": "bought"})


def test_counters_count_by_no_outcome():
    assert "counter 2, by: 'rating'" in fault(counters=["usual", {"by": ["ad", "rating"]}])


def test_ads_of_their_own_table_may_have_a_rating_and_those_of_a_wide_one_may_not():
    features = {"ads": {"numeric": ["rating"]}}
    assert config(features=features)
    assert "ads.numeric: 'rating'" in fault(source={"ads": None}, features=features)
    assert "'click' is known only after" in fault(source={"users": None}, user_columns=["click"])
