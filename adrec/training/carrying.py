"""Carry a trained network's weights into a new one: by the name of each tensor, and along its axes by what each place means.

A day later a vocabulary has grown; another market has other columns. So an axis is known by labels (`category=shoes`, the
numeric column `price`, the task `click`), and what both networks have a label for is copied. Costs one pass over the weights.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from adrec.config.training.finetune import ModelSettings
from adrec.data.features import FeatureSet
from adrec.data.features.categorical import FittedVocabulary, Hashed
from adrec.data.graph.paths import Paths
from adrec.models.net.interaction import INTERACTIONS
from adrec.models.net.matches import Matches
from adrec.models.net.tasks import Task
from adrec.models.net.user_encoder import CAUSAL
from adrec.training.build import Dimensions

ENCODER = "text_encoder."


@dataclass(frozen=True)
class Described:
    """What a network's axes mean."""

    settings: ModelSettings
    dimensions: Dimensions
    features: Mapping[str, FeatureSet]
    tasks: Sequence[Task]
    seen_ads: pa.Array
    """identifiers of the ads with a vector of their own, in the order of its rows; empty where none has"""
    seen_users: pa.Array
    text_space: str
    """fingerprint of the text encoder whose vectors it reads, empty without text"""


class Carried(NamedTuple):
    """How much of a network came from the earlier one."""

    copied: int
    """numbers"""
    numbers: int
    """numbers of the new network, its text encoder left out"""
    fresh: list[str]
    """tensors of which nothing came"""
    whole: list[str]
    """those of which everything came"""


class _Axis(NamedTuple):
    """Labels of the places along one axis, and what a place takes that the earlier network does not know."""

    labels: pa.Array
    unknown: Literal["fresh", "zero", "first"] = "zero"
    """fresh: what it was made with. zero: nothing, so that the network starts as the earlier one. first: the earlier place 0,
    which stands for whatever is unseen."""


class _Named(NamedTuple):
    """A tensor under a name that other networks share, seen in the shape whose axes have labels (None: by position)."""

    name: str
    shape: tuple[int, ...]
    axes: list[_Axis | None]


def carry_over(network: nn.Module, described: Described, earlier: Mapping[str, Tensor], of_earlier: Described) -> Carried:
    """Copy into `network` whatever tensors the `earlier` state has a counterpart for; the rest stays as it was made.

    Inputs that the earlier network did not read start at weight 0 where they meet what was carried, values of a vocabulary
    that it did not know start as its unknown value. An axis without a common label, or unlabelled and of another size, leaves
    its tensor as it was. The text encoder's own weights are no part of this.
    """
    known = {}
    for name, tensor in earlier.items():
        if not name.startswith(ENCODER):
            named = _Namer(of_earlier).named(name, tensor.shape)
            known[named.name] = (named, tensor)
    copied = numbers = 0
    fresh, whole = [], []
    namer = _Namer(described)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith(ENCODER):
                continue
            named = namer.named(name, tensor.shape)
            numbers += tensor.numel()
            taken = _take(tensor, named, *known[named.name]) if named.name in known else 0
            copied += taken
            if not taken:
                fresh.append(name)
            elif taken == tensor.numel():
                whole.append(name)
    return Carried(copied, numbers, fresh, whole)


def _take(tensor: Tensor, named: _Named, source: _Named, stored: Tensor) -> int:
    """Copy what both have along every axis into `tensor`, in place; how many numbers were copied."""
    values, fresh = stored.reshape(source.shape).to(tensor), tensor.reshape(named.shape)
    if values.ndim != fresh.ndim:
        return 0
    is_zero = torch.zeros(named.shape, dtype=torch.bool)
    is_fresh = torch.zeros(named.shape, dtype=torch.bool)
    for at, (axis, of_source) in enumerate(zip(named.axes, source.axes, strict=True)):
        if axis is None or of_source is None:
            if values.shape[at] != fresh.shape[at]:
                return 0
            continue
        places = pc.index_in(axis.labels, value_set=of_source.labels)
        if places.null_count == len(places):
            return 0
        index = torch.from_numpy(np.array(pc.fill_null(places, 0).to_numpy(zero_copy_only=False), np.int64))
        missing = torch.from_numpy(np.array(places.is_null().to_numpy(zero_copy_only=False)))
        missing = missing.view([-1 if axis_at == at else 1 for axis_at in range(fresh.ndim)])
        if axis.unknown == "zero":
            is_zero |= missing
        elif axis.unknown == "fresh":
            is_fresh |= missing
        values = values.index_select(at, index.to(values.device))
    made = torch.where(is_fresh.to(fresh.device), fresh, values.masked_fill(is_zero.to(values.device), 0.0))
    tensor.copy_(made.reshape(tensor.shape))
    return int((~is_fresh & ~is_zero).sum())


