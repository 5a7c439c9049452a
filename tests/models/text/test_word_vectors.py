"""Word vectors: training finds topics, every file format is read, and the result is an encoder like any other."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import texts

from adrec.errors import DataError
from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder
from adrec.models.text.word_vectors import WordTokenizer, WordVectors, read_word_vectors, train_word2vec, words_of

WORDS, VECTORS = ["rose", "goal", "海滩"], np.array([[1, 0], [0, 2], [3, 4]], np.float32)


def encoder(pooling="mean"):
    return TextEncoder(
        backbone=WordVectors.from_array(VECTORS), tokenizer=WordTokenizer(WORDS), dimension=2, pooling=pooling, max_tokens=8
    )


def test_words_of_both_languages():
    assert words_of("Fast-charging 5G国际机场!") == ["fast", "charging", "5g", "国际", "机场"]


def test_a_text_is_the_mean_of_the_words_that_have_a_vector():
    vectors = encode_texts(encoder(), ["Rose, goal unknownword", "海滩", "", "nothing known"])
    assert np.allclose(vectors, [[0.5, 1], [3, 4], [0, 0], [0, 0]])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_folder_opens_as_an_encoder(tmp_path, pooling):
    first = encoder(pooling)
    first.save(tmp_path / "words")
    again = load_text_encoder(str(tmp_path / "words"))
    assert again.kind == "word_vectors" and again.pooling == pooling and again.fingerprint == first.fingerprint
    assert np.array_equal(encode_texts(first, ["rose goal"]), encode_texts(again, ["rose goal"]))
    (tmp_path / "words" / "word_vectors.safetensors").unlink()
    with pytest.raises(DataError, match="missing or damaged"):
        load_text_encoder(str(tmp_path / "words"))


def test_word2vec_puts_words_of_a_topic_together_and_repeats_itself():
    pytest.importorskip("gensim")
    lines, _, topics = texts(400)
    words, vectors = train_word2vec(lines, dimension=16, epochs=20, seed=1)
    again = train_word2vec(lines, dimension=16, epochs=20, seed=1)
    assert words == again[0] and np.array_equal(vectors, again[1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    row = {word: number for number, word in enumerate(words)}
    near = unit[row["striker"]] @ unit[row["goalkeeper"]]
    assert near > unit[row["striker"]] @ unit[row["pasta"]] + 0.3
    with pytest.raises(DataError, match="no word occurs 1000 times"):
        train_word2vec(lines, min_count=1000)


def test_formats_agree(tmp_path):
    glove = tmp_path / "glove.txt"
    glove.write_text("\n".join(f"{word} {x} {y}" for word, (x, y) in zip(WORDS, VECTORS, strict=True)) + "\n", encoding="utf-8")
    fasttext = tmp_path / "cc.vec"
    fasttext.write_text("3 2\n" + glove.read_text(encoding="utf-8"), encoding="utf-8")
    indexed = tmp_path / "indexed"
    indexed.mkdir()
    np.save(indexed / "vectors.npy", VECTORS[[2, 0, 1]])
    pq.write_table(pa.table({"token": WORDS, "id": [1, 2, 0]}), indexed / "index.parquet")
    paths = [glove, fasttext, indexed]
    gensim = pytest.importorskip("gensim.models")
    keyed = gensim.KeyedVectors(2)
    keyed.add_vectors(WORDS, VECTORS)
    keyed.save_word2vec_format(str(tmp_path / "w2v.bin"), binary=True)
    for path in [*paths, tmp_path / "w2v.bin"]:
        words, vectors = read_word_vectors(path)
        assert words == WORDS and np.array_equal(vectors, VECTORS)
        words, vectors = read_word_vectors(path, keep={"goal"})
        assert words == ["goal"] and np.array_equal(vectors, VECTORS[1:2])


@pytest.mark.parametrize(
    ("content", "message"),
    [("rose 1 2\ngoal 1 x\n", "line 2: not a word"), ("rose 1 2\ngoal 1\n", "line 2: 1 numbers, expected 2"), ("", "holds no")],
)
def test_faults_name_file_and_line(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_word_vectors(path)
    with pytest.raises(DataError, match="no such"):
        read_word_vectors(tmp_path / "absent.txt")
