"""distill with a bundle: the student stands in its teacher's place, alone or after learning the click task."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional
from worlds import make_world

from adrec.bundle import MANIFEST, open_bundle
from adrec.config.training.distill import DistillConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import ConfigError
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.text_encoder import TextEncoder
from adrec.prepare.text.tokenizer import train_tokenizer
from adrec.stages.training import distill, finetune
from adrec.stages.training.pretraining import distill_bundle
from adrec.terminal import Terminal
from adrec.training.click_distillation import binary_soft_loss

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A planted world with corpus and tokenizer, and an encoder of four layers with weights that matter."""
    from transformers import BertConfig, BertModel

    base = tmp_path_factory.mktemp("teach")
    made = make_world(base / "prepared", requests=800, ads=80)
    texts = list(dict.fromkeys(pq.read_table(made.path / "ads.parquet")["text"].to_pylist()))
    columns = {"text": texts, "segmented": texts, "language": ["en"] * len(texts), "kind": ["ad"] * len(texts)}
    held_out = np.arange(len(texts)) % 8 == 0
    pq.write_table(pa.table({**columns, "held_out": held_out}), made.path / "corpus.parquet")
    train_tokenizer(
        made.path / "corpus.parquet", made.path / "tokenizer", kind="wordpiece", vocab_size=300, min_frequency=1, max_tokens=32
    )
    tokenizer = load_tokenizer(made.path / "tokenizer")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    encoder = TextEncoder(
        backbone=BertModel(config, add_pooling_layer=False),
        tokenizer=tokenizer,
        dimension=32,
        max_tokens=32,
        template="{title}",
    )
    encoder.eval().save(base / "teacher")
    return made, base


def bundle(world, name, *, refit=False, **text):
    made, base = world
    config = FinetuneConfig(
        prepared=made.path,
        output=base / name,
        text={"reference": str(base / "teacher"), "cache": base / "cache", **text},
        model={"width": 16, "hidden": [16], "user": {"max_history": 8}, "identities": ["ads"] if refit else []},
        training={"epochs": 3, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
        baselines={"names": []},
        refit=refit,
    )
    if not (base / name).exists():
        finetune.run(config, QUIET)
    return base / name


def run(world, teacher, output, **settings):
    made, _ = world
    given = {
        "prepared": made.path,
        "bundle": teacher,
        "output": output,
        "batches": {"max_tokens": 32, "batch_tokens": 512},
        "training": {"epochs": 15, "learning_rate": 2e-3, "patience": None, "loggers": []},
        **settings,
    }
    return distill.run(DistillConfig(**given), QUIET)


@pytest.mark.parametrize("text", [{}, {"lexical": 8}, {"train": "full"}], ids=["frozen", "lexical", "full"])
def test_the_student_learns_the_click_task_and_its_bundle_scores(world, tmp_path, text):
    teacher = bundle(world, "_".join(["bundle", *text]), **text)
    plain = run(world, teacher, tmp_path / "plain")
    taught = run(world, teacher, tmp_path / "taught", click={"epochs": 2})
    assert (taught.teacher_layers, taught.student_layers) == (4, 2)
    assert taught.teacher_auc > 0.55 and taught.kept > 0.9
    assert taught.student_auc > plain.student_auc - 0.01
    networks = [unpack(open_bundle(tmp_path / name)) for name in ("plain", "taught")]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(networks[0].model.state_dict().values(), networks[1].model.state_dict().values(), strict=True)
    )
    for name in ("plain", "taught"):  # its golden requests get the logits that the new bundle records
        assert Predictor.load(tmp_path / name, device="cpu").checked
    own = open_bundle(teacher).json("metrics.json")["models"]
    for name, result in (("plain", plain), ("taught", taught)):  # figures are the student's, the teacher's beside them
        reported = open_bundle(tmp_path / name).json("metrics.json")
        assert reported["models"]["adrec"]["auc"] == pytest.approx(result.student_auc, abs=1e-6)
        assert reported["teacher"] == own and reported["measured"] == "as shipped"


