"""What a bundle tells beyond who was there: a user's clicks out of published counts, and what he is out of his clicks.

The attacker is the one that differential privacy is about: he knows every row of everybody, but for what he asks.

# N rows, P pairs of a user and an ad he was shown, V values
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.data.examples import Examples
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.metrics.membership import confidence
from adrec.training.private.features import Refitted

MOST_VALUES = 12
"""Of a column that is guessed: the commonest."""
Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Reconstruction:
    """A user's clicks on ads, guessed from the published counts of all users' clicks."""

    is_published: bool
    """whether the bundle counts clicks at all"""
    pairs: int
    """of users and ads they were shown"""
    auc: float
    """that a pair with a click is guessed above one without; 0.5: the counts say nothing"""
    recovered: float
    """share of the pairs whose guess, click or none, is right"""
    by_rate: float
    """share that is right if no pair is guessed to be clicked"""


@dataclass(frozen=True)
class Attribute:
    """A column of the users, guessed as the value under which the model finds a user's clicks likeliest (Fredrikson 2014)."""

    column: str
    values: int
    members: float
    """share of the members guessed rightly"""
    others: float
    """of users the model never saw, whose value it cannot have learned by heart"""

    @property
    def advantage(self) -> float:
        """What the training gave away (Yeom et al. 2018)."""
        return self.members - self.others


@dataclass(frozen=True)
class Leaks:
    """Of the first model."""

    reconstruction: Reconstruction | None = None
    attributes: list[Attribute] = field(default_factory=list)

    def render(self) -> Iterable[RenderableType]:
        """A line, and a table."""
        found = self.reconstruction
        if found is not None and not found.is_published:
            yield "reconstruction: the bundle counts nobody's clicks"
        elif found is not None:
            yield (
                f"reconstruction of {found.pairs:,} users' clicks on ads from published counts: AUC {found.auc:.4f},"
                f" {found.recovered:.1%} right ({found.by_rate:.1%} by guessing none)"
            )
        if self.attributes:
            table = Table("column", title="Attributes guessed from clicks")
            for heading in ("values", "members", "others", "advantage"):
                table.add_column(heading, justify="right")
            for own in self.attributes:
                table.add_row(
                    own.column, f"{own.values}", f"{own.members:.1%}", f"{own.others:.1%}", f"{own.advantage:+.1%}"
                )  # fmt: skip
            yield table


def reconstruct(published: Floats, user: Longs, ad: Longs, clicked: NDArray[np.bool_], *, once: bool) -> Reconstruction:
    """From `published` (A,) clicks of every ad, what an attacker who knows all but one user says of that user's clicks.

    user, ad, clicked (N,): the rows that were counted. `once`: a user counts each ad once, by one row drawn evenly; else every
    row counts. Each user is the target in turn: what the others do not explain of an ad's count is his.
    """
    width = len(published)
    pairs, inverse = np.unique(user * width + ad, return_inverse=True)
    rows, clicks = np.bincount(inverse).astype(np.float64), np.bincount(inverse, weights=clicked)
    own = clicks / rows if once else clicks
    ads = pairs % width
    total = np.bincount(ads, weights=own, minlength=width)
    left = published[ads] - (total[ads] - own)
    truth = clicks > 0
    guess = left > 0.5 * (own[truth].mean() if truth.any() else 1.0)
    return Reconstruction(
        is_published=bool(np.any(published != 0)),
        pairs=len(pairs),
        auc=float(auc(truth.astype(np.float64), left)) if 0 < truth.sum() < len(truth) else 0.5,
        recovered=float((guess == truth).mean()),
        by_rate=float((~truth).mean()),
    )


class _Claimed(Refitted):
    """The folder as it would be if a column of all users had one value."""

    def __init__(self, prepared: Prepared, column: str, value: str) -> None:
        super().__init__(prepared, prepared.features())
        table = prepared.users()
        at = table.column_names.index(column)
        same = pa.array([value] * len(table), pa.string()).cast(table.schema.field(column).type)
        self._users = table.set_column(at, column, same)

    def users(self) -> pa.Table:
        """All alike in that column."""
        return self._users


def guess_attributes(
    predictor: Predictor,
    prepared: Prepared,
    rows: Examples,
    labels: NDArray[np.float32],
    member: NDArray[np.bool_],
    columns: Sequence[str],
) -> list[Attribute]:
    """For each column the value under which each user's labels are likeliest, held against the truth.

    `member` (U,) of each row of the table of users. Raises ConfigError for a column that users do not have or that the model
    does not read.
    """
    users = prepared.users()
    read = set(predictor.packed.features["users"].columns)
    known = np.flatnonzero(~np.isnan(labels))
    found = []
    for column in columns:
        if column not in users.column_names or column not in read:
            raise ConfigError(f"attributes: '{column}' is no column of users that the model reads: {', '.join(sorted(read))}.")
        truth = users[column].cast(pa.string())
        counts = pc.value_counts(truth.drop_null())
        order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[:MOST_VALUES]
        values = counts.field("values").take(pa.array(order)).to_pylist()
        likely = []
        for value in values:
            score = HeldOut(predictor, _Claimed(prepared, column, value), rows).scores(predictor.packed).score
            sure = confidence(score[known], labels[known])
            likelihood = -np.logaddexp(0.0, -sure)
            likely.append(np.bincount(rows.user_index[known], weights=likelihood, minlength=len(users)))
        guess = np.argmax(np.stack(likely), axis=0)
        right = np.array(values, dtype=object)[guess] == truth.to_numpy(zero_copy_only=False)
        asked = np.isin(np.arange(len(users)), rows.user_index[known]) & np.isin(
            truth.to_numpy(zero_copy_only=False).astype(str), values
        )
        found.append(Attribute(column, len(values), *(float(right[asked & side].mean()) for side in (member, ~member))))
    return found
