"""What says whether an ad was clicked: a column of 0 and 1, of two words, of ratings, of counts, or nothing but clicks."""

import re
from dataclasses import dataclass

from adrec.explore.guessing.ties import Rows
from adrec.explore.look import Column

READ_AS_THEY_ARE = {"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"}
"""Flags that preprocess reads without being told, in any case."""
_YES = {"1", "1.0", "true", "t", "yes", "y", "是", "有", "点击", "已点击", "positive", "pos", "success"}
_NO = {
    *("0", "0.0", "-1", "-1.0", "false", "f", "no", "n", "none", "never", "否", "无", "negative", "neg", "failure"),
    *("ignored", "ignore", "skip", "skipped", "impression", "shown", "view", "viewed", "exposure", "control"),
}
_NOT = re.compile(r"(not|no|non|never|didn'?t|without|un|dis)[\s_-]|un(?=click|subscr|convert)|未|没|不|无|非")
_SHOWN = re.compile(
    r"(ad_?)?(impression|imp|imps|view|show|shown|display|exposure|expose|exposed|served|serve|pv|曝光|展示|浏览)(_?item|ed|s)?"
)
_CLICKED = re.compile(r"(ad_?)?(click|clicks|clicked|clk|tap|open|select|点击)(_?item|_promotion|ed|s)?")
_BOUGHT = re.compile(
    r"(buy|purchase|purchased|transaction|order|ordered|conversion|convert|install|add_?to_?cart|addtocart|cart|checkout|购买|下单|转化|加购)"
)
_FEWEST_PAIRS = 0.8


@dataclass(frozen=True)
class Label:
    """How a column says 0 or 1. `positive` None: as preprocess reads flags anyway."""

    positive: tuple[str, ...] | None
    is_constant: bool = False
    """Only ones: the log holds what was clicked and nothing else."""
    empty_is_zero: bool = False
    why: str = "0 or 1"

    def sql(self, cell: str) -> str:
        """0 or 1, NULL where unknown."""
        words = self.positive or ("1", "1.0", "true", "t", "yes", "y")
        listed = ", ".join("'" + word.lower().replace("'", "''") + "'" for word in words)
        empty = "0" if self.empty_is_zero else "NULL"
        return f"CASE WHEN {cell} IS NULL THEN {empty} WHEN lower({cell}) IN ({listed}) THEN 1 ELSE 0 END"


@dataclass(frozen=True)
class Kinds:
    """A column that says of each row what happened: shown, clicked or bought."""

    shown: tuple[str, ...]
    clicked: tuple[str, ...]
    bought: tuple[str, ...]
    other: tuple[str, ...]


def label_of(rows: Rows, column: Column) -> Label | None:
    """How `column` says 0 or 1, None where it does not: it holds two values, or one and is empty elsewhere."""
    if column.separator == "" or not column.filled or not 1 <= column.distinct <= 2:
        return None
    values = [value for value, _ in rows.values(column.name, 3)]
    plain = {value.lower() for value in values}
    if len(values) == 1:
        is_yes = plain <= _YES
        if column.filled < 0.95 * rows.table.rows and (is_yes or not _is_no(values[0])):
            positive = None if plain <= READ_AS_THEY_ARE else (values[0],)
            return Label(positive, empty_is_zero=True, why=f"{values[0]}, else empty")
        return Label(None if plain <= READ_AS_THEY_ARE else (values[0],), is_constant=True, why="always 1") if is_yes else None
    if plain <= READ_AS_THEY_ARE:
        return Label(None, why=" or ".join(sorted(values)))
    if column.is_number:
        high = max(values, key=float)
        return Label((high,), why=f"two numbers: {high} is taken for 1")
    yes = [value for value in values if value.lower() in _YES or (not _is_no(value) and _is_no(_other(value, values)))]
    if len(yes) == 1:
        return Label((yes[0],), why=f"{yes[0]!r} means 1")
    return None


def kinds_of(rows: Rows, column: Column) -> Kinds | None:
    """What the words of a column say happened, where at least two kinds of events (or one alone, all rows) are among them."""
    if column.is_number or column.separator == "" or not 1 <= column.distinct <= 40:
        return None
    words = [value for value, _ in rows.values(column.name, 40)]
    groups = {group: tuple(word for word in words if sign.fullmatch(_snake(word))) for group, sign in _SIGNS.items()}
    known = {word for group in groups.values() for word in group}
    found = Kinds(groups["shown"], groups["clicked"], groups["bought"], tuple(word for word in words if word not in known))
    return found if sum(bool(group) for group in groups.values()) >= 2 else None


def is_of_events(rows: Rows, column: Column, kinds: Kinds, keys: list[str]) -> bool:
    """Whether a click is a row beside its impression's (an event log), rather than the last word on the one row of both."""
    if not keys or not kinds.shown or not (kinds.clicked or kinds.bought):
        return False
    return rows.pairs(column.name, kinds.shown, (*kinds.clicked, *kinds.bought), keys) >= _FEWEST_PAIRS


def threshold(column: Column, rows: Rows) -> float:
    """From which rating on a row counts as a click: four fifths of a common scale, else the upper half of what is rated."""
    high = column.high or 0.0
    if high in {4.0, 5.0, 10.0, 100.0}:
        wanted = 0.8 * high if high != 4.0 else 3.0
    else:
        wanted = rows.middle(column.name)
    low = column.low or 0.0
    return wanted if wanted > low else high


def _is_no(value: str) -> bool:
    return value.lower() in _NO or _NOT.match(value.lower()) is not None


def _other(value: str, values: list[str]) -> str:
    return values[1] if value == values[0] else values[0]


def _snake(value: str) -> str:
    return re.sub(r"[\s-]+", "_", value.strip().lower())


_SIGNS = {"shown": _SHOWN, "clicked": _CLICKED, "bought": _BOUGHT}
