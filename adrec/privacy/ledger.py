"""The ledger of a private bundle: for every file what it may tell of a person, and what all of it together costs.

A file is noised, and then its line says how; or public, and then it says by whose word. What is left out has a line too, so
that a reader need not wonder. `bundle.json` carries it, `adrec inspect` prints it, and a bundle that claims an epsilon but
holds a file without a line is refused, when it is written and whenever it is opened.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adrec.privacy.accounting import Accountant, Event, epsilon_of

Treatment = Literal["noised", "public", "left out"]
KEY = "privacy"
"""Of bundle.json."""


@dataclass(frozen=True)
class Line:
    """What one artefact tells of the log."""

    artefact: str
    treatment: Treatment
    why: str
    """whose word makes it public, or what was done"""
    files: tuple[str, ...] = ()
    """of the bundle; one that ends in / stands for the folder"""
    mechanism: str = ""
    sensitivity: float | None = None
    """the most that one unit changes what is released, L2 norm"""
    event: Event | None = None
    """as the accountant sees it"""
    delta: float = 0.0
    """beside the accountant's own"""
    pure: float = 0.0
    """epsilon of a mechanism that has no delta; such ones are added up"""


@dataclass(frozen=True)
class Ledger:
    """All lines, and the claim."""

    unit: Literal["user", "row", "label", "client"]
    epsilon: float
    delta: float
    accountant: Accountant
    is_secure: bool
    """whether all randomness was the system's"""
    lines: tuple[Line, ...]

    @property
    def spent(self) -> float:
        """The epsilon of all lines together."""
        events = [line.event for line in self.lines if line.event is not None]
        pure = sum(line.pure for line in self.lines)
        return pure + epsilon_of(events, self.delta - sum(line.delta for line in self.lines), self.accountant)

    def to_json(self) -> dict[str, Any]:
        """For bundle.json; each line with what it would cost alone."""
        neighbours = {
            "user": "logs that differ by all rows of one user",
            "row": "prepared tables that differ by one row, its history and its counters with it",
            "client": "federations that differ by one client, with all its rows",
            "label": "prepared tables that differ by what one row's labels say",
        }
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "spent": min(round(self.spent, 4), self.epsilon),
            "unit": self.unit,
            "neighbours": neighbours[self.unit],
            "accountant": self.accountant,
            "composition": "all Gaussian lines as one list of mechanisms; the epsilon of others and all deltas add up",
            "random": "the operating system's" if self.is_secure else "seeded, for tests: no protection",
            "lines": [self._line(line) for line in self.lines],
        }

    def _line(self, line: Line) -> dict[str, Any]:
        stored = {
            name: value for name, value in asdict(line).items() if value not in ("", None, ()) and (name, value) != ("pure", 0)
        }
        stored |= {"files": list(line.files)} if line.files else {}
        if line.event is not None:
            stored["event"] = line.event._asdict()
            alone = self.delta - sum(other.delta for other in self.lines)
            stored["epsilon_alone"] = round(epsilon_of([line.event], alone, self.accountant), 4)
        elif line.pure:
            stored["epsilon_alone"] = round(line.pure, 4)
        return stored


def unaccounted(stored: Mapping[str, Any], files: Collection[str]) -> list[str]:
    """Those `files` of a bundle for which the ledger in its bundle.json has no line that lets them be there, sorted.

    Raises KeyError, TypeError or ValueError where it is no ledger.
    """
    if not 0.0 <= float(stored["spent"]) <= float(stored["epsilon"]):
        raise ValueError(f"{stored['spent']} was spent of an epsilon of {stored['epsilon']}")
    allowed = [str(name) for line in stored["lines"] if line["treatment"] != "left out" for name in line.get("files", ())]
    return sorted(file for file in files if not _covered(file, allowed))


def _covered(file: str, allowed: Sequence[str]) -> bool:
    return any(file == name or (name.endswith("/") and file.startswith(name)) for name in allowed)
