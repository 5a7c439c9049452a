"""A config file is read once, wholly: every fault at once, each with its path and the nearest key."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from adrec.config.base import Config, ConfigPath, ConfigPattern, EncoderReference, OnDevice, Seeded, load_config, save_config
from adrec.config.commands import config_models
from adrec.config.data.sample import SampleConfig
from adrec.errors import ConfigError


class Circle(Config):
    kind: Literal["circle"]
    radius: float = Field(1.0, gt=0)


class Square(Config):
    kind: Literal["square"]
    side: float = 1.0


class Optimiser(Config):
    learning_rate: float = Field(1e-3, gt=0)
    warmup_fraction: float = Field(0.1, ge=0, le=1)


class Plan(OnDevice, Seeded):
    output: ConfigPath
    inputs: list[ConfigPattern] = []
    encoder: EncoderReference | None = None
    optimiser: Optimiser = Optimiser()
    stages: list[Optimiser] = []
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle(kind="circle")
    named: dict[str, Optimiser] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path | None, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, Plan, overrides)
    return str(caught.value).splitlines()


def test_scientific_notation_is_a_number(tmp_path):
    plan = load_config(write(tmp_path, "output: out\noptimiser: {learning_rate: 2e-5}"), Plan)
    assert plan.optimiser.learning_rate == 2e-5
    assert load_config(None, Plan, ["output=x", "optimiser.learning_rate=3e-4"]).optimiser.learning_rate == 3e-4


def test_every_fault_is_reported_at_once_with_its_path(tmp_path):
    path = write(
        tmp_path,
        "outputt: here\nseed: many\noptimiser: {learning_rat: 1, warmup_fraction: 2}\nstages: [{}, {learning_rate: -1}]\n",
    )
    lines = faults(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    text = "\n".join(lines)
    assert "output: required and missing" in text
    assert "outputt: unknown key. Did you mean 'output'?" in text
    assert "seed: " in text and "found 'many'" in text
    assert "optimiser.learning_rat: unknown key. Did you mean 'learning_rate'?" in text
    assert "optimiser.warmup_fraction: " in text and "less than or equal to 1" in text
    assert "stages.1.learning_rate: " in text and "greater than 0" in text
    assert len(lines) == 6


def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path):
    path = write(
        tmp_path,
        "output: out\noptimiser:\n  learning_rate: 1\n  warmup_fraction: 0\n  learning_rate: 2\n"
        "stages: [{learning_rate: 1}, {learning_rate: 1, learning_rate: 3}]\noutput: other\n",
    )
    assert faults(path) == [
        f"{path}: optimiser.learning_rate: given twice, in line 3 and in line 5. Keep one.",
        f"{path}: stages.1.learning_rate: given twice, in line 6 and in line 6. Keep one.",
        f"{path}: output: given twice, in line 1 and in line 7. Keep one.",
    ]
    (line,) = faults(None, ["output=x", "optimiser={learning_rate: 1, learning_rate: 1}"])
    assert line.startswith("--set optimiser=") and "optimiser.learning_rate: given twice" in line


def test_what_an_anchor_brings_may_be_overridden(tmp_path):
    path = write(
        tmp_path, "output: out\nstages:\n  - &first {learning_rate: 1}\n  - {<<: *first, learning_rate: 2}\n  - *first\n"
    )
    assert [stage.learning_rate for stage in load_config(path, Plan).stages] == [1, 2, 1]


def test_a_key_like_no_other_lists_the_known_ones(tmp_path):
    (line,) = faults(write(tmp_path, "output: x\noptimiser: {zzzzqq: 1}"))
    assert "Known keys: learning_rate, warmup_fraction." in line


def test_a_key_of_another_branch_of_a_union_is_unknown_and_no_branch_stands_in_the_path(tmp_path):
    (line,) = faults(write(tmp_path, "output: x\nshape: {kind: circle, side: 2, radius: 1}"))
    assert ": shape.side: unknown key." in line and "'side'" not in line
    (line,) = faults(write(tmp_path, "output: x\nshape: {side: 2}"))
    assert "shape.kind: required and missing" in line


def test_nearest_key_inside_unions_and_dictionaries(tmp_path):
    lines = faults(write(tmp_path, "output: x\nshape: {kind: square, sid: 2}\nnamed: {a: {warmup_fractio: 0.1}}"))
    assert any("shape.sid: unknown key. Did you mean 'side'?" in line for line in lines)
    assert any("warmup_fractio: unknown key. Did you mean 'warmup_fraction'?" in line for line in lines)


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "deep"
    folder.mkdir(parents=True)
    (folder / "encoder").mkdir()
    text = "output: ../runs/a\ninputs: [data/*.csv, /abs/x.csv]\nencoder: encoder"
    monkeypatch.chdir(tmp_path)
    plan = load_config(write(folder, text), Plan)
    assert plan.output == tmp_path / "configs" / "runs" / "a"
    assert plan.inputs == [str(folder / "data" / "*.csv"), "/abs/x.csv"]
    assert plan.encoder == str(folder / "encoder")


def test_paths_of_overrides_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "encoder").mkdir()
    file = write(folder, "output: x\ninputs: [data/*.csv, more.csv]")
    monkeypatch.chdir(tmp_path)
    plan = load_config(file, Plan, ["output=runs/a", "inputs.0=logs/*.csv", "encoder=encoder"])
    assert plan.output == tmp_path / "runs/a"
    assert plan.inputs == [str(tmp_path / "logs/*.csv"), str(folder / "more.csv")]
    assert plan.encoder == str(tmp_path / "encoder")
    assert load_config(file, Plan, ["inputs=[a.csv, ~/b.csv]", "output=/c"]).inputs == [
        str(tmp_path / "a.csv"), str(Path.home() / "b.csv"),
    ]  # fmt: skip
    assert load_config(file, Plan, ["output=a"], overrides_base=folder).output == folder / "a"


def test_overrides_alone_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(None, Plan, ["output=runs/a"]).output == tmp_path / "runs" / "a"


@pytest.mark.parametrize("reference", ["package:some_package/model", "sentence-transformers/all-MiniLM-L6-v2"])
def test_encoders_that_are_no_folders_stay_as_they_are(tmp_path, reference):
    assert load_config(write(tmp_path, f"output: x\nencoder: '{reference}'"), Plan).encoder == reference


def test_overrides_win_over_the_file_and_reach_into_lists(tmp_path):
    path = write(tmp_path, "output: x\nstages: [{learning_rate: 1}, {learning_rate: 2}]")
    plan = load_config(path, Plan, ["stages.1.learning_rate=5", "optimiser.warmup_fraction=0.5", "seed=7"])
    assert [stage.learning_rate for stage in plan.stages] == [1, 5]
    assert (plan.optimiser.warmup_fraction, plan.seed) == (0.5, 7)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "expected dotted.key=value"),
        ("=3", "expected dotted.key=value"),
        ("seed={", "not valid YAML"),
        ("stages.9.learning_rate=1", "'9' is not an index of a list of 1"),
        ("sede=3", "Did you mean 'seed'?"),
    ],
)
def test_bad_overrides_are_one_line(tmp_path, override, part):
    (line,) = faults(write(tmp_path, "output: x\nstages: [{}]"), [override])
    assert part in line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("output: [", "not valid YAML"),
        ("- a\n- b", "expected keys and values at the top, found a list"),
        ("just words", "expected keys and values at the top, found a str"),
        ("", "output: required and missing"),
        ("output: x\nseed: 1\noptimiser: 3", "optimiser"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, text, part):
    (line,) = faults(write(tmp_path, text))
    assert part in line


def test_missing_file_and_folder_instead_of_file(tmp_path):
    (line,) = faults(tmp_path / "none.yaml")
    assert "no such config file. 'adrec init' writes one" in line
    (line,) = faults(tmp_path)
    assert "is a folder. Name a file." in line


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    (line,) = faults(path)
    assert "cannot be read" in line


def test_configs_cannot_be_changed_after_loading(tmp_path):
    plan = load_config(write(tmp_path, "output: x"), Plan)
    with pytest.raises(ValueError):
        plan.seed = 3


@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-12, 1e6),
    names=st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8), st.floats(0, 1), max_size=3
    ),
)
def test_saving_and_loading_gives_an_equal_config(tmp_path_factory, seed, rate, names):
    folder = tmp_path_factory.mktemp("saved")
    plan = Plan.model_validate(
        {
            "output": "/runs/广告",
            "seed": seed,
            "optimiser": {"learning_rate": rate},
            "named": {name: {"warmup_fraction": value} for name, value in names.items()},
        }
    )
    save_config(plan, folder / "config.yaml")
    assert load_config(folder / "config.yaml", Plan) == plan


def test_saved_config_is_plain_yaml(tmp_path):
    save_config(SampleConfig(output=Path("/tmp/x")), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        "seed": 42, "output": "/tmp/x", "impressions": 30_000, "pictures": 0.0, "sounds": 0.0, "graph": 0.0,
        "conversion_delay": 1.0, "conversion_delay_by_price": 0.0,
    }  # fmt: skip


def test_a_stored_config_does_not_say_whose_home_it_was(tmp_path, monkeypatch):
    """The file may travel; on the same machine it still means the same."""
    from adrec.config.base import load_config, save_config
    from adrec.config.inference.encode import EncodeConfig

    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    (tmp_path / "alice").mkdir()
    config = load_config(None, EncodeConfig, [f"bundle={tmp_path}/alice/b", "output=/srv/v", f"ads={tmp_path}/alicette/a.csv"])
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "~/b" in text and "alice/" not in text and "alicette/a.csv" in text
    assert load_config(tmp_path / "config.yaml", EncodeConfig) == config


@pytest.mark.parametrize("command", sorted(config_models()))
def test_a_section_named_in_part_keeps_what_it_has_unnamed(command):
    """Defaults stand in the section's own class: one given by the field would be lost with the first key that a user sets."""
    for name, field in config_models()[command].model_fields.items():
        if isinstance(field.default, Config):
            assert field.default == type(field.default)(), name
