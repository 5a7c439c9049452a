"""Everything that training a click model reads: catalogs with their texts, the plan of each epoch, the validation rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from adrec.data.batches.collate import Collator, QueryInputs
from adrec.data.batches.dataset import InOrder, MemoryPlan, Replay, Sampling, StreamedPlan
from adrec.data.examples import Catalog, Examples, catalog_from_table, load_examples, run_codes
from adrec.data.features import FeatureSet
from adrec.data.features.moments import Moments
from adrec.data.identities import NOBODYS, OwnVectors
from adrec.data.labels import ELAPSED, LabelCut, delay_column, labels_as_of
from adrec.data.prepared import Prepared
from adrec.data.ragged import ragged
from adrec.errors import ConfigError, DataError
from adrec.metrics.delays import DelayCurve, fit_delay_curve
from adrec.models.match.table import Matcher
from adrec.models.net.semantic_ids import fit_centres
from adrec.models.net.tasks import Task
from adrec.models.text.text_vectors import TextReader
from adrec.schema import NOBODY, WEIGHT
from adrec.terminal import Terminal
from adrec.training.build import Dimensions, FeatureShape, build_tasks, own_vectors, shared_spaces

VALID_ROWS = 500_000
"""Validation rows looked at, the first requests: an AUC of more is no surer in the third digit."""
SHUFFLE_ROWS = 524_288
"""Rows shuffled together when streaming, about 1 GB with fifty clicks each; row groups come from anywhere in the split."""

EVALUATION_ROWS = 4096
"""Rows scored at once: no gradients are kept, so batches may be larger than in training."""


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


@dataclass(frozen=True)
class ClickData:
    """One prepared folder, read for one model."""

    prepared: Prepared
    splits: tuple[str, ...]
    """What is trained on: train, or train and valid."""
    features: dict[str, FeatureSet]
    tasks: tuple[Task, ...]
    dimensions: Dimensions
    ads: Catalog
    users: Catalog
    collate: Collator
    matcher: Matcher
    sampling: Sampling
    train: Examples | None
    """The training rows; None where they are streamed."""
    valid: Examples
    seen_ads: Seen
    seen_users: Seen
    max_history: int
    mean_weight: float = 1.0
    """Of the training rows; 1 where each is one impression."""
    newest: int | None = None
    """The last moment of the training rows, microseconds since 1970; None where the log has no moments."""
    replay: Replay | None = None
    """Which of the training rows the network learns from; all where it is None."""
    own_ads: OwnVectors = NOBODYS
    """which ads have a vector of their own"""
    own_users: OwnVectors = NOBODYS
    centres: NDArray[np.float32] | None = None
    """of the ads' semantic ids, where they have them"""
    cut: LabelCut | None = None
    """What training knows of labels."""
    late: dict[str, "Late"] = field(default_factory=dict)
    """task → its delays, for tasks whose label comes late, where the config does something about it"""

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return sum(self.prepared.rows(split) for split in self.splits)

    def plan(self, config: FinetuneConfig, seed: int) -> MemoryPlan | StreamedPlan:
        """The epochs of a run. Raises DataError where nothing can be learned."""
        if self.valid.weight is not None and (config.loss.negatives is not None or config.loss.negative_rate < 1):
            raise DataError(
                f"{self.prepared.path}: its rows are counts, which weigh; there is nothing to draw negatives from. Leave "
                "loss.negatives and loss.negative_rate out."
            )
        if self.train is not None:
            rows = self.train if self.replay is None else self.replay.of(self.train)
            plan: MemoryPlan | StreamedPlan = MemoryPlan(
                rows, self.collate, sampling=self.sampling, batch_rows=config.training.batch_rows, seed=seed
            )
        else:
            plan = StreamedPlan(
                self.prepared,
                self.splits,
                self.collate,
                sampling=self.sampling,
                batch_rows=config.training.batch_rows,
                seed=seed,
                shuffle_rows=SHUFFLE_ROWS,
                max_history=self.max_history,
                labels=[task.name for task in self.tasks],
                cut=self.cut,
                replay=self.replay,
                fill=self.matcher,
            )
        if plan.rows == 0:
            hint = " With `loss.negatives` a request must hold both a click and a miss." if config.loss.negatives else ""
            raise DataError(f"{self.prepared.path}: no training row has a usable '{self.sampling.label}' label.{hint}")
        return plan

    def sample(self, rows: int, seed: int) -> Examples:
        """About `rows` training rows of row groups drawn at random, for models that need them in memory."""
        source = StreamedPlan(
            self.prepared,
            self.splits,
            self.collate,
            sampling=Sampling(self.sampling.label),
            batch_rows=rows,
            seed=seed,
            shuffle_rows=rows,
            max_history=self.max_history,
            labels=[task.name for task in self.tasks],
            cut=self.cut,
            fill=self.matcher,
        )
        return source.sample(rows)

    def batches(self, examples: Examples) -> InOrder:
        """Rows in order, for evaluation."""
        return InOrder(examples, self.collate, EVALUATION_ROWS)


