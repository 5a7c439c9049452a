"""Settings that follow from what a log is: one recipe for the configs that `init` writes and for those that are shipped.

Pure functions from a few counts to plain values; nothing is read here. The figures behind the rules: docs/training/finetune.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adrec.explore.guessing.zone import likely_zone

LEAST_TEXTS, LEAST_CLICKS_FOR_TEXT = 200, 200
"""Below these an encoder from scratch learns nothing that the words themselves do not say."""
_MOST_SEGMENTS = 3
_CANDIDATES_OF_A_RANKING = 10
_STEPS = 600
_IN_BATCH = {"bce": 0.03, "listwise": 0.3}
"""Weight of the loss that trains retrieval, beside that of the clicks: more and it outweighs them (docs/training/models.md)."""
_PHRASES = {"column": "title", "separator": [",", "，", "|"], "min_count": 10}


@dataclass(frozen=True)
class Facts:
    """What a look at the log says, before any of it is prepared. Counts may be estimates from its head."""

    rows: int
    """Impressions, or rows of counts."""
    clicks: float
    """Rows that were clicked, or the sum of clicks."""
    ads: int = 1
    users: int = 0
    """Different users; 0 where rows name none."""
    rows_a_request: float = 1.0
    """Ads that a request shows, on average; 1 where rows stand alone."""
    texts: int = 0
    """Different texts of ads; 0 without any."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Share of the texts of each language, as `profile_texts` gives them: zh, en, other."""
    hours: Sequence[float] = ()
    """Impressions in each of the 24 hours of a day, as the moments say them in UTC; empty without moments."""
    has_time: bool = True
    has_spread: bool = True
    """Whether there are moments enough to split by: a sample of one hour has none."""
    has_category: bool = False
    """Whether ads have a `category`."""
    has_description: bool = False
    has_interests: bool = False
    has_bid: bool = False
    is_clicks_alone: bool = False
    """Whether every row is a click, and what was not clicked is drawn."""
    has_position: bool = False
    """Whether rows say the slot that the ad was shown in."""
    segments: Sequence[str] = ()
    """Columns of users (or rows) that hold one of a few values, such as an age band; the most telling first."""
    split_given: bool = False
    """Whether the files themselves say what is for training and what for the test."""

    @property
    def split(self) -> tuple[float, float]:
        """Shares for validation and test: small logs need more of both to judge anything."""
        return (0.15, 0.25) if self.rows < 5_000 else (0.1, 0.2) if self.rows < 1_000_000 else (0.05, 0.1)

    @property
    def train_rows(self) -> int:
        """Rows that training will see, about."""
        return max(1, round(self.rows * (1 - sum(self.split))))

    @property
    def pretrains(self) -> bool:
        """Whether there is enough text, and are enough clicks, for an encoder of one's own."""
        return self.texts >= LEAST_TEXTS and self.clicks >= LEAST_CLICKS_FOR_TEXT


@dataclass(frozen=True)
class Recipe:
    """Sections of the configs, as nested values that YAML can hold. Keys that the recipe does not set are left to the caller:
    paths, sources, columns, and `text.reference` where `pretrain` is not None.
    """

    preprocess: dict[str, Any]
    """`split` (unless the files give it), `history`, `counters`, `tokenizer`, and of `features` what is not a column of the
    user's: `impressions.numeric` and `impressions.calendar`, `ads.lists`."""
    pretrain: dict[str, Any] | None
    """None: there is too little text; `notes` says so, and `finetune.text.reference` is None."""
    finetune: dict[str, Any]
    tune: dict[str, Any]
    serve: dict[str, Any]
    why: dict[str, str]
    """Dotted key, such as `finetune.training.batch_rows` → a comment for its line."""
    notes: list[str]
    """Sentences for whoever runs `init`."""


def recipe(facts: Facts) -> Recipe:
    """All settings that follow from `facts`."""
    why: dict[str, str] = {}
    notes: list[str] = []
    return Recipe(
        preprocess=_preprocess(facts, why, notes),
        pretrain=_pretrain(facts, why, notes),
        finetune=_finetune(facts, why),
        tune=_tune(facts),
        serve=_serve(facts),
        why=why,
        notes=notes,
    )


