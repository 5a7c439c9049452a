"""All baselines at once: fit, score, save, load. The registry `BASELINES` is the one list of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch

from adrec.data.device import use_threads
from adrec.errors import BundleError, ConfigError, reason_of
from adrec.models.baselines.base import Baseline, Floats, Inputs, sampled_requests
from adrec.models.baselines.collaborative.factorisation import ImplicitAls
from adrec.models.baselines.collaborative.items import Ease, ItemModel, ItemTransitions
from adrec.models.baselines.collaborative.neighbours import ItemCf, UserCf
from adrec.models.baselines.content import CategoryAffinity, ContentScore, EncoderCosine, TfIdfCosine
from adrec.models.baselines.popularity import ItemRate, Popularity, RecentPopularity, SmoothedCtr
from adrec.models.baselines.tabular.choice import ConditionalLogit
from adrec.models.baselines.tabular.linear import LogisticRegression
from adrec.models.baselines.tabular.mlp import ClassicMlp
from adrec.models.baselines.tabular.trees import LightGbm, LightGbmRanker, reads_linear
from adrec.plugins import load
from adrec.schema import NOBODY

_CLASSES: tuple[type[Baseline], ...] = (
    Popularity,
    RecentPopularity,
    SmoothedCtr,
    ItemRate,
    CategoryAffinity,
    TfIdfCosine,
    EncoderCosine,
    ContentScore,
    UserCf,
    ItemCf,
    ImplicitAls,
    Ease,
    ItemTransitions,
    LogisticRegression,
    ConditionalLogit,
    ClassicMlp,
    LightGbm,
    LightGbmRanker,
)
BASELINES: dict[str, type[Baseline]] = {baseline.name: baseline for baseline in _CLASSES}
"""name → class, in the order of reports."""


_MOST_AT_ONCE, _MOST_ROWS_AT_ONCE = 8, 250_000
_BEGIN_FIRST = ("logistic", "mlp", "conditional_logit", "lightgbm", "lightgbm_ranker", "user_cf", "matrix_factorisation")
"""Logistic regression before all, since trees wait for it; then what takes longest."""

OF_ADS = {
    baseline.name
    for baseline in (
        *(Popularity, SmoothedCtr, ItemRate, CategoryAffinity, TfIdfCosine, EncoderCosine, ContentScore),
        *(UserCf, ItemCf, ImplicitAls),
    )
}
"""Those that tell ads apart and nothing else."""


@dataclass(frozen=True)
class Suite:
    """Fitted baselines by name, and why others were left out."""

    fitted: dict[str, Baseline] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def baseline_class(name: str) -> type[Baseline]:
    """One of ours, or of an installed package. Raises ConfigError where there is none of that name."""
    if name in BASELINES:
        return BASELINES[name]
    found: type[Baseline] = load(name, "adrec.baselines", type, "baseline")
    lacking = [member for member in ("is_probability", "lacks", "fit", "score", "save", "load") if not hasattr(found, member)]
    if lacking:
        raise ConfigError(f"baseline '{name}': its class has no {', '.join(lacking)}. See models.baselines.base.Baseline.")
    return found


def fit_all(
    names: Sequence[str],
    train: Inputs,
    valid: Inputs | None = None,
    *,
    max_rows: int | None = None,
    seed: int = 0,
    like: Mapping[str, Baseline] | None = None,
    advance: Callable[[], None] | None = None,
) -> Suite:
    """Fit every named baseline on rows with a known click, at most `max_rows` where it is given.

    `advance` is called after each one. `like` are baselines of these names that validation rows have judged: trees get as many
    rounds as theirs. Of up to 250,000 rows they are fitted side by side, each in one of torch's threads.
    """
    suite = Suite()
    rows = _rows(train, max_rows, seed)
    is_one = rows.ads.ids.to_pylist() == [NOBODY]
    held = None if valid is None else _rows(valid, max_rows, seed)
    waiting: dict[str, Baseline] = {}
    for name in names:
        reason = "ads: the log names none" if is_one and name in OF_ADS else baseline_class(name).lacks(rows)
        if reason:
            suite.left_out[name] = f"the data lacks {reason}"
            if advance is not None:
                advance()
            continue
        waiting[name] = baseline = baseline_class(name)()
        if isinstance(baseline, LightGbm) and like is not None:
            baseline.trees.rounds = cast(LightGbm, like[name]).trees.count
        if isinstance(baseline, ItemModel) and like is not None:
            baseline.adopt(cast(ItemModel, like[name]))
    _fit_side_by_side(waiting, rows, held, seed, advance)
    suite.fitted.update(waiting)
    return suite


def _fit_side_by_side(
    waiting: Mapping[str, Baseline], rows: Inputs, held: Inputs | None, seed: int, advance: Callable[[], None] | None
) -> None:
    """One thread each, as many at once as torch has threads; what takes longest begins first. Of many rows one after the other:
    they share the memory."""
    threads = torch.get_num_threads()
    workers = min(threads, _MOST_AT_ONCE) if len(rows) <= _MOST_ROWS_AT_ONCE else 1
    linear: Future[Baseline] | None = None  # the trees read the regression too: one serves all

    def fit(baseline: Baseline, before: "Future[Baseline] | None") -> Baseline:
        if isinstance(baseline, LightGbm) and reads_linear(rows) and before is not None:
            fitted = before.result()
            baseline.linear = fitted.linear if isinstance(fitted, LightGbm) else cast(LogisticRegression, fitted)
        baseline.fit(rows, held, seed=seed)
        return baseline

    order = sorted(waiting, key=lambda name: _BEGIN_FIRST.index(name) if name in _BEGIN_FIRST else len(_BEGIN_FIRST))
    pool = ThreadPoolExecutor(workers, initializer=use_threads, initargs=(1 if workers > 1 else threads,))
    try:
        jobs = []
        for name in order:
            jobs.append(pool.submit(fit, waiting[name], linear))
            if linear is None and isinstance(waiting[name], LogisticRegression | LightGbm):
                linear = jobs[-1]
        for job in as_completed(jobs):
            job.result()
            if advance is not None:
                advance()
    finally:
        pool.shutdown(cancel_futures=True)
        use_threads(threads)


def score_all(fitted: Mapping[str, Baseline], inputs: Inputs) -> dict[str, Floats]:
    """name → (N,) float32. A baseline whose inputs these rows lack is left out."""
    if not fitted:
        return {}
    own = inputs.compact()
    return {name: baseline.score(own) for name, baseline in fitted.items() if not _lacks_to_score(baseline, own)}


def save_all(fitted: Mapping[str, Baseline], folder: Path) -> None:
    """One folder a baseline, and `baselines.json` that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, baseline in fitted.items():
        (folder / _folder(name)).mkdir()
        baseline.save(folder / _folder(name))
    (folder / "baselines.json").write_text(json.dumps({"names": list(fitted)}, indent=1), encoding="utf-8")


