"""The one place where a config becomes modules. Everything else takes plain keyword arguments."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from adrec.config.training.finetune import ModelSettings, TaskSettings
from adrec.data.features import FeatureSet
from adrec.data.identities import NOBODYS, OwnVectors
from adrec.errors import ConfigError
from adrec.models.match.table import MatchSpec
from adrec.models.net.ctr_model import CTRModel
from adrec.models.net.entity_encoder import EntityEncoder
from adrec.models.net.fields import Factors, Fields, ListWeights
from adrec.models.net.interaction import INTERACTIONS, interaction
from adrec.models.net.matches import Matches
from adrec.models.net.modalities import Crosses, LateFusion, Modalities
from adrec.models.net.multitask import sharing
from adrec.models.net.neighbours import Neighbours
from adrec.models.net.position_bias import PositionBias
from adrec.models.net.search import CategorySearch, HashedSearch
from adrec.models.net.semantic_ids import SemanticIds
from adrec.models.net.tasks import Task
from adrec.models.net.user_encoder import CAUSAL, PARTS, Part, UserEncoder
from adrec.plugins import ModelPart, load

IDENTITY_DROPOUT = 0.2
"""Share of own vectors replaced by the vector of the unseen in training: enough rows for that vector to be learned."""

POSITION_SLOTS = 50


@dataclass(frozen=True)
class FeatureShape:
    """Inputs of one table."""

    numeric: int = 0
    cardinalities: tuple[int, ...] = ()
    list_cardinalities: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()
    """Widths of its modalities."""

    @classmethod
    def of(cls, features: FeatureSet) -> "FeatureShape":
        """The shape of a fitted set."""
        lists = tuple(features.list_cardinalities.values())
        vectors = tuple(item.width for item in features.vectors)
        return cls(len(features.numeric_names), tuple(features.cardinalities), lists, vectors)


@dataclass(frozen=True)
class Dimensions:
    """What the data says about the model's shape; stored in the bundle."""

    text: int
    """Width of text vectors; 0 without text."""
    impressions: FeatureShape
    ads: FeatureShape
    users: FeatureShape
    ad_identities: int = 0
    """Ads seen in training, where they get a vector of their own."""
    user_identities: int = 0
    queries: bool = False
    """Whether impressions carry queries."""
    interests: bool = False
    """Whether users carry interests text."""
    text_parts: tuple[int, ...] = ()
    """Widths that a text vector consists of; empty: it is of one piece."""
    category: int | None = None
    """Categorical feature of the ads that is their category; None: they have none."""
    placement: int | None = None
    """Categorical feature of the impressions that says where slots are: the scenario; None: all are alike."""
    ad_hashed: int = 0
    """Rows of each of the two tables of the ads' own vectors, where they are hashed."""
    user_hashed: int = 0
    same_space: tuple[tuple[int, int], ...] = ()
    """Modalities of users and of ads whose vectors may be compared."""
    paths: int | None = None
    """Which of the ads' lists says what they are linked to; None: none."""
    relations: tuple[int, ...] = ()
    """The relation of each of its codes."""
    skips: bool = False
    """Whether the log keeps ads that were shown and not clicked."""
    taste: bool = False
    """Whether these and the clicks are weighed against each other (`ModelSettings.taste`)."""

    @property
    def match(self) -> MatchSpec:
        """The table of matches."""
        ads = self.ads
        return MatchSpec(
            categories=len(ads.cardinalities),
            lists=len(ads.list_cardinalities),
            modalities=len(ads.vectors),
            pairs=self.same_space,
            parts=(self.text_parts or (self.text,)) if self.text else (),
            interests=self.interests and self.text > 0,
            queries=self.queries and self.text > 0,
            skips=self.skips,
            relations=max(self.relations, default=-1) + 1,
            taste=self.taste and self.skips and self.text > 0,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-safe values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Dimensions":
        """The dimensions that `to_json` wrote."""
        shapes = {
            name: FeatureShape(
                values[name]["numeric"],
                tuple(values[name]["cardinalities"]),
                tuple(values[name]["list_cardinalities"]),
                tuple(values[name].get("vectors", ())),
            )
            for name in ("impressions", "ads", "users")
        }
        first = 0 if shapes["ads"].cardinalities else None  # what bundles meant by the category before they said it
        pairs = tuple((int(user), int(ad)) for user, ad in values.get("same_space", ()))
        named = {**values, **shapes, "text_parts": tuple(values["text_parts"]), "same_space": pairs}
        named["relations"] = tuple(int(group) for group in values.get("relations", ()))
        return cls(**{"category": first, **named})


def shared_spaces(users: FeatureSet, ads: FeatureSet) -> tuple[tuple[int, int], ...]:
    """Modalities of users and of ads that share a space and a width."""
    return tuple(
        (user, ad)
        for user, ours in enumerate(users.vectors)
        for ad, theirs in enumerate(ads.vectors)
        if (ours.space, ours.width) == (theirs.space, theirs.width)
    )


def build_model(
    settings: ModelSettings,
    dimensions: Dimensions,
    tasks: Sequence[Task],
    *,
    text_encoder: nn.Module | None,
    next_category: bool,
    centres: NDArray[np.float32] | None = None,
) -> CTRModel:
    """The click model of a config. `text_encoder` is the one that is trained; None where vectors are given. `centres`: of the
    semantic ids, where a network is to be trained.
    """
    width, d = settings.width, dimensions
    reads_query = settings.query and d.queries and d.text > 0
    reads_interests = settings.interests and d.interests and d.text > 0
    fields = _fields(d.impressions, settings.feature_width)
    is_late = settings.fusion == "late" and bool(d.ads.vectors)
    reads_links = d.paths is not None and settings.graph != "none"
    matches = Matches(d.match, text=settings.text_match, skips=settings.user.skipped, links=reads_links, late=is_late)
    extra = fields.out_width + 1 + matches.out_width
    extra += (width + 1) * (int("target" in settings.user.parts) + int(reads_query))
    extra += sum(part in CAUSAL for part in settings.user.parts)
    neighbours = None
    if reads_links and settings.graph == "neighbours":
        neighbours = Neighbours(
            groups=d.relations, relations=d.match.relations, width=width, dropout=settings.dropout
        )  # fmt: skip
        extra += width + 1
    joined, joined_width = _interaction(settings, extra)
    towers = sharing(
        settings.sharing,
        in_width=joined_width,
        hidden=[] if settings.interaction == "dot" else settings.hidden,
        tasks=len(tasks),
        experts=settings.experts,
        dropout=settings.dropout,
    )
    speaks = settings.interaction != "dot"  # what stands beside the two vectors, to the logit by itself
    wide = settings.wide and speaks
    model = CTRModel(
        text_encoder=text_encoder,
        ad_encoder=_entity(settings, d.ads, d.text, d.ad_identities, d.ad_hashed, _semantic(settings, d.text)),
        user_profile=_entity(settings, d.users, d.text if reads_interests else 0, d.user_identities, d.user_hashed),
        user_encoder=UserEncoder(
            width=width,
            parts=[_user_part(name, width) for name in settings.user.parts],
            heads=settings.user.heads,
            window=settings.user.window,
            length=settings.user.sequence,
            layers=settings.user.layers,
            skipped=settings.user.skipped,
            dropout=settings.dropout,
        ),
        fields=fields,
        matches=matches,
        interaction=joined,
        sharing=towers,
        sharing_width=towers.out_width,
        tasks=len(tasks),
        query=nn.Sequential(nn.LayerNorm(d.text), nn.Linear(d.text, width)) if reads_query else None,
        position_bias=_position_bias(d) if settings.position_bias else None,
        interest=_interest(d, width) if next_category else None,
        presupposes=tuple(task.after for task in tasks),
        wide=nn.Linear(extra, len(tasks), bias=False) if wide else None,
        wide_lists=ListWeights(cardinalities=d.ads.list_cardinalities, tasks=len(tasks))
        if wide and d.ads.list_cardinalities
        else None,
        late=_late(settings, d, matches, len(tasks)) if is_late else None,
        crosses=_crosses(settings, d, len(tasks)) if speaks and settings.crosses and d.ads.vectors else None,
        modality_dropout=settings.modality_dropout,
        neighbours=neighbours,
        paths=d.paths if reads_links else None,
        search=_search(settings, d),
    )
    if model.ad_encoder.semantic is not None and centres is not None:
        model.ad_encoder.semantic.centres.copy_(torch.from_numpy(centres))
    model.start_at([task.start(None if task.after is None else tasks[task.after]) for task in tasks])
    return model


def own_vectors(settings: ModelSettings, table: Literal["ads", "users"], ids: pa.Array, impressions: pa.Array) -> OwnVectors:
    """Which of the ads (users) that training has seen have a vector of their own."""
    if table not in settings.identities:
        return NOBODYS
    return OwnVectors.of(ids, impressions, min_count=settings.identity_min_count, most_rows=settings.identity_rows)


def build_tasks(settings: Sequence[TaskSettings]) -> tuple[Task, ...]:
    """Tasks as declared, before `Task.fitted`."""
    names: list[str] = [task.name for task in settings]
    return tuple(
        Task(
            name=task.name,
            is_binary=task.is_binary,
            weight=task.weight,
            after=names.index(task.after) if task.after is not None else None,
            log1p=task.name == "dwell_seconds",
        )
        for task in settings
    )


def _search(settings: ModelSettings, d: Dimensions) -> CategorySearch | HashedSearch | None:
    user = settings.user
    if user.search == "none":
        return None
    if user.search == "hashed" and d.text:
        return HashedSearch(top=user.search_top, text_width=d.text)
    if user.search == "category" and d.category is not None:
        return CategorySearch(top=user.search_top, category=d.category)
    raise ConfigError(f"model.user.search: {user.search} has nothing to search by. Set it to none.")


def _interaction(settings: ModelSettings, extra: int) -> tuple[nn.Module, int]:
    """One of ours, or of an installed package; and the width of its result."""
    if settings.interaction in INTERACTIONS:
        own = interaction(
            settings.interaction,
            width=settings.width,
            extra=extra,
            cross_layers=settings.cross_layers,
        )
        return own, own.out_width
    built = _of_a_package(settings.interaction, "interaction", width=settings.width, extra=extra)
    width = getattr(built, "out_width", None)
    if not isinstance(width, int):
        raise ConfigError(f"interaction '{settings.interaction}': its module says no out_width, the width of its result.")
    return built, width


def _user_part(name: str, width: int) -> Part | nn.Module:
    """The name of one of ours, or the module of an installed package."""
    return name if name in PARTS else _of_a_package(name, "user part", width=width)


def _of_a_package(name: str, kind: str, **sizes: int) -> nn.Module:
    plugin: ModelPart = load(name, "adrec.models", ModelPart, kind)
    if plugin.kind != kind:
        raise ConfigError(f"{kind} '{name}': the package names it a {plugin.kind}.")
    built = plugin.build(**sizes)
    if not isinstance(built, nn.Module):
        raise ConfigError(f"{kind} '{name}': the package builds a {type(built).__name__}, not a torch module.")
    return built


def _interest(d: Dimensions, width: int) -> nn.Linear:
    return nn.Linear(width, d.ads.cardinalities[d.category or 0])


def _position_bias(d: Dimensions) -> PositionBias:
    placements = 1 if d.placement is None else d.impressions.cardinalities[d.placement]
    return PositionBias(slots=POSITION_SLOTS, placements=placements, placement=d.placement)


def _fields(shape: FeatureShape, width: int) -> Fields:
    return Fields(
        numeric=shape.numeric, cardinalities=shape.cardinalities, list_cardinalities=shape.list_cardinalities, width=width
    )


def _crosses(settings: ModelSettings, d: Dimensions, tasks: int) -> Crosses:
    users, moments = (
        Factors(
            numeric=shape.numeric,
            cardinalities=shape.cardinalities,
            list_cardinalities=shape.list_cardinalities,
            vectors=shape.vectors,
            width=len(d.ads.vectors) * settings.crosses * tasks,
        )
        for shape in (d.users, d.impressions)
    )
    return Crosses(widths=d.ads.vectors, users=users, moments=moments, rank=settings.crosses, tasks=tasks)


def _late(settings: ModelSettings, d: Dimensions, matches: Matches, tasks: int) -> LateFusion:
    return LateFusion(
        widths=d.ads.vectors, match_widths=matches.modality_widths, width=settings.width, tasks=tasks, dropout=settings.dropout
    )


def _semantic(settings: ModelSettings, text: int) -> SemanticIds | None:
    asked = settings.semantic_ids
    if asked is not None and not text:
        raise ConfigError("model.semantic_ids: there is no text to make them of. Set it to null.")
    if asked is None:
        return None
    return SemanticIds(text_width=text, levels=asked.levels, codes=asked.codes, width=settings.width)


def _entity(
    settings: ModelSettings,
    shape: FeatureShape,
    text: int,
    identities: int,
    hashed: int,
    semantic: SemanticIds | None = None,
) -> EntityEncoder:
    modalities = None
    if shape.vectors and settings.fusion != "late":
        modalities = Modalities(widths=shape.vectors, width=settings.width, dropout=settings.dropout, fusion=settings.fusion)
    return EntityEncoder(
        text_width=text,
        fields=_fields(shape, settings.feature_width),
        width=settings.width,
        identities=identities,
        hashed=hashed,
        by_rows=settings.identity_optimizer == "rowwise",
        identity_dropout=IDENTITY_DROPOUT,
        dropout=settings.dropout,
        modalities=modalities,
        semantic=semantic,
    )
