"""Small random logs as a user might have them, and one call that preprocesses them."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.schema import SPLITS
from adrec.stages.data.preprocess import PreprocessResult, run
from adrec.terminal import Terminal

START = np.datetime64("2026-03-01T00:00:00", "us")
DAY = 86_400_000_000


def tables(seed=0, *, requests=60, users=12, ads=15, days=4, slots=24):
    """ads, users and impressions; many requests share a moment; some users are in no users table."""
    rng = np.random.default_rng(seed)
    per_request = rng.integers(1, 5, requests)
    moment = np.sort(rng.integers(0, days * slots, requests)) * (DAY // slots)
    request = np.repeat(np.arange(requests), per_request)
    count = len(request)
    impressions = pa.table(
        {
            "request_id": [f"r{number:04d}" for number in request],
            "user_id": np.char.add("u", rng.integers(0, users, requests).astype(str))[request],
            "ad_id": np.char.add("a", rng.integers(0, ads, count).astype(str)),
            "shown_at": pa.array(START + moment[request], pa.timestamp("us", "UTC")),
            "click": pa.array(rng.random(count) < 0.4).cast(pa.int8()),
            "position": pa.array(np.concatenate([np.arange(n) + 1 for n in per_request]), pa.int32()),
            "price_seen": rng.normal(10, 2, count).round(3),
        }
    )
    categories = np.array(["sports", "news", "美食"])[rng.integers(0, 3, ads)]
    return {
        "ads": pa.table(
            {
                "ad_id": [f"a{number}" for number in range(ads)],
                "title": [
                    f"Offer number {number} for runners" if number % 3 else f"优惠{number}号 跑鞋" for number in range(ads)
                ],
                "category": categories,
            }
        ),
        "users": pa.table(
            {"user_id": [f"u{number}" for number in range(users - 2)], "age": pa.array(rng.integers(18, 70, users - 2))}
        ),
        "impressions": impressions,
    }


def write(table, path):
    """One file in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".parquet"):
        pq.write_table(table, path)
        return path
    text = _text(table, plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as handle:
            handle.write(text)
    else:
        path.write_bytes(text)
    return path


def _text(table, name):
    columns = {
        column: pc.strftime(table[column], format="%Y-%m-%dT%H:%M:%SZ")
        if pa.types.is_timestamp(table[column].type)
        else table[column]
        for column in table.column_names
    }
    if name.endswith(("jsonl", "json")):
        import json

        rows = pa.table(columns).to_pylist()
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    sink = pa.BufferOutputStream()
    delimiter = "\t" if name.endswith("tsv") else ","
    pyarrow.csv.write_csv(pa.table(columns), sink, pyarrow.csv.WriteOptions(delimiter=delimiter))
    return sink.getvalue().to_pybytes()


def config(folder, **changes):
    """A plain config over three tables in `folder`; keyword arguments replace top-level keys."""
    source = {
        "format": "tables",
        "ads": {"files": str(folder / "ads.parquet")},
        "users": {"files": str(folder / "users.parquet")},
        "impressions": {"files": str(folder / "impressions.parquet")},
    }
    raw = {
        "output": str(folder / "prepared"),
        "source": source,
        "tokenizer": {"kind": "none"},
        "counters": [
            {"by": ["ad"], "measures": ["impressions", "clicks", "rate", "hours_since_first"], "half_lives_hours": [None, 6]},
            {"by": ["user", "category"], "measures": ["impressions", "rate"]},
            {"by": ["category"], "measures": ["history_share"]},
        ],
        "features": {"impressions": {"numeric": ["counter_*", "price_seen"]}, "users": {"numeric": ["age"]}},
        "threads": 1,
        **changes,
    }
    return PreprocessConfig.model_validate(raw, context={"base": Path(folder)})


def prepare(folder, **changes) -> tuple[Prepared, PreprocessResult]:
    """Run the stage and open what it wrote."""
    settings = config(folder, **changes)
    result = run(settings, Terminal(quiet=True))
    return open_prepared(settings.output), result


def world(folder, seed=0, **sizes):
    """Write the three tables as Parquet."""
    made = tables(seed, **sizes)
    for name, table in made.items():
        write(table, folder / f"{name}.parquet")
    return made


def rows(prepared, *, with_split=True) -> pa.Table:
    """All impressions of a prepared folder by row_id, with the split they are in. NaN becomes null, so that rows compare."""
    parts = []
    for split in SPLITS:
        for file in prepared.split_files(split):
            table = pq.read_table(file)
            if with_split:
                table = table.append_column("split", pa.array([split] * len(table)))
            parts.append(table)
    table = pa.concat_tables(parts).sort_by("row_id").combine_chunks()
    for at, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            values = table[field.name]
            table = table.set_column(at, field, pc.if_else(pc.is_nan(values), pa.scalar(None, field.type), values))
    return table
