"""Every page in both languages: no English on a Chinese page, one look, nothing fetched, words of data escaped."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import yaml
from page_samples import ACRONYMS, DATA, write_pages

from adrec.pages.words import translated

VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return {language: write_pages(tmp_path_factory.mktemp(language), language) for language in ("en", "zh")}


class Texts(HTMLParser):
    """(is it in a drawing, text) of every text that is not marked as data."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.found = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            is_data = dict(attributes).get("translate") == "no" or tag in {"style", "script", "title"}
            self.open.append((tag, is_data or (bool(self.open) and self.open[-1][1])))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        while tag not in VOID and self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        text = " ".join(data.split())
        if text and not (self.open and self.open[-1][1]):
            self.found.append((any(tag == "svg" for tag, _ in self.open), text))


def english(text):
    """Words of a text that are neither acronyms nor names out of the sample worlds."""
    return [word for word in re.findall(r"[A-Za-z_]{2,}", text) if word not in DATA and word not in ACRONYMS]


NAMES = ["report", "lists", "inspect", "drift", "compare", "explain", "pretrain", "tune"]


@pytest.mark.parametrize("name", NAMES)
def test_a_chinese_page_has_no_english(pages, name):
    page = pages["zh"][name].read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    texts = Texts(page).found
    assert len(texts) > 10 and any(re.search("[一-鿿]", text) for _, text in texts)
    assert [text for _, text in texts if english(text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_english_page_says_the_same_in_english(pages, name):
    ours, theirs = (Texts(pages[language][name].read_text(encoding="utf-8")).found for language in ("en", "zh"))
    assert len(ours) == pytest.approx(len(theirs), rel=0.1)
    if name != "explain":
        assert not [text for _, text in ours if re.search("[一-鿿]", text) and not text.startswith("食品 (")]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_the_look_a_verdict_and_contents_and_fetches_nothing(pages, name, language):
    page = pages[language][name].read_text(encoding="utf-8")
    style = (files("adrec.pages") / "style.css").read_text(encoding="utf-8")
    assert style in page
    assert "<script" not in page and "@import" not in page and not re.findall(r"url\((?!#)", page)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    verdict = re.search(r'<p class="verdict">(.*?)</p>', page, re.DOTALL)
    assert verdict and len(verdict[1].strip()) > 10
    places = re.findall(r'<li><a href="#([^"]+)"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(places) >= 2 or page.count("<h2") == 1  # one section needs no list of them
    assert set(places) <= set(ids)
    assert "<script>" not in page and "<b>茶具</b>" not in page and "<i>because</i>" not in page


def test_holes_of_both_languages_agree():
    entries = yaml.safe_load((files("adrec.pages") / "zh.yaml").read_text(encoding="utf-8"))
    for source, target in entries.items():
        assert sorted(re.findall(r"\{\w+\}", source)) == sorted(re.findall(r"\{\w+\}", target)), source


def test_no_sentence_is_there_twice():
    text = (files("adrec.pages") / "zh.yaml").read_text(encoding="utf-8")
    keys = [match[1] for match in re.finditer(r'^("(?:[^"\\]|\\.)*"):', text, re.MULTILINE)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("text", ["Meet the tea, half price", "u0001", "a to b", "", "  "])
def test_what_is_no_sentence_of_ours_stays(text):
    assert translated(text, language="zh") == text
