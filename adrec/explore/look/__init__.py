"""What files hold: which are one table, how they are laid out, and what the first rows say about every column."""

from adrec.explore.look.cells import Column
from adrec.explore.look.tables import PARTS, ROWS, Joined, Look, Table, look_at

__all__ = ["PARTS", "ROWS", "Column", "Joined", "Look", "Table", "look_at"]
