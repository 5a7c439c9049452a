"""What a model may read: of the columns that are left, which are numbers, categories and lists, and whose they are.

A column is the ad's (the user's) where the rows of an ad agree on it more than chance allows, or where its name says so and no
row speaks against it. Declared so, `rank` gives each candidate its own; the shown ad's would be given to all otherwise.
"""

from adrec.explore.guessing.findings import Finding, Guess, values_of
from adrec.explore.guessing.labels import Label
from adrec.explore.guessing.names import AFTERWARDS, EARLIER, SPEND, family, is_code, is_of_a_person, is_row_name, owner, snake
from adrec.explore.guessing.ties import Rows
from adrec.explore.look import Column

_MOST_VALUES = 100_000
_FEW = 20
"""Whole numbers of so few values are codes where their name says nothing."""
_CANONICAL_CATEGORIES = {"ads": ("category", "advertiser_id"), "impressions": ("scenario",), "users": ()}
_KEYS = {"ads": "ad_id", "users": "user_id"}
_POSSESSIVE = {"ads": "the ad's", "users": "the user's"}


def declare_features(guess: Guess, rows: dict[str, Rows], label: tuple[str, Label] | None) -> None:
    """Fill `found.features`, and note of every other column why it is not used."""
    kinds = ("numeric", "categorical", "lists", "vectors")
    guess.features = {role: {kind: [] for kind in kinds} for role in ("impressions", "ads", "users")}
    guess.clicked = clicked = _clicked(guess, rows["impressions"], label)
    for role in ("impressions", "ads", "users"):
        if role in guess.tables:
            _declare(guess, role, rows[role], clicked if role == "impressions" else None)
    for role, names in _CANONICAL_CATEGORIES.items():
        guess.features[role]["categorical"] += [name for name in names if guess.has(name)]
    if guess.has("bid"):
        guess.features["ads"]["numeric"].append("bid")
    if guess.has("interests"):
        guess.features["users"]["lists"].append("interests")


def _clicked(guess: Guess, rows: Rows, label: tuple[str, Label] | None) -> str | None:
    """SQL of the click, 0 or 1, where a row has one."""
    if guess.shape == "ratings":
        rating = guess.names["impressions"]["rating"]
        (least,) = guess.reading["impressions"]["at_least"]["click"].values()
        return f"CAST(try_cast({rows.cell(str(rating))} AS DOUBLE) >= {least!r} AS INTEGER)"
    return label[1].sql(rows.cell(label[0])) if label is not None and not label[1].is_constant else None


def _declare(guess: Guess, role: str, rows: Rows, clicked: str | None) -> None:
    used, listed = guess.used(role), {finding.column for finding in guess.findings if finding.table == role}
    kinds = _Kinds(rows)
    for column in rows.table.columns.values():
        if column.name in used or column.name in listed:
            continue
        against = _not_used(column, rows, guess)
        if against is None and clicked is not None:
            away = rows.gives_away(column.name, clicked, is_number=column.is_number)
            against = f"{away}: known only after it" if away is not None else None
        kind, why = ("", against) if against is not None else kinds.of(column)
        if not kind:
            guess.pass_over(role, column, str(why))
            continue
        home, reason = _whose(guess, column, rows) if role == "impressions" else (role, "")
        if home != role and home in guess.tables:
            guess.pass_over(role, column, f"{_POSSESSIVE[home]} ({reason}), and the {home} have a table of their own")
            continue
        if kind == "vector" and home == "impressions":
            guess.pass_over(role, column, f"vectors of {column.vector_width} numbers, neither the ad's nor the user's")
            continue
        key = {"number": "numeric", "category": "categorical", "list": "lists", "vector": "vectors"}[kind]
        guess.features[home][key].append(column.name)
        whose = f"{_POSSESSIVE[home]} {kind}" if home != "impressions" and home != role else kind
        guess.findings.append(Finding(role, column.name, whose, f"{reason}; {why}" if reason else str(why), column.example))


