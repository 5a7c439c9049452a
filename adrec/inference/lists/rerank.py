"""The first of a list, scored once more by a model that reads history and ad together.

Costs a pass of that model for each of them, some hundred times what the rest of a request costs on processors.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.config.inference.rank import Reranking
from adrec.data.batches.collate import entities
from adrec.data.device import moved, resolve_device
from adrec.data.examples import Examples
from adrec.errors import ConfigError
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import Scores
from adrec.inference.predictor import Predictor
from adrec.models.baselines.base import log_odds
from adrec.models.rerank.reranker import Blend, Reranker, load_reranker
from adrec.models.rerank.soft_tokens import PairVectors
from adrec.models.rerank.words import words_of


def open_rerank(settings: Reranking | None, device: str, bundle: str) -> "Rerank | None":
    """The re-ranker that a config names; None where it names none. Raises DataError where it cannot be read, ConfigError where
    it reads the vectors of another bundle than the one of this fingerprint.
    """
    if settings is None:
        return None
    reranker = load_reranker(settings.reference)
    if reranker.soft is not None and reranker.bundle != bundle:
        raise ConfigError(
            f"rerank.reference: {settings.reference} reads the vectors of another bundle than the one that makes the lists. "
            "Run 'adrec train-reranker' on this one, or with soft_tokens: false."
        )
    return Rerank(reranker, settings.top, resolve_device(device))


def pair_vectors(predictor: Predictor, examples: Examples, catalogs: Catalogs) -> PairVectors:
    """The bundle's vectors of N rows' users, at their moments, and ads; each ad is encoded once."""
    users = predictor.user_vectors(examples, catalogs)
    ads, place = np.unique(examples.ad_index, return_inverse=True)
    with torch.inference_mode():
        batch = moved(entities(catalogs.ads, ads, catalogs.ad_texts), predictor.device)
        vectors = predictor.model.encode_ads(batch).float().cpu().numpy()
    return PairVectors(users, vectors[place.reshape(-1)])


def first_of(request: NDArray[np.integer], score: NDArray[np.floating], top: int) -> NDArray[np.int64]:
    """Rows (N,) that are among the `top` highest scores of their request, in order; of equal ones those that come first."""
    order = np.lexsort((np.arange(len(score)), -score, request))
    counts = np.bincount(request, minlength=1)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < top])


@dataclass(frozen=True)
class Rerank:
    """A re-ranker and how many of a request it reads."""

    reranker: Reranker
    top: int
    device: str = "cpu"

    def logits(self, predictor: Predictor, examples: Examples, catalogs: Catalogs) -> NDArray[np.float32]:
        """(N,) the re-ranker's own; `predictor` gives the vectors of soft tokens."""
        words = words_of(examples, catalogs.ads.texts, catalogs.users.texts, clicks=self.reranker.clicks)
        vectors = None if self.reranker.soft is None else pair_vectors(predictor, examples, catalogs)
        return self.reranker.logits(words.contexts, words.ads, vectors, device=self.device)

    def __call__(self, predictor: Predictor, pairs: Examples, catalogs: Catalogs, scores: Scores) -> Scores:
        """Scores of N (request, ad) pairs in which the first of each request have the joined probability."""
        rows = first_of(pairs.request, scores.score, self.top)
        if not len(rows) or self.reranker.blend == Blend():
            return scores
        # What has no weight need not be asked: it costs some hundred times all the rest.
        logits = self.logits(predictor, pairs.take(rows), catalogs) if self.reranker.blend.reranker else np.zeros(len(rows))
        joined = self.reranker.blend(log_odds(scores.score[rows]), logits)
        score, logit = scores.score.copy(), scores.logit.copy()
        score[rows], logit[rows] = 1 / (1 + np.exp(-joined)), joined
        return replace(scores, score=score, logit=logit)
