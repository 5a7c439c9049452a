"""Rows → explanations in the user's terms: words, past clicks, interests, query and named features, and what would change.

Contributions are log-odds of the network's logit; where trees are joined to it (a hybrid) their part stands beside it as one
exact remainder, so that the sum is the bundle's own logit.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from adrec.config.training.features import WORDS
from adrec.data.arrays import combined
from adrec.data.batches.collate import Collator
from adrec.data.examples import Catalog, Examples
from adrec.data.features import FeatureSet
from adrec.inference.explain.attribution import Attribution, attribute
from adrec.inference.explain.variants import Continuous, Discrete, Row, take_apart, token_embeddings
from adrec.inference.explain.words import Word, words_from_tokens
from adrec.inference.predictor import Catalogs, Predictor, moved
from adrec.inference.rows import shown_titles

AVERAGE_OF = 1000
"""Ads whose mean text vector is the average ad."""


@dataclass(frozen=True)
class Part:
    """One contribution. `kind`: word, click, skipped, interests, query, feature, or other."""

    kind: str
    name: str
    value: str
    contribution: float
    """log-odds; above 0 speaks for the click"""


@dataclass(frozen=True)
class Explanation:
    """Why one (user, ad) got its score. `baseline` + all contributions + `missing` = `logit`."""

    user_id: str
    ad_id: str
    title: str
    language: str
    score: float
    logit: float
    baseline: float
    missing: float
    steps: int
    words: list[Word]
    parts: list[Part]
    """everything but the words, largest effect first"""

    @property
    def all_parts(self) -> list[Part]:
        """Words and other parts together, largest effect first."""
        words = [Part("word", word.text, "", word.contribution) for word in self.words]
        return sorted([*words, *self.parts], key=lambda part: -abs(part.contribution))


class Explainer:
    """Explains rows of one predictor over one set of catalogs."""

    def __init__(
        self, predictor: Predictor, catalogs: Catalogs, titles: dict[str, str], *, orders: int = 4, tolerance: float = 1e-3
    ) -> None:
        self.predictor, self.catalogs, self.titles = predictor, catalogs, titles
        self.orders, self.tolerance = orders, tolerance
        self.average = self._average_ad()

    def explain(self, examples: Examples, row: int, *, seed: int = 42) -> Explanation:
        """The explanation of one row of `examples` (over the explainer's catalogs)."""
        catalogs, packed = self.catalogs, self.predictor.packed
        one = examples.take(np.array([row]))
        self.predictor.encode(one, catalogs)
        collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
        batch = moved(collate(one, np.array([0])), self.predictor.device)
        ad, user = int(one.ad_index[0]), int(one.user_index[0])
        text = _text(catalogs.ads, ad)
        encoder = packed.encoder
        tokens = None
        if encoder is not None and text:
            input_ids, mask = encoder.tokenize([text])
            tokens = (input_ids.to(self.predictor.device), mask.to(self.predictor.device))
        taken, continuous, discrete = take_apart(self.predictor.model, encoder, batch, tokens)
        found = attribute(
            taken,
            continuous,
            discrete,
            self._start(taken, continuous, tokens),
            orders=self.orders,
            tolerance=self.tolerance,
            generator=np.random.default_rng(seed),
        )
        scores = self.predictor.score_examples(one, catalogs, baselines=False)
        logit = float(scores.logit[0])
        parts = self._parts(found, one, taken, discrete)
        if abs(logit - found.logit) > 1e-4:
            parts.append(Part("other", "trees beside the network", "", logit - found.logit))
        words: list[Word] = []
        if tokens is not None and encoder is not None:
            words = words_from_tokens(text, encoder.tokenizer, found.tokens, encoder.max_tokens)
        elif len(found.tokens):
            words = [Word(text, 0, len(text), float(found.tokens.sum()))]
        words, parts = with_listed(words, parts)
        ad_id = catalogs.ads.ids[ad].as_py()
        return Explanation(
            user_id=catalogs.users.ids[user].as_py(),
            ad_id=ad_id,
            title=self.titles.get(ad_id, text),
            language="zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en",
            score=float(scores.score[0]),
            logit=logit,
            baseline=found.baseline,
            missing=found.missing,
            steps=found.steps,
            words=words,
            parts=sorted(parts, key=lambda part: -abs(part.contribution)),
        )

    def _average_ad(self) -> torch.Tensor:
        """(D,) mean text vector of the catalogue's first ads, on the predictor's device."""
        rows = np.arange(min(AVERAGE_OF, len(self.catalogs.ads)))
        with torch.inference_mode(False), torch.no_grad():
            vectors = self.predictor.model.text_vectors(self.catalogs.ad_texts(rows))
        return vectors.mean(0).to(self.predictor.device) if vectors is not None else torch.zeros(0)

    def _start(self, row: Row, continuous: Continuous, tokens: Any) -> Continuous:
        """Masked words, average clicks, average numbers. Interests and a query that are not there stay so."""
        zero = Continuous(*(torch.zeros_like(part) for part in continuous))
        if not row.has_text:
            return zero
        encoder = self.predictor.packed.encoder
        # Word vectors have no mask, and their unknown word is the zero vector, from which a cosine has no gradient: there
        # every word starts as the average ad.
        if tokens is not None and encoder is not None and encoder.kind != "word_vectors":
            hidden = getattr(encoder.tokenizer, "mask_token_id", None)
            hidden = encoder.tokenizer.unk_token_id if hidden is None else hidden
            hidden = encoder.tokenizer.pad_token_id if hidden is None else hidden
            special = set(getattr(encoder.tokenizer, "all_special_ids", []))
            keep = torch.tensor([[int(token) in special for token in tokens[0][0]]], device=tokens[0].device)
            with torch.no_grad():
                text = token_embeddings(encoder, torch.where(keep, tokens[0], hidden))
                if encoder.lexical is not None:
                    self._average_words(text, continuous.text, keep, encoder.lexical.embedding_dim)
        else:
            text = self.average.expand_as(continuous.text)

        def average_where_given(part: torch.Tensor) -> torch.Tensor:
            if part.shape[-1] == 0:  # users without texts
                return part
            # Each part of a text vector by itself: a text whose words nobody knows has meaning, and no words.
            widths = list(encoder.parts) if encoder is not None else [part.shape[-1]]
            pieces = zip(torch.split(part, widths, -1), torch.split(self.average, widths, -1), strict=True)
            return torch.cat(
                [torch.where(own.abs().sum(-1, keepdim=True) > 0, average.expand_as(own), own) for own, average in pieces], -1
            )

        return zero._replace(
            text=text,
            clicks=average_where_given(continuous.clicks),
            skipped=average_where_given(continuous.skipped),
            interests=average_where_given(continuous.interests) if row.has_interests else zero.interests,
            query=average_where_given(continuous.query) if row.has_query else zero.query,
        )

    def _average_words(self, start: torch.Tensor, given: torch.Tensor, keep: torch.Tensor, width: int) -> None:
        """The lexical part of masked words, the last `width` numbers of `start` (1, T, E), becomes that of the average ad.

        A masked word has none, and from the zero vector a cosine jumps, which no integral sees. Together they are as long as
        the words of `given`, so that the path turns evenly.
        """
        length = given[..., -width:].sum(1, keepdim=True).norm(dim=-1, keepdim=True)
        even = torch.nn.functional.normalize(self.average[-width:], dim=-1) * length / (~keep).sum().clamp(min=1)
        start[..., -width:] = torch.where(keep[..., None], given[..., -width:], even)

    def _parts(self, found: Attribution, one: Examples, row: Row, discrete: Discrete) -> list[Part]:
        ads, users, features = self.catalogs.ads, self.catalogs.users, self.predictor.packed.features
        parts = []
        history, skipped = one.histories.take(one.history_of_row), one.skipped.take(one.history_of_row)
        for kind, places, values in (("click", history.values, found.clicks), ("skipped", skipped.values, found.skipped)):
            for place, value in zip(places, values, strict=False):
                ad_id = ads.ids[int(place)].as_py()
                parts.append(Part(kind, ad_id, self.titles.get(ad_id, ""), float(value)))
        if row.has_interests:
            parts.append(Part("interests", "interests", _text(users, int(one.user_index[0])), found.interests))
        if row.has_query:
            parts.append(Part("query", "query", one.queries[int(one.query[0])], found.query))
        ad, user = int(one.ad_index[0]), int(one.user_index[0])
        for table, kind, numbers, codes, lists, given in (
            ("impressions", "lists", found.numeric, found.categorical, found.lists, one.numeric[0]),
            ("ads", "ad_lists", found.ad_numeric, found.ad_categorical, found.ad_lists, ads.numeric[ad]),
            ("users", "user_lists", found.user_numeric, found.user_categorical, found.user_lists, users.numeric[user]),
        ):
            fitted = features[table]
            shown = [f"{value:+.2f} sd" for value in given]
            parts += _named(fitted.numeric_names, shown, numbers)
            parts += _named(fitted.categorical_names, [""] * len(codes), codes)
            parts += _items(fitted, row, kind, lists)
        parts.append(Part("feature", "history_length", str(int(one.history_length[0])), found.history_length))
        parts.append(Part("feature", "this very ad", "", found.ad_identity))
        parts.append(Part("feature", "this very user", "", found.user_identity))
        return [part for part in parts if part.contribution != 0.0]


def titles_of(ads: pa.Table) -> dict[str, str]:
    """ad_id → title, or what else is shown of it."""
    ids, titles = combined(ads["ad_id"]).cast(pa.string()), shown_titles(ads)
    columns = (np.asarray(column.to_numpy(zero_copy_only=False)) for column in (ids, titles))
    return dict(zip(*columns, strict=True))


def _named(names: Any, shown: list[str], values: NDArray[np.float64]) -> list[Part]:
    return [Part("feature", str(name), text, float(value)) for name, text, value in zip(names, shown, values, strict=True)]


def _items(fitted: FeatureSet, row: Row, kind: str, values: NDArray[np.float64]) -> list[Part]:
    """What each item of the list features adds."""
    number, codes = row.items(kind)
    return [
        Part("feature", fitted.lists[number[place]].name, fitted.lists[number[place]].value(int(codes[place])), float(value))
        for place, value in enumerate(values)
        if value != 0.0
    ]


def with_listed(words: list[Word], parts: list[Part]) -> tuple[list[Word], list[Part]]:
    """Words that also speak as items of a list feature get what they add there; of a word that repeats, each an equal share."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word.text.lower(), []).append(place)
    listed = [0.0] * len(words)
    rest = []
    for part in parts:
        here = places.get(part.value, []) if part.name == WORDS else []
        for place in here:
            listed[place] += part.contribution / len(here)
        if not here:
            rest.append(part)
    told = [replace(word, contribution=word.contribution + more, listed=more) for word, more in zip(words, listed, strict=True)]
    return told, rest


def _text(catalog: Catalog, row: int) -> str:
    found = catalog.texts[row]
    return str(found.as_py() if isinstance(found, pa.Scalar) else found)
