"""What `init` decides, and why: the shape that columns, inputs and starter share."""

from dataclasses import dataclass, field
from typing import Any, Literal

from adrec.explore.look import Column, Table

Shape = Literal["impressions", "events", "clicks", "counts", "ratings", "unlabelled"]
"""What a row of the log is: an impression with its click; an impression whose clicks lie elsewhere; a click and nothing else;
counts of many impressions; a rating; or nothing that says what was clicked."""


@dataclass(frozen=True)
class Finding:
    """One decision: `column` of `table` is `meaning`, because `why`; `example` is one of its values."""

    table: str
    column: str
    meaning: str
    why: str
    example: str = ""


@dataclass(frozen=True)
class Gap:
    """Something the files do not say plainly: what it is, what goes without it, and columns that may be meant."""

    canonical: str
    without: str
    candidates: tuple[str, ...] = ()


@dataclass
class Guess:
    """The tables by role, what their columns are, and what was noticed."""

    tables: dict[str, Table]
    names: dict[str, dict[str, str | list[str]]]
    """role -> canonical name -> column, or columns that are joined into one."""
    shape: Shape = "impressions"
    features: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """role -> numeric, categorical or lists -> columns, by the name they have in the config."""
    reading: dict[str, dict[str, Any]] = field(default_factory=dict)
    """role -> further keys of its table in the config."""
    joined_on: dict[str, list[str]] = field(default_factory=dict)
    """clicks or conversions -> the columns by which they find their impression."""
    clicked: str | None = None
    """SQL of the click of a row that was looked at, 0 or 1, where the log says it."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def column(self, role: str, canonical: str) -> Column | None:
        """The one column that plays `canonical` in table `role`."""
        found = self.names.get(role, {}).get(canonical)
        return self.tables[role].columns.get(found) if isinstance(found, str) else None

    def has(self, canonical: str) -> bool:
        """Whether any table but those of events has it."""
        return any(canonical in self.names.get(role, {}) for role in ("impressions", "ads", "users"))

    def used(self, role: str) -> set[str]:
        """Columns of a table that play a canonical part."""
        played = self.names.get(role, {}).values()
        return {column for columns in played for column in ([columns] if isinstance(columns, str) else columns)}

    def take(self, role: str, canonical: str, columns: str | list[str], why: str) -> None:
        """Note that `columns` play `canonical`."""
        self.names.setdefault(role, {})[canonical] = columns
        several = [columns] if isinstance(columns, str) else columns
        examples = [found.example for name in several if (found := self.tables[role].columns.get(name)) is not None]
        self.findings.append(Finding(role, " + ".join(several), canonical, why, " ".join(examples)))

    def pass_over(self, role: str, column: Column, why: str) -> None:
        """Note that a column is not used."""
        self.findings.append(Finding(role, column.name, "not used", why, column.example))


def values_of(column: Column) -> str:
    """What a column holds, in a few words."""
    if column.time is not None:
        how = column.time.get("time_unit") or column.time.get("time_format")
        since = " since 1970" if "time_unit" in column.time else ""
        return f"times ({how}{since})" if how else "times"
    if column.is_flag:
        return "0 or 1"
    if column.is_number:
        return f"numbers from {column.low:g} to {column.high:g}"
    if column.is_list:
        return "lists"
    return f"{column.distinct:,} values"
