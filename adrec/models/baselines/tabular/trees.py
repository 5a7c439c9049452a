"""LightGBM on features, point-in-time counters and similarities: pointwise (log loss) and as a ranker (LambdaRank).

Ke et al. 2017 (LightGBM); Burges 2010 (LambdaMART). The number of trees is the one that is best on validation rows.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.errors import BundleError
from adrec.metrics import classification, ranking
from adrec.models.baselines.base import Floats, Inputs, load_state, log_odds, save_state
from adrec.models.baselines.tabular.design import Design, design
from adrec.models.baselines.tabular.linear import LogisticRegression
from adrec.models.baselines.tabular.rates import Rates
from adrec.models.baselines.tabular.tree_text import checked_trees
from adrec.models.blend.calibration import log_loss

_LONGEST_LIST = 10_000
"""Rows of a query of LightGBM's."""
_MAX_CATEGORIES = 64
_MOST_ROUNDS, _BLIND_ROUNDS = 1000, 100
_SURE_CLICKS = 200
"""With fewer in the validation rows an AUC moves by chance from tree to tree; the log loss moves less."""
PARAMETERS: dict[str, Any] = {
    "learning_rate": 0.05,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "lambdarank_truncation_level": 20,
}


def parameters_for(rows: int) -> dict[str, Any]:
    """LightGBM's settings for so many training rows: with more of them, more and larger leaves (200 rows at 66,000)."""
    leaves = next(leaves for most, leaves in ((3_000, 7), (200_000, 15), (2_000_000, 31), (np.inf, 63)) if rows < most)
    return {
        **PARAMETERS,
        "num_leaves": leaves,
        "min_data_in_leaf": int(np.clip(0.78 * np.sqrt(rows), 5, 1_000)),
        "cat_smooth": float(np.clip(rows / 1_300, 10, 50)),
        "min_data_per_group": int(np.clip(rows / 660, 5, 100)),
    }


