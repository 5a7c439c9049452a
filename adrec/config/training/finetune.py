"""Config of `adrec finetune`: the model, what it learns, how it is trained, and what stands beside it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from adrec.config.base import Config, ConfigPath, EncoderReference, OnDevice, Seeded, TrustsKeys
from adrec.config.cluster import TrainsOnCluster
from adrec.config.retired import not_gone
from adrec.config.training.baselines import CLICK_MEMBERS, HYBRID_MEMBERS, BaselinesConfig, HybridConfig
from adrec.config.training.delay import DelaySettings
from adrec.config.training.loop import TrainingConfig
from adrec.config.training.privacy import TrainingPrivacy
from adrec.errors import ConfigError
from adrec.plugins import names_of, own_names
from adrec.specs import Pooling

_INTERACTIONS = ("dot", "mlp", "dcn")
_USER_PARTS = ("mean", "soft", "global", "local", "gru", "sasrec", "hstu", "target")
_CAUSAL = {"sasrec", "hstu"}
_JOINS = HYBRID_MEMBERS | {"ease", "item_transitions"}
"""Baselines that a hybrid can join with the network."""
Interaction = Annotated[
    str, BeforeValidator(not_gone), names_of(_INTERACTIONS, "adrec.models", "interaction"), own_names(_INTERACTIONS)
]
UserPart = Annotated[str, names_of(_USER_PARTS, "adrec.models", "user part"), own_names(_USER_PARTS)]
Share = Annotated[float, Field(ge=0, le=1)]


class TextEncoderSettings(Config):
    """Which language model reads the ads, and how much of it is trained."""

    reference: EncoderReference | None = None
    """Local folder, `package:module/path`, hub name or word-vector folder; None: no text, features alone."""
    pooling: Pooling | None = None
    """How token vectors become one; None takes what the encoder records."""
    train: Literal["frozen", "last", "lora", "full"] = "frozen"
    """frozen: vectors computed once and cached. last: upper `last_layers` are trained. lora: low-rank updates. full: all."""
    last_layers: Annotated[int, Field(ge=1, le=1_000)] = 2
    """How many upper layers `last` trains."""
    lora_rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rank of the LoRA updates."""
    lexical: Annotated[int, Field(ge=0, le=4096)] = 0
    """Width of a vector of the text's words (latent semantic analysis of the ads) beside the encoder's; 0: none. It helps
    where the encoder is small or was trained on little text."""
    max_tokens: Annotated[int, Field(ge=4, le=1_000_000)] | None = None
    """Longer texts are cut; None takes what the encoder records, else 512. Up to as many as the model has positions for."""
    prompts: dict[Literal["document", "query"], str] | None = None
    """What stands before each text: `document` before ads, `query` before queries and interests, such as {document:
    "passage: ", query: "query: "}. None takes what the encoder records, {} none."""
    dimensions: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """So many first numbers of each vector are kept, for encoders trained so (Matryoshka); None: all."""
    batch_tokens: Annotated[int, Field(ge=64, le=100_000_000)] = 8192
    """Tokens encoded at once, padding included."""
    learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 2e-5
    """Peak learning rate of the encoder's trained weights."""
    cache: ConfigPath | None = None
    """Folder of cached vectors; None is the user's cache folder."""


