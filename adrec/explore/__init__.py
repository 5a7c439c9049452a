"""A first look at somebody's files: what each table is, what each column is, and the configs that follow from it."""

from adrec.explore.configs.starter import write_configs
from adrec.explore.guessing.columns import guess
from adrec.explore.guessing.findings import Finding, Gap, Guess
from adrec.explore.look import Look, look_at

__all__ = ["Finding", "Gap", "Guess", "Look", "guess", "look_at", "write_configs"]
