"""Mutated input files: an AdrecError of a few lines or a whole output, never anything else, never half of one."""

import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from raw_worlds import prepare, rows, tables, write

from adrec.errors import AdrecError

ENDINGS = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.zst")
WORDS = [
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"\n",
    b",",
    b"\t",
    b"{",
    b"}",
    b"nan",
    b"-1",
    b"1e999",
    b"9" * 40,
    "中".encode(),
    b"''",
    b"\r\n",
]


def mutated(data, rng):
    """A word put for another one, or up to three changes of the bytes: flips, cuts, insertions, copies."""
    words = list(re.finditer(rb"[\w.-]+", data))
    if words and rng.random() < 0.5:
        chosen = words[int(rng.integers(0, len(words)))]
        return data[: chosen.start()] + WORDS[int(rng.integers(0, len(WORDS)))] + data[chosen.end() :]
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(0, len(data)))
        span = int(rng.integers(1, 1 + min(64, len(data))))
        kind = rng.integers(0, 7)
        if kind == 0:
            data[at] = int(rng.integers(0, 256))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + span]
        elif kind == 3:
            data[at:at] = bytes(rng.integers(0, 256, span, dtype=np.uint8))
        elif kind == 4:
            data[at:at] = data[at : at + span]
        elif kind == 5:
            data[at:at] = WORDS[int(rng.integers(0, len(WORDS)))]
        else:
            other = int(rng.integers(0, len(data)))
            data[at], data[other] = data[other], data[at]
    return bytes(data)


def try_mutations(folder, seeds):
    made = tables(0, requests=12, users=5, ads=6)
    clean = {
        (name, ending): write(table, folder / "clean" / f"{name}.{ending}").read_bytes()
        for name, table in made.items()
        for ending in {*ENDINGS, *(ending.partition(".")[0] for ending in ENDINGS)}
    }
    whole, refused = 0, 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        ending = ENDINGS[int(rng.integers(0, len(ENDINGS)))]
        work = folder / f"{seed}"
        work.mkdir()
        victim = list(made)[int(rng.integers(0, len(made)))]
        for name in made:
            path = work / f"{name}.{ending}"
            if name != victim:
                path.write_bytes(clean[name, ending])
            elif seed % 3 or "." not in ending:
                path.write_bytes(mutated(clean[name, ending], rng))
            else:  # what was wrong before it was compressed
                with pa.output_stream(str(path), compression={"gz": "gzip", "zst": "zstd"}[ending.partition(".")[2]]) as handle:
                    handle.write(mutated(clean[name, ending.partition(".")[0]], rng))
        source = {"format": "tables", **{name: {"files": str(work / f"{name}.{ending}")} for name in made}}
        changes = {"counters": [{"by": ["ad"], "measures": ["rate"]}], "split": {"method": "user", "test_fraction": 0}}
        try:
            prepared, _ = prepare(work, source=source, **changes, validation={"max_rejected_fraction": 0.5 * (seed % 2)})
        except AdrecError as error:
            refused += 1
            lines = str(error).splitlines()
            assert 0 < len(lines) < 30, (seed, error)
            assert all("Traceback" not in line and len(line) < 1000 for line in lines), (seed, error)
            assert {path.name for path in work.iterdir()} == {f"{name}.{ending}" for name in made}, seed
        else:
            whole += 1
            assert rows(prepared).num_rows == prepared.manifest["rows"], seed
        shutil.rmtree(work)
    return whole, refused


def test_mutated_files(tmp_path):
    whole, refused = try_mutations(tmp_path, range(30))
    assert whole
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("first", range(60, 5060, 500))
def test_five_thousand_mutated_files(tmp_path, first):
    """About an eighth of a processor second a file."""
    whole, refused = try_mutations(tmp_path, range(first, first + 500))
    assert whole > 50
    assert refused > 50
