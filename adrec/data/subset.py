"""A prepared folder with some of its rows: the same ads, users, features and texts, other impressions."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.prepared import Prepared, open_prepared

_GROUP_ROWS = 65_536


def write_subset(prepared: Prepared, folder: Path, rows: Mapping[str, NDArray[np.bool_]]) -> Prepared:
    """Write `folder` with those rows of each split that its mask keeps, (rows of the split,) in order; other splits whole.

    Everything else is linked, not copied, where the file system allows. Requests may lose some of their rows.
    """
    shutil.copytree(prepared.path, folder, copy_function=_link, ignore=shutil.ignore_patterns("manifest.json"))
    manifest = json.loads(json.dumps(prepared.manifest))
    for split, mask in rows.items():
        start = 0
        for file in prepared.split_files(split):
            table = pq.read_table(file)
            own = mask[start : start + table.num_rows]
            start += table.num_rows
            copy = folder / "impressions" / split / file.name
            copy.unlink()
            pq.write_table(table.filter(pa.array(own)), copy, row_group_size=_GROUP_ROWS)
        manifest["splits"][split]["rows"] = int(mask.sum())
    digest = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for _, mask in sorted(rows.items()))).hexdigest()[:8]
    manifest["fingerprint"] = f"{prepared.fingerprint}-{digest}"
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return open_prepared(folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
