"""Tables that fit: whole columns as far as the screen is wide, never a cut name or digit; the rest is named below the table."""

import copy

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

BEST = "*"
"""Stands behind the best figure of a column: bold is lost in a pipe, in a log and on some screens."""
_LONGEST_WORD = 24
"""A longer word of a column of words may be broken."""
_FIRST_SHARE = 0.5
"""The first column names what a row is of; it is broken only where it would take more than this share of the width."""


def best_marked(text: str, is_best: bool) -> Text:
    """A figure, with a mark where it is the best; the others leave its place empty, so that digits stay below digits."""
    return Text(f"{text}{BEST}" if is_best else f"{text} ", style="bold" if is_best else "")


def fitted(table: Table, console: Console) -> Table:
    """The table with as many columns from the left as fit the console whole, and the others named in its caption."""
    width = console.width
    needs = [_need(column, place, console) for place, column in enumerate(table.columns)]
    count = len(needs)
    while count > 2 and _total(table, needs[:count]) > width:
        count -= 1
    made = copy.copy(table)
    made.columns = [copy.copy(column) for column in table.columns[:count]]
    fits = _total(table, needs[:count]) <= width
    for place, column in enumerate(made.columns):
        # A heading may wrap, so `no_wrap` would cut it. Where not even two columns fit, names break and digits do not.
        is_kept = column.justify == "right" or (fits and place == 0 and needs[0] < width * _FIRST_SHARE)
        column.no_wrap, column.overflow = False, "fold"
        column.min_width = min(needs[place], width - 8) if is_kept else column.min_width
    if count < len(needs):
        left_out = ", ".join(_words(column.header, console) for column in table.columns[count:])
        more = f"more with a wider terminal or --json: {left_out}"
        made.caption = f"{table.caption}\n{more}" if table.caption else more
        made.caption_justify = "left"
    return made


def _need(column: Column, place: int, console: Console) -> int:
    """The width below which a column would lose something."""
    cells = [_measured(cell, console) for cell in column.cells]
    if column.justify == "right" or column.no_wrap:
        inside = max((cell.maximum for cell in cells), default=0)
    elif place == 0:
        inside = min(max((cell.maximum for cell in cells), default=0), int(console.width * _FIRST_SHARE))
    else:
        inside = min(max((cell.minimum for cell in cells), default=0), _LONGEST_WORD)
    return max(inside, _measured(column.header, console).minimum)


def _measured(renderable: RenderableType, console: Console) -> Measurement:
    return Measurement.get(console, console.options.update(max_width=10_000), renderable)


def _total(table: Table, needs: list[int]) -> int:
    """Characters of a table whose columns are so wide."""
    _, right, _, left = table.padding
    edges = 2 if table.box is not None and table.show_edge else 0
    between = (max(left, right) if table.collapse_padding else left + right) * len(needs)
    return sum(needs) + between + (len(needs) - 1 if table.box is not None else 0) + edges


def _words(header: RenderableType, console: Console) -> str:
    return " ".join(str(header).split()) if isinstance(header, str | Text) else ""
