"""Tokenizers: trained on the corpus, opened by AutoTokenizer, special tokens where encoders expect them."""

import random
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, world
from tokenizers import normalizers, pre_tokenizers

from adrec.errors import ConfigError, DataError
from adrec.prepare.text.tokenizer import count_words, train_tokenizer

TEXTS = ["Running shoes for runners", "Trail running jackets", "跑步鞋 跑步袜", "Runner's shoes and runners' socks"] * 20


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.parquet"
    held = [False] * len(TEXTS) + [True]
    pq.write_table(pa.table({"text": [*TEXTS, "Zyx zyx zyx zyx"], "held_out": held}), path)
    return path


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_auto_tokenizer_opens_what_was_trained(tmp_path, corpus, kind):
    from transformers import AutoTokenizer

    size = train_tokenizer(corpus, tmp_path / "tokenizer", kind=kind, vocab_size=400, special_tokens=("[USER]",), max_tokens=64)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    assert len(tokenizer) == size <= 400
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.mask_token) == ("[PAD]", "[UNK]", "[MASK]")
    assert tokenizer.model_max_length == 64
    ids = tokenizer("Running shoes [SEP] running socks")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert ids.count(tokenizer.sep_token_id) == 2, "the template's [SEP] is one token"
    assert tokenizer.tokenize("a [USER] b").count("[USER]") == 1
    assert tokenizer.unk_token_id not in tokenizer("RUNNING shoes for runners")["input_ids"], "in lower case it is known"
    assert "running shoes for runners" in tokenizer.decode(tokenizer("Running shoes for runners")["input_ids"])


def test_held_out_texts_are_not_learnt(tmp_path, corpus):
    train_tokenizer(corpus, tmp_path / "tokenizer", kind="wordpiece", vocab_size=1000, min_frequency=1)
    assert "zyx" not in (tmp_path / "tokenizer" / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_training_in_another_process_gives_the_same_bytes(tmp_path, corpus, kind):
    arguments = f"Path({str(corpus)!r}), Path({str(tmp_path / 'other')!r}), kind={kind!r}, vocab_size=120"
    program = (
        f"from pathlib import Path; from adrec.prepare.text.tokenizer import train_tokenizer; train_tokenizer({arguments})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    train_tokenizer(corpus, tmp_path / "here", kind=kind, vocab_size=120)
    assert (tmp_path / "here" / "tokenizer.json").read_bytes() == (tmp_path / "other" / "tokenizer.json").read_bytes()


def test_a_vocabulary_that_holds_not_even_the_characters(tmp_path, corpus):
    with pytest.raises(DataError, match="no unigram vocabulary of 12 pieces fits the texts"):
        train_tokenizer(corpus, tmp_path / "tokenizer", kind="unigram", vocab_size=12)


def test_the_stage_trains_copies_or_leaves_out(tmp_path):
    world(tmp_path)
    prepared, _ = prepare(tmp_path, tokenizer={"kind": "wordpiece", "vocab_size": 200})
    assert prepared.tokenizer is not None
    assert prepared.manifest["vocabulary"] <= 200
    copied, _ = prepare(
        tmp_path, tokenizer={"kind": "existing", "reference": str(prepared.tokenizer)}, output=str(tmp_path / "copied")
    )
    assert copied.manifest["vocabulary"] == prepared.manifest["vocabulary"]
    without, _ = prepare(tmp_path, output=str(tmp_path / "without"))
    assert without.tokenizer is None
    with pytest.raises(ConfigError, match="cannot be opened as a tokenizer"):
        prepare(tmp_path, tokenizer={"kind": "existing", "reference": str(tmp_path / "nothing")}, output=str(tmp_path / "x"))


def test_no_text_to_train_on(tmp_path):
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "held_out": pa.array([], pa.bool_())}), path)
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer(path, tmp_path / "tokenizer", kind="bpe", vocab_size=300)


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_are_counted_as_in_whole_texts(tmp_path, lowercase):
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rng = random.Random(0)
    pieces = [
        "a",
        "B",
        "Σ",
        "ΑΣ",
        "İ",
        "ß",
        "跑",
        "👟",
        "\t",
        "\u3000",
        "\u00a0",
        "\u200b",
        "\n",
        " ",
        "  ",
        "##x",
        "！",
        "_",
        "\x00",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 30))) for _ in range(2000)]
    pq.write_table(pa.table({"text": texts, "held_out": [False] * 2000}), tmp_path / "corpus.parquet")
    whole = [word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]
    counts = count_words(tmp_path / "corpus.parquet", normalizer, pre_tokenizer)
    assert counts == Counter(whole)
