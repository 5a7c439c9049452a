"""Text: the gentle and the segmented rendering, language, templates."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.errors import ConfigError
from adrec.prepare.text.clean import fill_template, gentle, language, load_stop_words, segmented


def clean(*texts, **options):
    return gentle(pa.array(texts, pa.string()), **options).to_pylist()


def words(*texts, **options):
    return segmented(pa.array(texts, pa.string()), **options).to_pylist()


def test_gentle_undoes_what_is_not_text_and_keeps_words_case_and_marks():
    found = clean(
        "Ｆｕｌｌ　ｗｉｄｔｈ ①",
        "<p class='x'>Big&nbsp;<b>sale</b> &amp; more</p><!-- no -->",
        "zero\u200bwidth\x07 and\t\n lines  ",
        None,
        "",
    )
    assert found == ["Full width 1", "Big sale & more", "zerowidth and lines", None, ""]
    assert clean("3 < 5 > 2, I <3 you") == ["3 < 5 > 2, I <3 you"], "a smaller-than sign is no tag"
    assert clean("Straße", lowercase=True) == ["straße"]
    assert clean("abcdef", max_characters=3) == ["abc"]


@given(st.lists(st.one_of(st.none(), st.text()), max_size=8))
def test_gentle_twice_is_gentle_once_but_for_markup_inside_markup(texts):
    once = gentle(pa.array([None if text is None else text.replace("&", "").replace("<", "") for text in texts], pa.string()))
    assert gentle(once).equals(once)


@settings(deadline=None)  # the first Chinese text loads the dictionary
@given(st.lists(st.text(), min_size=1, max_size=8))
def test_segmented_has_lower_case_words_without_marks(texts):
    for line in segmented(pa.array(texts, pa.string())).to_pylist():
        assert line == line.strip()
        assert "  " not in line
        assert all(char.isspace() or char.isalnum() or not char.isascii() for char in line)


def test_segmented_cuts_chinese_and_leaves_out_stop_words():
    stop = load_stop_words(True, None)
    assert words("华为手机的充电器，正品！", stop_words=stop) == ["华为 手机 充电器 正品"]
    assert words("The best RUNNING shoes, for you [SEP] Sport", stop_words=frozenset({"the", "for", "you"})) == [
        "best running shoes sport"
    ]
    assert words("Don't stop", stop_words=frozenset({"t"})) == ["don stop"]
    assert words(None, "", "!!!") == ["", "", ""]


def test_a_user_dictionary_and_own_stop_words(tmp_path):
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("云敞亮 100 n\n", encoding="utf-8")
    assert "云敞亮" not in words("买云敞亮窗户")[0].split()
    assert "云敞亮" in words("买云敞亮窗户", user_dictionary=dictionary)[0].split()
    own = tmp_path / "stop.txt"
    own.write_text("Foo\n\n bar \n", encoding="utf-8")
    assert load_stop_words(False, own) == frozenset({"foo", "bar"})
    with pytest.raises(ConfigError, match=r"text\.extra_stop_words"):
        load_stop_words(False, tmp_path / "missing.txt")


def test_language_by_row():
    texts = [
        "Running shoes",
        "跑步鞋",
        "iPhone 手机壳 Apple",
        "Buy one 送",
        "ランニング",
        "러닝화",
        "Кроссовки",
        "42 !!",
        "",
        None,
    ]
    assert language(pa.array(texts)).to_pylist() == [
        "en",
        "zh",
        "zh",
        "en",
        "other",
        "other",
        "other",
        "other",
        "other",
        "other",
    ]


def test_a_template_leaves_out_empty_parts():
    columns = {"title": pa.array(["T", "T", None]), "body": pa.array(["B", None, ""]), "tags": pa.array([["x", "y"], [], None])}
    found = fill_template("{title} [SEP] {body} - [SEP] {tags} [SEP] {absent}", columns, 3).to_pylist()
    assert found == ["T [SEP] B - [SEP] x, y", "T", ""]
    assert fill_template("Ad: {title}", columns, 3).to_pylist() == ["Ad: T", "Ad: T", ""]
    assert fill_template("fixed", columns, 2).to_pylist() == ["fixed", "fixed"]
    with pytest.raises(ConfigError, match="template"):
        fill_template("{title", columns, 3)
