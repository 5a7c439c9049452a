"""Is what an explanation names strongest also what moves the model most when it is taken away? And does it name the topic?"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from adrec.config.training.features import WORDS
from adrec.data.examples import Ragged
from adrec.inference.explain.counterfactual import changes
from adrec.sample.catalogue import TAILS, topics

LEAST_WORDS, LEAST_CLICKS = 4, 4


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
    moved = [
        abs(change.logit - found.logit) for change in changes(predictor, catalogs, one, categories=0) if change.kind == "click"
    ]
    if len(moved) < LEAST_CLICKS:
        return None
    history = one.histories.take(one.history_of_row).values
    names = [catalogs.ads.ids[int(ad)].as_py() for ad in history]
    strength = {part.name: abs(part.contribution) for part in found.parts if part.kind == "click"}
    return moved[int(np.argmax([strength.get(name, 0.0) for name in names]))] - float(np.mean(moved))


def gaps(predictor, catalogs, examples, explainer, *, rows, seed=0):
    """Word gaps and click gaps of rows drawn at random, and the explanations."""
    picks = np.random.default_rng(seed).permutation(len(examples))[:rows]
    words, clicks, told = [], [], []
    for row in picks:
        one = examples.take(np.array([row]))
        found = explainer.explain(one, 0)
        told.append(found)
        words.append(word_gap(predictor, catalogs, one, found))
        clicks.append(click_gap(predictor, catalogs, one, found))
    return [np.array([gap for gap in some if gap is not None]) for some in (words, clicks)], told


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


def named(told, texts, spans_of, *, top, strength=lambda word: word.contribution):
    """In which share of the explanations one of the `top` strongest words lies in the spans, and the share of words that do."""
    found = []
    for one in told:
        text = texts[one.ad_id]
        words = [word for word in one.words if any(letter.isalnum() for letter in word.text)]
        spans = spans_of(text)
        inside = np.array([any(start <= word.start < end for start, end in spans) for word in words])
        order = np.argsort([-abs(strength(word)) for word in words], kind="stable")[:top]
        found.append((inside[order].any(), inside.mean()))
    return np.mean(found, axis=0).tolist()


def measure(predictor, catalogs, examples, explainer, *, rows, sample=False):
    """All figures, printed and returned."""
    (words, clicks), told = gaps(predictor, catalogs, examples, explainer, rows=rows)
    result = {"words": interval(words), "clicks": interval(clicks), "rows": (len(words), len(clicks))}
    if sample:
        texts = dict(zip(catalogs.ads.ids.to_pylist(), catalogs.ads.texts.to_pylist(), strict=True))
        once = list({found.ad_id: found for found in told}.values())
        # The words of the topic carry what the ad is about, those of the offer ("half price") what it promises: both move
        # clicks in the sample's world, the rest of the text does not.
        result["topic among three"] = named(once, texts, topic_spans, top=3)
        result["strongest is topic or offer"] = named(once, texts, lambda text: topic_spans(text) + offer_spans(text), top=1)
        result["strongest by text is topic"] = named(
            once, texts, topic_spans, top=1, strength=lambda word: word.contribution - word.listed
        )
        result["ads"] = len(once)
    print(result)
    return result
