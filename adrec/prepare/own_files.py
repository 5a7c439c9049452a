"""Files that a bundle is applied to -> typed tables, by the way preprocess reads a log: one Parquet file each, in file order.

What preprocess was told of the log (names, separators, moments, words, roles) is kept in the bundle as a `LogForm`, so that new
files of the same system need no words about them. Costs one pass of the engine over the files, memory of a few batches, and the
disk that the typed copy takes. The first cell of every kind that cannot be read is told; nothing is set aside.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from adrec.config.data.own_tables import OwnFiles
from adrec.config.data.preprocess import PreprocessConfig, PrivacySettings
from adrec.config.data.sources import TableInput, TablesSource
from adrec.config.faults import describe
from adrec.data.arrays import places
from adrec.data.disk.engine import columns_of, name, one_row, open_engine, readable_faults
from adrec.data.disk.writing import write_aside
from adrec.data.shape import LogShape
from adrec.errors import ConfigError, DataError, is_concealed, listed
from adrec.prepare.extras import extras_of
from adrec.prepare.sources import RawTable
from adrec.prepare.sources.files import find_files, format_of
from adrec.prepare.sources.malformed import lines_of, refuse_lone_quotes, set_lines_aside
from adrec.prepare.sources.tables import open_table
from adrec.prepare.staging.privacy import KEY_VARIABLE, Privacy
from adrec.prepare.staging.quarantine import unread_lines
from adrec.prepare.staging.roles import Roles, roles_of
from adrec.prepare.staging.validate import BITS, UNKNOWN_AD, Check, Rejected, masks, plan_columns
from adrec.prepare.text.contacts import masked
from adrec.schema import ADS, USERS, TableSpec

_OF_FILES = ("format", "delimiter", "quote", "escape", "encoding", "header", "skip_lines", "sheet")
"""Keys of a TableInput that say how files are written, not what cells mean: for files of the log's own format alone."""
_PLACE = ("source_file", "source_row", "source_order")


