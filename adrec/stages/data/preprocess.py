"""`adrec preprocess`: raw logs and ad copy -> prepared folder, written aside and swapped in."""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from adrec import __version__
from adrec.asof.partitions import count_here
from adrec.cluster.session import session
from adrec.config.base import save_config
from adrec.config.cluster import ClusterConfig
from adrec.config.data.preprocess import Features, PreprocessConfig, TimeSplit
from adrec.data.disk.engine import columns_of, give_back_memory, one_row, open_engine, open_memory_engine, text
from adrec.data.disk.outputs import PREPARED, files_of
from adrec.data.disk.tables import parquet_schema
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import FORMAT, shards_of
from adrec.errors import AdrecError, DataError, concealed
from adrec.prepare.build import Builder, work_folder
from adrec.prepare.built import Built
from adrec.prepare.extras import extras_of
from adrec.prepare.log.append import CannotAppendError, Earlier, check_described, link_shards, plan_append
from adrec.prepare.log.carried import save_carried
from adrec.prepare.log.impressions import keyed_columns, open_attach, write_impressions
from adrec.prepare.log.outcomes import LABELS, events_of
from adrec.prepare.log.rolling import MOVED, move_shards
from adrec.prepare.log.sharing import sharing
from adrec.prepare.log.versions import moved_features, write_versions
from adrec.prepare.output.corpus import add_queries, has_texts, prepare_texts, write_corpus
from adrec.prepare.output.entities import Encoded, write_tables
from adrec.prepare.output.fingerprint import config_digest, describe_inputs, fingerprint
from adrec.prepare.output.fit import FitPlan, fit_features, make_tokenizer, plan_fit
from adrec.prepare.output.leaks import LEAK, leaking_features
from adrec.prepare.output.paths import add_paths, with_entity_vectors
from adrec.prepare.output.summary import add_people, added, totals
from adrec.prepare.output.writer import SplitWriter
from adrec.prepare.sources import open_source
from adrec.prepare.staging import quarantine
from adrec.prepare.staging.parts import PartStager, can_share, digests_on_cluster
from adrec.prepare.staging.validate import Create, create_here
from adrec.prepare.staging.widths import with_widths
from adrec.prepare.text.maker import TextMaker
from adrec.schema import ADS, NOBODY, SPLITS, USERS, TableSpec, entity_tables
from adrec.stages.data.preprocess_result import PreprocessResult
from adrec.terminal import Terminal

if TYPE_CHECKING:
    from adrec.stages.data.media import Media

ROWS_PER_SHARD = 1_000_000
"""Rows of a file of impressions, which ends with a whole request: tens of megabytes, enough files to share out."""


@dataclass(frozen=True)
class _Plan:
    inputs: list[dict[str, Any]]
    config: str
    fingerprint: str
    manifest: dict[str, Any] | None
    """of an earlier output that is whole"""
    earlier: Earlier | None
    """what is appended to"""
    why: str = ""
    """why an earlier output is not appended to"""


def run(config: PreprocessConfig, terminal: Terminal) -> PreprocessResult:
    """Prepare the data that `config` names. Raises AdrecErrors; earlier output stays until the new one is whole.

    Nothing is done where neither inputs nor config have changed. New files of impressions are appended where that
    gives the same as building everything (docs/data/preprocess.md says when).
    """
    shared = session(config.cluster) if config.cluster is not None else nullcontext()
    with concealed(config.privacy.pseudonymise or config.privacy.mask_contacts), shared:
        result = _run(config, terminal)
    for finding in result.manifest["findings"]:
        terminal.warn(finding["message"])
    return result


