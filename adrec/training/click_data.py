"""Everything that training a click model reads: catalogs with their texts, the plan of each epoch, the validation rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import places
from adrec.data.batches.collate import Collator, QueryInputs
from adrec.data.batches.dataset import InOrder, MemoryPlan, Replay, Sampling, StreamedPlan
from adrec.data.examples import Catalog, Examples, catalog_from_table, load_examples
from adrec.data.features import FeatureSet
from adrec.data.identities import NOBODYS, OwnVectors
from adrec.data.labels import LabelCut
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError, DataError
from adrec.models.match.table import Matcher
from adrec.models.net.semantic_ids import fit_centres
from adrec.models.net.tasks import Task
from adrec.models.text.text_vectors import TextReader
from adrec.terminal import Terminal
from adrec.training.build import Dimensions, FeatureShape, own_vectors, shared_spaces
from adrec.training.survey import Late, Seen, click_frequency, late_labels, log_frequency, survey

VALID_ROWS = 500_000
"""Validation rows looked at, the first requests: an AUC of more is no surer in the third digit."""
SHUFFLE_ROWS = 524_288
"""Rows shuffled together when streaming, about 1 GB with fifty clicks each; row groups come from anywhere in the split."""

EVALUATION_ROWS = 4096
"""Rows scored at once: no gradients are kept, so batches may be larger than in training."""


_WITHIN_REQUESTS = {"listwise", "bpr"}
"""Terms of the loss to which a request of one ad, or of one label, says nothing."""


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
    late: dict[str, Late] = field(default_factory=dict)
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
            if {term.kind for term in config.loss.terms} <= _WITHIN_REQUESTS and not rows.holds_both(self.sampling.label).any():
                raise DataError(
                    f"{self.prepared.path}: no training request holds both a '{self.sampling.label}' and none, and the "
                    "loss compares within requests alone, so that nothing would be learned. Take loss.terms: [{kind: bce}], or "
                    "name the log's `request_id` in preprocess."
                )
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
        seen_ads, seen_users, fitted, queries, mean_weight, newest, events = survey(
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
    clicks = click_frequency(prepared, splits, len(ads), history) if config.learns_next_click else None
    frequency = log_frequency(ads.ids, seen_ads)
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
        late=late_labels(config, cut, known, events, valid) if config.delay.method != "none" and cut and known else {},
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
