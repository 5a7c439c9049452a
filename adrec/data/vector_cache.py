"""Text vectors on disk, keyed by the text's content and the encoder's fingerprint, so that no text is encoded twice.

One folder an encoder, holding segments: structured `.npy` files of (16-byte key, vector), memory-mapped when read. Segments
are written aside, renamed, and named by what they hold: a kill costs the segment in progress, two runs at once no harm.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adrec.data.disk.writing import write_aside
from adrec.errors import ResourceError

SEGMENT_TEXTS = 8192
_KEY_BYTES = 16


def default_cache_folder() -> Path:
    """`$ADREC_CACHE`, else `$XDG_CACHE_HOME/adrec`, else `~/.cache/adrec`; vectors lie in its `vectors/`."""
    named = os.environ.get("ADREC_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adrec"
    return base.expanduser() / "vectors"


def cached_vectors(
    texts: Sequence[str],
    *,
    fingerprint: str,
    encode: Callable[[list[str]], np.ndarray],
    folder: Path | None = None,
    segment_texts: int = SEGMENT_TEXTS,
) -> np.ndarray:
    """Vectors of `texts`, (N, D) float32, in their order; `encode` is called only for distinct texts not yet on disk.

    `fingerprint` names the encoder: it must change with anything that changes a vector. `folder` None is the user's
    cache; where it cannot be written the vectors are still returned, and not kept.
    """
    keys = _keys(texts)
    wanted, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if not len(wanted):
        return np.asarray(encode([]), np.float32)
    home = (folder or default_cache_folder()) / fingerprint
    vectors, known = _read(home, wanted)
    missing = np.flatnonzero(~known)
    missing = missing[np.argsort(first[missing])]  # in the order given: a rerun makes the same segments
    keep = True
    for start in range(0, len(missing), segment_texts):
        rows = missing[start : start + segment_texts]
        made = np.asarray(encode([texts[row] for row in first[rows]]), np.float32)
        vectors = np.zeros((len(wanted), made.shape[1]), np.float32) if vectors is None else vectors
        vectors[rows] = made
        keep = keep and _write(home, wanted[rows], made)
    assert vectors is not None
    return np.asarray(vectors[inverse.reshape(-1)])


def _keys(texts: Sequence[str]) -> np.ndarray:
    """(N,) of 16-byte digests."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=_KEY_BYTES).digest() for text in texts)
    return np.frombuffer(digests, f"V{_KEY_BYTES}").view(f"S{_KEY_BYTES}")


def _read(home: Path, wanted: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Vectors of the sorted keys `wanted` (None where no segment exists), and which of them were found."""
    known = np.zeros(len(wanted), bool)
    vectors = None
    for path in sorted(home.glob("*.npy")):
        segment = _open(path)
        if segment is None:
            continue
        if vectors is None:
            vectors = np.zeros((len(wanted), segment["vector"].shape[1]), np.float32)
        place = np.searchsorted(wanted, segment["key"]).clip(max=len(wanted) - 1)
        hits = np.flatnonzero(wanted[place] == segment["key"])
        vectors[place[hits]] = segment["vector"][hits]
        known[place[hits]] = True
    return vectors, known


def _open(path: Path) -> np.ndarray | None:
    """A memory-mapped segment; a damaged one is dropped, for its texts can be encoded again."""
    try:
        segment = np.load(path, mmap_mode="r", allow_pickle=False)
        if segment.dtype.names == ("key", "vector"):
            return np.asarray(segment)
    except (ValueError, OSError, EOFError):
        path.unlink(missing_ok=True)
    return None


def _write(home: Path, keys: np.ndarray, vectors: np.ndarray) -> bool:
    """Write one segment; False where the cache cannot be written."""
    segment = np.empty(len(keys), np.dtype([("key", f"S{_KEY_BYTES}"), ("vector", "<f4", (vectors.shape[1],))]))
    segment["key"], segment["vector"] = keys, vectors
    name = hashlib.blake2b(keys.tobytes(), digest_size=_KEY_BYTES).hexdigest()
    try:
        with write_aside(home / f"{name}.npy") as aside, open(aside, "wb") as handle:
            np.save(handle, segment, allow_pickle=False)
    except ResourceError:
        return False
    return True
