"""Columns beyond the contract: those that a config names."""

from dataclasses import dataclass

from adrec.config.data.preprocess import ColumnSplit, PreprocessConfig
from adrec.config.data.sources import TablesSource
from adrec.config.training.features import TableFeatures
from adrec.errors import ConfigError
from adrec.prepare.log.events import SOURCE_COLUMNS
from adrec.schema import (
    AD_LINKS,
    ADS,
    IMPRESSIONS,
    LINKS,
    PREPARED_ADS,
    PREPARED_IMPRESSIONS,
    USER_LANGUAGE,
    WEIGHT,
    as_of_column,
)
from adrec.specs import WORDS

_MADE = {"part", "request", "candidate", *PREPARED_IMPRESSIONS.names, *PREPARED_ADS.names} - {
    *IMPRESSIONS.names, *ADS.names, WEIGHT,
}  # fmt: skip


@dataclass(frozen=True)
class Extras:
    """Columns beyond the contract that the config declares, by table."""

    impressions: tuple[str, ...]
    ads: tuple[str, ...]
    users: tuple[str, ...]

    def of(self, table: str) -> tuple[str, ...]:
        """None for tables that have but their contract."""
        named: dict[str, tuple[str, ...]] = vars(self)
        return named.get(table, ())


def extras_of(config: PreprocessConfig) -> Extras:
    """Declared extra columns: by themselves, and those that features, the split and the history name."""

    paths = made_of_links(config)
    media = [section for section in (config.image, config.audio) if section is not None]
    encoded = {name for section in media for name in (section.name, section.interests_name)}
    encoded |= {item.column for item in config.features.ads.vectors if item.entities is not None}

    def named(spec: TableFeatures) -> list[str]:
        groups = (spec.numeric, spec.categorical, spec.hashed, spec.lists, spec.vectors)
        columns = [item.column for group in groups for item in group]
        return [column for column in columns if not _is_made(column) and column not in {*encoded, *paths}]

    impressions = [*config.keep, *named(config.features.impressions)]
    if isinstance(config.split, ColumnSplit) and config.split.column not in SOURCE_COLUMNS:
        impressions.append(config.split.column)
    impressions += [column for column in (config.history.clicked_at, config.history.converted_at) if column is not None]
    # Languages and words are read off the texts here, and may still be features. A log may have its users' language itself.
    ads = [*config.ad_columns, *(column for column in named(config.features.ads) if column not in {"language", WORDS})]
    ads += [section.column for section in media if section.column not in ADS]
    users = [*config.user_columns, *(column for column in named(config.features.users) if column not in {USER_LANGUAGE, WORDS})]
    if config.privacy.k_anonymity is not None:
        users += [*config.privacy.k_anonymity.columns, *config.privacy.k_anonymity.sensitive]
    reserved = sorted(({*impressions, *ads, *users} & _MADE) | ({*impressions} & {WEIGHT}))
    reserved += sorted(column for column in {*impressions, *ads, *users} if as_of_column(column) is not None)
    if reserved:
        raise ConfigError(f"column '{reserved[0]}' is made by preprocess itself. Rename yours with `columns` in the config.")
    return Extras(*(tuple(dict.fromkeys(columns)) for columns in (impressions, ads, users)))


def made_of_links(config: PreprocessConfig) -> list[str]:
    """Lists of ads that preprocess makes of the graph of entities: those of `paths`, where the source has links."""
    source = config.source
    if isinstance(source, TablesSource) and not {LINKS.name, AD_LINKS.name} & set(source.tables):
        return []
    return [item.column for item in config.features.ads.lists if item.paths]


def _is_made(column: str) -> bool:
    """Columns that preprocess itself makes are not read."""
    return "*" in column or column.startswith("counter_") or column in {"shown_at", "history_length"}
