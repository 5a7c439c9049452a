"""Masking: 15 %, 80/10/10, never a special token, words whole in both languages."""

import numpy as np
import pytest
from corpora import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.data.text.corpus import open_corpus, ordinary_ids, tokenise, word_positions
from adrec.data.text.masking import mask_tokens
from adrec.errors import DataError
from adrec.models.text.hugging_face import load_tokenizer

MASK, ORDINARY = 4, np.arange(10, 1000)


@pytest.mark.parametrize("whole_words", [True, False])
def test_shares_over_a_hundred_thousand_tokens_are_within_three_standard_errors(whole_words):
    rng = np.random.default_rng(0)
    chosen = masked = kept = replaced = total = 0
    for batch in range(50):
        tokens = rng.integers(10, 1000, (16, 128))
        words = np.cumsum(rng.random((16, 128)) < 0.7).reshape(16, 128)
        words[:, [0, -1]] = -1
        made = mask_tokens(
            tokens,
            words,
            mask_id=MASK,
            ordinary_ids=ORDINARY,
            generator=np.random.default_rng([1, batch]),
            whole_words=whole_words,
        )
        seen = made.tokens.reshape(-1)[made.places]
        total += int((words >= 0).sum())
        chosen += len(made.places)
        masked += int((seen == MASK).sum())
        kept += int((seen == made.labels).sum())
        replaced += int(((seen != MASK) & (seen != made.labels)).sum())
    assert total > 100_000

    def within(count, of, share):
        return abs(count - share * of) <= 3 * np.sqrt(of * share * (1 - share))

    assert within(chosen, total, 0.15)
    assert within(masked, chosen, 0.80)
    # One random replacement in |ordinary| happens to be the token itself.
    assert within(replaced, chosen, 0.10 * (1 - 1 / len(ORDINARY)))
    assert within(kept, chosen, 0.10 * (1 + 1 / len(ORDINARY)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.01, 0.99))
def test_special_tokens_are_never_touched_and_words_fall_whole(seed, length, rate):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 1000, (3, length))
    words = np.cumsum(rng.random((3, length)) < 0.5).reshape(3, length)
    words[rng.random((3, length)) < 0.2] = -1
    made = mask_tokens(tokens, words, mask_id=MASK, ordinary_ids=ORDINARY, generator=rng, rate=rate)
    hit = np.zeros(tokens.size, bool)
    hit[made.places] = True
    flat = words.reshape(-1)
    assert not hit[flat < 0].any()
    assert np.array_equal(made.tokens.reshape(-1)[~hit], tokens.reshape(-1)[~hit])
    assert np.array_equal(made.labels, tokens.reshape(-1)[made.places])
    for word in set(flat[flat >= 0].tolist()):
        assert len(set(hit[flat == word].tolist())) == 1


def test_the_share_is_right_on_average_even_where_the_budget_is_less_than_a_word():
    tokens, words = np.full((1, 6), 20), np.array([[0, 0, 0, 1, 1, 1]])
    counts = [
        len(mask_tokens(tokens, words, mask_id=MASK, ordinary_ids=ORDINARY, generator=np.random.default_rng(seed)).places)
        for seed in range(4000)
    ]
    expected, deviation = 0.15 * 6, np.sqrt(0.3 * 0.7) * 3
    assert abs(np.mean(counts) - expected) < 4 * deviation / np.sqrt(4000)


def test_words_start_where_english_and_jieba_say():
    assert word_positions("Fast-charging 国际机场, ok").tolist() == [0, 4, 5, 14, 16, 18, 20]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tokens_of_one_word_share_its_number_in_both_languages(tmp_path, kind):
    folder = make_corpus(tmp_path / "prepared", kind=kind)
    tokenizer = load_tokenizer(folder / "tokenizer")
    text = "unseenword roses [SEP] 钢琴曲海滩"
    made = tokenise([text], tokenizer, max_tokens=64)
    tokens, words = made["tokens"][0], made["words"][0]
    special = np.isin(tokens, tokenizer.all_special_ids)
    assert (words[special] == -1).all()
    assert (words[~special] >= 0).all()
    assert (np.diff(words[~special]) >= 0).all()
    for word in ("钢琴曲", "海滩"):
        of_word = [
            number
            for token, number in zip(tokenizer.convert_ids_to_tokens(tokens.tolist()), words, strict=True)
            if kind == "wordpiece" and token.replace("##", "") and token.replace("##", "") in word
        ]
        assert len(set(of_word)) <= 1


def test_a_chinese_word_is_masked_whole_and_by_character_when_asked(tmp_path):
    folder = make_corpus(tmp_path / "prepared")
    tokenizer = load_tokenizer(folder / "tokenizer")
    made = tokenise(["钢琴曲旅行社演唱会"], tokenizer, max_tokens=64)
    tokens, words = made["tokens"][0][None].astype(np.int64), made["words"][0][None].astype(np.int64)
    assert len(set(words[words >= 0].tolist())) < int((words >= 0).sum()), "words of several characters share a number"
    settings_ = {"mask_id": tokenizer.mask_token_id, "ordinary_ids": ordinary_ids(tokenizer), "rate": 0.4}
    partly = set()
    for whole_words in (True, False):
        for seed in range(50):
            rng = np.random.default_rng(seed)
            places = mask_tokens(tokens, words, generator=rng, whole_words=whole_words, **settings_).places
            hit = np.isin(np.arange(tokens.size), places)
            if any(len(set(hit[words[0] == word].tolist())) > 1 for word in set(words[words >= 0].tolist())):
                partly.add(whole_words)
    assert partly == {False}


def test_corpus_faults_are_named(tmp_path):
    import pyarrow.parquet as pq

    folder = make_corpus(tmp_path / "prepared", count=40)
    tokenizer = load_tokenizer(folder / "tokenizer")
    table = pq.read_table(folder / "corpus.parquet")
    for broken, message in (
        (table.slice(0, 0), "empty"),
        (table.filter(table["held_out"]), "held out"),
        (table.drop_columns(["language"]), "column 'language' is missing"),
    ):
        pq.write_table(broken, tmp_path / "corpus.parquet")
        with pytest.raises(DataError, match=message):
            open_corpus(tmp_path / "corpus.parquet", tokenizer, max_tokens=32, cache=tmp_path / "cache")


def test_texts_are_cut_and_kept_in_order(tmp_path):
    folder = make_corpus(tmp_path / "prepared", count=60)
    tokenizer = load_tokenizer(folder / "tokenizer")
    corpus = open_corpus(folder / "corpus.parquet", tokenizer, max_tokens=8, cache=tmp_path / "cache")
    assert len(corpus) == 60 and corpus.lengths.max() == 8
    rows = np.array([7, 3, 59])
    tokens, words, lengths = corpus.token_lists(rows)
    assert len(tokens) == len(words) == lengths.sum()
    assert tokens[0] == tokenizer.cls_token_id and tokens[lengths[0] - 1] == tokenizer.sep_token_id