def load_click_data(
    config: FinetuneConfig,
    prepared: Prepared,
    reader: TextReader,
    terminal: Terminal,
    *,
    splits: tuple[str, ...] = ("train",),
    learned_until: int | None = None,
    is_private: bool = False,
) -> ClickData:
    """Read the rows of `splits` to train on and the validation rows, encode the texts they use.

    `learned_until`: what the bundle that training goes on from has learned, for `replay`. `is_private`: which ads and users
    the rows name is not told: all ads of the catalogue count as seen, never, and no user; nor whether anyone wrote anything.
    Raises DataError where labels or rows are missing.
    """
    features = prepared.features()
    labels = [task.name for task in config.tasks]
    _refuse_missing(config, prepared, labels, features["ads"].categorical_names)
    history = config.model.user.max_history
    total = sum(prepared.rows(split) for split in splits)
    with terminal.progress("Reading impressions", total, unit="rows") as advance:
        most = None if is_private else VALID_ROWS  # whose rows are the first so many depends on who else is there
        # What chooses and calibrates is done before the test begins; what trains, before the first part it has not learned.
        known, cut = _label_cut(config, prepared, ("train", "valid")), _label_cut(config, prepared, splits)
        valid = load_examples(prepared, "valid", max_history=history, labels=labels, rows=most, cut=known)
        in_memory = total <= config.training.in_memory_rows
        train = load_examples(prepared, *splits, max_history=history, labels=labels, cut=cut) if in_memory else None
        seen_ads, seen_users, fitted, queries, mean_weight, newest, events = _survey(
            prepared, splits, config, cut, known, advance
        )
    ads_table, users_table = prepared.ads(), prepared.users()
    if is_private:
        count = np.zeros(len(ads_table), np.int64)
        seen_ads = Seen(ads_table["ad_id"].combine_chunks().cast(pa.string()), count, count)
        seen_users = Seen(pa.array([], pa.string()), count[:0], count[:0])
    own_ads = own_vectors(config.model, "ads", seen_ads.ids, pa.array(seen_ads.impressions))
    own_users = own_vectors(config.model, "users", seen_users.ids, pa.array(seen_users.impressions))
    ads = catalog_from_table(ads_table, features["ads"], key="ad_id", own=own_ads)
    users = catalog_from_table(users_table, features["users"], key="user_id", own=own_users)
    used_ads = np.union1d(train.ads_used(), valid.ads_used()) if train is not None else None
    used_users = np.union1d(train.user_index, valid.user_index) if train is not None else None
    ads, ad_texts = reader.read(ads, used_ads, terminal.progress, "ads")
    wrote = is_private or bool(pc.any(pc.not_equal(users.texts, "")).as_py())  # whether anyone did is told by the shape
    has_interests = config.model.interests and reader.width > 0 and wrote
    interests = reader if has_interests else TextReader(None)
    user_texts = interests.interests(users, used_users, terminal.progress, apart=config.text.train == "frozen")
    query_texts: QueryInputs | None = None
    if config.model.query and (queries or (is_private and "query" in prepared.columns)) and reader.width:
        query_texts = reader.queries(queries, terminal.progress)
    dimensions = Dimensions(
        text=reader.width,
        impressions=FeatureShape.of(features["impressions"]),
        ads=FeatureShape.of(features["ads"]),
        users=FeatureShape.of(features["users"]),
        ad_identities=own_ads.rows,
        user_identities=own_users.rows,
        ad_hashed=own_ads.hashed,
        user_hashed=own_users.hashed,
        queries=query_texts is not None,
        interests=has_interests,
        text_parts=reader.encoder.parts if reader.encoder is not None else (),
        category=_place("category", features["ads"].categorical_names),
        placement=_place("scenario", features["impressions"].categorical_names) if config.model.position_bias else None,
        same_space=shared_spaces(features["users"], features["ads"]),
        paths=None if ads.paths is None else list(ads.lists).index(ads.paths.name),
        relations=() if ads.paths is None else tuple(ads.paths.group.tolist()),
        skips="skipped_index" in prepared.columns,
        taste=config.model.taste,
    )
    matcher = Matcher(
        dimensions.match, ads, users, interests=user_texts if has_interests else None, queries=query_texts
    )  # fmt: skip
    clicks = _click_frequency(prepared, splits, len(ads), history) if config.learns_next_click else None
    frequency = _log_frequency(ads.ids, seen_ads)
    collate = Collator(ads, users, ad_texts, user_texts, query_texts, tuple(labels), frequency, clicks)
    centres = None
    if config.model.semantic_ids is not None:
        asked, learned = config.model.semantic_ids, ad_texts(places(seen_ads.ids, ads.ids)).vectors
        assert learned is not None
        centres = fit_centres(learned.numpy(), levels=asked.levels, codes=asked.codes, seed=config.seed)
    sampling = Sampling(labels[0], config.loss.negatives, config.loss.negative_rate)
    return ClickData(
        prepared=prepared,
        splits=splits,
        features=features,
        tasks=fitted,
        dimensions=dimensions,
        ads=ads,
        users=users,
        collate=collate,
        matcher=matcher,
        sampling=sampling,
        train=matcher(train) if train is not None else None,
        valid=matcher(valid),
        seen_ads=seen_ads,
        seen_users=seen_users,
        max_history=history,
        mean_weight=mean_weight,
        newest=newest,
        own_ads=own_ads,
        own_users=own_users,
        centres=centres,
        cut=cut,
        late=_late(config, cut, known, events, valid) if config.delay.method != "none" and cut and known else {},
        replay=Replay(learned_until, config.replay, config.seed) if learned_until is not None and config.replay < 1 else None,
    )