def _run(config: PreprocessConfig, terminal: Terminal) -> PreprocessResult:
    config, linked = with_entity_vectors(_with_moments(config))
    config, media = _with_media(_with_measured_widths(config))
    plan = _plan(config, terminal)
    is_enough = plan.manifest is not None and (config.append == "fast" or not plan.manifest.get("kept"))
    if plan.manifest is not None and is_enough and plan.manifest["fingerprint"] == plan.fingerprint:
        return PreprocessResult(config.output, plan.manifest, "unchanged")
    why = plan.why
    if plan.earlier is not None:
        try:
            return PreprocessResult(config.output, _write(config, plan, plan.earlier, terminal, media, linked), "appended")
        except CannotAppendError as reason:
            why = str(reason)
        except DataError:
            # A fault of the new files alone (they may hold no good row) need not be one of all files together.
            why = "the new files cannot stand alone"
    if why:
        terminal.note(f"Everything is built anew, because {why}.")
    return PreprocessResult(config.output, _write(config, plan, None, terminal, media, linked), "built", why)


def _with_moments(config: PreprocessConfig) -> PreprocessConfig:
    """The config with the moments of clicks and conversions that are files of their own: a label is known from then on."""
    if not events_of(config.source):
        return config
    with open_memory_engine() as connection:
        events = open_source(connection, config.source).events
        found = {
            moment: moment
            for label, table in events.items()
            for _, moment in [LABELS[label]]
            if moment in columns_of(connection, table.view) and getattr(config.history, moment) is None
        }
    return config.model_copy(update={"history": config.history.model_copy(update=found)}) if found else config


def _with_measured_widths(config: PreprocessConfig) -> PreprocessConfig:
    """The config with the widths of vectors that it does not name."""
    if all(item.width is not None for spec in (config.features.ads, config.features.users) for item in spec.vectors):
        return config
    with open_memory_engine() as connection:
        return with_widths(connection, config, open_source(connection, config.source))


def _with_media(config: PreprocessConfig) -> "tuple[PreprocessConfig, list[Media]]":
    """The config with the modalities that its encoders of pictures and sounds make, and the encoders."""
    settings = [section for section in (config.image, config.audio) if section is not None]
    if not settings:
        return config, []
    from adrec.stages.data.media import Media  # torch, which other runs do without

    media = [Media.of(section) for section in settings]
    for opened in media:
        config = opened.added_to(config)
    return config, media


def _plan(config: PreprocessConfig, terminal: Terminal) -> _Plan:
    manifest = _whole_manifest(config.output)
    digest = config_digest(config)
    extras = extras_of(config)
    with open_memory_engine() as connection, terminal.progress("fingerprinting the inputs"):
        raw = open_source(connection, config.source)
        digests = None if config.cluster is None else partial(_digests, config.cluster, terminal)
        inputs = describe_inputs(raw.files, manifest["inputs"] if manifest else (), digests)
        earlier, why = None, ""
        if manifest is not None:
            try:
                earlier = plan_append(
                    connection, config, raw, inputs, config_digest=digest, manifest=manifest, extra_users=extras.users
                )
            except CannotAppendError as reason:
                why = str(reason)
    return _Plan(inputs, digest, fingerprint(inputs, digest), manifest, earlier, why)


def _write(
    config: PreprocessConfig, plan: _Plan, earlier: Earlier | None, terminal: Terminal, media: "Sequence[Media]",
    linked: list[Encoded],
) -> dict[str, Any]:  # fmt: skip
    with folder_aside(config.output, PREPARED) as folder:
        work = work_folder(folder)
        with open_engine(work, memory_limit_gb=config.memory_limit_gb, threads=config.threads) as connection:
            manifest = _prepare(connection, config, plan, earlier, folder, terminal, media, linked)
        shutil.rmtree(work)
        save_config(config.model_copy(update={"cluster": None}), folder / "config.yaml")
        manifest["files"] = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
        _write_json(folder / "manifest.json", manifest)
    return manifest


