"""`adrec preprocess`: raw logs and ad copy -> prepared folder, written aside and swapped in."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType
from rich.table import Table

from adrec import __version__
from adrec.config.base import save_config
from adrec.config.preprocess import PreprocessConfig
from adrec.data.features import FeatureSet
from adrec.data.prepared import FORMAT
from adrec.data.tables import folder_aside, iter_batches
from adrec.prepare import quarantine, tokenizer
from adrec.prepare.build import build
from adrec.prepare.engine import open_engine
from adrec.prepare.entities import TextMaker, add_queries, prepare_texts, write_ads, write_corpus, write_users
from adrec.prepare.fingerprint import config_digest, describe_inputs, fingerprint
from adrec.prepare.impressions import open_past, write_impressions
from adrec.prepare.sources import open_source
from adrec.prepare.summary import split_summary, totals
from adrec.prepare.writer import SplitWriter
from adrec.schema import SPLITS
from adrec.terminal import Terminal


@dataclass(frozen=True)
class PreprocessResult:
    """What was written."""

    output: Path
    manifest: dict[str, Any]
    unchanged: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The manifest, without the list of inputs, and where it lies."""
        shown = {key: value for key, value in self.manifest.items() if key not in {"inputs", "schema"}}
        return {"output": str(self.output), "unchanged": self.unchanged, **shown}

    def render(self) -> Iterable[RenderableType]:
        """The splits, then what deserves a look."""
        yield _splits_table(self.output, self.manifest)
        yield from _notes(self.manifest)
        if self.unchanged:
            yield "Nothing has changed since the last run: nothing was done."


def run(config: PreprocessConfig, terminal: Terminal) -> PreprocessResult:
    """Prepare the data that `config` names. Raises AdrecErrors; earlier output stays until the new one is whole."""
    with folder_aside(config.output) as folder:
        work = folder / ".work"
        with open_engine(work, memory_limit_gb=config.memory_limit_gb, threads=config.threads) as connection:
            manifest = _prepare(connection, config, folder, terminal)
        shutil.rmtree(work)
        save_config(config, folder / "config.yaml")
        _write_json(folder / "manifest.json", manifest)
    return PreprocessResult(config.output, manifest)


def _prepare(
    connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, folder: Path, terminal: Terminal
) -> dict[str, Any]:
    with terminal.progress("preprocess", unit="steps") as advance:

        def step(note: str) -> None:
            advance(1, note=note)

        raw = open_source(connection, config.source)
        step("fingerprinting the inputs")
        inputs = describe_inputs(raw.files)
        built = build(connection, raw, config, step)
        step("rendering texts")
        maker = TextMaker(config.text)
        prepare_texts(connection)
        ads = write_ads(connection, folder, maker)
        users = write_users(connection, folder, maker)
        add_queries(connection, maker)
        texts = write_corpus(connection, folder)
    past = open_past(connection, config, folder / ".work" / "past")
    writer = SplitWriter(folder, rows_per_shard=config.rows_per_shard)
    write_impressions(connection, past, writer, terminal)
    writer.close()
    past.save(folder / "past")
    vocabulary = _make_tokenizer(config, folder, terminal)
    rejected = quarantine.write_rejected(connection, built.staged, folder / "rejected.parquet")
    with terminal.progress("fitting features"):
        _fit_features(config, folder)
    digest = config_digest(config)
    return {
        "format": FORMAT,
        "adrec": __version__,
        "fingerprint": fingerprint(inputs, digest),
        "config": digest,
        "seed": config.seed,
        **totals(connection),
        "ads": ads,
        "users": users,
        "texts": texts,
        "vocabulary": vocabulary,
        "text_template": config.text.ad_template,
        "split": config.split.method,
        "splits": split_summary(connection),
        "rejected": {"rows": sum(staged.bad_rows for _, staged in built.staged), "lines": rejected,
                     "reasons": quarantine.as_dict(built.rejected)},
        "history": past.report.as_dict(),
        "facts": built.facts,
        "schema": _schemas(folder),
        "inputs": inputs,
    }  # fmt: skip