class UserEncoderSettings(Config):
    """How the history becomes a user vector."""

    parts: Annotated[list[UserPart], Field(min_length=1)] = ["soft"]
    """Any of: mean; soft (additive attention); global (self-attention, NRMS); local (newest `window` clicks with their time
    gaps); gru; sasrec, hstu (the state of a causal transformer after the newest click); target (the history as this candidate
    sees it, DIN); those of other packages."""
    max_history: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Newest clicks read."""
    heads: Annotated[int, Field(ge=1, le=1_024)] = 4
    """Attention heads of global, local, sasrec and hstu."""
    window: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Clicks that local reads."""
    sequence: Annotated[int, Field(ge=2, le=10_000)] = 50
    """Newest clicks that sasrec and hstu read; their cost grows with its square."""
    layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Layers of sasrec and hstu."""
    search: Literal["none", "category", "hashed"] = "none"
    """Which clicks of a long history target attends to. none: all. category: the newest of the candidate's category (SIM hard).
    hashed: those whose texts' codes share most bits with the candidate's (SimHash, ETA; a frozen text encoder). The other parts
    then read the newest `search_top`, so that 10,000 clicks cost little more than 50."""
    search_top: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Clicks that are found, at most."""
    skipped: bool = False
    """Read ads that were shown earlier and not clicked (needs `history.max_skipped` in preprocess)."""

    @field_validator("parts")
    @classmethod
    def _distinct(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) != len(parts):
            raise ValueError("names a part twice")
        return parts

    @model_validator(mode="after")
    def _finds_for_target(self) -> "UserEncoderSettings":
        if self.search != "none" and "target" not in self.parts:
            raise ValueError(f"search: {self.search} finds the clicks that target attends to. Name target in parts")
        return self


class SemanticIdSettings(Config):
    """Codes of an ad's text, that ads of like text share."""

    levels: Annotated[int, Field(ge=1, le=16)] = 3
    """Codes an ad: each level says what the earlier ones leave open."""
    codes: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Different ones of a level."""


class ModelSettings(Config):
    """The model's shape."""

    width: Annotated[int, Field(ge=4, le=65_536)] = 128
    """Width of ad and user vectors."""
    user: UserEncoderSettings = UserEncoderSettings()
    """User encoder."""
    interaction: Interaction = "mlp"
    """How user, ad and features meet; `dot` lets nothing but the two vectors speak (for retrieval).
    Those of other packages go by the name of their entry point."""
    cross_layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Cross layers of dcn."""
    sharing: Literal["shared", "separate", "mmoe", "ple"] = "shared"
    """What the tasks share above the interaction."""
    experts: Annotated[int, Field(ge=1, le=1_024)] = 4
    """Experts of mmoe; experts of each task and common ones of ple."""
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = [128, 64]
    """Widths of the layers between interaction and output."""
    feature_width: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Width of the embeddings of categorical and list features."""
    text_match: bool = True
    """Give the scorer the cosines between the candidate's text and history, interests and query."""
    taste: bool = False
    """Weigh a user's clicks against what the user was shown and did not click, by text: a ridge regression for each user,
    whose own level is left out. One more match, for all models (needs `history.max_skipped` in preprocess, and a text encoder).
    It helps where users answer often, yes and no, as raters do."""
    fusion: Literal["concatenation", "gated", "cross_attention", "late"] = "concatenation"
    """How the vectors of ads and users (`features.ads.vectors`) join: concatenation: beside text and features, projected
    together. gated: each as far as a gate over all of them lets it. cross_attention: text and vectors look at each other.
    late: each by itself to the logit, those of ads alone."""
    crosses: Annotated[int, Field(ge=0, le=256)] = 8
    """Rank of what each feature of users and impressions makes of each vector of the ads ("the young like red pictures"), added
    to the logits: a product where other layers must build one. 0: off."""
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of vectors that count as missing in a training step, each modality by itself."""
    graph: Literal["neighbours", "shared", "none"] = "neighbours"
    """Where a list of ads has `paths` (docs/data/graph.md). shared: tell the scorer how many of a user's clicks are linked to
    what the candidate is linked to, by relation. neighbours: that, and attention over what the candidate is linked to (KGCN).
    none: the list is a list like others."""
    wide: bool = True
    """Let features and text matches speak to the logit through a linear map beside the deep part."""
    query: bool = True
    """Read the search query, where impressions have one."""
    interests: bool = True
    """Read the users' interests text."""
    identities: list[Literal["ads", "users"]] = []
    """Give ads or users seen in training a vector of their own."""
    identity_min_count: Annotated[int, Field(ge=1)] = 1
    """Ads and users of fewer training rows share the vector of the unseen."""
    identity_rows: Annotated[int, Field(ge=2, le=40_000)] | None = None
    """Where more ads (users) than this have a vector of their own, each is the product of two rows of tables of so many rows,
    found by hash: memory and steps cost the same for ten thousand and ten million. None: a row each."""
    identity_optimizer: Literal["adamw", "rowwise"] = "adamw"
    """How vectors of their own learn. adamw: as all else; each step moves every row. rowwise: row-wise AdaGrad, at ten times
    the learning rate; a step moves the rows that its batch names, at the same cost for ten thousand and ten million, and a row
    takes its numbers and one more, where AdamW takes four for each. With `training.strategy: fsdp` or `hsdp` each process holds
    its share of the rows, and a step exchanges those that it names alone."""
    semantic_ids: SemanticIdSettings | None = None
    """Give each ad the vectors of a few codes of its text (residual k-means over the vectors of training's ads), which ads of
    like text share, unseen ones too; needs a frozen text encoder. None: no codes."""
    position_bias: bool = False
    """Learn what the slot (`position`) adds to a click's log-odds, in each scenario, apart from what the ad is worth. Rows with
    a known slot, places of lists among them, are scored in it; candidates, whose slot nobody knows yet, for any slot."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout in all parts."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_made(cls, values: Any, info: ValidationInfo) -> Any:
        """A bundle whose config says nothing of `crosses` was made before there were any."""
        if isinstance(values, dict) and (info.context or {}).get("of_an_output"):
            return {"crosses": 0, **values}
        return values


class TaskSettings(Config):
    """One label the model learns."""

    name: Literal["click", "conversion", "rating", "dwell_seconds"] = "click"
    """Column of the impressions."""
    kind: Literal["binary", "regression"] | None = None
    """binary: probability, cross-entropy. regression: a number, squared error of its standardised value (log1p first for
    dwell_seconds). None: binary for click and conversion."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight in the loss where weights are fixed."""
    after: str | None = None
    """ESMM: the task that must happen first; then this output is the probability of both."""

    @property
    def is_binary(self) -> bool:
        """Whether the output is a probability."""
        return (self.kind or ("binary" if self.name in {"click", "conversion"} else "regression")) == "binary"


