"""A list as it would be with another headline or bid, for the asking alone: nothing that others see is changed.

Costs what a changed ad costs, once a trial; the catalogue made for it goes with the answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from adrec.serve.intake.checking import Asked, Place, RefusedError
from adrec.serve.intake.messages import TryRequest
from adrec.serve.lists import Answer
from adrec.serve.state.live import Live

Lives = Mapping[str, Live]


def try_out(
    item: TryRequest,
    asked: Asked,
    lives: Lives,
    *,
    stored: Callable[[str], dict[str, Any]],
    changed: Callable[[str, dict[str, dict[str, Any]]], Live],
    rank: Callable[[Lives], Answer | Exception],
) -> Answer:
    """The list as it is and one for each trial. Raises RefusedError where it cannot be made.

    stored: an ad as the catalogue has it; changed: an arm's bundle over a catalogue in which ads are otherwise; rank: the list
    of the request, which `asked` holds, over bundles.
    """
    arm = asked.rows[0].arm.name
    unknown = [
        Place(f"trials.{place}.{ad_id}", "is not in the catalogue")
        for place, trial in enumerate(item.trials)
        for ad_id in trial
        if ad_id not in lives[arm]
    ]
    if unknown:
        raise RefusedError(unknown, 400)
    answers = [rank(lives)]
    for trial in item.trials:
        tried = {ad_id: stored(ad_id) | said.model_dump(exclude_unset=True) for ad_id, said in trial.items()}
        answers.append(rank({**lives, arm: changed(arm, tried)}))
    lists = []
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        lists += answer["lists"]
    return {**_first(answers), "lists": lists}


def _first(answers: list[Answer | Exception]) -> Answer:
    [first, *_] = answers
    assert not isinstance(first, Exception)
    return first
