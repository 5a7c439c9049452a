"""What users wrote is learned under noise: the units are users, the folder has a ledger, and finetune adds it to its own."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from corpora import ENGLISH, make_corpus
from pydantic import ValidationError
from worlds import make_world

from adrec.config.base import load_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.prepared import open_prepared
from adrec.data.text.corpus import Corpus
from adrec.errors import ConfigError, DataError
from adrec.models.text.text_encoder import load_text_encoder
from adrec.privacy.accounting import Event, epsilon_of
from adrec.privacy.ledger import unaccounted
from adrec.privacy.noise import Noise
from adrec.stages.training import finetune
from adrec.stages.training.finetuning.private import _of_encoder
from adrec.stages.training.pretrain import run
from adrec.stages.training.pretraining.private import LEDGER_FILE, public_corpus, read_ledger
from adrec.terminal import Terminal
from adrec.training.private.texts import TextPlan, texts_of_users

QUIET = Terminal(quiet=True)
USERS = 40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of ads, and users with interests and queries."""
    folder = make_corpus(tmp_path_factory.mktemp("private") / "prepared", count=120)
    random = np.random.default_rng(0)
    words = [word for topic in ENGLISH.values() for word in topic.split()]
    interests = [" ".join(random.choice(words, 3)) for _ in range(USERS)]
    interests[7] = ""
    pq.write_table(
        pa.table({"user_id": [f"u{number}" for number in range(USERS)], "text": interests, "segmented": interests}),
        folder / "users.parquet",
    )
    [file] = (folder / "impressions" / "train").glob("*.parquet")
    rows = pq.read_table(file)
    user = pa.array(random.integers(0, USERS, len(rows)), rows.schema.field("user_index").type)
    rows = rows.set_column(rows.column_names.index("user_index"), "user_index", user)
    queries = [" ".join(random.choice(words, 2)) if random.random() < 0.5 else None for _ in range(len(rows))]
    rows = rows.drop_columns(["query"]) if "query" in rows.column_names else rows
    pq.write_table(rows.append_column("query", pa.array(queries, pa.string())), file)
    return folder


def pretrain(prepared, output, *overrides):
    given = [
        f"prepared={prepared}", f"output={output}", "batches.max_tokens=32", "batches.batch_tokens=512", "training.epochs=3",
        "training.learning_rate=0.003", "privacy.epsilon=8", "privacy.delta=1e-4", "privacy.public=[tokenizer]",
        "privacy.secure=false", *overrides,
    ]  # fmt: skip
    return run(load_config(None, PretrainConfig, given), QUIET)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    return pretrain(prepared, folder), folder


def test_the_folder_says_what_it_tells_of_users(trained):
    result, folder = trained
    assert result.scores["all"]["after"].loss < result.scores["all"]["before"].loss
    stored = json.loads((folder / LEDGER_FILE).read_text())
    [weights] = [line for line in stored["lines"] if line["treatment"] == "noised"]
    event = Event(**weights["event"])
    assert stored["unit"] == "user" and event.rate == pytest.approx(4 / USERS) and event.steps == 30
    assert epsilon_of([event], 1e-4) == pytest.approx(stored["spent"], abs=1e-3) and stored["spent"] <= 8
    assert result.texts == 120 and not (folder / "logs").exists()  # figures are of ads
    assert load_text_encoder(str(folder)).dimension == 128


def test_all_texts_of_a_user_are_one_row(prepared):
    texts, user, text = texts_of_users(open_prepared(prepared))
    assert len(set(texts)) == len(texts) and all(value.strip() for value in texts)
    assert user.max() == len(set(user)) - 1 and len(set(zip(user.tolist(), text.tolist(), strict=True))) == len(user)
    tokens = [np.array([1, *range(5, 5 + len(value.split())), 2]) for value in texts]
    plan = TextPlan(tokens, user, text, 1.0, 1, 24, 16, 0.3, 3, 0, np.arange(5, 20), Noise(seed=0), _Nothing())
    step = plan.collate(0, np.random.default_rng(0))
    assert sum(len(part.tokens) for part in step.users) == plan.users and len(step.users) > 1
    for part in step.users:
        unmasked = part.tokens.scatter(1, part.places, part.labels)
        assert torch.equal(part.weight.sum(1), torch.ones(len(part.weight)))
        for row, own, place in zip(unmasked, part.texts, part.positions, strict=True):
            starts = (place == 0) & (own >= 0)
            assert (row[starts] == 1).all() and starts.sum() == own.max() + 1
            assert (own.diff()[own[1:] >= 0] >= 0).all()
    whole = sum(int((part.texts >= 0).sum()) for part in step.users)
    sizes = np.bincount(user, weights=[len(tokens[number]) for number in text])
    assert whole == np.minimum(sizes, 24).sum()


