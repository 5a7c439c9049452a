"""What a bundle is in memory: everything that scoring needs, and how network, baselines and calibration become scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.config.data.preprocess import TextSettings
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import combined
from adrec.data.features import FeatureSet
from adrec.data.features.vectors import Modality
from adrec.data.graph.entity_vectors import EntityVectors
from adrec.data.graph.links import Graph
from adrec.data.identities import OwnVectors
from adrec.data.shape import LogShape
from adrec.data.vectors import Vectors, as_arrow
from adrec.models.baselines.base import Baseline, Columns, Inputs
from adrec.models.blend.calibration import Calibration
from adrec.models.blend.hybrid import Hybrid
from adrec.models.blend.slots import SlotEffects
from adrec.models.media.media_reader import MediaReader
from adrec.models.net.ensemble import ClickNetwork, Ensemble
from adrec.models.net.tasks import Task
from adrec.models.text.text_encoder import TextEncoder
from adrec.prepare.own_files import LogForm
from adrec.ranking.auction import in_slot
from adrec.schema import CONVERSION_SCORE, SCORE_PREFIX
from adrec.specs import ListSpec
from adrec.training.build import Dimensions, own_vectors


@dataclass(frozen=True)
class Scores:
    """N rows in order."""

    logit: NDArray[np.float32]
    score: NDArray[np.float32]
    """calibrated probability of the main task, in its slot where the row says one and the bundle knows what slots do"""
    tasks: dict[str, NDArray[np.float32]]
    """each further task in the units of its label, probabilities calibrated"""
    baselines: dict[str, NDArray[np.float32]]
    any_slot: NDArray[np.float32] | None = None
    """what `score` would be if the rows did not say their slot; None where the bundle knows nothing of slots"""
    label: str = "click"
    """of the main task"""

    @property
    def columns(self) -> dict[str, NDArray[np.float32]]:
        """The score and the further tasks by their columns in SCORED and RANKED."""
        return {"score": self.score, **{f"{SCORE_PREFIX}{name}": values for name, values in self.tasks.items()}}

    def of(self, rows: NDArray[np.bool_]) -> "Scores":
        """Those of some rows."""
        tasks, baselines = ({name: values[rows] for name, values in some.items()} for some in (self.tasks, self.baselines))
        any_slot = None if self.any_slot is None else self.any_slot[rows]
        return Scores(self.logit[rows], self.score[rows], tasks, baselines, any_slot, self.label)


@dataclass(frozen=True)
class ClickModel:
    """Everything that scoring needs."""

    config: FinetuneConfig
    features: dict[str, FeatureSet]
    dimensions: Dimensions
    tasks: tuple[Task, ...]
    model: ClickNetwork
    encoder: TextEncoder | None
    calibrations: dict[str, Calibration]
    """By name of each binary task."""
    seen_ads: pa.Table
    """id, impressions, clicks of the training rows, most frequent first."""
    seen_users: pa.Table
    text: TextSettings
    """How raw ads, users and queries become text."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    form: LogForm = field(default_factory=LogForm)
    """How the log was written that it learned from: how new files are read."""
    hybrid: Hybrid = field(default_factory=Hybrid)
    """What joins the network and the trees; the network alone by default."""
    slots: SlotEffects | None = None
    """What slots do to clicks; None where it was not learned."""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    """Tables of `schema.TABLES` that are `packed`, by name, as they lay in the prepared folder."""
    media: Mapping[str, MediaReader] = field(default_factory=dict)
    """What makes vectors of the ads' pictures and sounds, by section of the preprocess config; empty where the model reads
    none."""

    shares: dict[str, float] = field(default_factory=dict)
    """Channel of retrieval → its share of the turns; empty where it was not measured."""

    entity_vectors: dict[str, EntityVectors] = field(default_factory=dict)
    """Column of vectors of the ads → the vectors of entities that it is made of."""

    @cached_property
    def graph(self) -> Graph | None:
        """What ads and entities are linked to; None where no table says so."""
        return Graph.of(self.tables, pa.array([], pa.string()))

    @property
    def paths(self) -> ListSpec | None:
        """The list of ads that says what they are linked to; None where the bundle reads none."""
        return next((item for item in self.features["ads"].spec.lists if item.paths), None)

    def with_links(self, ads: pa.Table) -> pa.Table:
        """Ads with the list of what they are linked to, where the bundle reads one and the table does not say."""
        if self.paths is None or self.graph is None:
            return ads
        return self.graph.filled(ads, self.paths.column, hops=self.paths.paths, most=self.paths.max_items)

    def with_entities(self, held: dict[str, Modality], ads: pa.Table) -> dict[str, Modality]:
        """The modalities of `ads`, those made of entities filled where an ad has links and no vector."""
        column, filled = "" if self.paths is None else self.paths.column, dict(held)
        for name, entities in self.entity_vectors.items() if column in ads.column_names else ():
            vectors = held[name].vectors
            rows = np.flatnonzero(vectors.index < 0)
            made = entities.of_paths(combined(ads[column]).take(pa.array(rows)))
            own = Vectors.of(as_arrow(made), entities.width, len(rows), where=name)
            own = own.without(np.asarray(np.isnan(made).any(axis=1)))
            filled[name] = held[name]._replace(vectors=vectors.with_rows(rows, own, len(vectors)))
        return filled

    @property
    def has(self) -> LogShape:
        """What the log names that the model learned from."""
        return self.form.has

    @property
    def score_of(self) -> str:
        """The label of the main task, which `score` is about."""
        return self.tasks[0].name

    @property
    def conversion_column(self) -> str | None:
        """The column of SCORED and RANKED with the probability of a conversion; None where it was not learned."""
        is_binary = {task.name: task.is_binary for task in self.tasks}
        if not is_binary.get("conversion"):
            return None
        return "score" if self.score_of == "conversion" else CONVERSION_SCORE

    @property
    def vector_width(self) -> int:
        """Numbers of an ad's, and of a user's, vector: of an ensemble those of all its networks end to end."""
        members = len(self.model.members) if isinstance(self.model, Ensemble) else 1
        return members * self.config.model.width

    @property
    def columns(self) -> Columns:
        """Names of the feature columns."""
        return Columns.of(self.features)

    def own_vectors(self, table: Literal["ads", "users"]) -> OwnVectors:
        """Which ads, or users, have a vector of their own in the network."""
        seen = self.seen_ads if table == "ads" else self.seen_users
        return own_vectors(self.config.model, table, combined(seen["id"]), combined(seen["impressions"]))

    def joined(self, raw: NDArray[np.float32], simple: dict[str, NDArray[np.float32]], inputs: Inputs) -> Scores:
        """What the bundle says of N rows whose network outputs (N, K) and baselines are known: hybrid, calibration, units."""
        main, *others = self.tasks
        tasks = {
            task.name: self.calibrations[task.name].apply(raw[:, number]) if task.is_binary else task.output(raw[:, number])
            for number, task in enumerate(others, start=1)
        }
        logit = self.hybrid.logit(raw[:, 0], simple, inputs)
        score = self.calibrations[main.name].apply(logit)
        if self.slots is None:
            return Scores(logit, score, tasks, simple, label=main.name)
        placed = in_slot(score, self.slots.of(inputs.examples)).astype(np.float32)
        return Scores(logit, np.where(inputs.examples.position > 0, placed, score), tasks, simple, score, main.name)
