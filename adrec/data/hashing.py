"""A stable 64-bit hash of strings, the same in every process and on every machine (Python's own hash is not).

FNV-1a over the UTF-8 bytes (Fowler, Noll, Vo 1991), then the finaliser of MurmurHash3, whose last bits are well mixed.
Works on whole columns: one pass per byte position over the strings that are that long.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_OFFSET = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)


def hash_strings(values: pa.Array) -> NDArray[np.uint64]:
    """Hash each string of `values`; a null hashes like the empty string. Returns uint64 (N,)."""
    text = values.cast(pa.large_string())
    count = len(text)
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int64)[text.offset : text.offset + count + 1]
    data = text.buffers()[2]
    octets = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    lengths = np.diff(offsets)
    if text.null_count:
        lengths = np.where(text.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    # Longest first, so that the strings still running are always the first `running`.
    order = np.argsort(-lengths, kind="stable")
    starts = offsets[:-1][order]
    longer_than = np.cumsum(np.bincount(lengths)[::-1])[::-1] if count else np.zeros(1, dtype=np.int64)
    state = np.full(count, _OFFSET, dtype=np.uint64)
    for at in range(len(longer_than) - 1):
        running = int(longer_than[at + 1])
        state[:running] = (state[:running] ^ octets[starts[:running] + at]) * _PRIME
    hashed = np.empty(count, dtype=np.uint64)
    hashed[order] = mix(state)
    return hashed


def mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MurmurHash3's 64-bit finaliser: every input bit moves about half of the output bits."""
    bits = bits ^ (bits >> np.uint64(33))
    bits = bits * np.uint64(0xFF51AFD7ED558CCD)
    bits = bits ^ (bits >> np.uint64(33))
    bits = bits * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))
