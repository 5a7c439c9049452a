"""Simple models that keep the neural one honest: trained, saved, scored and reported by the same commands."""

from adrec.models.baselines.base import Baseline, Columns, Inputs
from adrec.models.baselines.suite import BASELINES, Suite, fit_all, load_all, save_all, score_all

__all__ = ["BASELINES", "Baseline", "Columns", "Inputs", "Suite", "fit_all", "load_all", "save_all", "score_all"]