def _prepare(
    connection: duckdb.DuckDBPyConnection,
    config: PreprocessConfig,
    plan: _Plan,
    earlier: Earlier | None,
    folder: Path,
    terminal: Terminal,
    media: "Sequence[Media]",
    linked: list[Encoded],
) -> dict[str, Any]:
    skip = earlier.files if earlier is not None else 0
    raw = open_source(connection, config.source, skip=skip)
    with terminal.progress("preprocess", total=2 + len(raw.files), unit="steps") as step:
        built = Builder(connection, raw, config, step, earlier, _creator(config, folder, terminal, skip)).build()
        built.notes += add_paths(connection, config)
        for note in built.notes:
            terminal.warn(note)
        step(note="rendering texts")
        maker = TextMaker(config.text)
        prepare_texts(connection)
        before = earlier.folder if earlier is not None else None
        kept = {
            table: {item.column: item.precision for item in spec.vectors}
            for table, spec in (("ads", config.features.ads), ("users", config.features.users))
        }
        readings = [opened.reading(raw) for opened in media]
        encoded: dict[str, list[Encoded]] = {"ads": [*linked]}
        for reading in readings:
            for table, made in reading.columns().items():
                encoded.setdefault(table, []).extend(made)
        counts: dict[str, int | None] = {
            **write_tables(
                connection, folder, maker,
                cut=built.cut, earlier=before, precisions=kept, encoded=encoded, unchanged=built.unchanged,
            )
        }  # fmt: skip
        for reading in readings:
            built.notes += (noted := reading.finish(folder))
            for note in noted:
                terminal.warn(note)
        if earlier is not None:
            for spec in (spec for spec in (ADS, USERS) if spec.name not in built.unchanged):
                check_described(connection, earlier, folder, spec, keyed_columns(connection, config, built.shape))
        corpus = before / "corpus.parquet" if before is not None else None
        add_queries(connection, maker, cut=built.cut, earlier=corpus)
        for spec in (ADS, USERS):
            counts[spec.name] = _named(connection, spec)
        shape = replace(built.shape, text=has_texts(connection))
        counts["texts"] = write_corpus(connection, folder, corpus, cut=built.cut)
    write_versions(connection, folder, built.versioned)
    if built.available is not None:
        built.available.save(folder)
    old = earlier.manifest if earlier is not None else {}
    splits, history = _write_log(connection, config, built, earlier, folder, terminal)
    give_back_memory()
    with terminal.progress("counting users and ads"):
        add_people(connection, splits)
        save_carried(connection, folder, before)
    carry_on = plan_fit(config, folder, splits, earlier)
    with terminal.progress("training the tokenizer"):
        counts["vocabulary"] = make_tokenizer(config.tokenizer, folder, before if carry_on.tokenizer else None)
    with terminal.progress("fitting features"):
        columns = {spec.name: parquet_schema(folder / spec.file).names for spec in (ADS, USERS)}
        features = moved_features(config.features, built.versioned, columns)
        fit_features(connection, config.model_copy(update={"features": features}), folder, carry_on)
    with terminal.progress("looking for features that know the click"):
        built.gate["findings"] += _leaks(folder, features, built, earlier, carry_on)
    lines = quarantine.write_rejected(
        connection, built.staged, folder / "rejected.parquet", earlier.folder / "rejected.parquet" if earlier else None
    )
    return {
        "format": FORMAT,
        "adrec": __version__,
        "fingerprint": plan.fingerprint,
        "config": plan.config,
        "seed": config.seed,
        **totals(splits),
        **counts,
        "implicit": config.negatives is not None,
        "repeated_clicks": old.get("repeated_clicks", built.repeated),
        "text_template": config.text.ad_template,
        "has": shape.as_dict(),
        "split": config.split.method,
        "splits": splits,
        **built.gate,
        "history": added(old["history"], history) if old else history,
        "source_rows": _source_rows(built, earlier),
        "rejected": {"lines": lines, "reasons": quarantine.as_dict(built.rejected, old.get("rejected", {}).get("reasons", []))},
        "unlisted_users": built.unlisted_users,
        **({"joined": built.joined} if built.joined else {}),
        **{stored: told for reading in readings for stored, told in reading.manifest().items()},
        "notes": built.notes,
        "privacy": built.privacy,
        "schema": _schemas(folder),
        "kept": list(dict.fromkeys([*old.get("kept", []), *(earlier.kept if earlier is not None else [])])),
        "learnt_texts": carry_on.texts,
        "inputs": plan.inputs,
    }


def _digests(cluster: ClusterConfig, terminal: Terminal, files: list[Path]) -> dict[Path, str]:
    return digests_on_cluster(cluster, files, terminal) if files else {}