class LossTerm(Config):
    """One term of the main task's loss."""

    kind: Literal["bce", "listwise", "bpr", "in_batch", "next_click"] = "bce"
    """bce: pointwise. listwise: softmax over each group. bpr: each positive against each negative of its group.
    in_batch: the user's vector against the ads of the batch's other positives, corrected for popularity (logQ). next_click:
    after each click of a history the next one, against other clicks of the batch's histories, corrected likewise (needs sasrec
    or hstu in `model.user.parts`, which learn by it; no label is read)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the term."""


class LossSettings(Config):
    """What is minimised, and over which rows."""

    terms: Annotated[list[LossTerm], Field(min_length=1)] = [LossTerm()]
    """Terms of the main task; other tasks use their own cross-entropy or squared error."""
    negatives: Annotated[int, Field(ge=1)] | None = None
    """Train on each positive with so many negatives of its request, drawn anew each epoch; None: on whole requests."""
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of negatives kept, drawn anew each epoch; undone exactly when probabilities are calibrated."""
    task_weights: Literal["fixed", "uncertainty"] = "fixed"
    """uncertainty: learned from each task's noise (Kendall et al. 2018)."""
    next_category: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the auxiliary task: from the user alone, the category of the ad that gets clicked. 0: off."""

    @model_validator(mode="after")
    def _one_sampling(self) -> "LossSettings":
        if self.negatives is not None and self.negative_rate < 1:
            raise ValueError("`negatives` and `negative_rate` are two ways of sampling: use one")
        return self


class FinetuneTraining(TrainingConfig):
    """The shared training settings, with what only a click model needs."""

    learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 1e-3
    """Peak learning rate of AdamW for all but the text encoder."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    batch_rows: Annotated[int, Field(ge=1, le=100_000_000)] = 1024
    """Rows a batch, about: whole groups are kept together."""
    monitor: Literal["auto", "auc", "auc_request", "log_loss"] = "auto"
    """Validation metric that picks the best weights; auto: auc_request where requests have several ads, else auc."""
    in_memory_rows: Annotated[int, Field(ge=0)] = 2_000_000
    """Training splits of more rows are streamed in constant memory."""


