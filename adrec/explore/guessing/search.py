"""The log while its columns are named: what is taken already, what is free, and what fits beside it."""

from adrec.errors import DataError
from adrec.explore.guessing.findings import Guess
from adrec.explore.guessing.fitting import OF_ADS, TEXTS, fits, keys_of, likeliest, shown_values
from adrec.explore.guessing.labels import Label
from adrec.explore.guessing.names import is_code, is_row_name, owner, plain
from adrec.explore.guessing.ties import Rows
from adrec.explore.look import Column

_SHARED_IDS = {"deviceid", "cookie", "cookieid", "idfa", "gaid", "uuid", "guid", "设备id"}
_MOST_OF_ONE = 0.2
"""A device or a cookie with more of the rows than this stands for many people: an unknown one, a proxy."""
_FEWEST_IDS = 10


class LogSearch:
    """The search for the log's columns."""

    def __init__(self, guessed: Guess, rows: Rows, said: dict[str, str | list[str] | None]) -> None:
        self.guessed, self.rows, self.said = guessed, rows, said
        self.reading = guessed.reading.setdefault("impressions", {})
        self.label: tuple[str, Label] | None = None
        """The column of clicks and how it says them, where one does."""

    @property
    def names(self) -> dict[str, str | list[str]]:
        """Canonical name → column(s) of the log."""
        return self.guessed.names["impressions"]

    def take_what_is_said(self) -> None:
        """The columns that the user names. Raises DataError where no table has them."""
        for canonical, columns in self.said.items():
            wanted = [columns] if isinstance(columns, str) else columns or []
            roles = [role for role, table in self.guessed.tables.items() if all(name in table.columns for name in wanted)]
            if not wanted:
                continue
            if not roles:
                there = "; ".join(f"{table.label}: {', '.join(table.columns)}" for table in self.guessed.tables.values())
                raise DataError(f"columns.{canonical}: no table has {' and '.join(map(repr, wanted))}. There are {there}.")
            of_ads = canonical in {*OF_ADS, *TEXTS}
            home = "ads" if of_ads else "users" if canonical == "interests" else "impressions"
            roles.sort(key=lambda role: role != home)
            for role in roles if canonical in {"ad_id", "user_id", "request_id"} else roles[:1]:
                self.guessed.take(role, canonical, wanted[0] if len(wanted) == 1 else wanted, "you said so")

    def free(self) -> list[Column]:
        """Columns that mean nothing yet."""
        used = self.guessed.used("impressions")
        return [column for column in self.rows.table.columns.values() if column.name not in used and column.filled]

    def is_open(self, canonical: str) -> bool:
        """Whether nobody has said what it is, and nothing is taken for it."""
        return canonical not in self.said and canonical not in self.names

    def take_best(self, canonical: str) -> None:
        """The column with the likeliest name whose values fit."""
        if not self.is_open(canonical):
            return
        for column in likeliest(self.free(), canonical):
            if self._fits(canonical, column):
                self.guessed.take("impressions", canonical, column.name, f"by its name; {shown_values(canonical, column)}")
                return

    def take_determining(self, canonical: str, role: str) -> None:
        """Where no name says it: the code on which most of what describes people (ads) depends."""
        if not self.is_open(canonical):
            return
        described = [column for column in self.free() if owner(column.name) == role and column.distinct > 1]
        codes = [
            column
            for column in self.free()
            if (is_row_name(column.name) or is_code(column.name))
            and column.name not in {other.name for other in described}
            and self._fits(canonical, column)
            and _FEWEST_IDS < column.distinct < 0.95 * column.filled
        ]
        for column in codes:
            depends = [other for other in described if self.rows.tie([column.name], [other.name], []).holds]
            if len(depends) >= 2 and len(depends) >= len(described) / 2:
                why = f"says what {', '.join(other.name for other in depends[:3])} are"
                self.guessed.take("impressions", canonical, column.name, why)
                return

    def _fits(self, canonical: str, column: Column) -> bool:
        if not fits(canonical, column):
            return False
        if canonical == "user_id":
            is_shared = plain(column.name) in _SHARED_IDS and self.rows.top_share(column.name) > _MOST_OF_ONE
            return column.distinct > 1 and not is_shared
        if canonical == "request_id":
            users = self.names.get("user_id")
            is_of_several = users is not None and self.rows.tie([column.name], keys_of(users), []).fails
            return column.distinct < 0.95 * column.filled and not is_of_several
        if canonical in {*OF_ADS, *TEXTS} and column.distinct > 1:
            return not self.differs("ad_id", column)
        if canonical == "interests":
            return not self.differs("user_id", column)
        if canonical == "history" and "ad_id" in self.names:
            return self.rows.share_of_items(column, keys_of(self.names["ad_id"])) >= 0.05
        return canonical not in {*OF_ADS, "scenario", "position"} or column.distinct > 1

    def differs(self, key: str, column: Column) -> bool:
        """Whether rows of the same ad (user) plainly hold different values."""
        return key in self.names and self.rows.tie(keys_of(self.names[key]), [column.name], []).fails
