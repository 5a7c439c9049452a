"""What a server and its clients say to each other: questions that wait in a box for each client, and answers that come back.

A message is a safetensors file: arrays, and a JSON object beside them. No message can run code. A client asks for its next
question and answers it; the server asks several clients at once and goes on with those who answered in time.
"""

import json
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.errors import AdrecError

Arrays = dict[str, NDArray[Any]]
_FACTS = "facts"
_ALL = "words"


class Message(NamedTuple):
    """Facts, JSON-safe, and arrays."""

    facts: dict[str, Any]
    arrays: Arrays

    def to_bytes(self) -> bytes:
        """For the wire."""
        from safetensors.numpy import save

        held = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()} or {_ALL: np.zeros(0, np.uint8)}
        return bytes(save(held, metadata={_FACTS: json.dumps(self.facts)}))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Message":
        """What `to_bytes` wrote. Raises AdrecError on anything else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(raw)
            size = int.from_bytes(raw[:8], "little")
            facts = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"][_FACTS])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise AdrecError(
                f"federated: a message cannot be read ({type(error).__name__}). Run the same adrec on all sides."
            ) from None
        if not isinstance(facts, dict):
            raise AdrecError("federated: a message holds no facts. Run the same adrec on all sides.")
        return cls(facts, {name: array for name, array in arrays.items() if len(array) or name != _ALL})


def as_array(content: bytes) -> NDArray[np.uint8]:
    """Bytes as an array of a message."""
    return np.frombuffer(content, np.uint8)


@dataclass
class Boxes:
    """The server's side, safe between threads: a box for each client, by name."""

    names: Collection[str]
    _questions: dict[str, tuple[int, bytes]] = field(default_factory=dict, init=False)
    _answers: dict[tuple[str, int], bytes] = field(default_factory=dict, init=False)
    _step: int = field(default=0, init=False)
    _heard: dict[str, float] = field(default_factory=dict, init=False)
    _change: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)

    def ask(self, questions: Mapping[str, Message], seconds: float) -> dict[str, Message]:
        """The answers of those clients who give one within so many seconds, by name."""
        with self._change:
            self._step += 1
            step = self._step
            self._questions |= {name: (step, message.to_bytes()) for name, message in questions.items()}
            self._answers.clear()
            self._change.notify_all()
            until = time.monotonic() + seconds
            while len(self._answers) < len(questions) and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            raw = {name: self._answers.get((name, step)) for name in questions}
        return {name: Message.from_bytes(answer) for name, answer in raw.items() if answer is not None}

    def present(self, count: int, seconds: float) -> list[str]:
        """The clients that have asked for a question, as soon as there are `count` or so many seconds are over."""
        until = time.monotonic() + seconds
        with self._change:
            while len(self._heard) < count and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            return sorted(self._heard)

    def question(self, name: str, after: int, seconds: float) -> tuple[int, bytes] | None:
        """The next question of a client that has answered number `after`; None where none comes in so many seconds."""
        until = time.monotonic() + seconds
        with self._change:
            self._heard[name] = time.monotonic()
            self._change.notify_all()
            while self._questions.get(name, (0, b""))[0] <= after and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            asked = self._questions.get(name, (0, b""))
            return asked if asked[0] > after else None

    def answer(self, name: str, step: int, raw: bytes) -> bool:
        """Take in an answer; False where it comes too late."""
        with self._change:
            if self._questions.get(name, (0, b""))[0] != step or step != self._step:
                return False
            self._answers[name, step] = raw
            self._change.notify_all()
            return True