def _creator(config: PreprocessConfig, folder: Path, terminal: Terminal, skip: int) -> Create:
    """What stages the impressions: this machine, or the workers of a cluster, a file each."""
    if config.cluster is None:
        return create_here
    if not can_share(config):
        terminal.warn(f"cluster: the files of source.format '{config.source.format}' are read by this machine alone.")
        return create_here
    return PartStager(config, config.cluster, work_folder(folder) / "parts", terminal, skip=skip)


def _named(connection: duckdb.DuckDBPyConnection, spec: TableSpec) -> int:
    """Ads or users that have an identifier."""
    found = one_row(connection, f"SELECT count(*) AS n FROM {spec.name} WHERE {spec.key} <> {text(NOBODY)}")
    return int(found["n"])


def _write_log(
    connection: duckdb.DuckDBPyConnection,
    config: PreprocessConfig,
    built: Built,
    earlier: Earlier | None,
    folder: Path,
    terminal: Terminal,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The impressions with all that was known before them, to `folder`: what the splits hold, and what histories there were."""
    carried = earlier.state if earlier is not None else None
    share = count_here if config.cluster is None else sharing(config.cluster, terminal)
    attach = open_attach(connection, config, built.shape, folder, carried, share)
    writer = _open_writer(built, earlier, folder)
    first_row = earlier.manifest["rows"] if earlier is not None else 0
    limit = config.memory_limit_gb
    write_impressions(connection, attach, writer, terminal, shape=built.shape, first_row=first_row, memory_limit_gb=limit)
    return writer.close(), attach.report.as_dict()


def _open_writer(built: Built, earlier: Earlier | None, folder: Path) -> SplitWriter:
    """What writes new rows behind the earlier ones, which are linked or, where the bounds move, sorted in again."""
    if earlier is None:
        return SplitWriter(folder, rows_per_shard=ROWS_PER_SHARD)
    stays = [split for split in SPLITS if not (built.moves and split in MOVED)]
    link_shards(earlier, folder, stays)
    counts = {split: counts for split, counts in earlier.manifest["splits"].items() if split in stays}
    writer = SplitWriter(folder, rows_per_shard=ROWS_PER_SHARD, earlier=counts)
    if built.moves and isinstance(built.split, TimeSplit):
        move_shards(earlier, built.split, writer)
    return writer


def _leaks(folder: Path, features: Features, built: Built, earlier: Earlier | None, carry_on: FitPlan) -> list[dict[str, Any]]:
    """What features know of the click; as before where training rows, ads and users are those of before."""
    if (
        earlier is not None
        and carry_on.impressions
        and {ADS.name, USERS.name} <= built.unchanged
        and earlier.manifest["cuts"] == built.gate["cuts"]
    ):
        return [finding for finding in earlier.manifest["findings"] if finding["kind"] == LEAK]
    return leaking_features(folder, features, built.label_cut)


def _source_rows(built: Built, earlier: Earlier | None) -> dict[str, dict[str, int]]:
    counts = {}
    if earlier is not None:
        counts = {label: found for label, found in earlier.manifest["source_rows"].items() if not built.rows(label)}
    for label, _ in built.staged:
        rows, rejected = earlier.counts(label) if earlier is not None else (0, 0)
        counts[label] = {"rows": rows + built.rows(label), "rejected": rejected + built.bad_rows(label)}
    return counts


def _whole_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest of an earlier output of this version whose files are all there, or None."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        found = {str(file.relative_to(output)): file.stat().st_size for file in _files(output)}
        is_whole = manifest["format"] == FORMAT and manifest["files"] == found
    except (OSError, ValueError, KeyError, TypeError, AdrecError):
        return None
    return manifest if is_whole else None


def _files(folder: Path) -> list[Path]:
    return [file for file in files_of(folder) if file.name != "manifest.json"]


def _schemas(folder: Path) -> dict[str, dict[str, str]]:
    files = {spec.name: file for spec in entity_tables() if (file := folder / spec.file).exists()}
    for split in SPLITS:
        for file in shards_of(folder, split)[:1]:
            files.setdefault("impressions", file)
    return {table: {field.name: str(field.type) for field in pq.read_schema(file)} for table, file in files.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