def _not_used(column: Column, rows: Rows, guess: Guess) -> str | None:
    """Why a column is no input, None where it may be one."""
    called = snake(column.name)
    if not column.filled:
        return "empty"
    if is_of_a_person(column.name):
        return "who it is, not what: ids stand for people"
    if column.distinct == 1 and column.filled == rows.table.rows:
        return "the same in every row"
    is_numbering = column.is_number and column.whole and (is_row_name(column.name) or column.distinct == column.filled)
    if is_numbering and rows.is_counting(column.name):
        return "counts the rows"
    if AFTERWARDS.search(called) and not EARLIER.search(called):
        return "its name says that it is known only after the click"
    if SPEND.search(called) and guess.shape == "counts":
        return "what the clicks cost"
    if column.time is not None and (not column.is_number or "time_unit" not in column.time or is_code(column.name) is None):
        return "another time"
    nearly_all = (0.99 if is_code(column.name) else 0.95) * column.filled
    is_a_name = column.distinct > nearly_all > 20 and (not column.is_number or is_code(column.name))
    if is_a_name and column.separator is None and not (column.is_number and not column.whole):
        return f"{column.distinct:,} values in {column.filled:,} rows: it names each row"
    return None


def _whose(guess: Guess, column: Column, rows: Rows) -> tuple[str, str]:
    """ads, users or impressions, and why."""
    names, ties = guess.names["impressions"], {}
    apart = {"ads": ("user_id", "request_id", "shown_at"), "users": ("request_id", "shown_at", "ad_id")}
    for role, key in _KEYS.items():
        if key in names:
            other = next((names[name] for name in apart[role] if name in names), [])
            ties[role] = rows.tie(_listed(names[key]), [column.name], _listed(other))
    said = owner(column.name)
    holding = [role for role, tie in ties.items() if tie.holds]
    if said == "impressions" and not {"request_id", "shown_at"} & set(names):
        holding = [role for role in holding if role != "users"]  # rows of a user may be of one visit
    if len(holding) == 1:
        return holding[0], f"the same in all rows of {'an ad' if holding[0] == 'ads' else 'a user'}"
    if said in ties and not ties[said].fails and (said in holding or not holding) and not column.is_list:
        return said, "by its name"
    return "impressions", ""


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


class _Kinds:
    """number, category or list. Columns that differ by a number in their names (I1, I2, ...) are of one kind."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows.table.rows
        families: dict[str, list[Column]] = {}
        for column in rows.table.columns.values():
            stem = family(column.name)
            if stem is not None and column.is_number and is_code(column.name) is None:
                families.setdefault(stem, []).append(column)
        self._measures = {
            column.name for columns in families.values() if any(map(self._is_measured, columns)) for column in columns
        }

    def of(self, column: Column) -> tuple[str, str]:
        """The kind and why; "" where it is none of them."""
        if column.vector_width is not None:
            return "vector", f"vectors of {column.vector_width} numbers"
        if column.is_list:
            return "list", "lists"
        if column.is_number and not self._is_coded(column):
            return "number", values_of(column)
        is_text = column.words >= 4 and column.distinct > 0.5 * column.filled
        most = column.filled if is_code(column.name) else column.filled // 2  # hashed codes are many, text is as many
        if not is_text and column.distinct <= min(_MOST_VALUES, max(_FEW, most)):
            whole = "codes: " if column.is_number else ""
            return "category", f"{whole}{column.distinct:,} values"
        return "", f"{column.distinct:,} values in {column.filled:,} rows: an id or free text"

    def _is_coded(self, column: Column) -> bool:
        said = is_code(column.name)
        if not column.whole or column.name in self._measures:
            return False
        return said if said is not None else not self._is_measured(column)

    def _is_measured(self, column: Column) -> bool:
        """Fractions, or whole numbers of many values."""
        return not column.whole or column.distinct > _FEW
