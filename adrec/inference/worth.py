"""What each modality of the ads is worth to a bundle: the AUC with all of them, without each, and with each alone.

The same rows are scored again with vectors that are missing, as they would be in a log without them; nothing is trained: a
model that never knew a modality may do a little better than this one without it. Two passes a modality over at most ROWS rows.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.data.batches.collate import Texts
from adrec.data.examples import Examples
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import ClickModel
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc

ROWS = 50_000
TEXT = "text"


@dataclass(frozen=True)
class Worth:
    """AUCs on the same rows."""

    name: str
    """column of vectors, or `text`"""
    together: float
    without: float
    alone: float
    """with no other modality; the other features stay"""
    share: float
    """of the rows, whose ad has it"""


def worth(predictor: Predictor, packed: ClickModel, catalogs: Catalogs, examples: Examples) -> list[Worth]:
    """Of the text, where ads have one, and of each column of vectors; empty where there are no vectors.

    `packed` is the predictor's model with what was fitted above it. The rows are the first whole requests of at most ROWS.
    """
    names = list(catalogs.ads.modalities)
    if not names or not len(examples):
        return []
    label = next(iter(examples.labels.values()))
    starts = examples.request_starts
    end = int(starts[max(1, int(np.searchsorted(starts, ROWS, side="right")) - 1)])
    rows = np.arange(end)
    examples, label = examples.take(rows), label[rows]
    known = np.isfinite(label)
    bundle = copy.copy(predictor)
    bundle.packed = packed
    has_text = catalogs.ads.vectors is not None and catalogs.ads.vectors.shape[1] > 0
    every = [*([TEXT] if has_text else []), *names]

    def reached(kept: Collection[str]) -> float:
        scores = bundle.score_examples(examples, _with(catalogs, kept), baselines=False)
        weight = None if examples.weight is None else examples.weight[known]
        return float(auc(label[known].astype(np.float64), scores.score[known], weight))

    together = reached(every)
    return [
        Worth(
            name, together, reached([other for other in every if other != name]), reached([name]),
            _share(catalogs, examples, name),
        )
        for name in every
    ]  # fmt: skip


def _share(catalogs: Catalogs, examples: Examples, name: str) -> float:
    if name == TEXT:
        return float((np.asarray(catalogs.ads.texts.to_numpy(zero_copy_only=False)) != "")[examples.ad_index].mean())
    used, place = np.unique(examples.ad_index, return_inverse=True)
    return float(catalogs.ads.modalities[name].known(used)[place.reshape(-1)].mean())


def _with(catalogs: Catalogs, kept: Collection[str]) -> Catalogs:
    """The catalogs whose ads have the modalities `kept` alone."""
    ads = catalogs.ads
    nothing = np.ones(len(ads), bool)
    modalities = {
        name: held if name in kept else held._replace(vectors=held.vectors.without(nothing))
        for name, held in ads.modalities.items()
    }
    changed = replace(ads, modalities=modalities)
    if TEXT in kept or ads.vectors is None:
        return replace(catalogs, ads=changed)
    width = ads.vectors.shape[1]

    def blank(rows: NDArray[np.int64]) -> Texts:
        return Texts(torch.zeros((len(rows), width)))

    return replace(catalogs, ads=changed.with_vectors(np.zeros_like(ads.vectors)), ad_texts=blank)