class _Nothing:
    def plan(self, epoch):
        return [0]

    def collate(self, item, generator):
        return None


def test_finetune_adds_what_the_encoder_cost(trained, tmp_path):
    _, folder = trained
    make_world(tmp_path / "prepared", users=60, requests=200)
    settings = {
        "prepared": tmp_path / "prepared", "output": tmp_path / "bundle",
        "text": {"reference": str(folder), "cache": str(tmp_path / "cache")},
        "model": {"width": 8, "hidden": [8], "dropout": 0.0}, "training": {"epochs": 1, "loggers": []},
        "privacy": {"epsilon": 12, "delta": 1e-4, "unit": "user", "secure": False},
    }  # fmt: skip
    ledger = finetune.run(FinetuneConfig.model_validate(settings), QUIET).privacy
    [line] = [line for line in ledger["lines"] if line["artefact"] == "text encoder"]
    assert line["treatment"] == "noised" and line["files"] == ["encoder/"]
    own = json.loads((folder / LEDGER_FILE).read_text())
    assert line["event"] == own["lines"][0]["event"] and own["spent"] < ledger["spent"] <= 12
    with pytest.raises(ConfigError, match="no noise keeps"):
        finetune.run(FinetuneConfig.model_validate({**settings, "privacy": {**settings["privacy"], "epsilon": 6}}), QUIET)
    declared = {**settings["privacy"], "public": ["encoder"]}
    assert _of_encoder(FinetuneConfig.model_validate({**settings, "privacy": declared})) == []


def test_what_is_held_out_is_told_by_the_text_alone(prepared):
    """That an ad is late says that nobody was shown it before the cut: one user more would move it out of what is measured."""
    own = [f"prepared={prepared}", "output=x", "privacy.epsilon=8", "privacy.public=[tokenizer]"]
    config, path = load_config(None, PretrainConfig, own), prepared / "corpus.parquet"
    count = pq.read_metadata(path).num_rows
    made = []
    for late in (0, count - 3):
        held_out = np.arange(count) < late
        corpus = Corpus(None, np.ones(count), np.full(count, "en"), np.full(count, "ad"), held_out)
        made.append(public_corpus(config, corpus, path, open_prepared(prepared)).held_out)
    assert (made[0] == made[1]).all() and 0 < made[0].sum() < count / 5


def test_ads_that_impressions_name_must_be_declared_for_texts(prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(prepared, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "source_rows": {"impressions": {"rows": 1}}}))
    with pytest.raises(DataError, match=r"their texts tell what was shown.*public=\[ads\]"):
        pretrain(folder, tmp_path / "x")


def test_no_file_without_a_line_and_none_that_was_changed(prepared, tmp_path):
    """A profile tells how long the texts of users are."""
    folder = tmp_path / "encoder"
    pretrain(prepared, folder, "training.profile=true", "training.max_steps=8", "training.loggers=[tensorboard]")
    ledger = read_ledger(folder)
    assert not (folder / "profile").exists() and not (folder / "logs").exists()
    files = {file.name for file in folder.iterdir()} - {LEDGER_FILE}
    assert files == set(ledger["files"]) and not unaccounted(ledger, files)
    (folder / "notes.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"'notes\.json' is not the file that it was written for"):
        read_ledger(folder)
    (folder / "notes.json").unlink()
    (folder / "adrec.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"'adrec\.json' is not the file"):
        read_ledger(folder)


def test_a_ledger_that_does_not_add_up_is_refused(trained, tmp_path):
    stored = json.loads((trained[1] / LEDGER_FILE).read_text())
    stored["lines"][0]["event"]["noise"] /= 2
    (tmp_path / LEDGER_FILE).write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="no ledger that adds up"):
        read_ledger(tmp_path)
    assert read_ledger(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "override, said",
    [
        ("privacy.public=[]", "has counted what users wrote"),
        ("objectives.nsp={}", "only `mlm` is counted by user; leave out nsp"),
        ("model.kind=word2vec", r"model\.kind may be scratch or continue"),
        ("training.accumulate=2", "drawn in one process"),
        ("training.nodes=2", "drawn in one process"),
    ],
)
def test_what_cannot_be_counted_is_refused(prepared, tmp_path, override, said):
    with pytest.raises((ConfigError, ValidationError), match=said):
        pretrain(prepared, tmp_path / "x", override)


def test_noise_that_is_too_little_and_a_folder_of_ones_own(prepared, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.noise 0\.3 costs"):
        pretrain(prepared, tmp_path / "x", "privacy.noise=0.3")
    with pytest.raises(ConfigError, match="its own epsilon would have to be added"):
        pretrain(prepared, tmp_path / "x", "model.kind=continue", f"model.reference={trained[1]}")
