"""Tables beside the impressions whose files are those of the earlier output: not read, checked and written again.

Most days bring impressions and nothing else. What staging such a table would give lies in the earlier output already, typed,
checked and under its numbers, so that a day's append does not cost what the catalogue and the users cost.
"""

from collections.abc import Sequence

import duckdb

from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.disk.engine import columns_of, create_plain, name
from adrec.prepare.extras import made_of_links
from adrec.prepare.log.append import Earlier, without_zone
from adrec.prepare.sources import RawTable
from adrec.prepare.sources.files import source_names
from adrec.prepare.sources.opening import with_members
from adrec.schema import ADS, KNOWN_FROM, USERS, TableSpec


def take_over(
    connection: duckdb.DuckDBPyConnection,
    config: PreprocessConfig,
    earlier: Earlier,
    spec: TableSpec,
    raw: RawTable,
    extra: Sequence[str],
) -> bool:
    """Make table `spec.name` of the earlier output, users of its impressions behind the listed ones. False where it must be
    read again: its files have changed, or not all that is wanted of them lies there.
    """
    if not _says_all(config, earlier, spec, raw):
        return False
    stored = columns_of(connection, f"SELECT * FROM {earlier.table(spec)}")
    found = {*columns_of(connection, raw.view), *raw.reading.defaults, *raw.reading.at_least}
    wanted = [column for column in (*spec.names, *(column for column in extra if column not in spec)) if column in found]
    if KNOWN_FROM in wanted or not set(wanted) <= set(stored):  # versions, and vectors in files of their own
        return False
    kinds = {column: stored[column].removesuffix(" WITH TIME ZONE") for column in wanted}
    create_plain(connection, spec.name, {spec.index: "INTEGER", **kinds})
    columns = "".join(f", {without_zone(name(column), stored[column])}" for column in wanted)
    connection.execute(f"INSERT INTO {spec.name} SELECT file_row_number{columns} FROM {earlier.table(spec)}")
    return True


def _says_all(config: PreprocessConfig, earlier: Earlier, spec: TableSpec, raw: RawTable) -> bool:
    """Whether the earlier output holds what reading the table would give. Rows with faults, and cells that deserve a word, are
    told by every run; some tables are made anew by what is in the new impressions.
    """
    if spec.name not in earlier.same_tables or not (earlier.folder / spec.file).is_file():
        return False
    if earlier.manifest["source_rows"].get(spec.name, {}).get("rejected") != 0:
        return False
    files = tuple(f"{called}: " for called in source_names(with_members(raw.files)).values())
    if any(note.startswith(files) for note in earlier.manifest["notes"]):
        return False
    if spec is USERS:
        return config.privacy.k_anonymity is None  # groups of all users, those of the new impressions among them
    # When ads could be drawn is read off their rows; their paths follow the tables of links.
    return spec is not ADS or (config.negatives is None and not made_of_links(config))
