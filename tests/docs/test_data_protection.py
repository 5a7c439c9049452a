"""The checklist of data protection says the same in both languages, names who does each thing, and leaves no article out."""

import re
from pathlib import Path

from adrec.commands import COMMANDS

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/data-protection.md"
PIPL = {24, *range(28, 33), *range(38, 44), 44, 47, 51, 54, 55, 56, 57}
GDPR = {5, 6, 9, 13, 14, 15, 17, 21, 22, 25, 28, 30, 32, 33, 35, 44}


def checklists():
    """Cells of the rows of the English and of the Chinese list."""
    english, chinese = PAGE.read_text(encoding="utf-8").split("## Checklist")[1].split("## 清单")
    return [re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", part, flags=re.MULTILINE) for part in (english, chinese)]


def articles(cell, law):
    """Numbers of articles that a cell names of a law, ranges written out; paragraphs in brackets left out."""
    named = re.sub(r"\([^)]*\)|（[^）]*）", "", cell)
    own = re.search(rf"{law}([^A-Z;；]*)", named)
    found = set()
    for first, last in re.findall(r"(\d+)(?:–(\d+))?", own.group(1) if own else ""):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_both_languages_name_the_same_articles():
    english, chinese = checklists()
    assert len(english) == len(chinese) == 22
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours[0] == theirs[0]
        assert articles(ours[2], "PIPL") == articles(theirs[2], "个保法"), ours
        assert articles(ours[2], "GDPR") == articles(theirs[2], "GDPR"), ours


def test_no_article_that_matters_is_left_out():
    english, _ = checklists()
    assert set().union(*(articles(row[2], "PIPL") for row in english)) >= PIPL
    assert set().union(*(articles(row[2], "GDPR") for row in english)) >= GDPR


def test_each_line_says_who_does_it_and_commands_are_real():
    for rows, owner in zip(checklists(), ("owner", "贵方"), strict=True):
        for number, *_, who in rows:
            named = re.findall(r"`([^`]+)`", who)
            assert named or owner in who or "table above" in who, number
            called = {name.split()[1] for name in named if name.startswith("adrec ")}
            assert called <= {command.name for command in COMMANDS}, number
