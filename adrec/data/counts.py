"""Rows that are counts (impressions, clicks, conversions) -> rows of one outcome each with a weight, as SQL.

N impressions of one row with the same features have one binomial likelihood: K clicks of N are a row with click 1 that weighs
K and one with click 0 that weighs N - K. Everything behind reads the weight, so nothing is ever expanded. Costs one pass.
"""

from collections.abc import Collection

from adrec.data.disk.engine import name
from adrec.schema import COUNTS, WEIGHT

_SHOWN, _CLICKS, _CONVERSIONS = COUNTS
_Outcome = tuple[int | str, int | str, str]
"""SQL of click, conversion and weight."""


def counts_among(columns: Collection[str]) -> tuple[str, ...]:
    """Those of COUNTS that a table of these columns is to be read by; none where it has labels of single impressions."""
    is_counted = _CLICKS in columns or (_CONVERSIONS in columns and _SHOWN in columns)
    is_labelled = any(label in columns for label in ("click", "conversion", "rating"))
    return tuple(column for column in COUNTS if column in columns) if is_counted and not is_labelled else ()


def outcome_rows(relation: str, columns: Collection[str]) -> str:
    """SQL of the rows of `relation` by outcome: `click` and `conversion` (those that are counted), WEIGHT above 0.

    Counts are dropped and `spend` becomes that of one impression. Conversions are taken to follow clicks as far as there are
    clicks. An empty count leaves that label empty.
    """
    clicks, conversions = (column if column in columns else "NULL" for column in (_CLICKS, _CONVERSIONS))
    both: list[_Outcome] = [
        (1, 1, f"least({clicks}, {conversions})"),
        (1, 0, f"{clicks} - least({clicks}, {conversions})"),
        (0, 1, f"{conversions} - least({clicks}, {conversions})"),
        (0, 0, f"{_SHOWN} - greatest({clicks}, {conversions})"),
    ]
    kinds: dict[str, list[_Outcome]] = {
        f"{clicks} IS NOT NULL AND {conversions} IS NOT NULL": both,
        f"{clicks} IS NOT NULL": [(1, "NULL", clicks), (0, "NULL", f"{_SHOWN} - {clicks}")],
        f"{conversions} IS NOT NULL": [("NULL", 1, conversions), ("NULL", 0, f"{_SHOWN} - {conversions}")],
        "true": [("NULL", "NULL", _SHOWN)],
    }
    cases = " ".join(f"WHEN {condition} THEN [{', '.join(_row(*row) for row in rows)}]" for condition, rows in kinds.items())
    labels = [label for label, count in (("click", clicks), ("conversion", conversions)) if count != "NULL"]
    selected = [name(column) for column in columns if column not in {*labels, *COUNTS, "spend"}]
    selected += [f"outcome.{label} AS {label}" for label in labels]
    selected += [f"spend / {_SHOWN} AS spend"] if "spend" in columns else []
    return (
        f"SELECT {', '.join([*selected, f'outcome.weight AS {WEIGHT}'])} "
        f"FROM (SELECT *, unnest(CASE {cases} END) AS outcome FROM {relation}) WHERE outcome.weight > 0"
    )


def _row(click: int | str, conversion: int | str, weight: str) -> str:
    labels = f"'click': CAST({click} AS TINYINT), 'conversion': CAST({conversion} AS TINYINT)"
    return f"{{{labels}, 'weight': CAST({weight} AS DOUBLE)}}"
