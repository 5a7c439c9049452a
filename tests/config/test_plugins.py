"""Sources, parts of the model and baselines of a package that is only installed: named in a config, used by the commands."""

import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_worlds import rows
from worlds import make_world

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.doctor import DoctorConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import BundleError, ConfigError, DataError
from adrec.stages import doctor
from adrec.stages.data import preprocess
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
MODULE = '''
import json
import numpy as np
import torch
from adrec.config.base import ConfigPath
from adrec.plugins import ModelPart, SourceFormat
from adrec.config.data.sources import SourceConfig
from adrec.prepare.sources import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files


class SessionsConfig(SourceConfig):
    """One line a session."""
    sessions: ConfigPath
    gap: int = 1


def open_sessions(connection, config, skip=0):
    files = find_files(str(config.sessions))
    header = ("user_id", "shown_at", "shown", "clicked")
    read_files(connection, "raw_sessions", files, format="csv", delimiter=";", header=header)
    connection.execute("""
        CREATE OR REPLACE TEMP VIEW raw_impressions AS
        SELECT user_id, shown_at, shown_ad.id AS ad_id, 'ad ' || shown_ad.id AS title,
               CAST(shown_ad.id = clicked AS INTEGER) AS click,
               source_file, source_row, source_order * 1000 + shown_ad.place AS source_order
        FROM (SELECT *, unnest(list_transform(string_split(shown, ' '), lambda x, i: {'id': x, 'place': i})) AS shown_ad
              FROM raw_sessions)""")
    return RawTables(impressions=RawTable("raw_impressions", tuple(files), Reading(time_unit="seconds")))


sessions = SourceFormat(SessionsConfig, open_sessions)
nonsense = SourceFormat(SessionsConfig, lambda connection, config, skip: {})


class Sum(torch.nn.Module):
    def __init__(self, *, width, extra):
        super().__init__()
        self.out_width = width + extra

    def forward(self, user, ad, extra):
        return torch.cat([user + ad, extra], -1)


class Newest(torch.nn.Module):
    def __init__(self, *, width):
        super().__init__()

    def forward(self, x, mask, hours):
        last = (mask.sum(-1) - 1).clamp(min=0)
        return x[torch.arange(len(x)), last]


total = ModelPart("interaction", Sum)
newest = ModelPart("user part", Newest)


class Constant:
    name, is_probability = "constant", True

    @classmethod
    def lacks(cls, inputs):
        return ""

    def fit(self, inputs, valid=None, *, seed=0):
        self.rate = float(np.mean(inputs.clicks))

    def score(self, inputs):
        return np.full(len(inputs), self.rate, np.float32)

    def save(self, folder):
        (folder / "rate.json").write_text(json.dumps(self.rate))

    @classmethod
    def load(cls, folder):
        loaded = cls()
        loaded.rate = json.loads((folder / "rate.json").read_text())
        return loaded
'''
POINTS = """
[adrec.sources]
sessions = {module}:sessions
nonsense = {module}:nonsense
gone = {module}:nothing

[adrec.models]
total = {module}:total
newest = {module}:newest

[adrec.baselines]
constant = {module}:Constant
half = {module}:Sum
"""


def install(folder, monkeypatch, package="ad_shop"):
    """What `pip install` leaves: the module, and its dist-info with entry points."""
    site = folder / f"site_{package}"
    (site / f"{package}-1.0.dist-info").mkdir(parents=True)
    (site / f"{package}.py").write_text(MODULE)
    (site / f"{package}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (site / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(POINTS.format(module=package))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, package, raising=False)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    return tmp_path


def config_file(folder, source):
    file = folder / "preprocess.yaml"
    file.write_text(
        textwrap.dedent(source) + "output: prepared\ntokenizer: {kind: none}\nsplit: {method: user, test_fraction: 0}\n"
    )
    return file


@pytest.mark.parametrize("name", ["sessions", "ad_shop:sessions"])
def test_a_source(shop, name, monkeypatch):
    (shop / "log.txt").write_text("u1;1700000000;a1 007 a3;007\nu2;1700000100;007;\n")
    file = config_file(shop, f"source:\n  format: {name}\n  sessions: log.txt\n")
    config = load_config(file, PreprocessConfig)
    assert config.source.sessions == shop / "log.txt"  # relative to the config, like our own paths
    preprocess.run(config, QUIET)
    prepared = open_prepared(config.output)
    table = rows(prepared)
    assert table["ad_id"].to_pylist() == ["a1", "007", "a3", "007"]
    assert table["click"].to_pylist() == [0, 1, 0, None]
    assert prepared.config == config  # what was saved beside the output loads again
    assert preprocess.run(config, QUIET).done == "unchanged"
    # Who reads the folder elsewhere need not have the package; who makes it again does.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site_ad_shop" not in entry])
    assert open_prepared(config.output).config.tokenizer == config.tokenizer
    with pytest.raises(ConfigError, match="no source .*installed under adrec.sources: none"):
        load_config(config.output / "config.yaml", PreprocessConfig)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{format: sessions}", "source.sessions: required and missing."),
        ("{format: sessions, sessions: log.txt, gaps: 2}", "source.gaps: unknown key. Did you mean 'gap'?"),
        ("{format: sessions, sessions: log.txt, gap: x}", "source.gap: input should be a valid integer"),
        ("{format: mindd}", "source.format: no source 'mindd': adrec has tables, mind, recbole, open_bandit, criteo; installed "
         "under adrec.sources: ad_shop:gone, ad_shop:nonsense, ad_shop:sessions"),
        ("{format: gone}", "source.format: source 'gone': the package ad_shop cannot be imported (AttributeError"),
    ],
)  # fmt: skip
def test_faults_of_a_source_are_told_like_ours(shop, source, words):
    with pytest.raises(ConfigError) as fault:
        load_config(config_file(shop, f"source: {source}\n"), PreprocessConfig)
    assert f"{shop}/preprocess.yaml: {words}" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_all_faults_of_a_source_stand_in_lines_of_their_own(shop):
    with pytest.raises(ConfigError) as fault:
        load_config(config_file(shop, "source: {format: sessions, gap: x}\nseeed: 1\n"), PreprocessConfig)
    assert [line.removeprefix(f"{shop}/preprocess.yaml: ").split(":")[0] for line in str(fault.value).splitlines()] == [
        "source.sessions", "source.gap", "seeed",
    ]  # fmt: skip