class _Namer:
    """Names and axes of the tensors of one network, a CTRModel as `adrec.training.build` composes it."""

    def __init__(self, described: Described) -> None:
        self.d = described
        settings, shape = described.settings, described.dimensions
        self.width = settings.width
        self.tasks = [task.name for task in described.tasks]
        self.parts = [part for part in settings.user.parts if part != "target"]
        self.reads_query = settings.query and shape.queries and shape.text > 0
        self.reads_interests = settings.interests and shape.interests and shape.text > 0
        self.extra = self._extra()
        self.full = [*_wide("user", self.width), *_wide("ad", self.width), *_wide("product", self.width)]
        self.full += [*_wide("gap", self.width), "dot", *self.extra]

    def named(self, name: str, shape: torch.Size) -> _Named:
        """The tensor `name` of this network."""
        common, entity = self._common(name)
        sizes = tuple(shape)
        axes: list[_Axis | None] = [None for _ in shape]
        table = re.match(r"(ad_encoder\.|user_profile\.|crosses\.\w+\.|)fields\.(tables|list_tables)\.(\d+)\.weight$", name)
        if name.startswith(("crosses.users.", "crosses.moments.")):
            axes[0 if name.endswith((".start", ".numeric.weight")) or ".vectors." in name else 1] = _Axis(self._crossed())
        elif name.startswith("crosses.parts."):
            axes[0] = _Axis(self._ranks())
        if table is not None:
            values = self._values(entity)[0 if table[2] == "tables" else 1]
            axes[0] = _Axis(list(values.values())[int(table[3])], "first")
        elif name.startswith("wide_lists."):
            lists = list(self._values("ads")[1].values())[int(name.rsplit(".", 1)[1])]
            sizes = (len(lists), len(self.tasks))
            axes = [_Axis(lists, "first"), _Axis(pa.array(self.tasks))]
        elif name.startswith("neighbours.") and (paths := Paths.of(self.d.features["ads"])) is not None:
            if name == "neighbours.entities.weight":
                axes[0] = _Axis(self._values("ads")[1][paths.name], "first")
            elif name == "neighbours.relations.weight":
                axes[0] = _Axis(pa.array(paths.relations), "fresh")
        elif name.endswith("identity.weight"):
            seen = self.d.seen_ads if entity == "ads" else self.d.seen_users
            axes[0] = _Axis(pa.concat_arrays([pa.array([None], pa.string()).fill_null(""), seen.cast(pa.string())]), "first")
        elif re.match(r"(ad_encoder\.text|user_profile\.text|query)\.", name):
            labels = _Axis(pa.array([f"{self.d.text_space}:{at}" for at in range(self.d.dimensions.text)]))
            if ".0." in name:
                axes[0] = labels._replace(unknown="fresh")
            elif name.endswith("weight"):
                axes[1] = labels
        elif name.startswith("ad_encoder.semantic."):
            # Codes mean something only to their own centres, which mean something only among vectors of one encoder.
            size = shape[0] * (shape[1] if name.endswith("centres") else 1)
            sizes = (size, shape[-1])
            axes = [_Axis(pa.array([f"{self.d.text_space}:{at}/{size}" for at in range(size)]), "fresh"), None]
        elif name.startswith("interest."):
            axes[0] = _Axis(list(self._values("ads")[0].values())[self.d.dimensions.category or 0], "fresh")
        elif name == "position_bias.placed":
            placements = list(self._values("impressions")[0].values())[self.d.dimensions.placement or 0]
            sizes, axes = (len(placements), shape[0] // len(placements)), [_Axis(placements, "fresh"), None]
        elif name == "position_bias.counts" and self.d.dimensions.placement is not None:
            axes[0] = _Axis(list(self._values("impressions")[0].values())[self.d.dimensions.placement], "fresh")
        elif name == "wide.weight":
            axes = [_Axis(pa.array(self.tasks)), _Axis(pa.array(self.extra))]
        elif re.match(r"interaction\.up\.\d+\.", name) and self._is_own():
            axes[0] = _Axis(pa.array(self.full))
        elif name.endswith("common_gate.weight"):
            experts = range(self.d.settings.experts)
            axes[0] = _Axis(pa.array([f"{task}:{expert}" for task in [*self.tasks, ""] for expert in experts]), "fresh")
        inputs = self._inputs(name)
        if inputs is not None:
            axes[1] = _Axis(pa.array(inputs, pa.string()))
        return _Named(common, sizes, axes)

    def _common(self, name: str) -> tuple[str, str]:
        """The name with columns, user parts and tasks in place of their numbers, and the table whose features it is about."""
        entity = {"ad_encoder": "ads", "user_profile": "users"}.get(name.split(".", 1)[0], "impressions")
        entity = "users" if name.startswith("crosses.users.") else entity
        coders = self._values(entity)
        lists = [list(self._values("ads")[1])]
        vectors = [fitted.name for fitted in self.d.features["ads" if entity == "impressions" else entity].vectors]
        for pattern, names in (
            (r"(?:^|\.)(?:modalities|late)\.(?:parts|gates|towers)\.(\d+)\.", vectors),
            (r"^crosses\.(?:parts|users\.vectors)\.(\d+)\.", vectors),
            (r"(?:^|\.)fields\.tables\.(\d+)\.", list(coders[0])),
            (r"(?:^|\.)fields\.list_tables\.(\d+)\.", list(coders[1])),
            (r"^wide_lists\.weights\.(\d+)$", lists[0]),
            (r"^user_encoder\.plain\.(\d+)\.", self.parts),
            (r"^heads\.(\d+)\.", self.tasks),
            (r"^sharing\.(?:bottoms|gates)\.(\d+)\.", self.tasks),
            (r"^sharing\.levels\.\d+\.(?:experts|gates)\.(\d+)\.", [*self.tasks, ""]),
        ):
            match = re.search(pattern, name)
            if match is not None:
                return f"{name[: match.start(1)]}<{names[int(match[1])]}>{name[match.end(1) :]}", entity
        return name, entity

    def _inputs(self, name: str) -> list[str] | None:
        """Labels of the inputs that a layer reads, axis 1 of its weight; None where they are by position."""
        if name == "ad_encoder.features.weight":
            return self._fields("ads")
        if name == "user_profile.features.weight":
            return self._fields("users")
        if name in {"crosses.users.numeric.weight", "crosses.moments.numeric.weight"}:
            return self._numeric("users" if ".users." in name else "impressions")
        if name == "user_encoder.join.weight":
            skipped = _wide("skipped", self.width) if self.d.settings.user.skipped else []
            parts = [label for part in self.parts or ["mean"] for label in _wide(part, self.width)]
            return [*parts, *skipped, *_wide("profile", self.width)]
        if re.match(r"interaction\.down\.\d+\.weight$", name) and self._is_own():
            return self.full
        first = r"sharing\.(bottom\.0|bottoms\.\d+\.0|experts\.\d+\.0|gates\.\d+|levels\.0\.experts\.\d+\.\d+\.0|"
        first += r"levels\.0\.gates\.\d+|levels\.0\.common_gate)\.weight$"
        has_tower = self.d.settings.hidden and self.d.settings.interaction != "dot"
        return self._joint() if re.match(first if has_tower else r"heads\.\d+\.weight$", name) else None

    def _joint(self) -> list[str] | None:
        """What the interaction gives to the tasks."""
        return {
            "dot": ["dot"],
            "mlp": self.full,
            "dcn": [*self.full, *(f"crossed {label}" for label in self.full)],
        }.get(self.d.settings.interaction)

    def _extra(self) -> list[str]:
        """What CTRModel puts beside the two vectors, in its order."""
        settings = self.d.settings
        labels = [*self._fields("impressions"), "history length", *self._matches(), *self._neighbours()]
        if "target" in settings.user.parts:
            labels += [*_wide("attended", self.width), "attended match"]
        labels += [f"{part} match" for part in settings.user.parts if part in CAUSAL]
        return labels + ([*_wide("asked", self.width), "asked match"] if self.reads_query else [])

    def _matches(self) -> list[str]:
        """The columns that `net.matches.Matches` gives to the scorer, in its order."""
        ads, users = (self.d.features[table] for table in ("ads", "users"))
        spec, of_users = self.d.dimensions.match, [fitted.name for fitted in users.vectors]
        lists = list(ads.list_cardinalities)
        paths, own = Paths.of(ads), self.d.settings
        relations = () if paths is None else paths.relations
        names = spec.names(ads.categorical_names, lists, relations, [fitted.name for fitted in ads.vectors], of_users)
        matches = Matches(
            spec, text=own.text_match, skips=own.user.skipped, links=paths is not None and own.graph != "none",
            late=own.fusion == "late" and spec.modalities > 0,
        )  # fmt: skip
        return [name for item in matches.read_here for name in names[item.start : item.stop]]

    def _neighbours(self) -> list[str]:
        """The columns of Neighbours."""
        has_links = Paths.of(self.d.features["ads"]) is not None and self.d.settings.graph == "neighbours"
        return [*_wide("neighbours", self.width), "neighbours match"] if has_links else []

    def _fields(self, table: str) -> list[str]:
        """What Fields gives for the features of a table, in its order."""
        features, width = self.d.features[table], self.d.settings.feature_width
        return self._numeric(table) + [
            label for name in (*features.categorical_names, *features.list_cardinalities) for label in _wide(name, width)
        ]

    def _numeric(self, table: str) -> list[str]:
        features = self.d.features[table]
        transforms = {item.name: item.transform for item in features.numerics}
        return [f"{name} {transforms.get(name, '')}" for name in features.numeric_names]

    def _crossed(self) -> pa.Array:
        """The products of Crosses: those of each vector of the ads in turn."""
        names = [fitted.name for fitted in self.d.features["ads"].vectors]
        return pa.array([f"{name}:{at}" for name in names for at in self._ranks().to_pylist()], pa.string())

    def _ranks(self) -> pa.Array:
        """The products of one vector: rank by rank, for each task."""
        rank = self.d.settings.crosses
        return pa.array([f"{at}/{rank} {task}" for at in range(rank) for task in self.tasks], pa.string())

    def _values(self, table: str) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
        """Labels of the codes of each categorical column, and of each list."""
        features = self.d.features[table]
        coders = {coder.name: coder for coder in features.categories}
        categories = {}
        for name, size in zip(features.categorical_names, features.cardinalities, strict=True):
            coder = coders.get(name)
            categories[name] = _codes(_values(coder), size)
        lists = {coder.name: _codes(_values(coder), coder.cardinality) for coder in features.lists}
        return categories, lists

    def _is_own(self) -> bool:
        return self.d.settings.interaction in INTERACTIONS


def _values(coder: FittedVocabulary | Hashed | None) -> pa.Array | None:
    """What the codes from 1 stand for, where they are not numbers of a hash or a calendar."""
    if isinstance(coder, FittedVocabulary):
        return coder.values
    if coder is None or coder.known is None:
        return None
    return pa.array([f"bucket {bucket} of {coder.buckets}" for bucket in coder.known], pa.string())


def _codes(values: pa.Array | None, size: int) -> pa.Array:
    """Labels of codes 0 (unknown), 1, ...: the values, or the numbers of a hash or a calendar of this size."""
    if values is None:
        return pa.array([f"{code}/{size}" for code in range(size)])
    return pa.concat_arrays([pa.array(["unknown"]), pc.binary_join_element_wise("=", values, "")])


def _wide(name: str, width: int) -> list[str]:
    """Labels of a vector's places, which mean something only in a vector of that width."""
    return [f"{name}:{place}/{width}" for place in range(width)]
