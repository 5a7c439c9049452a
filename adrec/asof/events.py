"""What happened and when, as SQL over impressions: shown, clicked, converted, each at its own moment.

A click or a conversion with a moment of its own, later than the impression, is an event of its own. Everything that counts
reads events from here: preprocess from its table of events, later commands from the prepared impressions.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.keys import KeyColumns
from adrec.asof.spec import CLICKED, CONVERTED, LABELLED, SHOWN
from adrec.data.disk.engine import name
from adrec.errors import DataError
from adrec.schema import DRAWN, WEIGHT
from adrec.specs import HistorySpec

Ints = NDArray[np.int64]
WEIGHTS = (SHOWN, LABELLED, CLICKED, CONVERTED)
TIME = "#time"
"""Column of events beside those of the impressions: microseconds. Weights are named likewise: no log has such columns."""


class EventRows(NamedTuple):
    """N events."""

    time: Ints
    """microseconds"""
    codes: dict[str, Ints]
    """name in a counter's `by` -> codes (N,)"""
    weights: dict[str, Ints]
    """kind of event -> 0 or 1; of rows of counts, how often"""

    def take(self, index: NDArray[np.generic] | slice) -> "EventRows":
        """Some events, by position, mask or slice."""
        return EventRows(
            self.time[index],
            {key: codes[index] for key, codes in self.codes.items()},
            {kind: weights[index] for kind, weights in self.weights.items()},
        )


class Log:
    """A relation of impressions and which of its columns say what happened: builds the SQL that reads events from it."""

    def __init__(self, relation: str, columns: Collection[str], history: HistorySpec, by: Sequence[str]) -> None:
        """`by`: columns of the impressions to carry. Raises DataError for a declared moment that is not a column."""
        self.relation, self._columns = relation, set(columns)
        self._happened = f"NOT {DRAWN}" if DRAWN in self._columns else "true"  # what was drawn is no event
        self.carried = "".join(f", {name(column)}" for column in by if column in self._columns)
        self._late = {}
        for kind, label, moment in ((CLICKED, "click", history.clicked_at), (CONVERTED, "conversion", history.converted_at)):
            if moment is None:
                continue
            if moment not in self._columns:
                raise DataError(
                    f"history: column '{moment}' is declared but not among the impressions. Keep it, or undeclare it."
                )
            if label in self._columns:
                self._late[kind] = (label, name(moment))

    def weights(self, counted: str = "true") -> str:
        """SQL of four columns of an impression's own moment: 0 or 1 (of a row of counts, how often), 0 where not `counted`."""
        return ", ".join(
            f"{self._times(f'({counted}) AND {self._happened} AND ({condition})')} AS {_weight(kind)}"
            for kind, condition in self._own().items()
        )

    def events(self, shown: str = "true") -> str:
        """SQL of events: TIME, user_index, ad_index, weights, carried columns; of impressions themselves those with `shown`."""
        columns = f"user_index, ad_index{self.carried}"
        own = f"({shown}) AND {self._happened}"
        parts = [f"SELECT epoch_us(shown_at) AS {name(TIME)}, {columns}, {self.weights()} FROM {self.relation} WHERE {own}"]
        for kind, (label, moment) in self._late.items():
            weights = ", ".join(f"{self._times(str(other == kind))} AS {_weight(other)}" for other in WEIGHTS)
            late = f"{label} = 1 AND {moment} > shown_at"
            parts.append(f"SELECT epoch_us({moment}) AS {name(TIME)}, {columns}, {weights} FROM {self.relation} WHERE {late}")
        return " UNION ALL ".join(parts)

    def clicks(self, row: str) -> str:
        """SQL of clicks: user_index, ad_index, `time` when they happened, and `shown`, `row` that order those of one moment."""
        moment = "shown_at"
        if CLICKED in self._late:
            moment = f"greatest(shown_at, coalesce({self._late[CLICKED][1]}, shown_at))"
        return self._acts(moment, "click = 1", row)

    def skips(self, row: str) -> str:
        """SQL of impressions that were not clicked, likewise."""
        return self._acts("shown_at", "click = 0", row)

    def _acts(self, moment: str, condition: str, row: str) -> str:
        if "click" not in self._columns:
            condition = "false"
        return (
            f"SELECT user_index, ad_index, epoch_us({moment}) AS time, epoch_us(shown_at) AS shown, {row} AS row "
            f"FROM {self.relation} WHERE {condition} AND {self._happened}"
        )

    def _times(self, condition: str) -> str:
        """SQL of how many events a row is where `condition` holds."""
        if WEIGHT in self._columns:
            return f"CASE WHEN {condition} THEN CAST({WEIGHT} AS BIGINT) ELSE 0 END"
        return f"CAST({condition} AS TINYINT)"

    def _own(self) -> dict[str, str]:
        has = {label: label in self._columns for label in ("click", "conversion")}
        own = {
            SHOWN: "true",
            LABELLED: "click IS NOT NULL" if has["click"] else "false",
            CLICKED: "coalesce(click, 0) = 1" if has["click"] else "false",
            CONVERTED: "coalesce(conversion, 0) = 1" if has["conversion"] else "false",
        }
        for kind, (_, moment) in self._late.items():
            own[kind] += f" AND NOT coalesce({moment} > shown_at, false)"
        return own


def read_events(batch: pa.RecordBatch | pa.Table, keys: KeyColumns) -> EventRows:
    """Rows of `Log.events` as arrays."""
    return EventRows(
        index_of(batch, TIME),
        keys.codes(index_of(batch, "user_index"), index_of(batch, "ad_index"), batch),
        read_weights(batch),
    )


def read_weights(batch: pa.RecordBatch | pa.Table) -> dict[str, Ints]:
    """The weights of rows, by kind."""
    return {kind: index_of(batch, f"#{kind}") for kind in WEIGHTS}


def is_counted(weights: Mapping[str, Ints]) -> NDArray[np.bool_]:
    """(N,) rows that are an event and do not only ask."""
    counted: NDArray[np.bool_] = np.logical_or.reduce([values > 0 for values in weights.values()])
    return counted


def index_of(batch: pa.RecordBatch | pa.Table, column: str) -> Ints:
    """A column of whole numbers without nulls, int64 (N,)."""
    return np.asarray(batch.column(column).to_numpy(), dtype=np.int64)


def no_weights(rows: int) -> dict[str, Ints]:
    """Weights of rows that only ask."""
    return {kind: np.zeros(rows, dtype=np.int64) for kind in WEIGHTS}


def join_events(parts: Sequence[EventRows]) -> EventRows:
    """Events one after another."""
    first = parts[0]
    return EventRows(
        np.concatenate([events.time for events in parts]),
        {key: np.concatenate([events.codes[key] for events in parts]) for key in first.codes},
        {kind: np.concatenate([events.weights[kind] for events in parts]) for kind in first.weights},
    )


def _weight(kind: str) -> str:
    return name(f"#{kind}")
