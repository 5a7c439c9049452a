"""Which requests can share a pass of the model, and who fails where a pass fails."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from adrec.serve.store import StoreError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_rounds(
    items: Sequence[Item],
    described: Callable[[Item], Mapping[str, object]],
    answer: Callable[[list[Item]], Sequence[Answer | Exception]],
) -> list[Answer | Exception]:
    """Answer items together where they say the same of a user; what fails in a round is the fault of the items that fail alone.

    A fault that was not foreseen is looked for by halves: a bad item among N costs the others about log2(N) passes more.
    """
    rounds: list[tuple[dict[str, object], list[int]]] = []
    for place, item in enumerate(items):
        users = described(item)
        for names, places in rounds:
            if all(names.get(name, users[name]) == users[name] for name in users):
                names.update(users)
                places.append(place)
                break
        else:
            rounds.append((dict(users), [place]))
    answers: dict[int, Answer | Exception] = {}
    for _, places in rounds:
        answers.update(zip(places, _by_halves([items[place] for place in places], answer), strict=True))
    return [answers[place] for place in range(len(items))]


def _by_halves(items: list[Item], answer: Callable[[list[Item]], Sequence[Answer | Exception]]) -> Sequence[Answer | Exception]:
    try:
        return answer(items)
    except StoreError as error:  # nobody's fault, and no better for the half
        return [error] * len(items)
    except Exception as error:  # the one that caused it gets it
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return [*_by_halves(items[:half], answer), *_by_halves(items[half:], answer)]
