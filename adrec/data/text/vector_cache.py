"""Vectors of texts (and of pictures' bytes) on disk, by content and the encoder's fingerprint: none is encoded twice.

One folder an encoder, holding segments: structured `.npy` files of (16-byte key, vector), memory-mapped when read. Segments
are written aside, renamed, and named by what they hold: a kill costs the segment in progress, two runs at once no harm.
A process keeps the keys of a folder in memory, sorted (24 bytes a text): a look-up takes the logarithm of how many there
are, not a walk over the files. Small segments are merged, and the folder stays below a bound: what was used longest ago goes
first.

What people type, one text at a time, is no matter for files: `RecentVectors` holds it in memory alone.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from adrec.data.disk.writing import write_aside
from adrec.errors import ResourceError

SEGMENT_TEXTS = 8192
MOST_SMALL_SEGMENTS = 16
"""As many segments below half of SEGMENT_TEXTS are merged into one."""
MOST_BYTES = 20_000_000_000
"""Bound of an encoder's folder; `$ADREC_CACHE_BYTES` sets another."""
VERSION = "v2"
"""Of what is trusted: explanations once wrote vectors of other texts into the folders before."""
_KEY_BYTES = 16
_KEY = f"S{_KEY_BYTES}"

Content = TypeVar("Content", str, bytes)
Encode = Callable[[list[str]], np.ndarray]


def default_cache_folder() -> Path:
    """`$ADREC_CACHE`, else `$XDG_CACHE_HOME/adrec`, else `~/.cache/adrec`; vectors lie in its `vectors/`."""
    named = os.environ.get("ADREC_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adrec"
    return base.expanduser() / "vectors"


def cached_vectors(
    texts: Sequence[Content],
    *,
    fingerprint: str,
    encode: Callable[[list[Content]], np.ndarray],
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
    home = (folder or default_cache_folder()) / f"{fingerprint}-{VERSION}"
    index = _index_of(home)
    vectors, known = index.read(wanted)
    missing = np.flatnonzero(~known)
    missing = missing[np.argsort(first[missing])]  # in the order given: a rerun makes the same segments
    for start in range(0, len(missing), segment_texts):
        rows = missing[start : start + segment_texts]
        made = np.asarray(encode([texts[row] for row in first[rows]]), np.float32)
        vectors = np.zeros((len(wanted), made.shape[1]), np.float32) if vectors is None else vectors
        vectors[rows] = made
        _write(home, wanted[rows], made)
    if len(missing):
        index.tidy()
    assert vectors is not None
    return np.asarray(vectors[inverse.reshape(-1)])


def drop_texts(texts: Sequence[str], folder: Path | None = None) -> int:
    """Take the vectors of `texts` out of the cache, whichever encoder made them; how many there were. Others stay."""
    if not texts:
        return 0
    keys, count = np.unique(_keys(texts)), 0
    for path in sorted((folder or default_cache_folder()).glob("*/*.npy")):
        segment = _open(path)
        own = np.isin(segment["key"], keys) if segment is not None else np.zeros(0, bool)
        if segment is None or not own.any():
            continue
        count += int(own.sum())
        rest = segment[~own]
        if len(rest) and not _write(path.parent, rest["key"], rest["vector"]):
            raise ResourceError(f"{path}: cannot be written anew without them. Remove the file; its texts are encoded again.")
        path.unlink(missing_ok=True)
    return count


class RecentVectors:
    """The vectors of the last `most` texts, in memory. Usable from any thread."""

    def __init__(self, most: int = 50_000) -> None:
        self.most = most
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str], encode: Encode) -> np.ndarray:
        """(N, D) float32 in order; `encode` is asked for the distinct texts that are not held."""
        with self._lock:
            held = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in held:
                self._vectors.move_to_end(text)
        new = [text for text in dict.fromkeys(texts) if text not in held]
        if new or not texts:
            made = np.asarray(encode(new), np.float32)
            if not texts:
                return made
            held |= dict(zip(new, made, strict=True))
            with self._lock:
                self._vectors.update(zip(new, made, strict=True))
                while len(self._vectors) > self.most:
                    self._vectors.popitem(last=False)
        return np.stack([held[text] for text in texts])


def _keys(texts: Sequence[str] | Sequence[bytes]) -> np.ndarray:
    """(N,) of 16-byte digests."""
    contents = (text.encode("utf-8") if isinstance(text, str) else text for text in texts)
    digests = b"".join(hashlib.blake2b(content, digest_size=_KEY_BYTES).digest() for content in contents)
    return np.frombuffer(digests, f"V{_KEY_BYTES}").view(_KEY)


class _Place(NamedTuple):
    """K sorted keys and where their vectors are."""

    names: tuple[str, ...]
    """of the segments"""
    keys: np.ndarray
    segment: np.ndarray
    """(K,) int32 number in `names`"""
    row: np.ndarray
    """(K,) int32 row in it"""


