"""A first look at somebody's files: what each table is, what each column is, and the configs that follow from it."""

from adrec.explore.columns import guess
from adrec.explore.findings import Finding, Gap, Guess
from adrec.explore.look import Look, look_at
from adrec.explore.starter import write_configs

__all__ = ["Finding", "Gap", "Guess", "Look", "guess", "look_at", "write_configs"]
