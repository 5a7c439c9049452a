"""What is fitted on the prepared rows: features on training rows only, the tokenizer on the corpus."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.preprocess import PreprocessConfig, TokenizerSettings
from adrec.data.engine import give_back_memory
from adrec.data.features import FeatureSet, FeatureSpec
from adrec.data.tables import iter_batches, parquet_files, parquet_schema
from adrec.prepare.text.tokenizer import copy_tokenizer, train_tokenizer

_PIECE_ROWS = 65_536


def fit_features(config: PreprocessConfig, folder: Path) -> None:
    """features.json. Ads and users count once each, and only those that training shows."""
    give_back_memory()
    train = folder / "impressions" / "train"
    read = _even(_needed(train, config.features.impressions))
    fitted = {"impressions": FeatureSet.fit(config.features.impressions, read, seed=config.seed)}
    for table, spec, index in (("ads", config.features.ads, "ad_index"), ("users", config.features.users, "user_index")):
        seen = np.zeros(pq.read_metadata(folder / f"{table}.parquet").num_rows, np.bool_)
        for batch in iter_batches(train, columns=[index]):
            seen[batch.column(index).to_numpy()] = True
        needed = _needed(folder / f"{table}.parquet", spec)
        fitted[table] = FeatureSet.fit(spec, _rows_where(needed, seen), seed=config.seed)
    text = json.dumps({table: features.to_json() for table, features in fitted.items()}, ensure_ascii=False)
    (folder / "features.json").write_text(text + "\n", encoding="utf-8")


def make_tokenizer(settings: TokenizerSettings, folder: Path) -> int | None:
    """tokenizer/. Returns the size of its vocabulary, None where none is wanted."""
    if settings.kind == "none":
        return None
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
    named = [column for _, column in spec.columns]
    for file in parquet_files(path):
        known = parquet_schema(file).names
        columns = [column for column in known if any(fnmatchcase(column, pattern) for pattern in named)]
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