def batch_rows(train_rows: int) -> int:
    """Rows a batch: a power of two, small enough for about 130 steps an epoch, between 32 and 4,096."""
    return int(2 ** min(max(round(math.log2(max(train_rows, 1) / 130)), 5), 9 if train_rows < 1_000_000 else 12))


def epochs(train_rows: int) -> int:
    """Passes over the rows: few rows are seen more often, so that no log is trained for less than about 600 steps."""
    if train_rows >= 300_000:
        return 3 if train_rows < 3_000_000 else 1
    return min(max(math.ceil(_STEPS * batch_rows(train_rows) / max(train_rows, 1)), 6), 60)


def _preprocess(facts: Facts, why: dict[str, str], notes: list[str]) -> dict[str, Any]:
    numeric: list[Any] = []
    settings: dict[str, Any] = {}
    if not facts.split_given:
        settings["split"] = _split(facts)
    has_history = facts.has_time and facts.users > 1
    if has_history:
        settings["history"] = {"max_clicks": 50, "max_skipped": 20}
        why["preprocess.history.max_skipped"] = "what was shown and not clicked tells too"
    if facts.has_time:
        settings["counters"] = _counters(facts)
        numeric = [{"column": "counter_*"}, *([{"column": "history_length", "transform": "log1p"}] if has_history else [])]
    settings["tokenizer"] = {"kind": "none"}
    if facts.pretrains:
        # An entry that stands in fewer than a handful of texts is learned by nobody.
        settings["tokenizer"] = {"kind": "wordpiece", "vocab_size": 6_000 if facts.texts < 20_000 else 16_000}
    features: dict[str, Any] = {}
    if facts.has_time:
        zone, reason = likely_zone(facts.languages, facts.hours)
        features["impressions"] = {"numeric": numeric, "calendar": {"time_zone": zone}}
        why["preprocess.features.impressions.calendar.time_zone"] = f"a guess: {reason}"
        notes.append(f"the hour of the day is read in {zone}, a guess: {reason}.")
    if facts.texts:
        # Where ads are too few for an encoder, their words are inputs of their own.
        lists = [_PHRASES] if facts.pretrains else ["segmented"] if facts.ads < facts.rows / 2 else []
        if lists:
            features["ads"] = {"lists": lists}
            saying = "what titles say between commas, such as an offer" if facts.pretrains else "the words of the text"
            why["preprocess.features.ads.lists"] = saying
    if features:
        settings["features"] = features
    return settings


def _split(facts: Facts) -> dict[str, Any]:
    valid, test = facts.split
    shares = {"valid_fraction": valid, "test_fraction": test}
    if facts.has_time and facts.has_spread:
        return {"method": "time", **shares}
    return {"method": "random", "unit": "request" if facts.rows_a_request > 1 else "row", **shares}


def _counters(facts: Facts) -> list[Any]:
    """The usual ones, and what one segment likes and another may not: its click rates by category and by language."""

    def rate(*by: str) -> dict[str, Any]:
        return {"by": list(by), "measures": ["rate"], "prior_strength": 100}

    segments = list(facts.segments)[:_MOST_SEGMENTS] if facts.users > 1 else []
    counters: list[Any] = ["usual"]
    if facts.has_category:
        counters += [rate(segment, "category") for segment in segments]
    if len([share for share in facts.languages.values() if share >= 0.05]) > 1:
        speaking = ["user_language"] if facts.has_interests else []
        counters += [rate(segment, "language") for segment in [*speaking, *segments]]
    return counters


