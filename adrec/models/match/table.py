"""The table of matches: for each row how near its candidate is to the history, the skipped ads, the interests and the query.

Made once for the rows of a log, of a file to score, of a list: network, trees and conditional logit read the same float32
columns, whose cosines are summed in double precision. Columns stand in this order: shares, rates, links that clicks have too;
which vectors the candidate has; cosines of vectors, modality by modality; cosines of the text. The network multiplies cosines,
which differ by about a tenth from each other, by `SCALE`. A text encoder that is trained with the network makes the last ones
anew at every step, and they are not in the table then.

Shapes: N rows, A ads, M columns, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, product
from typing import Literal, NamedTuple

import numpy as np

from adrec.data.arrays import unit_rows
from adrec.data.batches.collate import QueryInputs, TextInputs
from adrec.data.examples import Catalog, Examples
from adrec.data.features.vectors import Modality
from adrec.models.match.histories import Floats, category_shares, like_rate, list_shares, one_each, row_products
from adrec.models.match.nearness import DECLARED, STATISTICS, paired_cosines, to_interests, to_lists, to_taste, units_of

SCALE = 8.0


@dataclass(frozen=True)
class MatchSpec:
    """Which columns there are."""

    categories: int = 0
    """Categorical features of ads."""
    lists: int = 0
    """List features of ads."""
    modalities: int = 0
    """Columns of vectors of ads."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Vectors of users and of ads, by their number, that may be compared."""
    parts: tuple[int, ...] = ()
    """Widths that a text vector consists of, each compared by itself; empty: there is no text."""
    interests: bool = False
    queries: bool = False
    skips: bool = False
    """Whether the log keeps ads that were shown and not clicked."""
    relations: int = 0
    """Kinds of links that ads have."""
    taste: bool = False
    """Whether clicks and skips are weighed against each other by text."""

    @classmethod
    def of(cls, ads: Catalog, users: Catalog) -> "MatchSpec":
        """All that catalogs alone can tell."""
        width = 0 if ads.vectors is None else ads.vectors.shape[1]
        pairs = tuple(
            (user, ad)
            for (user, ours), (ad, theirs) in product(enumerate(users.modalities.values()), enumerate(ads.modalities.values()))
            if ours.is_comparable(theirs)
        )
        relations = 0 if ads.paths is None else len(ads.paths.relations)
        sizes = ads.categorical.shape[1], len(ads.lists), len(ads.modalities)
        return cls(*sizes, pairs, parts=(width,) if width else (), skips=True, relations=relations)

    @cached_property
    def segments(self) -> tuple["Segment", ...]:
        """The columns in their order."""
        features, seven = self.categories + self.lists, len(STATISTICS)
        near: list[Kind] = ["clicks", "skips"] if self.skips else ["clicks"]
        listed: list[tuple[Kind, int, int | None, int | None]] = [("share", features, None, None)]
        if self.skips:
            listed.append(("like", features, None, None))
        listed.append(("link", self.relations, None, None))
        listed += [("there", 1, number, None) for number in range(self.modalities)]
        for number in range(self.modalities):
            listed += [(kind, seven, number, None) for kind in near]
            listed += [("users", 1, number, None) for _, ad in self.pairs if ad == number]
        for part in range(len(self.parts)):
            listed += [(kind, seven, None, part) for kind in near]
            if self.taste:
                listed.append(("taste", 1, None, part))
            if self.interests:
                listed.append(("interests", len(DECLARED), None, part))
            if self.queries:
                listed.append(("query", 1, None, part))
        starts = accumulate((size for _, size, _, _ in listed), initial=0)
        return tuple(Segment(kind, start, size, *rest) for start, (kind, size, *rest) in zip(starts, listed, strict=False))

    @property
    def width(self) -> int:
        """M."""
        return self.segments[-1].stop

    @property
    def of_text(self) -> int:
        """Columns of the text: the last."""
        return sum(segment.size for segment in self.segments if segment.part is not None)

    def names(
        self,
        categories: Sequence[str],
        lists: Sequence[str],
        relations: Sequence[str],
        of_ads: Sequence[str],
        of_users: Sequence[str],
    ) -> tuple[str, ...]:
        """Names of all columns, from those of the features and links of ads and of the vectors of ads and users."""
        names: list[str] = []
        pairs = iter(user for number in range(self.modalities) for user, ad in self.pairs if ad == number)
        for segment in self.segments:
            prefix = "" if segment.modality is None else f"{of_ads[segment.modality]}_"
            suffix = f"_{segment.part + 1}" if segment.part is not None and len(self.parts) > 1 else ""
            match segment.kind:
                case "share" | "like":
                    names += [f"{segment.kind}_{name}" for name in (*categories, *lists)]
                case "link":
                    names += [f"same_{name}" for name in relations]
                case "clicks":
                    names += [f"{prefix or 'cosine_'}{name}{suffix}" for name in STATISTICS]
                case "skips":
                    names += [f"{prefix}skipped_{name}{suffix}" for name in STATISTICS]
                case "users":
                    names.append(f"{prefix}user_{of_users[next(pairs)]}")
                case "interests":
                    names += [f"{name}{suffix}" for name in DECLARED]
                case "there" | "query" | "taste":
                    names.append(f"{prefix}{segment.kind}{suffix}")
        return tuple(names)


