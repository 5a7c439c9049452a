"""What a server makes of its clients' vectors: a sum it cannot look behind, or a rule that withstands liars.

# n clients, d numbers
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adrec.privacy.aggregation import Client, fixed, loose, unmasked

Floats = NDArray[np.float64]
Wire = Callable[[int, str, Any], None]
"""Takes note of all that leaves a client: its number, what it is, the content."""


@dataclass
class Summing:
    """Sums over some clients, of whom some fall out. `share` of them must stay."""

    secure: bool
    share: float
    drop_out: float
    random: np.random.Generator
    wire: Wire | None = None
    fallen: int = field(default=0, init=False)
    """clients that fell out so far"""

    def __call__(self, vectors: Sequence[Floats]) -> tuple[Floats, list[int]]:
        """The sum (d,) over those who answered, exact to 2^-24 each, and their numbers. Raises AdrecError where too few do."""
        count = len(vectors)
        here = self.present(count)
        if not self.secure or count < 2:
            for number in here:
                self._note(number, "vector", vectors[number])
            return loose(np.sum(np.stack([fixed(vectors[number]) for number in here]), axis=0, dtype=np.uint64)), here
        threshold = max(2, int(np.ceil(self.share * count)))
        clients = {number: Client(number, min(threshold, count)) for number in range(count)}
        keys = {number: client.keys() for number, client in clients.items()}
        shares = {number: client.shares(keys) for number, client in clients.items()}
        masked = {
            number: clients[number].masked(
                fixed(vectors[number]), {peer: sent[number] for peer, sent in shares.items() if peer != number}
            )
            for number in here
        }
        revealed = {number: clients[number].revealed(here) for number in here}
        for number in range(count):
            self._note(number, "keys", keys[number])
            self._note(number, "shares", shares[number])
        for number in here:
            self._note(number, "masked", masked[number])
            self._note(number, "revealed", revealed[number])
        return loose(unmasked(masked, list(clients), keys, revealed, min(threshold, count))), here

    def present(self, count: int) -> list[int]:
        """Which of so many clients do not fall out this time."""
        gone = set(self.random.permutation(count)[: int(self.drop_out * count)].tolist())
        self.fallen += len(gone)
        return [number for number in range(count) if number not in gone]

    def _note(self, number: int, what: str, content: Any) -> None:
        if self.wire is not None:
            self.wire(number, what, content)


def robust(changes: Floats, rule: Literal["median", "trimmed_mean"], *, trim: float) -> Floats:
    """(n, d) → (d,): of each number the median over clients, or the mean without a share `trim` at each end (Yin et al. 2018).

    Clients count alike, however many rows they have: a weight of one's own could be a lie too.
    """
    if rule == "median":
        return np.asarray(np.median(changes, axis=0))
    cut = min(int(np.ceil(trim * len(changes))), (len(changes) - 1) // 2)
    return np.asarray(np.sort(changes, axis=0)[cut : len(changes) - cut].mean(axis=0))


def least_harmful(losses: Floats, trim: float) -> NDArray[np.int64]:
    """Places of `losses` (n,) without the share `trim` of the largest; the loss is what a client's change leaves the server.

    Zeno (Xie, Koyejo and Gupta 2019) without its penalty of long changes, which the loss sees by itself. Owners may be as
    unlike as they are: what one sends is not held against the others, but against what it does.
    """
    cut = min(int(np.ceil(trim * len(losses))), len(losses) - 1)
    order = np.argsort(np.where(np.isnan(losses), np.inf, losses), kind="stable")
    return np.sort(order[: len(losses) - cut])


def clipped(change: Floats, clip: float) -> Floats:
    """The change with a norm of `clip` at most."""
    return change * min(1.0, clip / max(float(np.linalg.norm(change)), 1e-12))