def _pretrain(facts: Facts, why: dict[str, str], notes: list[str]) -> dict[str, Any] | None:
    if not facts.pretrains:
        if facts.texts:
            notes.append(
                f"{facts.texts:,} different texts and {facts.clicks:,.0f} clicks are too few to train a language model on"
                f" (it takes {LEAST_TEXTS} of each): pretrain-mlm is left out, and words are inputs of their own."
            )
        return None
    positives = ["categories"] if facts.has_category else ["parts"] if facts.has_description else []
    objectives: dict[str, Any] = {"mlm": {"weight": 1.0, "whole_words": True}}
    if positives:
        objectives["contrastive"] = {"weight": 1.0, "positives": positives, "temperature": 0.05, "batch_texts": 64}
        why["pretrain.objectives.contrastive"] = "pulls an ad towards " + (
            "its category's name" if facts.has_category else "the rest of its text"
        )
    why["pretrain.training.epochs"] = f"{facts.texts:,} texts: the fewer, the more often"
    return {
        "model": {"kind": "scratch", "size": "tiny" if facts.texts < 100_000 else "mini"},
        "objectives": objectives,
        "batches": {"max_tokens": 64, "batch_tokens": 1024 if facts.texts < 20_000 else 4096},
        "training": {"epochs": min(max(round(1_400 / facts.texts), 1), 10), "learning_rate": 2.0e-3, "patience": None},
    }


def _finetune(facts: Facts, why: dict[str, str]) -> dict[str, Any]:
    rows = facts.train_rows
    is_ranking = facts.rows_a_request >= _CANDIDATES_OF_A_RANKING
    large = rows >= 300_000
    passes = epochs(rows)
    why["finetune.training.batch_rows"] = f"about {rows:,} training rows: {passes} passes make enough steps"
    why["finetune.training.weight_decay"] = "the fewer the rows, the stronger"
    why["finetune.hybrid"] = "what is best on validation rows by cross-fitting, a single simple model included"
    why["finetune.refit"] = "what is shipped has learned the validation rows too"
    terms: list[dict[str, Any]] = [{"kind": "listwise" if is_ranking or facts.is_clicks_alone else "bce"}]
    if facts.users > 1 and facts.ads > 1:
        terms.append({"kind": "in_batch", "weight": _IN_BATCH[terms[0]["kind"]]})
        why["finetune.loss.terms"] = "in_batch trains the two vectors that retrieval compares"
    settings: dict[str, Any] = {
        "text": {"lexical": 80},
        "model": {
            "width": 64 if large else 32,
            "user": {"parts": ["soft"]},
            "interaction": "dcn",
            "hidden": [64, 32] if large else [32],
            "dropout": 0.2 if large else 0.3,
        },
        "loss": {"terms": terms, **({"negatives": 4} if is_ranking else {})},
        "training": {
            "epochs": passes,
            "batch_rows": batch_rows(rows),
            "learning_rate": 3.0e-3,
            "weight_decay": round(min(1.0, max(0.01, 100_000 / rows)), 2),
            "patience": max(2, passes // 4),
            "monitor": "auto" if is_ranking else "auc",
        },
        "seeds": 1 if rows >= 1_000_000 else 3,
        "ensemble": rows < 1_000_000,
        "hybrid": {"kind": "auto"},
        "refit": True,
    }
    if facts.has_position:
        settings["model"]["position_bias"] = True
        why["finetune.model.position_bias"] = "what slots do to clicks is learned apart: no slot is known when ads are ranked"
    if not facts.pretrains:
        settings["text"] = {"reference": None}
        why["finetune.text.reference"] = "features alone" if not facts.texts else "too little text for an encoder"
    else:
        why["finetune.text.lexical"] = "the words themselves, beside what the encoder makes of them"
    if not settings["ensemble"]:
        del settings["ensemble"]
    return settings


def _tune(facts: Facts) -> dict[str, Any]:
    users = {"model.user.parts": {"choices": [["soft"], ["target"], ["soft", "target"]]}}
    return {
        "trials": 12,
        "space": {
            "training.learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
            "model.dropout": {"low": 0.0, "high": 0.4, "step": 0.1},
            **(users if facts.has_time and facts.users > 1 else {}),
        },
    }


def _serve(facts: Facts) -> dict[str, Any]:
    value = {"kind": "revenue"} if facts.has_bid else {"kind": "score"}
    return {"policies": {"default": {"top_n": 10, "value": value}}}