Kind = Literal["share", "like", "link", "there", "clicks", "skips", "users", "taste", "interests", "query"]


class Segment(NamedTuple):
    """Columns side by side that say one thing."""

    kind: Kind
    start: int
    size: int
    modality: int | None
    """of ads, that they compare"""
    part: int | None
    """of the text, that they compare"""

    @property
    def stop(self) -> int:
        """The column behind them."""
        return self.start + self.size

    @property
    def is_cosine(self) -> bool:
        """Whether they are cosines."""
        return self.kind not in {"share", "like", "link", "there"}

    @property
    def is_of_skips(self) -> bool:
        """Whether they speak of skipped ads."""
        return self.kind in {"like", "skips"}


@dataclass(frozen=True)
class Matcher:
    """Makes the table over one catalog of ads and one of users. Texts of the rows must be encoded before."""

    spec: MatchSpec
    ads: Catalog
    users: Catalog
    interests: TextInputs | None = None
    queries: QueryInputs | None = None

    def __call__(self, examples: Examples) -> Examples:
        """The rows with their matches."""
        return replace(examples, matches=self.columns(examples))

    @property
    def reads_text(self) -> bool:
        """Whether the catalog holds the vectors of texts."""
        return bool(self.spec.parts) and self.ads.vectors is not None

    def names(self, categories: Sequence[str]) -> tuple[str, ...]:
        """Of the columns that are made, from the names of the categorical features of ads."""
        relations = () if self.ads.paths is None else self.ads.paths.relations
        every = self.spec.names(
            categories, list(self.ads.lists), relations, list(self.ads.modalities), list(self.users.modalities)
        )  # fmt: skip
        return every if self.reads_text else every[: self.spec.width - self.spec.of_text]

    def columns(self, examples: Examples) -> Floats:
        """(N, M); without the text's columns where the catalog holds no vectors of them."""
        used = examples.ads_used()  # a few of a large catalog, where lists are ranked
        rows, ads = examples.over(used), self.ads.take(used)
        blocks = [self._shares(rows, ads), *self._vectors(rows, ads)]
        if self.reads_text:
            blocks += self._text(rows, ads)
        return np.concatenate(blocks, axis=1, dtype=np.float32)

    def _shares(self, rows: Examples, ads: Catalog) -> Floats:
        columns = [category_shares(rows, ads, place) for place in range(self.spec.categories)]
        columns += [list_shares(rows, ads, name) for name in ads.lists]
        if self.spec.skips:
            singles = [one_each(ads.categorical[:, place]) for place in range(self.spec.categories)]
            columns += [like_rate(rows, values) for values in (*singles, *ads.lists.values())]
        shares: Floats = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), np.float32)
        if ads.paths is None:
            return shares
        links = ads.lists[ads.paths.name]
        linked = ads.paths.shared(links, rows.histories, rows.history_of_row.astype(np.int64), rows.ad_index)
        return np.concatenate([shares, linked], axis=1, dtype=np.float32)

    def _vectors(self, rows: Examples, ads: Catalog) -> Iterator[Floats]:
        for held in ads.modalities.values():
            yield held.known(np.arange(len(ads)))[rows.ad_index][:, None].astype(np.float32)
        of_users = list(self.users.modalities.values())
        for number, held in enumerate(ads.modalities.values()):
            yield self._cosines(rows, held)
            for user, ad in self.spec.pairs:
                if ad == number:
                    yield paired_cosines(of_users[user].rows, held.rows, rows.user_index, rows.ad_index)[:, None]

    def _cosines(self, rows: Examples, held: Modality | Floats) -> Floats:
        """To the history and, where the log keeps them, to the skipped ads; of one modality, or of unit vectors."""
        if isinstance(held, Modality):
            units, width = units_of(held.rows), held.fitted.width
        else:
            units, width = held.__getitem__, held.shape[1]
        lists = [rows.histories, *([rows.skipped] if self.spec.skips else [])]
        return np.concatenate([to_lists(ads, rows.history_of_row, rows.ad_index, units, width) for ads in lists], axis=1)

    def _text(self, rows: Examples, ads: Catalog) -> Iterator[Floats]:
        assert ads.vectors is not None
        ends = list(accumulate(self.spec.parts))
        pieces = [slice(end - width, end) for end, width in zip(ends, self.spec.parts, strict=True)]
        units = [unit_rows(ads.vectors[:, piece]) for piece in pieces]
        declared = to_interests(rows.user_index, rows.ad_index, units, self.interests) if self.interests is not None else None
        asked = self.queries(rows.queries).vectors if self.queries is not None else None
        for number, (piece, unit) in enumerate(zip(pieces, units, strict=True)):
            yield self._cosines(rows, unit)
            if self.spec.taste:
                of_row, width = rows.history_of_row, unit.shape[1]
                yield to_taste(rows.histories, rows.skipped, of_row, rows.ad_index, unit.__getitem__, width)
            if declared is not None:
                yield declared[number]
            if asked is not None:
                yield row_products(unit_rows(asked.numpy()[:, piece]), unit, rows.query, rows.ad_index)[:, None]
