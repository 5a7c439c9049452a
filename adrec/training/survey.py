"""What one pass over the training rows tells before a click model is made: who occurs how often, scales, queries, delays."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import newest as newest_places
from adrec.data.arrays import places
from adrec.data.examples import Examples, run_codes
from adrec.data.features.moments import Moments
from adrec.data.labels import ELAPSED, LabelCut, delay_column, labels_as_of
from adrec.data.prepared import Prepared
from adrec.data.ragged import ragged
from adrec.errors import DataError
from adrec.metrics.delays import DelayCurve, fit_delay_curve
from adrec.models.net.tasks import Task
from adrec.schema import NOBODY, WEIGHT
from adrec.terminal import Advance
from adrec.training.build import build_tasks

Delays = list[NDArray[np.float32]]
"""Parts of (2, N): hours from the showing to what happened, and to the cut."""


@dataclass(frozen=True)
class Seen:
    """How often each ad or user occurs in the training rows; only those that occur, most frequent first."""

    ids: pa.StringArray
    impressions: NDArray[np.int64]
    clicks: NDArray[np.int64]


class Late(NamedTuple):
    """How late a label comes."""

    training: DelayCurve
    """as training knows it"""
    valid: DelayCurve
    """as is known when the test begins, for what validation rows fit"""


class Survey(NamedTuple):
    """What the training rows hold."""

    ads: Seen
    users: Seen
    tasks: tuple[Task, ...]
    """with the scales of their labels"""
    queries: list[str]
    """distinct ones, a million and a block of rows' at most"""
    mean_weight: float
    """of a row; 1 where each is one impression"""
    newest: int | None
    """the last moment, microseconds since 1970; None where the log has no moments"""
    delays: dict[tuple[str, datetime], Delays]
    """(task, moment of a cut) → what had happened by then, where labels are timed"""


def survey(
    prepared: Prepared,
    splits: tuple[str, ...],
    config: FinetuneConfig,
    cut: LabelCut | None,
    known: LabelCut | None,
    advance: Advance,
) -> Survey:
    """One pass over the training rows. `cut`: what training knows of labels, `known`: what is known when the test begins.

    Raises DataError where the main label is the same in all rows.
    """
    names = [task.name for task in config.tasks]
    columns = ["ad_index", "user_index", *names, *(["query"] if "query" in prepared.columns else [])]
    columns += ["shown_at"] if "shown_at" in prepared.columns and "shown_at" not in columns else []
    columns += [WEIGHT] if WEIGHT in prepared.columns else []
    columns += [column for column in (cut.reads(names) if cut is not None else ()) if column not in columns]
    newest: int | None = None
    counts = {"ad_index": _Counts(), "user_index": _Counts()}
    tasks = build_tasks(config.tasks)
    moments: dict[str, Moments] = {name: Moments() for name in names}
    queries: dict[str, None] = {}
    events: dict[tuple[str, datetime], Delays] = {}
    rows, weighed = 0, 0.0
    for batch in chain.from_iterable(prepared.iter(split, columns, 262_144) for split in splits):
        if "shown_at" in columns and batch.num_rows:
            last = int(pc.cast(pc.max(batch["shown_at"]), pa.int64()).as_py())
            newest = last if newest is None else max(newest, last)
        _add_delays(events, batch, names, cut)
        if known != cut:
            _add_delays(events, batch, names, known)
        batch = labels_as_of(batch, cut)
        clicked = np.nan_to_num(pc.cast(batch[names[0]], pa.float32()).to_numpy(zero_copy_only=False)) > 0
        weight = batch[WEIGHT].to_numpy() if WEIGHT in columns else None
        rows += batch.num_rows
        weighed += batch.num_rows if weight is None else float(weight.sum())
        for name, count in counts.items():
            count.add(batch[name].to_numpy(), clicked, weight)
        for task in tasks:
            scaled = task.scaled(pc.cast(batch[task.name], pa.float32()).to_numpy(zero_copy_only=False))
            moments[task.name].add(scaled, weight)
        if "query" in columns and len(queries) < 1_000_000:
            queries.update(dict.fromkeys(pc.unique(batch["query"]).drop_null().to_numpy(zero_copy_only=False)))
        advance(batch.num_rows)
    _refuse_one_class(prepared, tasks[0], moments[tasks[0].name])
    fitted = tuple(task.fitted(moments[task.name]) for task in tasks)
    ads = counts["ad_index"].seen(prepared.ads()["ad_id"])
    users = counts["user_index"].seen(prepared.users()["user_id"])
    return Survey(ads, users, fitted, list(queries), weighed / max(rows, 1), newest, events)


