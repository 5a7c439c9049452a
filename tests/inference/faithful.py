"""Is what an explanation names strongest also what moves the model most when it is taken away? And does it name the topic?"""

import numpy as np

from adrec.inference.explain.counterfactual import changes
from adrec.prepare.sample.catalogue import topics

LEAST_WORDS, LEAST_CLICKS = 4, 4


def without(text, word):
    """The text without one of its words."""
    return " ".join((text[: word.start] + " " + text[word.end :]).split())


def word_gap(predictor, catalogs, one, found):
    """|change of the logit| when the top-attributed word of the ad is deleted, minus the mean over all its words; or None."""
    words = [word for word in found.words if any(letter.isalnum() for letter in word.text)]
    if len(words) < LEAST_WORDS:
        return None
    ad = int(one.ad_index[0])
    text = catalogs.ads.texts[ad].as_py()
    values = catalogs.ads.vectors
    kept = values[ad].copy()
    moved = []
    try:
        for vector in predictor.reader.vectors([without(text, word) for word in words]):
            values[ad] = vector
            logit = predictor.score_examples(one, catalogs, baselines=False).logit[0]
            moved.append(abs(float(logit) - found.logit))
    finally:
        values[ad] = kept
    return moved[int(np.argmax([abs(word.contribution) for word in words]))] - float(np.mean(moved))


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


def names_topic(text, words, *, top=1):
    """Whether one of the `top` strongest words lies in the topic's words, and the share of all words that do."""
    spans = topic_spans(text)
    told = [word for word in words if any(letter.isalnum() for letter in word.text)]
    inside = [any(start <= word.start < end for start, end in spans) for word in told]
    order = np.argsort([-abs(word.contribution) for word in told], kind="stable")[:top]
    return any(inside[place] for place in order), float(np.mean(inside))


def measure(predictor, catalogs, examples, explainer, *, rows, sample=False):
    """All figures, printed and returned."""
    (words, clicks), told = gaps(predictor, catalogs, examples, explainer, rows=rows)
    result = {"words": interval(words), "clicks": interval(clicks), "rows": (len(words), len(clicks))}
    if sample:
        texts = {found.ad_id: found for found in told}
        place = {ad: row for row, ad in enumerate(catalogs.ads.ids.to_pylist())}
        named = {
            top: [names_topic(catalogs.ads.texts[place[ad]].as_py(), found.words, top=top) for ad, found in texts.items()]
            for top in (1, 3)
        }
        result["topic"] = {top: float(np.mean([hit for hit, _ in some])) for top, some in named.items()}
        result["chance"] = float(np.mean([share for _, share in named[1]]))
        result["ads"] = len(texts)
    print(result)
    return result