class FinetuneConfig(OnDevice, Seeded, TrustsKeys, TrainsOnCluster):
    """Train a click model on a prepared folder. Reads `prepared`; writes the bundle `output`."""

    prepared: ConfigPath
    """Folder made by `adrec preprocess`."""
    output: ConfigPath
    """Bundle folder to write."""
    start_from: ConfigPath | Annotated[list[ConfigPath], Field(min_length=1)] | None = None
    """Bundle to go on from, of yesterday or of another log: weights are taken over wherever both have the column, the value,
    the ad, the task; the rest, the optimiser, trees and calibration are made anew. Several, of several markets: each has a
    network of its own among the `seeds`, which take turns; encoder and scales are those of the first."""
    replay: Annotated[Share, Field(gt=0)] = 1.0
    """Share of the requests up to the last one that the bundle of `start_from` has learned which the network learns again,
    drawn by `seed`; later requests are all learned. Leave it at 1 where that bundle is of another log."""
    carried_rate: Share = 1.0
    """Of the learning rate, for weights that came whole from the bundle of `start_from`: below 1 they move less than what is
    new here, at 0 they stay as they are and only what is new and the outputs learn."""
    carried_scales: bool | None = None
    """Read columns that the bundle of `start_from` has too on its scales and by its vocabularies, new values behind its own,
    rather than by those fitted on these rows. None: where there are fewer than 10,000 rows, which fit them badly."""
    text: TextEncoderSettings = TextEncoderSettings()
    """Text encoder."""
    model: ModelSettings = ModelSettings()
    """Model."""
    tasks: Annotated[list[TaskSettings], Field(min_length=1)] = [TaskSettings()]
    """What is learned; the first is the main task, whose probability is `score`."""
    loss: LossSettings = LossSettings()
    """Loss and sampling."""
    delay: DelaySettings = DelaySettings()
    """Labels that come late."""
    training: FinetuneTraining = FinetuneTraining()
    """Optimiser and stopping."""
    calibration: Literal["auto", "none", "temperature", "platt", "isotonic"] = "auto"
    """Map from logit to probability, fitted on validation rows; auto takes the best by cross-fitted log loss, with fewer than
    50 clicks the click rate or nearly so, unless the logits as they are do better."""
    baselines: BaselinesConfig = BaselinesConfig()
    """Simple models trained beside the network and reported with it."""
    hybrid: HybridConfig = HybridConfig()
    """Joins the network with the strong ones among the baselines into one scorer."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Train so many times, with seeds `seed`, `seed + 1`, ...; the bundle keeps the best, the result reports all."""
    ensemble: bool = False
    """Keep the networks of all seeds and score by the mean of their logits, rather than the best one alone."""
    recall_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 200
    """Validation requests that are scored against all ads, to tell how many of the best retrieval finds; fewer where ads are
    many. 0: none."""
    privacy: TrainingPrivacy | None = None
    """Differential privacy: an upper bound on what the bundle tells of any user, counted over all its files. None: none."""
    refit: bool = False
    """When all is chosen, train network and baselines once more on training and validation rows together, for as long as was
    best: the newest days are learned too. What validation chose stays: steps, trees, hybrid, calibration, and the metrics."""

    @property
    def sources(self) -> list[Path]:
        """The bundles of `start_from`."""
        start = self.start_from
        return [] if start is None else start if isinstance(start, list) else [start]

    @property
    def learned_splits(self) -> tuple[str, ...]:
        """What the model in the bundle has learned from."""
        return ("train", "valid") if self.refit else ("train",)

    @property
    def learns_next_click(self) -> bool:
        """Whether histories are learned from by themselves."""
        return any(term.kind == "next_click" for term in self.loss.terms)

    def _next_click_fits(self) -> None:
        if not self.learns_next_click:
            return
        if not _CAUSAL & set(self.model.user.parts):
            raise ValueError("loss.terms: next_click teaches the states of sasrec or hstu. Name one in model.user.parts")
        if all(term.kind == "next_click" for term in self.loss.terms):
            raise ValueError("loss.terms: next_click alone teaches no score. Name a term of the label beside it")

    @model_validator(mode="after")
    def _tasks_fit(self) -> "FinetuneConfig":
        names: list[str] = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("tasks: the same name twice")
        if self.hybrid.kind not in {"none", "auto"} and not _JOINS & set(self.baselines.names):
            raise ValueError(f"hybrid: needs one of {', '.join(sorted(HYBRID_MEMBERS))} among `baselines.names`")
        if lacking := set(self.hybrid.also) - set(self.baselines.names):
            raise ValueError(f"hybrid.also: '{min(lacking)}' is not among `baselines.names`")
        self._next_click_fits()
        is_frozen = self.text.reference is not None and self.text.train == "frozen"
        if self.model.user.search == "hashed" and not is_frozen:
            raise ValueError(
                "model.user.search: hashed compares vectors of a frozen encoder. Set text.reference to one, or take category"
            )
        if self.model.semantic_ids is not None and not is_frozen:
            raise ValueError("model.semantic_ids: are codes of a frozen encoder's vectors. Set text.reference to one, or null")
        if self.replay < 1 and self.start_from is None:
            raise ValueError("replay: needs `start_from`, the bundle that has learned the rows before")
        if len(self.sources) > self.seeds:
            raise ValueError(
                f"start_from: {len(self.sources)} bundles, and each needs a network of its own. Set seeds to "
                f"{len(self.sources)} or more, and ensemble to true to score by all of them"
            )
        if self.delay.method in {"dfm", "es_dfm", "fnw"} and (self.loss.negatives is not None or self.loss.negative_rate < 1):
            raise ValueError(f"delay: {self.delay.method} weighs all rows. Leave loss.negatives and loss.negative_rate out")
        if self.carried_rate < 1 and self.start_from is None:
            raise ValueError("carried_rate: needs `start_from`, the bundle whose weights are carried")
        if not self.tasks[0].is_binary:
            raise ValueError("tasks: the first task is the one `score` reports, so it must be binary")
        if self.ensemble and self.text.train != "frozen":
            raise ValueError("ensemble: needs a frozen text encoder, which all its networks share")
        for task in self.tasks:
            if task.after is not None and (task.after not in names or task.after == task.name or not task.is_binary):
                raise ValueError(f"tasks: '{task.name}' comes after '{task.after}', which must be another binary task")
            if task.after is not None and not self.tasks[names.index(task.after)].is_binary:
                raise ValueError(f"tasks: '{task.name}' comes after '{task.after}', which is a number and does not happen")
        for task in self.tasks:
            chain: list[str] = [task.name]
            while (before := self.tasks[names.index(chain[-1])].after) is not None:
                if before in chain:
                    raise ValueError(f"tasks: {' after '.join([*chain, before])}: a task cannot come after itself")
                chain.append(before)
        return self