@dataclass(frozen=True)
class TableForm:
    """How one table of a log is written, and what its columns are."""

    input: Mapping[str, Any] = field(default_factory=dict)
    """a TableInput without its files, as JSON"""
    format: str | None = None
    """of its files, where their ending tells"""
    roles: Roles = field(default_factory=lambda: Roles({}))

    def to_json(self) -> dict[str, Any]:
        """For a bundle."""
        return {"input": dict(self.input), "format": self.format, "roles": self.roles.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TableForm":
        """What `to_json` gave."""
        return cls(stored["input"], stored["format"], Roles.from_json(stored["roles"]))


@dataclass(frozen=True)
class LogForm:
    """How a log is written: what a bundle keeps of the preprocess config to read more of it."""

    tables: Mapping[str, TableForm] = field(default_factory=dict)
    carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """`ads`, `users` where the impressions carry them (one wide table): the columns that describe them"""
    mask_contacts: bool = False
    pseudonymised: bool = False
    has: LogShape = field(default_factory=LogShape)
    """what it names, and so must new rows of it"""
    phone_regions: tuple[str, ...] = ()
    """countries whose phone numbers were masked without a country code"""
    media: tuple[str, ...] = ()
    """columns of the ads that hold pictures and sounds, or where they lie"""

    def needed_by(self, spec: TableSpec) -> TableSpec:
        """The contract of new rows: they say who, what and when where the log does; some may be nobody's, as there."""
        needed = {"user_id": self.has.user, "ad_id": self.has.ad, "shown_at": self.has.time and "ad_id" in spec}
        columns = tuple(replace(column, required=needed.get(column.name, column.required)) for column in spec.columns)
        return TableSpec(spec.name, columns, spec.key)

    @classmethod
    def of(cls, config: PreprocessConfig, has: LogShape) -> "LogForm":
        """From what a prepared folder was made with. A source of another format than plain tables says no more than roles."""
        source, roles, extras = config.source, roles_of(config), extras_of(config)
        given: dict[str, TableInput | None] = {}
        if isinstance(source, TablesSource):
            given = {"impressions": source.impressions, "ads": source.ads, "users": source.users}
        named = [spec for spec, is_named in ((ADS, has.ad), (USERS, has.user)) if is_named]
        wide = [spec for spec in named if spec.name in given and given[spec.name] is None]
        tables = {}
        for label, own in roles.items():
            table = given.get(label) or given.get("impressions")  # of a wide log, its ads are called as they are there
            carried = [roles[spec.name] for spec in wide] if label == "impressions" else []
            for other in carried:
                own = own | other
            tables[label] = TableForm(roles=own) if table is None else TableForm(_settings(table), _format(table), own)
        privacy = config.privacy
        return cls(
            tables,
            {spec.name: tuple(dict.fromkeys((*spec.names[1:], *extras.of(spec.name)))) for spec in wide},
            privacy.mask_contacts,
            privacy.pseudonymise,
            has,
            tuple(privacy.phone_regions) if privacy.mask_contacts else (),
            tuple(section.column for section in (config.image, config.audio) if section is not None),
        )

    def to_json(self) -> dict[str, Any]:
        """For a bundle."""
        return {
            "tables": {label: form.to_json() for label, form in self.tables.items()},
            "carried": {label: list(columns) for label, columns in self.carried.items()},
            "mask_contacts": self.mask_contacts,
            "pseudonymised": self.pseudonymised,
            "has": self.has.as_dict(),
            "phone_regions": list(self.phone_regions),
            "media": list(self.media),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "LogForm":
        """What `to_json` gave."""
        return cls(
            {label: TableForm.from_json(form) for label, form in stored["tables"].items()},
            {label: tuple(columns) for label, columns in stored["carried"].items()},
            stored["mask_contacts"],
            stored["pseudonymised"],
            LogShape.of(stored),
            tuple(stored.get("phone_regions", ())),
            tuple(stored.get("media", ())),
        )

    def privacy(self) -> PrivacySettings:
        """What is done to new files: contacts are masked as in the log, ids are pseudonyms where the key is at hand."""
        return PrivacySettings(
            pseudonymise=self.pseudonymised and KEY_VARIABLE in os.environ,
            mask_contacts=self.mask_contacts,
            phone_regions=list(self.phone_regions),
        )

    def masked(self, texts: Sequence[str | None]) -> list[str | None]:
        """Texts that somebody typed, as the log's were masked."""
        return masked(pa.array(texts, pa.string()), self.phone_regions).to_pylist() if self.mask_contacts else list(texts)


def stage_file(
    table: OwnFiles,
    target: Path,
    spec: TableSpec,
    form: TableForm,
    *,
    key: str,
    columns: Mapping[str, str | list[str]] | None = None,
    roles: Roles | None = None,
    privacy: PrivacySettings | None = None,
    known_ads: pa.Array | None = None,
) -> int:
    """Write the rows of `table` to the Parquet file `target`, in order, and return how many there are.

    Columns of `spec` get their types, those with a role in `form` or `roles` what the role asks for; all others are carried
    along as they are. `key` is the table's in the config, for messages; `columns` goes before the names of `table` and of
    `form`. Every row's ad must be among `known_ads`, where given. Raises DataError, a line a kind of fault: file, row, column.
    """
    said = {**(table.model_dump(mode="json").get("columns") or {}), **(columns or {})}
    settings = _merged(table, form, said, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".reading-") as folder, open_engine(Path(folder)) as connection:
        raw = open_table(connection, "own_rows", settings, may_lack=lambda canonical: canonical not in said)
        refuse_lone_quotes(connection, raw.files)
        _refuse_lines(connection, raw, key)
        known_roles = form.roles if roles is None else form.roles | roles
        reader = _Reader(connection, raw, spec, known_roles, privacy or PrivacySettings(), key, settings)
        try:
            with readable_faults(table.name):
                return reader.write(target, known_ads)
        except DataError:
            if set_lines_aside(connection, raw.files):
                _refuse_lines(connection, raw, key)
            raise


def _refuse_lines(connection: duckdb.DuckDBPyConnection, raw: RawTable, key: str) -> None:
    faults = unread_lines(connection, lines_of(connection, raw.files), key, "")
    if faults:
        raise DataError("\n".join(map(str, faults)))


def with_standard_input(table: OwnFiles, folder: Path) -> OwnFiles:
    """`table`, its rows in a file of `folder` where they come through standard input. CSV, TSV, lines of JSON and Parquet are
    told apart by the first bytes where the format is not set. Raises DataError where nothing comes.
    """
    if not table.is_standard_input:
        return table
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "standard_input"
    with open(file, "wb") as handle:
        while piece := sys.stdin.buffer.read(1 << 20):
            handle.write(piece)
    if file.stat().st_size == 0:
        raise DataError("standard input: holds nothing. Pipe rows into the command, or name a file.")
    kind = table.format if table.format != "auto" else _sniffed(file)
    named = file.rename(file.with_suffix(f".{kind}"))
    return OwnFiles.model_validate({**table.model_dump(mode="json"), "files": str(named)})


def files_of(table: OwnFiles | None) -> list[Path]:
    """The files behind a table; none where there is none. Raises DataError where a file is missing."""
    return [] if table is None else find_files(table.files)


class _Reader:
    """One table on its way from a view to a file."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        raw: RawTable,
        spec: TableSpec,
        roles: Roles,
        privacy: PrivacySettings,
        key: str,
        settings: TableInput,
    ) -> None:
        self.connection, self.raw, self.spec, self.key = connection, raw, spec, key
        stored = columns_of(connection, raw.view)
        kinds = {column: kind for column, kind in stored.items() if column not in _PLACE}
        self._refuse_missing(kinds, settings)
        made = {*raw.reading.defaults, *raw.reading.at_least}
        wanted = [column for column in spec.names if column in kinds or column in made]
        has_role = [column for column in kinds if roles[column] != "kept" or column in raw.reading.types]
        wanted += [column for column in has_role if column not in wanted]
        carried = [column for column in kinds if column not in wanted]
        guard = Privacy(connection, privacy)
        self.hidden = guard.hidden(spec)
        plan = plan_columns(
            raw,
            spec,
            stored,
            wanted,
            roles,
            private=_pseudonyms_stay(guard.wrapper(spec)),
            nan_is_missing=True,
            carried=carried,
        )
        self.checks = plan.checks
        words = masks([check.condition for check in plan.checks])
        faults = [f"{word} AS adrec_faults_{number}" for number, word in enumerate(words)]
        self.columns = [*(column for column in kinds if column not in made), *(column for column in wanted if column in made)]
        self.query = f"SELECT {', '.join([*plan.outer, *faults, *_PLACE])} FROM ({plan.inner}) typed"

    def write(self, target: Path, known_ads: pa.Array | None) -> int:
        """All rows to `target`; the number of them. Raises DataError where one has a fault."""
        rows, last = 0, -1
        faults: dict[int, tuple[int, dict[str, Any]]] = {}  # check -> how many rows, and where the first is
        reader = self.connection.sql(self.query).to_arrow_reader(65_536)
        schema = pa.schema([self._field(reader.schema.field(column)) for column in self.columns])
        with write_aside(target) as aside, pq.ParquetWriter(aside, schema, compression="lz4") as writer:
            for batch in reader:
                order = batch["source_order"].to_numpy()
                if len(order) and (order[0] <= last or (np.diff(order) <= 0).any()):
                    raise AssertionError(f"{target}: the engine gave rows out of order")
                last = int(order[-1]) if len(order) else last
                self._note_faults(batch, known_ads, faults)
                if not faults:
                    writer.write_batch(batch.select(self.columns).cast(schema), row_group_size=65_536)
                rows += batch.num_rows
            if faults:
                raise DataError("\n".join(map(str, self._told(faults))))
        return rows

    def _field(self, stored: pa.Field) -> pa.Field:
        if stored.name in self.spec and not pa.types.is_binary(stored.type):  # bytes of pictures stay
            return pa.field(stored.name, self.spec[stored.name].type)
        if stored.type == pa.timestamp("us"):  # what the engine holds is UTC
            return pa.field(stored.name, pa.timestamp("us", tz="UTC"))
        return stored.with_nullable(True)

    def _note_faults(self, batch: pa.RecordBatch, known_ads: pa.Array | None, faults: dict[int, Any]) -> None:
        bad: list[tuple[int, Any]] = []
        for number in range(len(self.checks)):
            word = batch[f"adrec_faults_{number // BITS}"].to_numpy()
            bad.append((number, np.flatnonzero(word & (1 << number % BITS)) if word.any() else ()))
        if known_ads is not None and "ad_id" in batch.schema.names:
            lacks = (places(batch["ad_id"], known_ads) < 0) & np.asarray(batch["ad_id"].is_valid())
            bad.append((len(self.checks), np.flatnonzero(lacks)))
        for number, rows in bad:
            if len(rows):
                count, first = faults.get(number, (0, None))
                place = {column: batch[column][int(rows[0])].as_py() for column in _PLACE} if first is None else first
                faults[number] = (count + len(rows), place)

    def _told(self, faults: Mapping[int, tuple[int, dict[str, Any]]]) -> Iterator[Rejected]:
        unknown = Check("ad_id", "", UNKNOWN_AD, "Add the ad to the ads (`ads`), or drop the row.")
        checks, known = [*self.checks, unknown], columns_of(self.connection, self.raw.view)
        for number, (rows, place) in sorted(faults.items()):
            check, value = checks[number], None
            if check.column in known and check.column not in self.hidden and not is_concealed():
                cell = f"left(CAST({name(check.column)} AS VARCHAR), 60)"
                query = f"SELECT {cell} AS v FROM {self.raw.view} WHERE source_order = {place['source_order']}"
                value = one_row(self.connection, query)["v"] or None
            theirs = self.raw.reading.own_names.get(check.column, check.column)
            fix = check.fix.replace("in the config", f"under `{self.key}` in the config")
            yield Rejected(self.key, theirs, check.problem, fix, rows, place["source_file"], place["source_row"], value)

    def _refuse_missing(self, found: Mapping[str, str], settings: TableInput) -> None:
        made = {*self.raw.reading.defaults, *self.raw.reading.at_least}
        lacking = [column for column in self.spec.required if column not in found and column not in made]
        if not lacking:
            return
        theirs = [self.raw.reading.own_names.get(column, column) for column in found]
        known = listed(theirs[:12]) + (", ..." if len(theirs) > 12 else "")
        where = "columns" if self.key in {"impressions", "requests"} else f"{self.key}.columns"
        lines = [
            f"{self.raw.files[0]}: column '{column}' is missing. Columns: {known}. Say what it is called: `--set "
            f"{where}.{column}=NAME`."
            for column in lacking
        ]
        raise DataError("\n".join(lines))


def _pseudonyms_stay(wrap: Callable[[str, str, str], str]) -> Callable[[str, str, str], str]:
    """An id that is a pseudonym already is not made one again."""

    def wrapped(column: str, sql: str, kind: str) -> str:
        made = wrap(column, sql, kind)
        if "adrec_outer" not in made:
            return made
        return f"CASE WHEN regexp_full_match({sql}, '[0-9a-f]{{64}}') THEN {sql} ELSE {made} END"

    return wrapped


def _settings(table: TableInput) -> dict[str, Any]:
    return table.model_dump(mode="json", exclude={"files"}, exclude_defaults=True)


def _format(table: TableInput) -> str | None:
    """csv, tsv, jsonl or parquet, as set or by the ending of the first file."""
    if table.format != "auto":
        return table.format
    files: Sequence[str] = [table.files] if isinstance(table.files, str) else table.files
    matches = [Path(files[0])] if Path(files[0]).suffix else []
    return format_of(matches[0]) if matches else None


def _merged(table: OwnFiles, form: TableForm, said: Mapping[str, Any], key: str) -> TableInput:
    """How to read `table`: what it says itself, then what the log's form says. Raises ConfigError where they do not fit."""
    own = table.model_dump(mode="json")
    files = find_files(table.files)
    kind = own.get("format") or format_of(files[0])
    inherited = dict(form.input)
    if kind is not None and kind != form.format:
        inherited = {setting: value for setting, value in inherited.items() if setting not in _OF_FILES}
    merged = {**inherited, **own, "columns": {**inherited.get("columns", {}), **said}}
    for derived in ("first_of", "at_least"):
        values = merged.get(derived) or {}
        merged[derived] = {ours: how for ours, how in values.items() if ours not in said or ours in own.get(derived, {})}
    try:
        return TableInput.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{key}: {line}" for line in describe(error, TableInput, merged))) from None


def _sniffed(file: Path) -> str:
    with open(file, "rb") as handle:
        head = handle.read(1 << 16)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return "jsonl"
    first = head.split(b"\n", 1)[0]
    return "tsv" if first.count(b"\t") > first.count(b",") else "csv"