def load_all(folder: Path) -> dict[str, Baseline]:
    """What `save_all` wrote; nothing where the folder does not exist. Raises BundleError on anything else."""
    if not folder.exists():
        return {}
    try:
        names = json.loads((folder / "baselines.json").read_text(encoding="utf-8"))["names"]
        return {name: baseline_class(name).load(folder / _folder(name)) for name in names}
    except ConfigError as error:
        raise BundleError(f"{folder}: {error} Install the package that the bundle was trained with.") from None
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{folder}: the baselines cannot be read ({reason_of(error)}). Run 'adrec finetune' again.") from None


def _rows(inputs: Inputs, most: int | None, seed: int) -> Inputs:
    """Those with a known click; whole requests of them where they are more than `most`."""
    known = inputs.labelled()
    return known if most is None else sampled_requests(known, most, np.random.default_rng(seed))


def _folder(name: str) -> str:
    """Systems differ in what a file's name may hold: `package:name` becomes `package.name`."""
    return name.replace(":", ".")


def _lacks_to_score(baseline: Baseline, inputs: Inputs) -> bool:
    """Only inputs count here, not labels: rows to be scored have none."""
    return isinstance(baseline, ItemRate | RecentPopularity | CategoryAffinity | EncoderCosine) and bool(
        type(baseline).lacks(inputs)
    )