def late_labels(
    config: FinetuneConfig, cut: LabelCut, known: LabelCut, events: dict[tuple[str, datetime], Delays], valid: Examples
) -> dict[str, Late]:
    """The delays of each binary task whose label has a moment, as of both cuts."""
    late: dict[str, Late] = {}
    for task in config.tasks:
        if task.is_binary and task.name in valid.delays and valid.elapsed is not None:
            of_valid = np.stack([valid.delays[task.name], valid.elapsed])[:, valid.labels[task.name] == 1]
            training = np.concatenate(events[task.name, cut.moment], axis=1)
            whole = np.concatenate([*events[task.name, known.moment], of_valid], axis=1)
            training_curve, whole_curve = (
                fit_delay_curve(delay, elapsed, config.delay.window_hours) for delay, elapsed in (training, whole)
            )
            late[task.name] = Late(training_curve, whole_curve)
    return late


def log_frequency(ids: pa.StringArray, seen: Seen) -> NDArray[np.float32]:
    """log of each ad's share of the clicks, which is how often it turns up as an in-batch negative; never seen: as once."""
    place = places(ids, seen.ids)
    clicks = np.where(place >= 0, seen.clicks[np.maximum(place, 0)] if len(seen.ids) else 0, 0)
    return np.log(np.maximum(clicks, 1) / max(int(seen.clicks.sum()), 1)).astype(np.float32)


def click_frequency(prepared: Prepared, splits: Sequence[str], ads: int, max_history: int) -> NDArray[np.float32]:
    """(ads,) log of each ad's share of the clicks that the requests' histories hold; never clicked: as once."""
    counts = np.zeros(ads, np.int64)
    for batch in chain.from_iterable(prepared.iter(split, ["request_id", "history_index"], 262_144) for split in splits):
        table = pa.Table.from_batches([batch])
        firsts = np.flatnonzero(np.diff(run_codes(table["request_id"]), prepend=-1))
        history = ragged(table["history_index"])
        _, read = newest_places(history.offsets, max_history, firsts)
        counts += np.bincount(history.values[read], minlength=ads)
    return np.log(np.maximum(counts, 1) / max(int(counts.sum()), 1)).astype(np.float32)


def _add_delays(
    events: dict[tuple[str, datetime], Delays], batch: pa.RecordBatch, names: Sequence[str], cut: LabelCut | None
) -> None:
    """Add the delays of what has happened in `batch` by the cut to `events`, by task and moment of the cut."""
    if cut is None or not cut.timed:
        return
    rows = cut.apply(batch)
    for name in names:
        if delay_column(name) in rows.schema.names:
            delay = rows[delay_column(name)].to_numpy(zero_copy_only=False)
            happened = ~np.isnan(delay)
            elapsed = rows[ELAPSED].to_numpy(zero_copy_only=False)
            events.setdefault((name, cut.moment), []).append(np.stack([delay, elapsed])[:, happened])


def _refuse_one_class(prepared: Prepared, main: Task, labels: Moments) -> None:
    """Raise DataError where the main label is the same in all training rows: whatever is learned promises that for ever."""
    if not (main.is_binary and labels.count and labels.squares == 0.0):
        return
    count, name = labels.count, main.name
    if labels.mean > 0:
        raise DataError(
            f"{prepared.path}: '{name}' is 1 in all {count:,} training rows, so that there is nothing to tell it from. A log "
            "of clicks only needs rows that were not clicked: set `negatives` in the preprocess config, which draws them."
        )
    raise DataError(
        f"{prepared.path}: '{name}' is 0 in all {count:,} training rows: there is nothing to learn. Check the column that "
        "is read as the label (`columns`, `positive` and `at_least` in the source), or take a longer log."
    )


class _Counts:
    """Occurrences and clicks by row number; a row of counts occurs as often as it weighs."""

    def __init__(self) -> None:
        self.shown = np.zeros(0, np.int64)
        self.clicked = np.zeros(0, np.int64)

    def add(self, index: NDArray[np.integer], clicked: NDArray[np.bool_], weight: NDArray[np.float64] | None = None) -> None:
        size = max(len(self.shown), int(index.max(initial=-1)) + 1)
        self.shown = self._counted(index, weight, size) + np.pad(self.shown, (0, size - len(self.shown)))
        of_clicks = self._counted(index[clicked], None if weight is None else weight[clicked], size)
        self.clicked = of_clicks + np.pad(self.clicked, (0, size - len(self.clicked)))

    @staticmethod
    def _counted(index: NDArray[np.integer], weight: NDArray[np.float64] | None, size: int) -> NDArray[np.int64]:
        return np.bincount(index, weight, size).astype(np.int64, copy=False)

    def seen(self, ids: pa.ChunkedArray) -> Seen:
        named = pc.not_equal(ids, NOBODY).to_numpy()[: len(self.shown)]
        order = np.argsort(-self.shown, kind="stable")
        order = order[(self.shown > 0)[order] & named[order]]
        return Seen(ids.combine_chunks().take(pa.array(order)), self.shown[order], self.clicked[order])