@pytest.mark.parametrize("settings", [{}, {"click": {"epochs": 1}}], ids=["vectors", "clicks"])
def test_a_private_bundle_is_no_teacher(world, tmp_path, settings):
    """Its copy would claim the same epsilon, with an encoder that read users' texts and figures without noise."""
    teacher = bundle(world, "bundle")
    private = tmp_path / "private"
    shutil.copytree(teacher, private)
    manifest = json.loads((private / MANIFEST).read_text())
    lines = [{"artefact": "all", "treatment": "public", "files": list(manifest["files"])}]
    ledger = {"epsilon": 1.0, "spent": 0.5, "lines": lines}
    (private / MANIFEST).write_text(json.dumps({**manifest, "privacy": ledger}))
    with pytest.raises(ConfigError, match="was trained under privacy, and this would learn its log's rows and texts"):
        run(world, private, tmp_path / "student", **settings)
    assert not (tmp_path / "student").exists()


def test_a_refitted_teacher_numbers_its_ads_as_it_learned_them(world, tmp_path, monkeypatch):
    teacher = bundle(world, "refitted", refit=True)
    given, teach = [], distill_bundle.teach_clicks

    def seen(*args, **kwargs):
        given.append(kwargs["teacher_data"])
        return teach(*args, **kwargs)

    monkeypatch.setattr(distill_bundle, "teach_clicks", seen)
    taught = run(world, teacher, tmp_path / "taught", click={"epochs": 1}, training={"max_steps": 20, "loggers": []})
    packed = unpack(open_bundle(teacher))
    assert given[0].seen_ads.ids.to_pylist() == packed.seen_ads["id"].to_pylist()
    assert given[0].dimensions == packed.dimensions and given[0].splits == ("train", "valid")
    assert Predictor.load(tmp_path / "taught", device="cpu").checked and taught.student_auc > 0.55


def test_soft_targets_are_the_cross_entropy_of_softened_probabilities():
    logits, teacher = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.0], [0.5]])
    target, ours = torch.sigmoid(teacher / 3), torch.sigmoid(logits / 3)
    by_hand = -(target * ours.log() + (1 - target) * (1 - ours).log()).mean() * 9
    assert torch.allclose(binary_soft_loss(logits, teacher, 3.0), by_hand)
    hard = functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(teacher))
    assert torch.allclose(binary_soft_loss(logits, teacher, 1.0), hard)


def test_faults(world, tmp_path):
    teacher = bundle(world, "bundle")
    other = make_world(tmp_path / "other", requests=200, seed=5)
    for name in ("corpus.parquet", "tokenizer"):
        (other.path / name).symlink_to(world[0].path / name)
    with pytest.raises(ConfigError, match="another prepared folder"):
        run((other, tmp_path), teacher, tmp_path / "s", click={}, training={"max_steps": 1, "loggers": []})
    with pytest.raises(ValueError, match="`click` needs a `bundle`"):
        DistillConfig(prepared=world[0].path, output=tmp_path, teacher="x", click={})


def test_a_bundle_of_streamed_rows_is_refused_before_a_student_is_trained(world, tmp_path, monkeypatch):
    made, base = world
    config = FinetuneConfig(
        prepared=made.path, output=tmp_path / "bundle", model={"width": 8, "hidden": [8]}, baselines={"names": []},
        text={"reference": str(base / "teacher"), "cache": base / "cache"}, recall_requests=0,
        training={"epochs": 1, "batch_rows": 256, "loggers": [], "in_memory_rows": 0},
    )  # fmt: skip
    finetune.run(config, QUIET)
    monkeypatch.setattr("adrec.stages.training.distill.make_student", lambda *_: pytest.fail("a student was made"))
    with pytest.raises(ConfigError, match=r"streamed its .* training\.in_memory_rows of .* or more"):
        run(world, config.output, tmp_path / "s", click={})
