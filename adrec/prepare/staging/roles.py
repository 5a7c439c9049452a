"""What each column is to the config: the contract says it of its own columns, features, counters and splits of the others."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from adrec.config.data.preprocess import ColumnSplit, PreprocessConfig
from adrec.prepare.staging.convert import Role
from adrec.schema import TRUE_PROBABILITY
from adrec.specs import WORDS, FeatureSpec


class Roles:
    """Role by column of one table. Patterns of numeric features stand for every column that matches."""

    def __init__(
        self, by_column: Mapping[str, Role], numeric_patterns: Iterable[str] = (), widths: Mapping[str, int] | None = None
    ) -> None:
        """`widths`: the columns that hold vectors, and how many numbers each has."""
        self._by_column, self._patterns = dict(by_column), tuple(numeric_patterns)
        self.widths = dict(widths or {})

    def __getitem__(self, column: str) -> Role:
        if column in self.widths:
            return "vector"
        if any(fnmatchcase(column, pattern) for pattern in self._patterns):
            return "number"
        return self._by_column.get(column, "kept")

    def to_json(self) -> dict[str, object]:
        """For a bundle."""
        return {"columns": dict(self._by_column), "numbers": list(self._patterns), "vectors": self.widths}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Roles":
        """What `to_json` gave."""
        return cls(stored["columns"], stored["numbers"], stored.get("vectors"))

    def __or__(self, other: "Roles") -> "Roles":
        """Both, as a table that carries another's columns needs them; where they differ, these go first."""
        return Roles(other._by_column | self._by_column, (*self._patterns, *other._patterns), other.widths | self.widths)


def roles_of(config: PreprocessConfig) -> dict[str, Roles]:
    """The roles of extra columns of `impressions`, `ads` and `users`. A number is one even where it is a category too."""
    counted = {column for spec in config.counters if spec != "usual" for column in spec.by}
    categories: dict[str, set[str]] = {"impressions": set(counted), "ads": set(counted), "users": set(counted)}
    if isinstance(config.split, ColumnSplit):
        categories["impressions"].add(config.split.column)
    if config.privacy.k_anonymity is not None:
        categories["users"] |= {*config.privacy.k_anonymity.columns, *config.privacy.k_anonymity.sensitive}
    moments = {column for column in (config.history.clicked_at, config.history.converted_at) if column is not None}
    features = {
        "impressions": config.features.impressions.spec, "ads": config.features.ads.spec, "users": config.features.users.spec,
    }  # fmt: skip
    roles = {
        table: roles_of_features(spec, categories[table], moments if table == "impressions" else set())
        for table, spec in features.items()
    }
    for section in (config.image, config.audio):
        if section is not None:
            roles["ads"] = Roles({section.column: "media"}) | roles["ads"]
    return roles


def roles_of_features(spec: FeatureSpec, categories: Iterable[str] = (), moments: Iterable[str] = ()) -> Roles:
    """The roles of what the features of one table read, and of further columns."""
    roles: dict[str, Role] = dict.fromkeys(categories, "category")
    roles |= dict.fromkeys((item.column for group in (spec.categorical, spec.hashed) for item in group), "category")
    for item in spec.lists:
        if item.column != WORDS:
            roles[item.column] = "text" if item.splits_at else "list"
    roles |= dict.fromkeys(moments, "moment")
    if spec.calendar is not None:
        roles[spec.calendar.column] = "moment"
    roles |= dict.fromkeys((item.column for item in spec.numeric), "number")
    roles[TRUE_PROBABILITY] = "number"
    # Preprocess has measured the widths before it asks: see `adrec.prepare.staging.widths`.
    widths = {item.column: item.width for item in spec.vectors if item.width is not None}
    return Roles(roles, (item.column for item in spec.numeric if "*" in item.column), widths)
