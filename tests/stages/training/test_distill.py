"""distill: layers are copied evenly, the student comes to give the teacher's vectors, and the terms are what they say."""

import numpy as np
import pytest
import torch
from corpora import make_corpus
from torch.nn import functional

from adrec.config.base import load_config
from adrec.config.training.distill import DistillConfig
from adrec.data.text.corpus import open_corpus, ordinary_ids, texts_of
from adrec.errors import ConfigError
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import LanguageModel, new_language_model, open_language_model
from adrec.models.text.student import chosen_layers, layer_stack, make_student
from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder
from adrec.stages.training.distill import run
from adrec.terminal import Terminal
from adrec.training.objectives.distil import Distil, VectorDistil, VectorFeed, pack_vectors, soft_target_loss
from adrec.training.objectives.mlm import MlmFeed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A prepared folder and a teacher of four layers with weights that matter."""
    from transformers import BertConfig, BertForMaskedLM

    base = tmp_path_factory.mktemp("distill")
    prepared = make_corpus(base / "prepared", count=200)
    tokenizer = load_tokenizer(prepared / "tokenizer")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    model = LanguageModel(BertForMaskedLM(config))
    model.save(base / "teacher", tokenizer)
    TextEncoder(
        backbone=model.backbone, tokenizer=tokenizer, dimension=32, pooling="mean", max_tokens=32, template="{title}"
    ).save_settings(base / "teacher")
    return prepared, base / "teacher"


def distill(world, output, *overrides):
    prepared, teacher = world
    given = [
        f"prepared={prepared}", f"output={output}", f"teacher={teacher}", "batches.max_tokens=32",
        "batches.batch_tokens=512", "training.epochs=2", "training.patience=null", *overrides,
    ]  # fmt: skip
    return run(load_config(None, DistillConfig, given), Terminal(quiet=True))


def test_layers_are_spread_evenly_and_end_with_the_last():
    assert chosen_layers(6, 3) == [1, 3, 5]
    assert chosen_layers(12, 6) == [1, 3, 5, 7, 9, 11]
    assert chosen_layers(4, 1) == [3]
    for student in (0, 4, 9):
        with pytest.raises(ConfigError, match="student layers must be 1 to 3"):
            chosen_layers(4, student)


def test_the_student_starts_from_the_teachers_layers(world):
    tokenizer = load_tokenizer(world[0] / "tokenizer")
    teacher = new_language_model("mini", tokenizer, max_tokens=32)
    student = make_student(teacher, None)
    ours, theirs = layer_stack(student.backbone), layer_stack(teacher.backbone)
    assert len(ours) == student.config.num_hidden_layers == 2 and len(theirs) == teacher.config.num_hidden_layers == 4
    for mine, number in zip(ours, (1, 3), strict=True):
        for a, b in zip(mine.parameters(), theirs[number].parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_the_student_comes_close_and_its_folder_opens(world, tmp_path):
    start = distill(world, tmp_path / "start", "training.max_steps=1", "training.learning_rate=1e-9")
    result = distill(world, tmp_path / "s", "training.epochs=20", "training.learning_rate=0.003")
    assert (result.teacher_layers, result.student_layers) == (4, 2)
    assert result.student_parameters < result.teacher_parameters
    assert result.cosine > start.cosine and result.cosine > 0.9
    student, teacher = load_text_encoder(str(tmp_path / "s")), load_text_encoder(str(world[1]))
    assert (student.pooling, student.template, student.max_tokens) == ("mean", "{title}", 32)
    texts = ["roses and soil", "吉他 歌手"]
    cosine = functional.cosine_similarity(*(torch.from_numpy(encode_texts(side, texts)) for side in (student, teacher)))
    assert float(cosine.min()) > 0.8
    from transformers import AutoModelForMaskedLM

    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "s").config.num_hidden_layers == 2
    assert list(result.render()) and result.kept is None


def test_with_the_vector_term_alone_the_teacher_reads_each_text_once(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Distil, "forward", lambda *_: pytest.fail("the teacher must not run in training"))
    alone = ["terms.cosine=0", "terms.soft=0", "terms.mlm=0", "training.epochs=8", "training.learning_rate=0.002"]
    result = distill(world, tmp_path / "student", *alone)
    first, last = result.run.evaluations[0], result.run.evaluations[-1]
    assert last["valid_loss"] < first["valid_loss"] and result.cosine > 0.9


def test_the_vector_term_is_the_same_whether_the_teacher_runs_or_its_vectors_are_given(world):
    prepared, folder = world
    teacher = load_text_encoder(str(folder))
    tokenizer = teacher.tokenizer
    path = prepared / "corpus.parquet"
    corpus = open_corpus(path, tokenizer, max_tokens=32, cache=prepared.parent / "cache")
    feed = MlmFeed(
        corpus, np.flatnonzero(corpus.held_out), mask_id=tokenizer.mask_token_id, pad_id=tokenizer.pad_token_id,
        ordinary_ids=ordinary_ids(tokenizer), pack_tokens=64, batch_tokens=512,
    )  # fmt: skip
    given = VectorFeed(feed, encode_texts(teacher, texts_of(path, np.arange(len(corpus)))))
    model = open_language_model(str(folder), tokenizer, max_tokens=32).eval()
    student = make_student(model, 2).eval()
    runs = Distil(model, pooling="mean", soft=0, mlm=0, cosine=0, vector=3.0)
    kept = VectorDistil(pooling="mean", weight=3.0)
    item, generator = feed.plan(0)[0], np.random.default_rng(0)
    with torch.no_grad():
        assert runs(student, feed.collate(item, generator)) == pytest.approx(
            float(kept(student, given.collate(item, generator))), rel=1e-5
        )


def test_soft_targets_are_a_divergence():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    assert float(soft_target_loss(target, target, 2.0)) == pytest.approx(0, abs=1e-6)
    ours, theirs = (side.double().div(2).softmax(1) for side in (logits, target))
    expected = (theirs * (theirs / ours).log()).sum(1).mean() * 4
    assert float(soft_target_loss(logits, target, 2.0)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_of_packed_texts_against_a_loop(pooling):
    texts = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0]])
    states = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    pick = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}[pooling]
    expected = [pick(states[row][texts[row] == text]) for row in range(2) for text in range(int(texts[row].max()) + 1)]
    assert torch.allclose(pack_vectors(states, texts, positions, pooling), torch.stack(expected), atol=1e-6)


def test_faults(world, tmp_path):
    with pytest.raises(ConfigError, match="exactly one of `teacher` and `bundle`"):
        load_config(None, DistillConfig, [f"prepared={world[0]}", "output=x"])
    with pytest.raises(ConfigError, match="student layers must be 1 to 3"):
        distill(world, tmp_path / "s", "layers=4")
    words = tmp_path / "cls"
    load_text_encoder(str(world[1]), pooling="attention").save(words)
    with pytest.raises(ConfigError, match="only transformers with mean, cls or last"):
        distill((world[0], words), tmp_path / "s")
    plain = tmp_path / "plain"
    load_text_encoder(str(world[1])).save(plain)
    with pytest.raises(ConfigError, match="no trained masked-language-model head"):
        distill((world[0], plain), tmp_path / "s", "terms.soft=1")
    assert np.isfinite(distill((world[0], plain), tmp_path / "t", "training.max_steps=2").cosine)