def _refuse_missing(config: FinetuneConfig, prepared: Prepared, labels: Sequence[str], of_ads: Sequence[str]) -> None:
    """Raise DataError or ConfigError, before anything is read, where the config wants what the folder does not have."""
    missing = [label for label in labels if label not in prepared.columns]
    if missing:
        raise DataError(f"{prepared.path}: the impressions have no '{missing[0]}' column to learn. Change `tasks`.")
    if config.model.position_bias and "position" not in prepared.columns:
        raise ConfigError(f"model.position_bias: {prepared.path} has no column 'position'. Set it to false.")
    if config.model.taste and "skipped_index" not in prepared.columns:
        raise ConfigError(
            f"model.taste: {prepared.path} keeps no ads that were shown and not clicked. Set history.max_skipped in the "
            "preprocess config, or model.taste to false."
        )
    for key, is_set, otherwise in (
        ("loss.next_category", config.loss.next_category > 0, "set the weight to 0"),
        ("model.user.search", config.model.user.search == "category", "set it to hashed or none"),
    ):
        if is_set and "category" not in of_ads:
            raise ConfigError(
                f"{key}: ads of {prepared.path} have no feature 'category'. Name it in features.ads.categorical of the "
                f"preprocess config, or {otherwise}."
            )


def _place(name: str, names: Sequence[str]) -> int | None:
    return list(names).index(name) if name in names else None


def _label_cut(config: FinetuneConfig, prepared: Prepared, splits: Sequence[str]) -> LabelCut | None:
    """With times where `delay` needs them."""
    if config.delay.is_timed:
        return prepared.timed_cut(splits, config.delay.window_hours)
    return prepared.label_cut(splits)


Delays = list[NDArray[np.float32]]
"""Parts of (2, N): hours from the showing to what happened, and to the cut."""


def _late(
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


def _survey(
    prepared: Prepared,
    splits: tuple[str, ...],
    config: FinetuneConfig,
    cut: LabelCut | None,
    known: LabelCut | None,
    advance: object,
) -> tuple[Seen, Seen, tuple[Task, ...], Sequence[str], float, int | None, dict[tuple[str, datetime], Delays]]:
    """One pass over the training rows: how often ads and users occur, the scale of each label, the distinct queries, the
    mean weight of a row, the last moment, and the delays as of both cuts where they are told."""
    assert callable(advance)
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
    return ads, users, fitted, list(queries), weighed / max(rows, 1), newest, events


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


def _log_frequency(ids: pa.StringArray, seen: Seen) -> NDArray[np.float32]:
    """log of each ad's share of the clicks, which is how often it turns up as an in-batch negative; never seen: as once."""
    place = places(ids, seen.ids)
    clicks = np.where(place >= 0, seen.clicks[np.maximum(place, 0)] if len(seen.ids) else 0, 0)
    return np.log(np.maximum(clicks, 1) / max(int(seen.clicks.sum()), 1)).astype(np.float32)


def _click_frequency(prepared: Prepared, splits: Sequence[str], ads: int, max_history: int) -> NDArray[np.float32]:
    """(ads,) log of each ad's share of the clicks that the requests' histories hold; never clicked: as once."""
    counts = np.zeros(ads, np.int64)
    for batch in chain.from_iterable(prepared.iter(split, ["request_id", "history_index"], 262_144) for split in splits):
        table = pa.Table.from_batches([batch])
        firsts = np.flatnonzero(np.diff(run_codes(table["request_id"]), prepend=-1))
        history = ragged(table["history_index"])
        _, read = newest_places(history.offsets, max_history, firsts)
        counts += np.bincount(history.values[read], minlength=ads)
    return np.log(np.maximum(counts, 1) / max(int(counts.sum()), 1)).astype(np.float32)
