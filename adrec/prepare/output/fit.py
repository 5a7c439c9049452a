"""What is fitted on the prepared rows: features on training rows only, the tokenizer on the corpus.

An append takes over what new rows do not change, so that a fixed training part is not read again.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.preprocess import PreprocessConfig, TokenizerSettings
from adrec.data.disk.engine import fetch, give_back_memory
from adrec.data.disk.tables import parquet_files, parquet_schema
from adrec.data.features import FeatureSet
from adrec.data.vectors import with_vectors
from adrec.prepare.log.append import Earlier
from adrec.prepare.text.tokenizer import copy_tokenizer, digest_of_texts, train_tokenizer
from adrec.specs import FeatureSpec

_PIECE_ROWS = 65_536


@dataclass(frozen=True)
class FitPlan:
    """What of the output that is appended to is taken over."""

    texts: str
    """digest of the texts that a tokenizer learns"""
    earlier: Path | None = None
    tokenizer: bool = False
    impressions: bool = False
    """the features of the impressions: no training row is new"""
    features: bool = False
    """all of features.json"""


def plan_fit(
    config: PreprocessConfig, folder: Path, splits: Mapping[str, Mapping[str, Any]], earlier: Earlier | None
) -> FitPlan:
    """What new rows leave as it was, and what a fast append keeps all the same, which is noted."""
    texts = digest_of_texts(folder / "corpus.parquet")
    if earlier is None:
        return FitPlan(texts)
    keeps = not earlier.is_exact and config.append_fitted == "keep"
    same_texts = earlier.manifest["learnt_texts"] == texts and config.tokenizer.kind != "existing"
    same_rows = earlier.manifest["splits"]["train"]["rows"] == splits["train"]["rows"]
    if keeps and not same_texts and config.tokenizer.kind != "none":
        earlier.keep("", "the tokenizer (append_fitted)")
    if keeps:
        earlier.keep("", "vocabularies and scalers (append_fitted)")
    return FitPlan(texts, earlier.folder, keeps or same_texts, same_rows, keeps)


def fit_features(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, folder: Path, plan: FitPlan) -> None:
    """features.json. Ads and users count once each, and only those that training shows (table `people`)."""
    if plan.earlier is not None and plan.features:
        shutil.copyfile(plan.earlier / "features.json", folder / "features.json")
        return
    give_back_memory()
    if plan.earlier is not None and plan.impressions:
        known = json.loads((plan.earlier / "features.json").read_text(encoding="utf-8"))
        fitted = {"impressions": FeatureSet.from_json(known["impressions"])}
    else:
        wanted = config.features.impressions.spec
        read = _even(_needed(folder / "impressions" / "train", wanted))
        fitted = {"impressions": FeatureSet.fit(wanted, read, seed=config.seed)}
    for table, spec, kind in (("ads", config.features.ads.spec, "ad"), ("users", config.features.users.spec, "user")):
        seen = np.zeros(pq.read_metadata(folder / f"{table}.parquet").num_rows, np.bool_)
        seen[fetch(connection, f"SELECT index FROM people WHERE part = 0 AND kind = '{kind}'")["index"].to_numpy()] = True
        needed = _needed(folder / f"{table}.parquet", spec)
        fitted[table] = FeatureSet.fit(spec, _rows_where(needed, seen), seed=config.seed)
        if spec.vectors:
            views = with_vectors(pa.table({"row": np.arange(len(seen))}), folder, table)
            fitted[table] = fitted[table].with_fitted_vectors(views, np.flatnonzero(seen), seed=config.seed)
    text = json.dumps({table: features.to_json() for table, features in fitted.items()}, ensure_ascii=False)
    (folder / "features.json").write_text(text + "\n", encoding="utf-8")


def make_tokenizer(settings: TokenizerSettings, folder: Path, earlier: Path | None = None) -> int | None:
    """tokenizer/. Returns the size of its vocabulary, None where none is wanted.

    `earlier`: the prepared folder whose tokenizer is taken over.
    """
    if settings.kind == "none" or not pq.read_metadata(folder / "corpus.parquet").num_rows:
        return None  # nobody asks for one, or there is nothing to cut
    if earlier is not None:
        shutil.copytree(earlier / "tokenizer", folder / "tokenizer")
        return int(json.loads((earlier / "manifest.json").read_text(encoding="utf-8"))["vocabulary"])
    if settings.kind == "existing":
        return copy_tokenizer(settings.reference or "", folder / "tokenizer")
    return train_tokenizer(
        folder / "corpus.parquet",
        folder / "tokenizer",
        kind=settings.kind,
        vocab_size=settings.vocab_size,
        lowercase=settings.lowercase,
    )


def _needed(path: Path, spec: FeatureSpec) -> Iterator[pa.RecordBatch]:
    """The columns that `spec` names, a file at a time: histories and texts are long, and no feature."""
    for file in parquet_files(path):
        known = parquet_schema(file).names
        columns = [column for column in known if any(fnmatchcase(column, pattern) for pattern in spec.columns)]
        with pq.ParquetFile(file) as shard:  # a row group at a time: a dataset's reader runs ahead of what is used
            yield from shard.iter_batches(_PIECE_ROWS, columns=columns or known[:1], use_threads=False)


def _even(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in pieces of one size, so that sums do not depend on where shards end."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _PIECE_ROWS:
            table = pa.Table.from_batches(held)
            give_back_memory()
            whole = rows - rows % _PIECE_ROWS
            for start in range(0, whole, _PIECE_ROWS):
                yield table.slice(start, _PIECE_ROWS).combine_chunks()
            held, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield pa.Table.from_batches(held).combine_chunks()


def _rows_where(
    batches: Iterator[pa.RecordBatch], mask: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        yield batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows
