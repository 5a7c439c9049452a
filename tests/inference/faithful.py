"""Is what an explanation names strongest also what moves the model most when it is taken away? And does it name the topic?"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from adrec.data.batches.collate import Texts
from adrec.data.features import FeatureSet
from adrec.data.ragged import Ragged
from adrec.sample.catalogue import TAILS, topics
from adrec.specs import WORDS

LEAST_WORDS, LEAST_CLICKS = 4, 4


def confirmed(predictor, catalogs, one, found, *, top=5):
    """Of the `top` parts of an explanation, taken away by hand: the kinds of those that speak for (or against) the ad, and
    whether the score falls (or rises) without them. What several say together is no single part."""
    told = []
    for part in [part for part in found.parts if part.kind != "together"][:top]:
        score = _score_without(predictor, catalogs, one, found, part)
        if score is not None:
            told.append((part.kind, part.contribution > 0, (score - found.score) * part.contribution < 0))
    return told


def _score_without(predictor, catalogs, one, found, part):
    """The score of the row without a part; None for parts that are several columns at once."""
    ad, user = int(one.ad_index[0]), int(one.user_index[0])
    if part.kind == "word":
        word = next(word for word in found.words if word.start == part.start)
        values = catalogs.ads.vectors.copy()
        values[ad] = predictor.reader.apart().vectors([without(found.text, word)])[0]
        changed = _unlisted(predictor, catalogs, ad, word)
        ads = replace(changed.ads, vectors=values)
        candidate = one.ad_index[0] not in {*one.history_values, *one.skipped_values}
        texts = _texts(values)
        return _score(predictor, one, replace(changed, ads=ads, ad_texts=texts)) if candidate else None
    if part.kind in ("click", "skipped"):
        name = "history" if part.kind == "click" else "skipped"
        values = getattr(one, f"{name}_values")
        place = [row for row, value in enumerate(values) if catalogs.ads.ids[int(value)].as_py() == part.name]
        if len(place) != 1:
            return None
        changes = {f"{name}_values": np.delete(values, place), f"{name}_offsets": np.array([0, len(values) - 1])}
        if name == "history":
            changes["history_hours"] = np.delete(one.history_hours, place)
            changes["history_length"] = one.history_length - 1
        return _score(predictor, replace(one, **changes), catalogs)
    if part.kind == "query":
        return _score(predictor, replace(one, query=np.zeros(1, np.int32)), catalogs)
    if part.kind == "interests":
        names = predictor.packed.features["users"].categorical_names
        codes = catalogs.users.categorical.copy()
        codes[user, [column for column, name in enumerate(names) if name == "user_language"]] = 0
        lists = {
            name: _emptied(values, user) if name in ("interests", WORDS) else values
            for name, values in catalogs.users.lists.items()
        }
        users = replace(catalogs.users, categorical=codes, lists=lists)
        texts = catalogs.user_texts
        return _score(
            predictor,
            one,
            replace(catalogs, users=users, user_texts=lambda rows: texts(rows)._replace(vectors=texts(rows).vectors * 0)),
        )
    fitted: FeatureSet = predictor.packed.features["impressions"]
    if part.name in fitted.numeric_names and fitted.numerics[0].transform != "quantile":
        numeric = one.numeric.copy()
        numeric[0, fitted.numeric_names.index(part.name)] = 0
        return _score(predictor, replace(one, numeric=numeric), catalogs)
    if part.name in [item.name for item in fitted.categories]:
        categorical = one.categorical.copy()
        categorical[0, fitted.categorical_names.index(part.name)] = 0
        return _score(predictor, replace(one, categorical=categorical), catalogs)
    return None


def _score(predictor, one, catalogs):
    return float(predictor.score_examples(one, catalogs, baselines=False).score[0])


def _texts(values):
    return lambda rows: Texts(torch.from_numpy(values[rows]))


def _emptied(lists, row):
    """The lists with one of them empty."""
    start, end = lists.offsets[row], lists.offsets[row + 1]
    offsets = lists.offsets - (end - start) * (np.arange(len(lists.offsets)) > row)
    return Ragged(offsets, np.delete(lists.values, np.arange(start, end)))


def without(text, word):
    """The text without one of its words."""
    return " ".join((text[: word.start] + " " + text[word.end :]).split())


def word_gap(predictor, catalogs, one, found):
    """|change of the logit| when the top-attributed word of the ad is deleted, minus the mean over all its words; or None.

    A word is deleted from the text that the encoder reads and from the ad's listed words, where the model has them.
    """
    words = [word for word in found.words if any(letter.isalnum() for letter in word.text)]
    if len(words) < LEAST_WORDS:
        return None
    ad = int(one.ad_index[0])
    text = catalogs.ads.texts[ad].as_py()
    values = catalogs.ads.vectors
    kept = values[ad].copy()
    moved = []
    try:
        for word, vector in zip(words, predictor.reader.vectors([without(text, word) for word in words]), strict=True):
            values[ad] = vector
            logit = predictor.score_examples(one, _unlisted(predictor, catalogs, ad, word), baselines=False).logit[0]
            moved.append(abs(float(logit) - found.logit))
    finally:
        values[ad] = kept
    return moved[int(np.argmax([abs(word.contribution) for word in words]))] - float(np.mean(moved))


def _unlisted(predictor, catalogs, ad, word):
    """The catalogs without the word among the ad's listed words."""
    if WORDS not in catalogs.ads.lists:
        return catalogs
    coder = next(item for item in predictor.packed.features["ads"].lists if item.name == WORDS)
    code, listed = coder.apply(pa.array([word.text.lower()]))[0], catalogs.ads.lists[WORDS]
    place = np.arange(listed.offsets[ad], listed.offsets[ad + 1])
    gone = place[(listed.values[place] == code) & (code > 0)]
    offsets = listed.offsets - len(gone) * (np.arange(len(listed.offsets)) > ad)
    lists = catalogs.ads.lists | {WORDS: Ragged(offsets, np.delete(listed.values, gone))}
    return replace(catalogs, ads=replace(catalogs.ads, lists=lists))


