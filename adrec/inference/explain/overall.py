"""The model over many rows at once: what it would lose without each input, and what a feature's value does to the score.

Permutation importance (Breiman 2001; Fisher, Rudin, Dominici 2019): an input is shuffled among the rows and the log loss rises
by its importance; intervals come from drawing users with replacement. Partial dependence (Friedman 2001): the mean score when
a feature has one value in every row. Both break what inputs have in common: of two that say the same, neither looks important.

Removals are those of single explanations (`variants`): what taking an input away does to the logit, row by row, so that the
match of interests, search and clicks with the ad is told apart from what a feature says by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.examples import Examples
from adrec.inference.catalogs import Catalogs
from adrec.inference.explain.names import shown_category
from adrec.inference.explain.variants import INTERESTS, Input, Variants
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc, log_losses
from adrec.metrics.intervals.bootstrap import Values, bootstrap, divide, of_sums
from adrec.metrics.intervals.significance import interval
from adrec.schema import USER_LANGUAGE
from adrec.specs import WORDS

Inputs = tuple[Examples, Catalogs]
DRAWS = 1000
POINTS = 7
MOST_CATEGORIES = 8
DEPENDENCE_ROWS = 500
REMOVED_ROWS = 200


@dataclass(frozen=True)
class Importance:
    """What shuffling one input costs."""

    name: str
    kind: str
    """text, history, interests, query, impression, ad or user"""
    increase: float
    """of the log loss"""
    low: float
    high: float
    """95 % interval of `increase` over users"""
    auc_drop: float


@dataclass(frozen=True)
class Removal:
    """What taking one input away does, over the rows that have it."""

    name: str
    kind: str
    """text, clicks, skipped, interests, query, impressions, ads or users"""
    rows: int
    speaks_for: float
    """share of these rows whose score falls without it"""
    speaks_against: float
    mean: float
    """mean of what it adds to the logit, and of its size whatever its sign"""
    mean_size: float


@dataclass(frozen=True)
class Dependence:
    """The mean score by the value of one feature."""

    name: str
    kind: str
    values: list[str]
    scores: list[float]


def importances(
    predictor: Predictor,
    catalogs: Catalogs,
    examples: Examples,
    *,
    seed: int,
    repeats: int = 3,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[Importance]:
    """Of every input that varies over the rows, largest first. The rows need both clicks and misses."""
    label = examples.labels["click"]
    rows = np.flatnonzero(np.isfinite(label))
    examples, label = examples.take(rows), label[rows].astype(np.float64)
    weight = examples.weight
    predictor.encode(examples, catalogs)
    rng = np.random.default_rng(seed)
    before = predictor.score_examples(examples, catalogs, baselines=False).score
    losses, reached = log_losses(label, before), auc(label, before, weight)
    inputs: list[tuple[str, str, float]] = []
    rises: dict[str, NDArray[np.float64]] = {}
    for name, kind, shuffled in _shuffles(predictor, examples, catalogs):
        rise, drop = np.zeros(len(label)), 0.0
        for _ in range(repeats):
            after = predictor.score_examples(*shuffled(rng), baselines=False).score
            rise += (log_losses(label, after) - losses) / repeats
            drop += (reached - auc(label, after, weight)) / repeats
        rises[str(len(inputs))] = rise
        inputs.append((name, kind, float(drop)))
        advance(1)
    own = np.ones(len(label)) if weight is None else weight / weight.mean()
    rises = {name: own * rise for name, rise in rises.items()}
    draws = _means_under_draws(rises, own, examples.user_index if weight is None else examples.ad_index, rng)
    found = []
    for number, (name, kind, drop) in enumerate(inputs):
        increase, low, high = interval(float(rises[str(number)].mean()), draws[str(number)])
        found.append(Importance(name, kind, increase, low, high, drop))
    return sorted(found, key=lambda one: -one.increase)


def _means_under_draws(
    columns: dict[str, NDArray[np.float64]],
    weight: NDArray[np.float64],
    user_index: NDArray[np.integer],
    rng: np.random.Generator,
) -> Values:
    """The sum of each column (N,) over that of `weight` in each of DRAWS draws of users (of ads, for counts), (DRAWS,)."""
    users, user = np.unique(user_index, return_inverse=True)
    sums = {**columns, "rows": weight}
    measure = of_sums(sums, user, len(users), lambda total: {name: divide(total[name], total["rows"]) for name in columns})
    return bootstrap({"": [measure]}, users=len(users), replicates=DRAWS, generator=rng)[""]


def dependences(
    predictor: Predictor, catalogs: Catalogs, examples: Examples, raw: pa.Table, *, seed: int
) -> Iterator[Dependence]:
    """Of every feature of the impressions, and of the candidate's and the user's categories. `raw`: the rows as given."""
    picked = np.sort(np.random.default_rng(seed).permutation(len(examples))[:DEPENDENCE_ROWS])
    examples, raw = examples.take(picked), raw.take(pa.array(picked))
    features = predictor.packed.features

    def mean_score(changed: Inputs) -> float:
        return float(predictor.score_examples(*changed, baselines=False).score.mean())

    for place, name in enumerate(features["impressions"].numeric_names):
        column = examples.numeric[:, place]
        order = np.argsort(column, kind="stable")
        rows = order[np.round(np.linspace(0.02, 0.98, POINTS) * (len(order) - 1)).astype(np.int64)]
        rows = rows[np.unique(column[rows], return_index=True)[1]]
        if len(rows) < 2:
            continue
        shown = raw[name].to_numpy(zero_copy_only=False) if name in raw.column_names else column
        scores = []
        for row in rows:
            numeric = examples.numeric.copy()
            numeric[:, place] = column[row]
            scores.append(mean_score((replace(examples, numeric=numeric), catalogs)))
        yield Dependence(name, "impression", [f"{float(shown[row]):.4g}" for row in rows], scores)
    for kind, fitted, codes in (
        ("impression", features["impressions"], examples.categorical),
        ("ad", features["ads"], catalogs.ads.categorical[examples.ad_index]),
        ("user", features["users"], catalogs.users.categorical[examples.user_index]),
    ):
        for place, name in enumerate(fitted.categorical_names):
            values, counts = np.unique(codes[:, place], return_counts=True)
            common = values[np.argsort(-counts, kind="stable")][:MOST_CATEGORIES]
            if len(values) < 2:
                continue
            names = [shown_category(fitted, place, int(code)) for code in common]
            scores = [mean_score(_with_code(kind, examples, catalogs, place, int(code))) for code in common]
            yield Dependence(name, kind, names, scores)


def removals(
    predictor: Predictor,
    catalogs: Catalogs,
    examples: Examples,
    *,
    rows: int = REMOVED_ROWS,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[Removal]:
    """Of every input, over rows drawn at random, largest mean size first."""
    reader = predictor.reader.apart()
    effects: dict[tuple[str, str], list[float]] = {}
    falls: dict[tuple[str, str], list[float]] = {}
    for row in np.sort(np.random.default_rng(seed).permutation(len(examples))[:rows]):
        variants = Variants(predictor, catalogs, examples.take(np.array([row])), reader)
        keys = [_input_key(item) for item in variants.inputs]
        distinct = list(dict.fromkeys(keys))
        present = np.array([[key != gone for key in keys] for gone in distinct] + [[True] * len(keys)])
        scores = variants.scores(present.reshape(len(distinct) + 1, len(keys)))
        for key, logit, score in zip(distinct, scores.logit, scores.score, strict=False):
            effects.setdefault(key, []).append(float(scores.logit[-1] - logit))
            falls.setdefault(key, []).append(float(np.sign(scores.score[-1] - score)))
        advance(1)
    made = [
        Removal(
            name, kind, len(values), float(np.mean(np.array(falls[kind, name]) > 0)),
            float(np.mean(np.array(falls[kind, name]) < 0)), float(np.mean(values)), float(np.mean(np.abs(values))),
        )
        for (kind, name), values in effects.items()
    ]  # fmt: skip
    return sorted(made, key=lambda removal: -removal.mean_size * removal.rows)


def _input_key(item: Input) -> tuple[str, str]:
    """What single inputs are taken together as: a text, a history, a feature."""
    whole = {"word": ("text", "ad text"), "click": ("clicks", "clicks"), "skipped": ("skipped", "skipped")}
    return whole.get(item.kind, (item.group, item.name))


def _shuffles(
    predictor: Predictor, examples: Examples, catalogs: Catalogs
) -> Iterator[tuple[str, str, Callable[[np.random.Generator], Inputs]]]:
    """Name, kind and the shuffled rows of every input that varies."""
    features, dimensions = predictor.packed.features, predictor.packed.dimensions
    fitted = features["users"]
    ads, users = np.unique(examples.ad_index), np.unique(examples.user_index)

    def texts(rng: np.random.Generator) -> Inputs:
        place = np.arange(len(catalogs.ads))
        place[ads] = rng.permutation(ads)
        vectors = None if catalogs.ads.vectors is None else catalogs.ads.vectors[place]
        moved = replace(catalogs.ads, vectors=vectors)
        return examples, replace(catalogs, ads=moved, ad_texts=lambda rows: catalogs.ad_texts(place[rows]))

    def interests(rng: np.random.Generator) -> Inputs:
        place = np.arange(len(catalogs.users))
        place[users] = rng.permutation(users)
        # With the text go the lists of its items, and its language: all that the user declared.
        columns = [fitted.categorical_names.index(name) for name in (USER_LANGUAGE,) if name in fitted.categorical_names]
        codes = catalogs.users.categorical.copy()
        codes[:, columns] = codes[place][:, columns]
        lists = {name: catalogs.users.lists[name].take(place) for name in (INTERESTS, WORDS) if name in catalogs.users.lists}
        moved = replace(catalogs.users, categorical=codes, lists={**catalogs.users.lists, **lists})
        return examples, replace(catalogs, users=moved, user_texts=lambda rows: catalogs.user_texts(place[rows]))

    def histories(rng: np.random.Generator) -> Inputs:
        place = rng.permutation(len(examples.history_offsets) - 1)
        first = np.zeros(len(place), np.int64)
        first[examples.history_of_row] = np.arange(len(examples))
        other = place[examples.history_of_row].astype(np.int32)
        return replace(examples, history_of_row=other, history_length=examples.history_length[first[other]]), catalogs

    def queries(rng: np.random.Generator) -> Inputs:
        return replace(examples, query=rng.permutation(examples.query)), catalogs

    if catalogs.ads.vectors is not None and catalogs.ads.vectors.shape[1]:
        yield "ad text", "text", texts
    if len(examples.history_values):
        yield "history", "history", histories
    if dimensions.interests or INTERESTS in catalogs.users.lists:
        yield "interests", "interests", interests
    if len(examples.queries) > 1 and catalogs.queries is not None:
        yield "query", "query", queries
    for kind, table in (("impression", "impressions"), ("ad", "ads"), ("user", "users")):
        for part, names in (("numeric", features[table].numeric_names), ("categorical", features[table].categorical_names)):
            for place, name in enumerate(names):
                shuffled = _column(kind, part, place, examples, catalogs, ads if kind == "ad" else users)
                if shuffled is not None:
                    yield name, kind, shuffled
    for kind, held, used in (("ad", catalogs.ads.modalities, ads), ("user", catalogs.users.modalities, users)):
        for name in held:
            yield name, kind, _vectors(kind, name, examples, catalogs, used)


def _column(
    kind: str, part: str, place: int, examples: Examples, catalogs: Catalogs, used: NDArray[np.integer]
) -> Callable[[np.random.Generator], Inputs] | None:
    """Shuffles one column: of the impressions among the rows, of ads or users among those that occur. None: nothing varies."""
    table: Any = {"impression": examples, "ad": catalogs.ads, "user": catalogs.users}[kind]
    values = getattr(table, part)
    rows = np.arange(len(values)) if kind == "impression" else used
    if len(np.unique(values[rows, place])) < 2:
        return None

    def shuffled(rng: np.random.Generator) -> Inputs:
        changed = values.copy()
        changed[rows, place] = rng.permutation(changed[rows, place])
        return _replaced(kind, examples, catalogs, **{part: changed})

    return shuffled


def _vectors(
    kind: str, name: str, examples: Examples, catalogs: Catalogs, used: NDArray[np.integer]
) -> Callable[[np.random.Generator], Inputs]:
    """Shuffles the vectors of one modality, missing ones too, among the ads or users that occur."""
    modalities = catalogs.ads.modalities if kind == "ad" else catalogs.users.modalities

    def shuffled(rng: np.random.Generator) -> Inputs:
        place = np.arange(len(modalities[name].vectors))
        place[used] = rng.permutation(used)
        return _replaced(kind, examples, catalogs, modalities={**modalities, name: modalities[name].take(place)})

    return shuffled


def _with_code(kind: str, examples: Examples, catalogs: Catalogs, place: int, code: int) -> Inputs:
    """Every row, candidate or user with one category. Clicks are ads too: those that are candidates change with them."""
    table: Any = {"impression": examples, "ad": catalogs.ads, "user": catalogs.users}[kind]
    every = {"impression": np.arange(len(examples), dtype=np.int32), "ad": examples.ad_index, "user": examples.user_index}
    rows, changed = every[kind], table.categorical.copy()
    changed[rows, place] = code
    return _replaced(kind, examples, catalogs, categorical=changed)


def _replaced(kind: str, examples: Examples, catalogs: Catalogs, **columns: Any) -> Inputs:
    if kind == "impression":
        return replace(examples, **columns), catalogs
    if kind == "ad":
        return examples, replace(catalogs, ads=replace(catalogs.ads, **columns))
    return examples, replace(catalogs, users=replace(catalogs.users, **columns))
