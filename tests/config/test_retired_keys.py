"""A key that earlier configs held: its successor is named, and stored configs are still read where they can be."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from adrec.config.base import Config, load_config, load_stored_config, stored_section
from adrec.config.commands import config_models
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.faults import models_in
from adrec.config.retired import RETIRED, Retired
from adrec.errors import ConfigError


class Round(Config):
    kind: Literal["round"]


class Flat(Config):
    kind: Literal["flat"]
    side: float = 1.0


class Base(Config):
    width: int = 4


class Model(Base):
    depth: int = 2


class Plan(Config):
    model: Model = Model()
    models: list[Model] = []
    named: dict[str, Model] = {}
    shape: Annotated[Round | Flat, Field(discriminator="kind")] = Round(kind="round")


@pytest.fixture(autouse=True)
def _retired_words(monkeypatch):
    monkeypatch.setitem(RETIRED, "Base", {"breadth": Retired("It is called `width` now."), "wide": Retired("Always so.", True)})
    monkeypatch.setitem(RETIRED, "Flat", {"sides": Retired("Give `side`.")})


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


TEXT = """
model: {depth: 3, breadth: 7}
models: [{}, {breadth: 1}]
named: {b: {breadth: 2}}
shape: {kind: flat, sides: 4}
"""


def test_the_successor_is_named_wherever_the_section_stands_and_nothing_is_guessed(tmp_path):
    path = write(tmp_path, TEXT)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Plan)
    gone = "no longer a key. It is called `width` now."
    places = [
        ("model.breadth", gone),
        ("models.1.breadth", gone),
        ("named.b.breadth", gone),
        ("shape.sides", "no longer a key. Give `side`."),
    ]
    assert str(caught.value).splitlines() == [f"{path}: {key}: {what}" for key, what in places]
    with pytest.raises(ConfigError, match=r"--set: model.breadth: no longer a key"):
        load_config(None, Plan, ["model.breadth=3"])


def test_a_key_retired_in_one_section_is_plainly_unknown_in_another(tmp_path):
    with pytest.raises(ConfigError, match="shape.breadth: unknown key"):
        load_config(write(tmp_path, "shape: {kind: flat, breadth: 1}"), Plan)


def test_a_stored_config_is_read_without_them(tmp_path):
    plan = load_stored_config(write(tmp_path, TEXT + "\n"), Plan, command="plan")
    assert plan.model.depth == 3 and len(plan.models) == 2 and plan.shape.kind == "flat"
    assert load_stored_config(write(tmp_path, "model: {wide: true}"), Plan, command="plan").model == Model()


def test_a_stored_config_that_went_by_another_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model.wide is False, .* but True any more. Run 'adrec plan' again."):
        load_stored_config(write(tmp_path, "model: {wide: false, breadth: 3}"), Plan, command="plan")
    with pytest.raises(ConfigError, match="model.depht: unknown key. Did you mean"):
        load_stored_config(write(tmp_path, "model: {depht: 3, breadth: 3}"), Plan, command="plan")
    with pytest.raises(ConfigError, match="spec: depth"):
        stored_section({"depth": "many", "breadth": 1}, Model, where="spec", command="plan")


def test_a_branch_of_a_union_that_is_called_like_a_key_is_no_key():
    overrides = ["output=x", "source={format: tables, impressions: {files: a.csv}, ad_columns: [price]}"]
    with pytest.raises(ConfigError, match=r"source\.ad_columns: no longer a key\. .*`ad_columns` at the top"):
        load_config(None, PreprocessConfig, overrides)


def sections(model: type[Config]) -> set[Any]:
    inner = {found for field in model.model_fields.values() for found in models_in(field.annotation)}
    return {model}.union(*(sections(found) for found in inner))


def test_every_entry_is_of_a_section_that_exists_and_of_a_key_that_does_not():
    known = {
        section.__name__: section
        for model in config_models().values()
        for found in sections(model)
        for section in found.__mro__
    }
    for name, keys in RETIRED.items():
        if name in {"Base", "Flat"}:
            continue
        assert name in known, name
        assert not set(keys) & set(known[name].model_fields), name
        assert all(gone.successor.endswith(".") for gone in keys.values())
