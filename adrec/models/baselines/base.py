"""What a baseline is: fitted on training rows, scores any rows, saved without pickle.

A scored table numbers its ads and users anew, so a baseline remembers identifiers, never row numbers.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.arrays import Longs, places, ranges
from adrec.data.examples import Catalog, Examples
from adrec.data.features import FeatureSet
from adrec.errors import BundleError
from adrec.models.match.table import Matcher, MatchSpec

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
_MOST_RATIO, _LEAST_BOUND = 200, 64_000_000
"""Arrays unpack to at most so many times their file's bytes, and so many bytes more."""


@dataclass(frozen=True)
class Columns:
    """Names of the feature columns, in the order in which the arrays of Examples and Catalog hold them."""

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    ad_numeric: tuple[str, ...] = ()
    ad_categorical: tuple[str, ...] = ()
    user_numeric: tuple[str, ...] = ()
    user_categorical: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Mapping[str, FeatureSet]) -> "Columns":
        """From the fitted feature sets of impressions, ads and users."""
        rows, ads, users = features["impressions"], features["ads"], features["users"]
        return cls(
            tuple(rows.numeric_names),
            tuple(rows.categorical_names),
            tuple(ads.numeric_names),
            tuple(ads.categorical_names),
            tuple(users.numeric_names),
            tuple(users.categorical_names),
        )


@dataclass(frozen=True)
class Inputs:
    """N impressions with the ads and users they point into."""

    examples: Examples
    ads: Catalog
    users: Catalog
    columns: Columns
    matched: tuple[str, ...] | None = None
    """Names of the columns of `examples.matches` that baselines read, the first of them; None: the table is made here, of
    what the catalogs hold, without what users declared and asked for."""

    def __len__(self) -> int:
        return len(self.examples)

    def matches(self) -> tuple[tuple[str, ...], Floats]:
        """Names of the columns, and (N, M): how near each candidate is to what its user did."""
        if self.matched is None:
            matcher = Matcher(MatchSpec.of(self.ads, self.users), self.ads, self.users)
            return matcher.names(self.columns.ad_categorical), matcher.columns(self.examples)
        assert self.examples.matches is not None, "rows whose matches were not made"
        return self.matched, self.examples.matches[:, : len(self.matched)]

    @property
    def clicks(self) -> Floats:
        """(N,) labels of the main task, clicks unless the config's first task is another; NaN where unknown."""
        return next(iter(self.examples.labels.values()))

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """(N,) impressions that each row stands for, in a log of counts; None where each is one."""
        return self.examples.weight

    @property
    def clusters(self) -> NDArray[np.int32]:
        """(N,) whose rows these are, which are not independent: the users, or the requests where all rows are of one."""
        user = self.examples.user_index
        return user if len(user) and (user != user[0]).any() else self.examples.request

    @property
    def user_of_history(self) -> NDArray[np.int64]:
        """(R,) row of the user each distinct history belongs to."""
        users = np.zeros(len(self.examples.history_offsets) - 1, np.int64)
        users[self.examples.history_of_row] = self.examples.user_index
        return users

    def labelled(self) -> "Inputs":
        """Only the rows whose click is known."""
        known = ~np.isnan(self.clicks)
        return self if known.all() else self.take(np.flatnonzero(known))

    def compact(self) -> "Inputs":
        """The same rows over catalogs of only the ads and users that occur: scoring costs nothing for the others."""
        examples = self.examples
        ads, users = examples.ads_used(), np.unique(examples.user_index).astype(np.int64)
        if len(ads) == len(self.ads) and len(users) == len(self.users):
            return self
        renumbered = replace(examples.over(ads), user_index=np.searchsorted(users, examples.user_index).astype(np.int32))
        return replace(self, examples=renumbered, ads=self.ads.take(ads), users=self.users.take(users))

    def take(self, rows: NDArray[Any]) -> "Inputs":
        """The given rows, in non-decreasing order of request."""
        return replace(self, examples=self.examples.take(rows))


