"""Which columns may mean what: whose name is likely, and whose values allow it."""

from adrec.explore.guessing.findings import values_of
from adrec.explore.guessing.names import likeness, plain
from adrec.explore.look import Column

OF_ADS = ("category", "advertiser_id", "starts_at", "ends_at", "bid", "budget")
TEXTS = ("title", "description")
WORDS_OF_A_TEXT = 1.8
"""On average; a column of fewer is a code or a name."""


def fits(canonical: str, column: Column) -> bool:
    """Whether the values of a column allow the meaning that its name suggests."""
    is_time = column.time is not None
    if canonical in {"shown_at", "starts_at", "ends_at", "clicked_at", "converted_at"}:
        return is_time
    if canonical in {"user_id", "ad_id", "request_id"}:
        is_stored_time = is_time and not column.is_number
        is_fraction = column.is_number and not column.whole
        return not (column.separator == "" or column.is_list or is_stored_time or is_fraction or column.is_flag)
    if canonical in {"bid", "budget", "dwell_seconds", "spend", "conversions"}:
        return column.is_number and (column.low or 0) >= 0
    if canonical == "rating":
        return column.is_number and (column.low or 0) >= 0 and (plain(column.name) != "score" or (column.high or 11) <= 10)
    if canonical in {"propensity", "propensity_given_above"}:
        return column.is_number and column.low is not None and column.low > 0 and (column.high or 2) <= 1
    if canonical == "position":
        return column.is_number and column.whole and (column.low or 0) >= 0 and not is_time
    if canonical in {"history", "interests"}:
        return column.separator is not None or (
            canonical == "interests" and column.stored == "VARCHAR" and not column.is_number
        )
    if canonical in {*TEXTS, "query"}:
        return column.separator != "" and not column.is_number and not is_time
    return not is_time and (column.separator != "" or canonical == "category")


def likeliest(columns: list[Column], canonical: str) -> list[Column]:
    """Columns with a name for `canonical`, the likeliest first."""
    ranked = [
        (place, number, column)
        for number, column in enumerate(columns)
        if (place := likeness(column.name, canonical)) is not None
    ]
    return [column for _, _, column in sorted(ranked, key=lambda item: item[:2])]


def is_count(column: Column) -> bool:
    """Whole numbers that are no moments."""
    return column.is_number and column.whole and (column.low or 0) >= 0 and column.time is None


def shown_values(canonical: str, column: Column) -> str:
    """A column's values, in words."""
    return (
        f"{column.distinct:,} values"
        if canonical.endswith("_id") or canonical in {"category", "scenario"}
        else values_of(column)
    )


def keys_of(columns: str | list[str]) -> list[str]:
    """One column or several, as a list."""
    return [columns] if isinstance(columns, str) else columns