class TreeModel:
    """A boosted forest over a Design. Kept apart from the baselines so that the hybrid can use it with extra columns."""

    def __init__(
        self,
        *,
        objective: str,
        parameters: dict[str, Any] | None = None,
        rounds: int | None = None,
        patience: int = 50,
        names: tuple[str, ...] = (),
        code_names: tuple[str, ...] = (),
        booster: Any = None,
    ) -> None:
        self.objective = objective
        self.parameters = dict(parameters or {})
        """what differs from `parameters_for` the training rows"""
        self.rounds = rounds
        self.patience = patience
        self.names = names
        self.code_names = code_names
        self.booster = booster

    def fit(
        self,
        table: Design,
        inputs: Inputs,
        valid: tuple[Design, Inputs] | None,
        *,
        seed: int,
        start: NDArray[np.float64] | None = None,
    ) -> None:
        """Grow trees on rows that all have a click label; stop where validation has not become better for `patience` trees.

        What counts is the AUC within requests for a ranker, else the AUC over all rows, or the log loss where clicks are few.
        Codes of more than 64 values are left to the caller (`Rates`). At most `rounds` trees are grown: 1000
        unless given, 100 without validation rows. `start` (N,) are margins to improve on; `predict` does not include them.
        """
        import lightgbm

        self.names = table.names
        self.code_names = tuple(
            name
            for name, most in zip(table.code_names, table.codes.max(axis=0, initial=0), strict=True)
            if 0 < most < _MAX_CATEGORIES
        )
        data = lightgbm.Dataset(
            self._matrix(table),
            inputs.clicks,
            weight=inputs.weights,
            group=request_sizes(inputs) if self.objective == "lambdarank" else None,
            init_score=start,
            feature_name=self._feature_names(),
            categorical_feature=list(range(len(self.names), len(self.names) + len(self.code_names))),
            free_raw_data=True,
        )
        settings = {
            **parameters_for(len(inputs)),
            **self.parameters,
            "objective": self.objective,
            "metric": "None",
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": torch.get_num_threads(),
            "verbose": -1,
        }
        if valid is None:
            self.booster = lightgbm.train(settings, data, _BLIND_ROUNDS if self.rounds is None else self.rounds)
            return
        valid_table, valid_inputs = valid
        held = lightgbm.Dataset(
            self._matrix(valid_table),
            valid_inputs.clicks,
            group=request_sizes(valid_inputs) if self.objective == "lambdarank" else None,
            reference=data,
        )

        held_weights = np.ones(1) if valid_inputs.weights is None else valid_inputs.weights
        few = min((held_weights * valid_inputs.clicks).sum(), (held_weights * (1 - valid_inputs.clicks)).sum()) < _SURE_CLICKS
        metric = "auc_request" if self.objective == "lambdarank" else "log_loss" if few else "auc"

        def validation(predictions: NDArray[np.float64], _: Any) -> tuple[str, float, bool]:
            if metric == "log_loss":
                predictions = log_odds(predictions)
            return metric, quality(metric, valid_inputs, predictions), True

        self.booster = lightgbm.train(
            settings,
            data,
            _MOST_ROUNDS if self.rounds is None else self.rounds,
            valid_sets=[held],
            feval=validation,
            callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
        )

    @property
    def count(self) -> int:
        """Trees that `predict` adds up."""
        return int(self.booster.best_iteration if self.booster.best_iteration > 0 else self.booster.current_iteration())

    def predict(self, table: Design) -> Floats:
        """(N,) raw margins."""
        if self.booster is None:
            raise ValueError("the trees are not fitted")
        margins = self.booster.predict(
            self._matrix(table),
            raw_score=True,
            num_iteration=self.booster.best_iteration,
            num_threads=torch.get_num_threads(),  # a worker or server that keeps torch to some threads means all of it
        )
        return np.asarray(margins, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """LightGBM's text format, and the columns."""
        values = {"objective": self.objective, "names": list(self.names), "code_names": list(self.code_names)}
        save_state(folder, values)
        text = self.booster.model_to_string(num_iteration=self.booster.best_iteration)
        (folder / "trees.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        import lightgbm

        values, _ = load_state(folder)
        try:
            booster = lightgbm.Booster(model_str=checked_trees((folder / "trees.txt").read_text(encoding="utf-8")))
        except (OSError, ValueError, lightgbm.basic.LightGBMError) as error:
            raise BundleError(f"{folder}: the trees cannot be read ({error}). Run 'adrec finetune' again.") from None
        names, code_names = tuple(values["names"]), tuple(values["code_names"])
        return cls(objective=values["objective"], names=names, code_names=code_names, booster=booster)

    def _matrix(self, table: Design) -> Floats:
        own = table.picked(self.names, self.code_names)
        return np.concatenate([own.dense, own.codes.astype(np.float32)], axis=1)

    def _feature_names(self) -> list[str]:
        return [f"f{place}" for place in range(len(self.names) + len(self.code_names))]


class LightGbm:
    """Gradient boosted trees with log loss; the score is a probability."""

    name: ClassVar[str] = "lightgbm"
    is_probability: ClassVar[bool] = True
    objective: ClassVar[str] = "binary"

    def __init__(
        self,
        *,
        counters: bool = True,
        trees: TreeModel | None = None,
        linear: LogisticRegression | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.counters = counters
        self.trees = trees or TreeModel(objective=self.objective)
        self.rates = rates or Rates()
        """Click rates of the values of codes with more than 64."""
        self.linear = linear
        """Weighs the values of the ads' lists, hundreds of words that a tree could only ask for one by one, and holds the
        products of users and vectors. Fitted with the trees unless one that was fitted on the same rows is given."""

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Both labels."""
        return "" if 0 < np.nanmean(inputs.clicks) < 1 else "both clicked and unclicked training rows"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Grow until validation is best."""
        known = inputs.labelled()
        if reads_linear(known) and self.linear is None:
            self.linear = LogisticRegression()
            self.linear.fit(known, seed=seed)
        table = self._columns(known, {} if self.linear is None else self.linear.own)
        self.rates, own = Rates.fit(table, known, beyond=_MAX_CATEGORIES, seed=seed)
        held = None if valid is None else valid.labelled()
        pair = None if held is None or not len(held) else (self._design(held), held)
        self.trees.fit(table.with_columns(own), known, pair, seed=seed)

    def margin(self, inputs: Inputs) -> Floats:
        """(N,) sum of the leaves."""
        return self.trees.predict(self._design(inputs))

    def _design(self, inputs: Inputs) -> Design:
        table = self._columns(inputs, {} if self.linear is None else self.linear.of_products(inputs))
        return table.with_columns(self.rates.columns(table))

    def _columns(self, inputs: Inputs, products: dict[str, Floats]) -> Design:
        lists = {"list_weights": self.linear.list_margin(inputs)} if self.linear is not None else {}
        return design(inputs, counters=self.counters, extra={**lists, **products})

    def score(self, inputs: Inputs) -> Floats:
        """(N,) probabilities."""
        return (1 / (1 + np.exp(-self.margin(inputs).astype(np.float64)))).astype(np.float32)

    def save(self, folder: Path) -> None:
        """The trees, below `rates` those of many values, and below `linear` the weights of list values and products."""
        self.trees.save(folder)
        (folder / "rates").mkdir()
        self.rates.save(folder / "rates")
        if self.linear is not None:
            (folder / "linear").mkdir()
            self.linear.save(folder / "linear")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        linear = LogisticRegression.load(folder / "linear") if (folder / "linear").exists() else None
        return cls(trees=TreeModel.load(folder), linear=linear, rates=Rates.load(folder / "rates"))


class LightGbmRanker(LightGbm):
    """The same trees learning the order within each request; the score is a margin."""

    name: ClassVar[str] = "lightgbm_ranker"
    is_probability: ClassVar[bool] = False
    objective: ClassVar[str] = "lambdarank"

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Requests of several impressions, each a row."""
        if inputs.weights is not None:
            return "a row an impression: counts are no lists that anybody was shown"
        several = len(inputs) > 0 and bool((request_sizes(inputs) > 1).any())
        return super().lacks(inputs) if several else "requests with more than one impression"

    def score(self, inputs: Inputs) -> Floats:
        """(N,) margins."""
        return self.margin(inputs)


def reads_linear(inputs: Inputs) -> bool:
    """Whether trees over these rows read a logistic regression's lists or products."""
    return bool(inputs.ads.lists or inputs.ads.modalities)


def request_sizes(inputs: Inputs) -> NDArray[np.int64]:
    """(G,) rows of each request; LightGBM takes no longer lists than `_LONGEST_LIST`, so longer requests become several."""
    sizes = np.diff(inputs.examples.request_starts)
    pieces = -(-sizes // _LONGEST_LIST)
    last = np.cumsum(pieces) - 1
    split = np.full(int(pieces.sum()), _LONGEST_LIST)
    split[last] = sizes - (pieces - 1) * _LONGEST_LIST
    return split


def quality(metric: str, inputs: Inputs, scores: NDArray[Any]) -> float:
    """`auc`, `auc_request` or `log_loss` (of logits) of rows with a known click; the loss with its sign turned: more is better.

    `auc_request` is `auc` where no request holds both a click and a miss.
    """
    if metric == "log_loss":
        return -log_loss(scores, inputs.clicks, inputs.weights)
    by_request = ranking.auc_request(inputs.clicks, scores, inputs.examples.request) if metric == "auc_request" else np.nan
    return by_request if not np.isnan(by_request) else classification.auc(inputs.clicks, scores, inputs.weights)
