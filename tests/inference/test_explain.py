"""Explanations add up, are faithful, and read as sentences."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import TOPICS, WORDS, make_bundle, make_world

from adrec.config.base import load_config
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.explain.counterfactual import changes
from adrec.inference.explain.explainer import Explainer, titles_of, with_listed
from adrec.inference.explain.sentence import sentence
from adrec.inference.explain.variants import Row, token_embeddings, token_tables
from adrec.inference.explain.words import Word, words_from_tokens
from adrec.inference.predictor import Predictor
from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder
from adrec.models.text.word_vectors import WordTokenizer, WordVectors
from adrec.stages.evaluation.evaluate import run as evaluate
from adrec.stages.inference.explain import run as explain
from adrec.stages.inference.score import run as score
from adrec.stages.training.finetune import run as finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


def _word_vectors(folder):
    """Words of a topic near each other."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(len(TOPICS), 16))
    words = [(word, number) for number, topic in enumerate(TOPICS) for word in WORDS[topic].split()]
    vectors = np.stack([topics[number] + 0.3 * rng.normal(size=16) for _, number in words]).astype(np.float32)
    tokenizer = WordTokenizer([word for word, _ in words])
    TextEncoder(backbone=WordVectors.from_array(vectors), tokenizer=tokenizer, dimension=16).save(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    make_world(root / "prepared", requests=1500)
    _word_vectors(root / "words")
    settings = [
        f"prepared={root / 'prepared'}", f"output={root / 'bundle'}", f"text.reference={root / 'words'}",
        f"text.cache={root / 'cache'}", "model.width=32", "model.user.parts=[soft, target]",
        "training.epochs=20", "training.learning_rate=3e-3", "baselines.names=[popularity]",
    ]  # fmt: skip
    finetune(load_config(None, FinetuneConfig, settings), QUIET)
    prepared = open_prepared(root / "prepared")
    predictor = Predictor.load(root / "bundle", device="cpu", cache=root / "cache")
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = load_examples(prepared, "test")
    return root, predictor, catalogs, examples, Explainer(predictor, catalogs, titles_of(prepared.ads()))


def test_contributions_add_up_to_the_logit_that_score_gives(trained):
    _, predictor, catalogs, examples, explainer = trained
    scored = predictor.score_examples(examples, catalogs, baselines=False)
    for row in (0, 7, 100):
        found = explainer.explain(examples, row)
        total = found.baseline + sum(part.contribution for part in found.all_parts)
        assert found.logit == pytest.approx(float(scored.logit[row]), abs=1e-5)
        assert total == pytest.approx(found.logit, abs=1e-3)


def test_a_listed_word_is_given_its_own_weight_and_an_item_of_interests_its_name(tmp_path):
    make_world(tmp_path / "prepared", requests=300, users=50, listed_words=True)
    make_bundle(tmp_path)
    prepared = open_prepared(tmp_path / "prepared")
    predictor = Predictor.load(tmp_path / "bundle", device="cpu", verify=False)
    catalogs, examples = predictor.catalogs(prepared.ads(), prepared.users()), load_examples(prepared, "test")
    coder = predictor.packed.features["ads"].lists[0]
    weight = predictor.model.wide_lists.weights[0].detach()
    with torch.no_grad():  # listed words speak through their own weights alone
        predictor.model.ad_encoder.fields.list_tables[0].weight.zero_()
        weight.copy_(torch.linspace(0.5, 2, len(weight)))
    found = Explainer(predictor, catalogs, titles_of(prepared.ads())).explain(examples, 11)
    parts = {part.value: part.contribution for part in found.parts if part.name == "segmented"}
    assert set(parts) == set(found.title.split())
    for word, contribution in parts.items():
        assert contribution == pytest.approx(float(weight[coder.apply(pa.array([word]))[0]]), abs=1e-5)
    interests = [part.value for part in found.parts if part.name == "interests" and part.kind == "feature"]
    assert interests == prepared.users()["interests"][int(examples.user_index[11])].as_py()
    # With an encoder the words are there to be lit: what they add as items is part of them.
    words = [Word(word, 0, 0, 0.25) for word in found.title.split()]
    lit, rest = with_listed(words, found.parts)
    assert [(word.listed, word.contribution) for word in lit] == [(parts[word.text], parts[word.text] + 0.25) for word in words]
    assert not any(part.name == "segmented" for part in rest) and len(rest) == len(found.parts) - len(words)


def _small_bert(folder):
    """A BERT of random weights that knows the world's words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for topic in TOPICS for word in WORDS[topic].split())]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **shape)).save_pretrained(folder)


def test_they_add_up_with_a_lexical_part_whose_mask_is_the_zero_vector(tmp_path):
    make_world(tmp_path / "prepared", requests=400, users=50)
    _small_bert(tmp_path / "bert")
    settings = [
        f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'bundle'}", f"text.reference={tmp_path / 'bert'}",
        f"text.cache={tmp_path / 'cache'}", "text.lexical=8", "model.width=16", "training.epochs=3", "baselines.names=[]",
    ]  # fmt: skip
    finetune(load_config(None, FinetuneConfig, settings), QUIET)
    prepared = open_prepared(tmp_path / "prepared")
    predictor = Predictor.load(tmp_path / "bundle", device="cpu", cache=tmp_path / "cache")
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    explainer = Explainer(predictor, catalogs, titles_of(prepared.ads()))
    examples = load_examples(prepared, "test")
    for row in (0, 20, 50):
        assert abs(explainer.explain(examples, row).missing) < 1e-3


def test_every_order_of_categories_adds_up_and_seeds_repeat(trained):
    _, _, _, examples, explainer = trained
    first, again = (explainer.explain(examples, 3, seed=1) for _ in range(2))
    assert first == again


def test_taking_away_the_strongest_click_moves_the_logit_more_than_a_random_one(trained):
    _, predictor, catalogs, examples, explainer = trained
    long = np.flatnonzero(examples.histories.lengths[examples.history_of_row] >= 4)
    differences = []
    for row in long[:: max(1, len(long) // 40)]:
        found = explainer.explain(examples, int(row))
        moved = changes(predictor, catalogs, examples.take(np.array([row])), categories=0)
        effect = np.array([abs(change.logit - found.logit) for change in moved if change.kind == "click"])
        history = examples.histories.take(examples.history_of_row[[row]]).values
        names = [catalogs.ads.ids[int(ad)].as_py() for ad in history]
        strength = {part.name: abs(part.contribution) for part in found.parts if part.kind == "click"}
        strongest = int(np.argmax([strength.get(name, 0.0) for name in names]))
        differences.append(effect[strongest] - effect.mean())
    differences = np.array(differences)
    draws = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    assert np.quantile(differences[draws].mean(axis=1), 0.025) > 0


def test_an_ad_no_one_saw_and_a_user_without_history_are_explained(trained):
    _, _, _, examples, explainer = trained
    empty = np.flatnonzero(examples.histories.lengths[examples.history_of_row] == 0)
    assert len(empty)
    found = explainer.explain(examples, int(empty[0]))
    assert not [part for part in found.parts if part.kind == "click"]
    assert np.isfinite(found.logit)


def test_words_take_the_tokens_that_start_in_them():
    class Tokenizer:
        is_fast = True
        all_special_tokens = ("[SEP]",)

        def __call__(self, text, **_):
            return {"offset_mapping": [(0, 0), (0, 3), (3, 6), (7, 9), (10, 15), (16, 18), (18, 20), (0, 0)]}

    # Special tokens are part of the baseline, so they contribute nothing.
    contributions = np.array([0, 1, 2, 4, 0, 16, 32, 0.0])
    words = words_from_tokens("abcdef gh [SEP] 跑步鞋子", Tokenizer(), contributions, 99)
    assert [(word.text, word.contribution) for word in words] == [("abcdef", 1 + 2), ("gh", 4), ("跑步", 16), ("鞋子", 32)]


def test_the_command_writes_a_page_and_a_sentence(trained, tmp_path):
    root, *_ = trained
    settings = [
        f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=test", f"output={tmp_path / 'why'}",
        "rows=2", f"cache={root / 'cache'}",
    ]  # fmt: skip
    result = explain(load_config(None, ExplainConfig, settings), QUIET)
    written = json.loads((tmp_path / "why" / "explanations.json").read_text(encoding="utf-8"))
    page = (tmp_path / "why" / "explanations.html").read_text(encoding="utf-8")
    assert len(written["rows"]) == 2
    assert sentence(result.explanations[0]) == written["rows"][0]["sentence"]
    assert result.explanations[0].title in page
    assert "http" not in page
    with pytest.raises(DataError, match="no row of user_id=nobody"):
        explain(load_config(None, ExplainConfig, [*settings, "user_id=nobody"]), QUIET)


def test_overall_the_inputs_that_carry_the_clicks_lose_most_and_evaluate_draws_them(trained, tmp_path):
    root, *_ = trained
    settings = [
        f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=train", f"output={tmp_path / 'overall'}",
        "overall=true", "overall_rows=3000", f"cache={root / 'cache'}",
    ]  # fmt: skip
    result = explain(load_config(None, ExplainConfig, settings), QUIET)
    found = {one.name: one for one in result.importance}
    assert found["interests"].increase == 0  # declared, but by words that this encoder does not know
    assert found["ad text"].low > 0 and result.importance[0].name == "ad text"  # in this world only the topic tells
    assert all(one.low <= one.increase <= one.high for one in result.importance)
    again = explain(load_config(None, ExplainConfig, settings), QUIET)
    assert again.importance == result.importance and again.dependence == result.dependence
    assert all(0 <= score <= 1 for one in result.dependence for score in one.scores)

    score(
        load_config(
            None, ScoreConfig,
            [f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=test", f"output={tmp_path / 's.parquet'}"],
        ),
        QUIET,
    )  # fmt: skip
    judge = [f"scored={tmp_path / 's.parquet'}", f"output={tmp_path / 'judged'}", "bootstrap.replicates=10"]
    evaluate(load_config(None, EvaluateConfig, [*judge, f"importance={tmp_path / 'overall'}"]), QUIET)
    page = (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")
    assert "What the model lives on" in page and "Importance of inputs" in page and "ad text" in page
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="explain --global"):
        evaluate(load_config(None, EvaluateConfig, [*judge, f"importance={tmp_path / 'other.json'}"]), QUIET)


def test_words_of_the_lexical_part_are_attributed_too(tmp_path):
    """A frozen transformer with its words' vectors beside its meaning: both are reached from the masked words."""

    rng = np.random.default_rng(0)
    _word_vectors(tmp_path / "words")
    encoder = load_text_encoder(str(tmp_path / "words"))
    rows = token_tables(encoder)[0].weight.shape[0]
    both = encoder.with_lexical(torch.from_numpy(rng.normal(size=(rows, 5)).astype(np.float32)))
    ids, mask = both.tokenize(["guitar concert"])
    made = token_embeddings(both, ids)
    assert made.shape[-1] == both.dimension == 16 + 5
    row = Row(
        model=None, encoder=both, batch=None, input_ids=ids, attention_mask=mask, places=None, has_text=True,
        has_interests=False, has_query=False,
    )  # fmt: skip
    assert np.allclose(row.text_vector(made).detach().numpy(), encode_texts(both, ["guitar concert"]), atol=1e-6)
    changed = made.clone()
    changed[..., 16:] += 1.0  # only the words' own vectors
    moved = (row.text_vector(changed) - row.text_vector(made)).abs()
    assert moved[0, :16].max() < 1e-6 < 1e-3 < moved[0, 16:].max()
