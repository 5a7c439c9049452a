"""What follows from a log's size and kind: enough steps for few rows, no encoder without text, a zone that nights allow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig, LossTerm
from adrec.config.training.pretrain import PretrainConfig
from adrec.config.training.tune import TuneConfig
from adrec.explore.configs.recipe import Facts, batch_rows, epochs, recipe
from adrec.explore.guessing.zone import likely_zone

DEMO = Facts(rows=95_000, clicks=11_488, ads=1_424, users=4_750, rows_a_request=3.8, texts=1_397, has_category=True)
BASE = {"base": Path("/tmp")}

facts = st.builds(
    Facts,
    rows=st.integers(1, 10**8),
    clicks=st.integers(0, 10**6),
    ads=st.integers(1, 10**6),
    users=st.integers(0, 10**6),
    rows_a_request=st.floats(1, 50),
    texts=st.integers(0, 10**6),
    languages=st.dictionaries(st.sampled_from(["zh", "en", "other"]), st.floats(0, 1)),
    hours=st.one_of(st.just(()), st.lists(st.integers(0, 10**5), min_size=24, max_size=24)),
    has_time=st.booleans(),
    has_category=st.booleans(),
    has_description=st.booleans(),
    has_interests=st.booleans(),
    has_bid=st.booleans(),
    segments=st.lists(st.sampled_from(["age", "sex", "region", "device"]), unique=True),
    split_given=st.booleans(),
)


@given(facts)
def test_whatever_the_log_the_settings_are_valid(log):
    made = recipe(log)
    paths = {"output": "o", "prepared": "p"}
    source = {"format": "tables", "impressions": {"files": "x.csv"}}
    PreprocessConfig.model_validate({"output": "o", "source": source, **made.preprocess}, context=BASE)
    if made.pretrain is not None:
        PretrainConfig.model_validate({**paths, **made.pretrain}, context=BASE)
    FinetuneConfig.model_validate({**paths, **made.finetune}, context=BASE)
    TuneConfig.model_validate({"base": "f.yaml", "output": "o", **made.tune}, context=BASE)
    ServeConfig.model_validate({"bundle": "b", "prepared": "p", **made.serve}, context=BASE)
    assert (made.pretrain is None) == ("reference" in made.finetune["text"]), "an encoder that nobody trains is named"
    named = {"preprocess": made.preprocess, "pretrain": made.pretrain, "finetune": made.finetune}
    for key in made.why:
        section: object = named
        for name in key.split("."):
            assert name in section, key
            section = section[name]


@given(st.integers(300, 10**8))
def test_no_log_is_trained_for_a_handful_of_steps(rows):
    assert epochs(rows) * rows / batch_rows(rows) >= 500
    assert 32 <= batch_rows(rows) <= 4096


def test_few_texts_are_not_pretrained_and_the_reason_is_said():
    made = recipe(replace(DEMO, texts=6))
    assert made.pretrain is None and made.finetune["text"] == {"reference": None}
    assert any("6 different texts" in note for note in made.notes)
    assert made.preprocess["tokenizer"] == {"kind": "none"}
    assert made.preprocess["features"]["ads"]["lists"] == ["segmented"], "their words are inputs all the same"


def test_without_moments_nothing_looks_back():
    made = recipe(replace(DEMO, has_time=False))
    assert not {"history", "counters"} & set(made.preprocess)
    assert made.preprocess["split"] == {"method": "random", "unit": "request", "valid_fraction": 0.1, "test_fraction": 0.2}


def test_long_lists_are_learned_as_lists():
    made = recipe(replace(DEMO, rows_a_request=37))
    assert made.finetune["loss"] == {"terms": [{"kind": "listwise"}, {"kind": "in_batch", "weight": 0.3}], "negatives": 4}
    assert made.finetune["training"]["monitor"] == "auto"


def test_clicks_alone_are_learned_as_finetune_learns_them_where_no_config_says():
    terms = recipe(replace(DEMO, is_clicks_alone=True)).finetune["loss"]["terms"]
    assert terms == [{"kind": "listwise"}, {"kind": "in_batch", "weight": 0.3}]


DAY = 400 + 380 * np.cos(2 * np.pi * (np.arange(24) - 16) / 24)
"""Impressions by local hour: fewest at 4, most at 16."""


@pytest.mark.parametrize(
    ("languages", "ahead", "zone"),
    [
        ({"zh": 0.9, "en": 0.1}, 8, "Asia/Shanghai"),
        ({"zh": 0.9, "en": 0.1}, 0, "UTC"),  # the moments are local ones
        ({"en": 1.0}, -5, "America/New_York"),
        ({"en": 1.0}, 0, "UTC"),
        ({"en": 1.0}, 10, "Australia/Sydney"),
        ({"other": 1.0}, 9, "UTC"),
        ({}, 3, "UTC"),
    ],
)
def test_a_zone_is_guessed_from_nights_and_languages(languages, ahead, zone):
    hours = np.roll(DAY, -ahead).tolist()
    found, reason = likely_zone(languages, hours)
    assert found == zone
    assert "quiet around" in reason


def test_without_a_night_the_language_alone_speaks():
    assert likely_zone({"zh": 0.6, "en": 0.4}, [100] * 24) == ("Asia/Shanghai", "most texts are Chinese")
    assert likely_zone({"en": 1.0}, [])[0] == "UTC"


def test_a_log_of_one_hour_is_not_split_by_time():
    assert recipe(Facts(rows=100, clicks=20, ads=5, users=9, has_spread=False)).preprocess["split"]["method"] == "random"
    assert recipe(Facts(rows=100, clicks=20, ads=5, users=9)).preprocess["split"]["method"] == "time"


CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("finetune.yaml")), ids=str)
def test_shipped_configs_train_the_vectors_that_retrieval_compares(file):
    assert [term.kind for term in load_config(file, FinetuneConfig).loss.terms][1:] == ["in_batch"]


def test_the_samples_config_has_the_losses_of_the_recipe():
    shipped = load_config(CONFIGS / "sample" / "finetune.yaml", FinetuneConfig).loss.terms
    assert shipped == [LossTerm.model_validate(term) for term in recipe(DEMO).finetune["loss"]["terms"]]
