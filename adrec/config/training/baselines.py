"""Which simple models train beside the neural one, and how trees and network are joined. Sections of the finetune config."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from adrec.config.base import Config
from adrec.plugins import names_of, own_names

BaselineName = Literal[
    "popularity",
    "recent_popularity",
    "smoothed_ctr",
    "item_rate",
    "category_affinity",
    "tfidf",
    "encoder_cosine",
    "content",
    "user_cf",
    "item_cf",
    "matrix_factorisation",
    "ease",
    "item_transitions",
    "logistic",
    "conditional_logit",
    "mlp",
    "lightgbm",
    "lightgbm_ranker",
]


OWN_BASELINES: tuple[str, ...] = get_args(BaselineName)


AnyBaseline = Annotated[str, names_of(OWN_BASELINES, "adrec.baselines", "baseline"), own_names(OWN_BASELINES)]
"""One of ours, or one that an installed package names under `adrec.baselines`."""

HYBRID_MEMBERS = frozenset({"lightgbm", "lightgbm_ranker", "conditional_logit", "logistic", "mlp"})
"""Baselines strong enough to score beside the network."""
CLICK_MEMBERS = (
    *("popularity", "recent_popularity", "tfidf", "encoder_cosine", "user_cf", "item_cf", "matrix_factorisation"),
    *("ease", "item_transitions", "conditional_logit", "lightgbm_ranker"),
)
"""Baselines for logs of clicks alone, all of which a hybrid may join there."""


class BaselinesConfig(Config):
    """Simple models that are trained, saved in the bundle and scored beside the neural one."""

    names: list[AnyBaseline] = [
        "popularity",
        "smoothed_ctr",
        "item_rate",
        "category_affinity",
        "tfidf",
        "encoder_cosine",
        "content",
        "user_cf",
        "item_cf",
        "matrix_factorisation",
        "logistic",
        "conditional_logit",
        "mlp",
        "lightgbm",
        "lightgbm_ranker",
    ]
    """Which ones; those whose inputs the data lacks are left out with a note. [] for none. Those of other packages
    go by the name of their entry point. Where they are not named, a log of clicks alone gets those that rank: popularity,
    recent popularity, texts, neighbours, factorisation, EASE, transitions, conditional logit and the LightGBM ranker."""
    max_rows: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 1_000_000
    """Above this many training rows the baselines learn from a random sample of whole requests."""


class HybridConfig(Config):
    """One scorer from the network and the strong simple models: trees, conditional logit, logistic regression, MLP."""

    kind: Literal["none", "single", "average", "weighted", "stack", "auto"] = "auto"
    """none: the network alone. single: the best simple model alone. average: half the network's standardised logit, half the
    mean of those not clearly worse than the best of them. weighted: non-negative weights learned on validation rows. stack:
    trees on top, which read the network's logit among their features. auto: weighted (average where clicks are few), or
    another kind that is better by more than chance on validation rows, in the metric that training monitors."""
    also: list[Literal["user_cf", "item_cf", "matrix_factorisation", "ease", "item_transitions"]] = []
    """Baselines on who clicked what that join too, where `baselines.names` has them: for logs without moments, in which no
    counter says what these know. A log of clicks alone joins them as it is."""