class _Index:
    """The keys of one folder. Other processes may add and merge segments: a changed folder is listed again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._lock = threading.Lock()
        self._segments: dict[str, np.ndarray] = {}
        """name of the file → the mapped segment"""
        self._large, self._small = _placed({}), _placed({})
        self._seen = -1
        """when the folder had changed last as it was listed"""

    def read(self, wanted: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Vectors of the sorted keys `wanted` (None where no segment exists), and which of them were found."""
        with self._lock:
            self._refresh()
            segments, places = self._segments, (self._large, self._small)
        known = np.zeros(len(wanted), bool)
        if not segments:
            return None, known
        vectors = np.zeros((len(wanted), next(iter(segments.values()))["vector"].shape[1]), np.float32)
        for place in places:
            if not len(place.keys):
                continue
            at = np.searchsorted(place.keys, wanted).clip(max=len(place.keys) - 1)
            hits = np.flatnonzero(place.keys[at] == wanted)
            known[hits] = True
            of = place.segment[at[hits]]
            for number in np.unique(of):
                mine = hits[of == number]
                vectors[mine] = segments[place.names[number]]["vector"][place.row[at[mine]]]
        return vectors, known

    def tidy(self) -> None:
        """Merge small segments where there are many, and keep the folder below its bound."""
        with self._lock:
            self._refresh()
            if len(self._small.names) >= MOST_SMALL_SEGMENTS:
                self._merge(self._small.names)
            self._make_room()

    def _refresh(self) -> None:
        """Take in what the folder holds now."""
        try:
            changed = self.home.stat().st_mtime_ns
        except OSError:
            self._segments, self._large, self._small, self._seen = {}, _placed({}), _placed({}), -1
            return
        if changed == self._seen:
            return
        names = sorted(path.name for path in self.home.glob("*.npy"))
        opened = {name: self._segments[name] if name in self._segments else _open(self.home / name) for name in names}
        self._segments = {name: segment for name, segment in opened.items() if segment is not None and len(segment)}
        large = {name: segment for name, segment in self._segments.items() if len(segment) >= SEGMENT_TEXTS // 2}
        if tuple(large) != self._large.names:  # sorting all keys for every new text would grow with the folder
            self._large = _placed(large)
        self._small = _placed({name: segment for name, segment in self._segments.items() if name not in large})
        self._seen = changed

    def _merge(self, names: tuple[str, ...]) -> None:
        """One segment in place of several: written first, so that a kill between leaves both."""
        joined = np.concatenate([self._segments[name] for name in names])
        _, first = np.unique(joined["key"], return_index=True)
        if _write(self.home, joined["key"][first], joined["vector"][first]):
            written = _name(joined["key"][first])
            self._drop([name for name in names if name != written])

    def _make_room(self) -> None:
        """Drop the segments that were used longest ago beyond the bound."""
        most = int(os.environ.get("ADREC_CACHE_BYTES") or MOST_BYTES)
        files = []
        for name in self._segments:
            try:
                status = (self.home / name).stat()
            except FileNotFoundError:
                continue
            files.append((max(status.st_atime_ns, status.st_mtime_ns), status.st_size, name))
        total, dropped = sum(size for _, size, _ in files), []
        for _, size, name in sorted(files)[:-1]:  # the newest stays, whatever its size
            if total <= most:
                break
            total -= size
            dropped.append(name)
        if dropped:
            self._drop(dropped)

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            (self.home / name).unlink(missing_ok=True)  # who has it mapped goes on reading it
        self._refresh()


_INDEXES: dict[Path, _Index] = {}
_INDEXES_LOCK = threading.Lock()


def _index_of(home: Path) -> _Index:
    with _INDEXES_LOCK:
        return _INDEXES.setdefault(home.absolute(), _Index(home))


def _placed(segments: dict[str, np.ndarray]) -> _Place:
    keys = np.concatenate([np.zeros(0, _KEY), *(segment["key"] for segment in segments.values())])
    segment = np.concatenate(
        [np.zeros(0, np.int32), *(np.full(len(held), number, np.int32) for number, held in enumerate(segments.values()))]
    )
    row = np.concatenate([np.zeros(0, np.int32), *(np.arange(len(held), dtype=np.int32) for held in segments.values())])
    order = np.argsort(keys, kind="stable")
    return _Place(tuple(segments), keys[order], segment[order], row[order])


def _open(path: Path) -> np.ndarray | None:
    """A memory-mapped segment; a damaged one is dropped, for its texts can be encoded again."""
    try:
        segment = np.load(path, mmap_mode="r", allow_pickle=False)
        if segment.dtype.names == ("key", "vector"):
            return np.asarray(segment)
    except FileNotFoundError:  # merged by another process since it was listed
        return None
    except (ValueError, OSError, EOFError):
        path.unlink(missing_ok=True)
    return None


def _name(keys: np.ndarray) -> str:
    return f"{hashlib.blake2b(keys.tobytes(), digest_size=_KEY_BYTES).hexdigest()}.npy"


def _write(home: Path, keys: np.ndarray, vectors: np.ndarray) -> bool:
    """Write one segment; False where the cache cannot be written."""
    segment = np.empty(len(keys), np.dtype([("key", _KEY), ("vector", "<f4", (vectors.shape[1],))]))
    segment["key"], segment["vector"] = keys, vectors
    try:
        with write_aside(home / _name(keys)) as aside, open(aside, "wb") as handle:
            np.save(handle, segment, allow_pickle=False)
    except ResourceError:
        return False
    return True