def _make_tokenizer(config: PreprocessConfig, folder: Path, terminal: Terminal) -> int | None:
    settings = config.tokenizer
    if settings.kind == "none":
        return None
    if settings.kind == "existing":
        return tokenizer.copy_tokenizer(settings.reference or "", folder / "tokenizer", max_tokens=settings.max_tokens)
    with terminal.progress("training the tokenizer"):
        return tokenizer.train_tokenizer(
            folder / "corpus.parquet",
            folder / "tokenizer",
            kind=settings.kind,
            vocab_size=settings.vocab_size,
            min_frequency=settings.min_frequency,
            lowercase=settings.lowercase,
            special_tokens=tuple(settings.special_tokens),
            max_tokens=settings.max_tokens,
        )


def _schemas(folder: Path) -> dict[str, dict[str, str]]:
    files = {"ads": folder / "ads.parquet", "users": folder / "users.parquet"}
    for split in SPLITS:
        for file in sorted((folder / "impressions" / split).glob("*.parquet"))[:1]:
            files.setdefault("impressions", file)
    return {table: {field.name: str(field.type) for field in pq.read_schema(file)} for table, file in files.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fit_features(config: PreprocessConfig, folder: Path) -> None:
    """Statistics of training rows; ads and users count once each, if training shows them."""
    train = folder / "impressions" / "train"
    fitted = {"impressions": FeatureSet.fit(config.features.impressions, iter_batches(train), seed=config.seed)}
    for table, spec, index in (("ads", config.features.ads, "ad_index"), ("users", config.features.users, "user_index")):
        seen = np.zeros(pq.read_metadata(folder / f"{table}.parquet").num_rows, bool)
        for batch in iter_batches(train, columns=[index]):
            seen[batch.column(index).to_numpy()] = True
        fitted[table] = FeatureSet.fit(spec, _rows_where(folder / f"{table}.parquet", seen), seed=config.seed)
    _write_json(folder / "features.json", {table: features.to_json() for table, features in fitted.items()})


def _rows_where(path: Path, mask: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in iter_batches(path):
        yield batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows


def _splits_table(output: Path, manifest: dict[str, Any]) -> Table:
    table = Table(title=str(output), title_justify="left")
    table.add_column("")
    rows = [
        ("rows", lambda split: f"{split['rows']:,}"),
        ("requests", lambda split: f"{split['requests']:,}"),
        ("clicks", lambda split: f"{split['clicks']:,}"),
        ("click rate", lambda split: "-" if split["click_rate"] is None else f"{split['click_rate']:.2%}"),
        ("users", lambda split: f"{split['users']:,}"),
        ("ads", lambda split: f"{split['ads']:,}"),
        ("first", lambda split: split["first"]),
        ("last", lambda split: split["last"]),
        ("users also in train", lambda split: f"{split['shared_users']:,}" if "shared_users" in split else ""),
        ("ads also in train", lambda split: f"{split['shared_ads']:,}" if "shared_ads" in split else ""),
        ("cold users", lambda split: f"{split['cold_users']:.1%}" if "cold_users" in split else ""),
        ("cold ads", lambda split: f"{split['cold_ads']:.1%}" if "cold_ads" in split else ""),
        ("rows of cold users", lambda split: f"{split['cold_user_rows']:.1%}" if "cold_user_rows" in split else ""),
        ("rows of cold ads", lambda split: f"{split['cold_ad_rows']:.1%}" if "cold_ad_rows" in split else ""),
    ]
    splits = {name: manifest["splits"][name] for name in SPLITS if name in manifest["splits"]}
    for name in splits:
        table.add_column(name, justify="right")
    for label, show in rows:
        table.add_row(label, *(show(split) for split in splits.values()))
    return table


def _notes(manifest: dict[str, Any]) -> Iterator[str]:
    yield f"{manifest['rows']:,} rows in {manifest['requests']:,} requests, {manifest['clicks']:,} clicks, {manifest['users']:,} users, {manifest['ads']:,} ads"
    if manifest["rejected"]["rows"]:
        yield f"{manifest['rejected']['rows']:,} rows rejected: see rejected.parquet"