def click_gap(predictor, catalogs, one, found):
    """The same for the top-attributed past click; or None."""
    moved = [abs(change.logit - found.logit) for change in found.changes if change.kind == "click"]
    if len(moved) < LEAST_CLICKS:
        return None
    history = one.histories.take(one.history_of_row).values
    names = [catalogs.ads.ids[int(ad)].as_py() for ad in history]
    strength = {part.name: abs(part.contribution) for part in found.parts if part.kind == "click"}
    return moved[int(np.argmax([strength.get(name, 0.0) for name in names]))] - float(np.mean(moved))


def gaps(predictor, catalogs, examples, explainer, *, rows, seed=0):
    """Word gaps and click gaps of rows drawn at random, the explanations, and what taking parts away confirms."""
    picks = np.random.default_rng(seed).permutation(len(examples))[:rows]
    words, clicks, told, signs = [], [], [], []
    for row in picks:
        one = examples.take(np.array([row]))
        found = explainer.explain(one, 0)
        told.append(found)
        signs += confirmed(predictor, catalogs, one, found)
        words.append(word_gap(predictor, catalogs, one, found))
        clicks.append(click_gap(predictor, catalogs, one, found))
    return [np.array([gap for gap in some if gap is not None]) for some in (words, clicks)], told, signs


def interval(values, seed=0):
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(seed).integers(0, len(values), (4000, len(values)))
    return float(values.mean()), *np.quantile(values[draws].mean(axis=1), [0.025, 0.975]).tolist()


def topic_spans(text):
    """Where the sample's ad says its topic: its own words and what users call it, as (start, end), of the topic named most."""
    best = []
    for topic in topics():
        phrases = [phrase for language in ("en", "zh") for phrase in (*topic.words[language], *topic.names[language])]
        found = [(at, at + len(phrase)) for phrase in phrases if (at := text.lower().find(phrase.lower())) >= 0]
        if sum(end - start for start, end in found) > sum(end - start for start, end in best):
            best = found
    return best


def offer_spans(text):
    """Where it says its offer, which moves clicks by itself; a plain ending is none."""
    tails = [
        tail.strip(",， ")
        for kinds in TAILS.values()
        for kind, some in kinds.items()
        if kind != "plain"
        for tail in some
        if tail
    ]
    return [(at, at + len(tail)) for tail in tails if (at := text.lower().find(tail.lower())) >= 0]


def named(told, texts, spans_of, *, top):
    """In which share of the explanations one of the `top` strongest words lies in the spans, and the share of words that do."""
    found = []
    for one in told:
        text = texts[one.ad_id]
        words = [word for word in one.words if any(letter.isalnum() for letter in word.text)]
        spans = spans_of(text)
        inside = np.array([any(start <= word.start < end for start, end in spans) for word in words])
        order = np.argsort([-abs(word.contribution) for word in words], kind="stable")[:top]
        found.append((inside[order].any(), inside.mean()))
    return np.mean(found, axis=0).tolist()


def measure(predictor, catalogs, examples, explainer, *, rows, sample=False):
    """All figures, printed and returned."""
    (words, clicks), told, signs = gaps(predictor, catalogs, examples, explainer, rows=rows)
    result = {"words": interval(words), "clicks": interval(clicks), "rows": (len(words), len(clicks))}
    for name, sign in (("for", True), ("against", False)):
        falls = [ok for _, up, ok in signs if up == sign]
        result[f"confirmed {name}"] = (float(np.mean(falls)), len(falls))
    kinds = {
        kind: sum(ok for k, _, ok in signs if k == kind) / sum(k == kind for k, *_ in signs) for kind in {k for k, *_ in signs}
    }
    result["confirmed by kind"] = kinds
    if sample:
        texts = dict(zip(catalogs.ads.ids.to_pylist(), catalogs.ads.texts.to_pylist(), strict=True))
        once = list({found.ad_id: found for found in told}.values())
        # The words of the topic carry what the ad is about, those of the offer ("half price") what it promises: both move
        # clicks in the sample's world, the rest of the text does not.
        result["topic among three"] = named(once, texts, topic_spans, top=3)
        result["strongest is topic or offer"] = named(once, texts, lambda text: topic_spans(text) + offer_spans(text), top=1)
        result["ads"] = len(once)
    print(result)
    return result
