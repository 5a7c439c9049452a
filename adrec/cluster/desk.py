"""Questions that workers ask the command while they work: whether a trial goes on, for one. A question costs two messages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_TURN_SECONDS = 0.2


class _Desk:
    """Where questions lie until they are answered; an actor without a processor of its own, on the node of the command."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.answers: dict[Any, tuple[Any, str | None]] = {}

    def ask(self, question: Any) -> None:
        """Lay a question down. One that was answered before (its worker was lost) is not asked again."""
        if question not in self.answers and question not in self.open:
            self.open.append(question)

    def take(self) -> list[Any]:
        """All open questions; they are open no more."""
        taken, self.open = self.open, []
        return taken

    def answer(self, question: Any, answer: Any, fault: str | None) -> None:
        """Lay an answer down, or why there is none."""
        self.answers[question] = (answer, fault)

    def answered(self, question: Any) -> tuple[Any, str | None] | None:
        """The answer and the fault; None while there is neither."""
        return self.answers.get(question)


def ask(desk: Any, question: Any) -> Any:
    """In a worker: the answer to a question, a plain value that is unlike all others. Waits for it."""
    import ray

    ray.get(desk.ask.remote(question))
    while (answered := ray.get(desk.answered.remote(question))) is None:
        time.sleep(_TURN_SECONDS)
    answer, fault = answered
    if fault is not None:
        raise RuntimeError(f"no answer to {question}: {fault}")
    return answer


@contextmanager
def desk(ray: Any, answer: Callable[[Any], Any]) -> Iterator[Any]:
    """A desk whose questions `answer` gets while the block runs, in a thread of its own. `ray` is connected."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lost with the command alone
    made = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
    closed = threading.Event()

    def sit() -> None:
        while not closed.wait(_TURN_SECONDS):
            with suppress(ray.exceptions.RayError):  # the run ends where its workers are seen to end
                for question in ray.get(made.take.remote()):
                    made.answer.remote(question, *_answer(answer, question))

    thread = threading.Thread(target=sit, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        closed.set()
        thread.join(timeout=5.0)
        with suppress(Exception):  # it is gone already
            ray.kill(made)


def _answer(answer: Callable[[Any], Any], question: Any) -> tuple[Any, str | None]:
    try:
        return answer(question), None
    except Exception as error:  # who asked raises it, and so does the command
        return None, f"{type(error).__name__}: {error}"