def test_a_source_that_gives_no_tables(shop):
    config = load_config(config_file(shop, "source: {format: nonsense, sessions: log.txt}\n"), PreprocessConfig)
    with pytest.raises(DataError, match="source 'nonsense': gives a dict, not RawTables"):
        preprocess.run(config, QUIET)


def test_a_name_that_two_packages_have_needs_the_package(shop, monkeypatch):
    install(shop, monkeypatch, "other_shop")
    with pytest.raises(ConfigError, match="no source 'sessions': .*ad_shop:sessions, .*other_shop:sessions"):
        load_config(config_file(shop, "source: {format: sessions, sessions: x}\n"), PreprocessConfig)
    load_config(config_file(shop, "source: {format: 'ad_shop:sessions', sessions: x}\n"), PreprocessConfig)


def test_doctor_lists_them_and_tells_the_broken_one(shop):
    found = doctor.run(DoctorConfig(), QUIET)
    assert found.plugins["adrec.sources"] == ["ad_shop:gone", "ad_shop:nonsense", "ad_shop:sessions"]
    assert found.plugins["adrec.models"] == ["ad_shop:newest", "ad_shop:total"]
    (problem,) = [line for line in found.problems if "ad_shop" in line]
    assert problem.startswith("source 'ad_shop:gone': the package ad_shop cannot be imported")


@pytest.fixture
def world(shop):
    make_world(shop / "prepared", users=30, requests=200)
    return shop


def finetune_config(folder, *overrides):
    given = [f"prepared={folder / 'prepared'}", f"output={folder / 'bundle'}", "training.epochs=1", "model.width=8"]
    return load_config(None, FinetuneConfig, [*given, "baselines.names=[]", *overrides])


def test_parts_of_the_model_and_a_baseline(world, monkeypatch):
    named = ("model.interaction=total", "model.user.parts=[soft,'ad_shop:newest']", "baselines.names=['ad_shop:constant']")
    config = finetune_config(world, *named)
    finetune.run(config, QUIET)
    scoring = ScoreConfig(bundle=world / "bundle", prepared=world / "prepared", split="test", output=world / "s.parquet")
    score.run(scoring, QUIET)
    scored = pq.read_table(world / "s.parquet")
    constant = scored["baseline_ad_shop:constant"].to_numpy()
    assert len(set(constant)) == 1
    assert 0 < constant[0] < 1
    assert np.isfinite(scored["logit"].to_numpy()).all()
    # Where the package is missing, the bundle says so in one line.
    assert open_bundle(world / "bundle").has("baselines/ad_shop.constant/rate.json")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site_ad_shop" not in entry])
    with pytest.raises((BundleError, ConfigError), match="'total'.*installed under adrec.models: none") as fault:
        score.run(scoring, QUIET)
    assert "bundle" in str(fault.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.interaction=totals",
            "model.interaction: no interaction 'totals': adrec has dot, mlp, dcn; installed",
        ),
        ("model.user.parts=[newst]", "model.user.parts.0: no user part 'newst': adrec has mean, soft, global"),
        ("baselines.names=[os:system]", "baselines.names.0: no baseline 'os:system': adrec has popularity"),
    ],
)
def test_names_that_nobody_has(shop, override, words):
    with pytest.raises(ConfigError) as fault:
        finetune_config(shop, override)
    assert words in str(fault.value)
    assert "ad_shop:" in str(fault.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.interaction=newest", "interaction 'newest': the package names it a user part"),
        ("baselines.names=[half]", "baseline 'half': its class has no is_probability, lacks, fit, score, save, load"),
    ],
)
def test_what_is_not_what_its_group_promises(world, override, words):
    with pytest.raises(ConfigError, match=words):
        finetune.run(finetune_config(world, override), QUIET)


def test_an_interaction_that_is_gone_says_what_to_take():
    with pytest.raises(ConfigError, match="model.interaction: deepfm is gone.*Take dcn"):
        load_config(None, FinetuneConfig, ["prepared=p", "output=o", "model.interaction=deepfm"])