class Baseline(Protocol):
    """A simple model. `name` is also its folder in a bundle and its column `baseline_<name>`."""

    name: ClassVar[str]
    """Lower case, words joined by an underscore."""
    is_probability: ClassVar[bool]
    """True where the score estimates the probability of a click."""

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """What the data does not have that this baseline needs, in plain words; empty where all is there."""

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Learn from rows with a known click. `valid` decides when to stop, where the method is iterative."""

    def score(self, inputs: Inputs) -> Floats:
        """(N,) float32, higher is better, finite for ads and users never seen. Rows do not influence each other."""

    def save(self, folder: Path) -> None:
        """Write everything `load` needs into the existing folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""


class LacksNothing:
    """What a baseline that every log has enough for says of what it lacks."""

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Nothing."""
        return ""


class Unfitted:
    """What a baseline that learns nothing says of learning."""

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Nothing to learn."""

    def save(self, folder: Path) -> None:
        """An empty state."""
        save_state(folder, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        load_state(folder)
        return cls()


def sampled_requests(inputs: Inputs, max_rows: int, generator: np.random.Generator) -> Inputs:
    """All rows, or whole requests drawn at random until they hold about `max_rows` rows."""
    if len(inputs) <= max_rows:
        return inputs
    starts = inputs.examples.request_starts
    sizes = np.diff(starts)
    order = generator.permutation(len(sizes))
    chosen = np.sort(order[: max(int(np.searchsorted(np.cumsum(sizes[order]), max_rows, side="right")), 1)])
    return inputs.take(ranges(starts[chosen], sizes[chosen]))


def folds_of(request: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) which of `folds` parts each row is in, drawn at random; the rows of a request stay together."""
    order = np.random.default_rng(seed).permutation(int(request.max(initial=0)) + 1)
    return np.asarray(order[request] % folds, dtype=np.int64)


def save_state(folder: Path, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write `state.json`, and `arrays.npz` (no object arrays, so reading it cannot run code)."""
    (folder / "state.json").write_text(json.dumps(dict(values), ensure_ascii=False, indent=1), encoding="utf-8")
    if arrays is not None:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        np.savez_compressed(folder / "arrays.npz", allow_pickle=False, **contiguous)


def load_state(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """What `save_state` wrote. Raises BundleError where a file is missing or broken."""
    try:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        path = folder / "arrays.npz"
        if not path.exists():
            return values, {}
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as stored:
            return values, {name: stored[name] for name in stored.files}
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{folder}: the baseline cannot be read ({error}). Run 'adrec finetune' again.") from None


def _refuse_bomb(path: Path) -> None:
    """Raises ValueError where an archive unpacks to far more than arrays of this many bytes do."""
    with zipfile.ZipFile(path) as packed:
        unpacked = sum(member.file_size for member in packed.infolist())
    most = _LEAST_BOUND + _MOST_RATIO * path.stat().st_size
    if unpacked > most:
        raise ValueError(f"{path.name} unpacks to {unpacked:,} bytes, more than {most:,}")


def log_odds(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Of probabilities (N,), which are kept off 0 and 1 by 1e-6."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


def text_array(ids: pa.Array) -> NDArray[np.str_]:
    """Identifiers as fixed-width numpy strings, which npz stores without pickle."""
    return np.asarray(ids.to_numpy(zero_copy_only=False), dtype=np.str_)


def positions(ids: pa.Array, known: NDArray[np.str_]) -> Longs:
    """(A,) place of each identifier in `known`, which `text_array` made, -1 where it is new."""
    return places(ids, pa.array(known.astype(object), pa.string()))


def looked_up(values: NDArray[Any], place: NDArray[np.int64], default: float) -> Floats:
    """`values[place]` with `default` where place is -1, float32."""
    if len(values) == 0:
        return np.full(len(place), default, np.float32)
    return np.where(place >= 0, values[np.maximum(place, 0)], default).astype(np.float32)