def for_clicks_alone(config: FinetuneConfig, *, uniform: bool) -> FinetuneConfig:
    """The config where negatives were drawn: what it does not name becomes what suits clicks alone.

    A softmax over each click and its negatives, the baselines that rank, and, for `uniform` draws, a hybrid of all of them.
    Raises ConfigError for a hybrid of other draws.
    """
    changes: dict[str, object] = {}
    if "terms" not in config.loss.model_fields_set:
        changes["loss"] = config.loss.model_copy(update={"terms": [LossTerm(kind="listwise")]})
    if "names" not in config.baselines.model_fields_set:
        changes["baselines"] = config.baselines.model_copy(update={"names": list(CLICK_MEMBERS)})
    if "kind" not in config.hybrid.model_fields_set:
        names = config.baselines.names if "names" in config.baselines.model_fields_set else CLICK_MEMBERS
        joins = uniform and bool(_JOINS & set(names))
        changes["hybrid"] = config.hybrid.model_copy(update={"kind": "weighted" if joins else "none"})
    elif not uniform and config.hybrid.kind != "none":
        raise ConfigError(
            "hybrid: its members but the network do not know that negatives were drawn by popularity. Set hybrid.kind to none, "
            "or negatives.draw to uniform in the preprocess config."
        )
    return config.model_copy(update=changes)
