"""A masked sum over clients elsewhere: the four rounds of `privacy.aggregation` as questions, and what a client answers.

# n clients, d numbers
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from adrec.errors import AdrecError
from adrec.privacy.aggregation import Client, PublicKeys, fixed, loose, unmasked
from adrec.training.federated.exchange import Arrays, Boxes, Message, as_array
from adrec.training.federated.sums import Floats

KEYS, SHARES, MASKED, REVEALED = "keys", "shares", "masked", "revealed"


@dataclass
class RemoteSums:
    """The server's side. `share` of the clients that began must stay; each question waits `seconds`."""

    boxes: Boxes
    share: float
    seconds: float
    fallen: int = field(default=0, init=False)
    """clients that fell out so far"""
    _number: int = field(default=0, init=False)

    def __call__(self, names: Sequence[str], task: Message) -> tuple[Floats, list[str]]:
        """The sum (d,) over those who answered, and their names. Raises AdrecError where they are too few to undo the masks."""
        self._number += 1
        numbers = {name: number for number, name in enumerate(sorted(names))}
        threshold = max(2, int(np.ceil(self.share * len(numbers))))
        opening = {"sum": self._number, "threshold": threshold}
        keyed = self._ask(names, {name: Message({**opening, "phase": KEYS, "number": numbers[name]}, {}) for name in names})
        keys = {
            numbers[name]: PublicKeys(bytes(said.arrays["channel"]), bytes(said.arrays["mask"])) for name, said in keyed.items()
        }
        self._enough(len(keys), threshold)
        told = {
            f"{which}{number}": as_array(getattr(own, which)) for number, own in keys.items() for which in ("channel", "mask")
        }
        shared = self._ask(list(keyed), {name: Message({**opening, "phase": SHARES}, told) for name in keyed})
        self._enough(len(shared), threshold)
        letters = {
            name: {str(numbers[sender]): said.arrays[str(numbers[name])] for sender, said in shared.items() if sender != name}
            for name in shared
        }
        asked = {
            name: Message({**opening, "phase": MASKED, **task.facts}, {**_marked(letters[name]), **task.arrays})
            for name in shared
        }
        masked = self._ask(list(shared), asked)
        self._enough(len(masked), threshold)
        answered = sorted(numbers[name] for name in masked)
        asked = {name: Message({**opening, "phase": REVEALED, "answered": answered}, {}) for name in masked}
        revealed = self._ask(list(masked), asked)
        by_number = {numbers[name]: said for name, said in revealed.items()}
        total = unmasked(
            {numbers[name]: said.arrays["masked"] for name, said in masked.items()},
            sorted(numbers[name] for name in shared),
            keys,
            {number: {int(peer): bytes(held) for peer, held in said.arrays.items()} for number, said in by_number.items()},
            threshold,
        )
        return loose(total), sorted(masked)

    def _ask(self, names: Sequence[str], questions: dict[str, Message]) -> dict[str, Message]:
        answers = self.boxes.ask(questions, self.seconds)
        self.fallen += len(names) - len(answers)
        return answers

    def _enough(self, count: int, threshold: int) -> None:
        if count < threshold:
            raise AdrecError(
                f"federated: {count} clients answered within {self.seconds:g} seconds, and {threshold} are needed. Start more"
                " clients, raise patience_seconds or lower `threshold`."
            )


@dataclass
class Summand:
    """A client's side. `vector(task)` is what it would say if it trusted the server; only its masked form is an answer."""

    vector: Callable[[Message], Floats]
    _client: Client | None = field(default=None, init=False, repr=False)

    def answer(self, question: Message) -> Message:
        """What leaves the client. Raises AdrecError for a question out of turn, or one that could unmask somebody."""
        facts, phase = question.facts, question.facts.get("phase")
        if phase == KEYS:
            self._client = Client(int(facts["number"]), int(facts["threshold"]))
            own = self._client.keys()
            return Message({}, {"channel": as_array(own.channel), "mask": as_array(own.mask)})
        if self._client is None:
            raise AdrecError("federated: the server asked for a sum that was not begun. Start the clients after the server.")
        if phase == SHARES:
            numbers = {int(name.removeprefix("mask")) for name in question.arrays if name.startswith("mask")}
            if len(numbers) < max(2, self._client.threshold) or int(facts["threshold"]) != self._client.threshold:
                raise AdrecError("federated: the server names too few clients for a sum that hides any. Nothing was sent.")
            peers = {n: PublicKeys(bytes(question.arrays[f"channel{n}"]), bytes(question.arrays[f"mask{n}"])) for n in numbers}
            return Message({}, {str(peer): as_array(letter) for peer, letter in self._client.shares(peers).items()})
        if phase == MASKED:
            letters, task = _unmarked(question.arrays)
            if len(letters) + 1 < self._client.threshold:
                raise AdrecError("federated: the server left too few clients in a sum. Nothing was sent.")
            words = fixed(self.vector(Message(facts, task)))
            return Message({}, {"masked": self._client.masked(words, letters)})
        if phase == REVEALED:
            client, self._client = self._client, None  # a second list of who answered could unmask somebody
            if len(facts["answered"]) < client.threshold:
                raise AdrecError("federated: the server wants the mask of too few clients undone. Nothing was sent.")
            return Message({}, {str(peer): as_array(held) for peer, held in client.revealed(facts["answered"]).items()})
        raise AdrecError(f"federated: the server asked '{phase}', which no client answers. Run the same adrec on all sides.")


_LETTER = "letter "


def _marked(letters: Arrays) -> Arrays:
    return {_LETTER + sender: letter for sender, letter in letters.items()}


def _unmarked(arrays: Arrays) -> tuple[dict[int, bytes], Arrays]:
    letters = {int(name.removeprefix(_LETTER)): bytes(array) for name, array in arrays.items() if name.startswith(_LETTER)}
    return letters, {name: array for name, array in arrays.items() if not name.startswith(_LETTER)}
