"""Metrics of one column of predictions over all rows or a slice of them, with their draws: the work that `evaluate` shares out.

Nearly all of its time goes here, and each piece stands by itself, and so do each 250 of its draws: they come from a seed of
their own. Workers of a cluster read the rows once each (90 MB a million) and send back the metrics; the figures are the same to
the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np

from adrec.cluster.pool import MANY, Pool
from adrec.cluster.worker import Factory
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.metrics.intervals.bootstrap import Values, bootstrap, point
from adrec.stages.evaluation.counts import tests_of, units_of, weights_of
from adrec.stages.evaluation.measures import Frame, binary_measures, core_measures, regression_measures
from adrec.stages.evaluation.reading.rows import Rows, ShortInts
from adrec.stages.evaluation.reading.tasks import Scores, Task
from adrec.stages.evaluation.slicing import Slicing
from adrec.terminal import Terminal

DRAWS_A_SEED = 250
"""Draws that are made together, whoever makes them."""


class Piece(NamedTuple):
    """One column of predictions of one task, over all rows (`cut` None) or one part of a slicing."""

    task: int
    scores: str
    seed: int
    cut: int | None = None
    part: int = 0
    core: bool = False
    """The few metrics of slices, drawn as often as they are."""
    lots: tuple[int, ...] | None = None
    """Which lots of DRAWS_A_SEED draws; None: all."""


class Measured(NamedTuple):
    """What a piece gives."""

    values: dict[str, float]
    draws: Values
    skipped: dict[str, int]


Measure = Callable[[Sequence[Piece]], Iterator[Measured]]
"""What the pieces give, in their order."""


class Measurer:
    """The tasks of a run, ready to be measured."""

    def __init__(self, rows: Rows, tasks: Sequence[Task], cuts: Sequence[Slicing], config: EvaluateConfig) -> None:
        self.tasks, self.cuts, self.config = tasks, cuts, config
        self.frames = [frame_of(rows, task, config) for task in tasks]
        self._parts: dict[tuple[int, int], list[ShortInts]] = {}

    def parts(self, task: int, cut: int) -> list[ShortInts]:
        """Rows of the task in each part of a slicing, in the order of its names."""
        if (task, cut) not in self._parts:
            slicing, rows = self.cuts[cut], self.tasks[task].rows
            codes = slicing.codes if len(rows) == len(slicing.codes) else slicing.codes[rows]
            order = np.argsort(codes, kind="stable").astype(np.int32)
            bounds = np.cumsum([(codes < 0).sum(), *np.bincount(codes[codes >= 0], minlength=len(slicing.names))])
            self._parts = {(task, cut): [order[bounds[i] : bounds[i + 1]] for i in range(len(slicing.names))]}
        return self._parts[task, cut]

    def __call__(self, piece: Piece, advance: Callable[[int], None] | None = None) -> Measured:
        """Values and draws of one piece; `advance` is called with the number of draws done since the last call."""
        task, frame, config = self.tasks[piece.task], self.frames[piece.task], self.config
        scores = next(scores for scores in task.scores if scores.name == piece.scores)
        if piece.cut is not None:
            part = self.parts(piece.task, piece.cut)[piece.part]
            frame = frame.take(part)
            scores = Scores(scores.name, scores.role, scores.values[part], scores.is_probability)
        skipped: dict[str, int] = {}
        if piece.core:
            measures = core_measures(frame, scores)
        elif task.kind == "binary":
            measures, skipped = binary_measures(frame, scores, cutoffs=config.cutoffs, threshold=config.threshold)
        else:
            measures = regression_measures(frame, scores)
        values = point(measures, frame.user_count)
        # Run by run, so that only one run's sums are in memory; the seed gives all of them the same draws.
        lots = [
            bootstrap(
                {scores.name: measures},
                users=frame.user_count,
                replicates=min(DRAWS_A_SEED, draws_of(config, piece) - DRAWS_A_SEED * lot),
                generator=np.random.default_rng([piece.seed, lot]),
                counts=frame.counts,
                advance=advance,
            )[scores.name]
            for lot in lots_of(config, piece)
        ]
        return Measured(values, _joined(lots), skipped)


def draws_of(config: EvaluateConfig, piece: Piece) -> int:
    """How often the rows of a piece are drawn, all its lots together."""
    return config.bootstrap.slice_replicates if piece.core else config.bootstrap.replicates


def lots_of(config: EvaluateConfig, piece: Piece) -> tuple[int, ...]:
    """Numbers of the lots of its draws."""
    return piece.lots if piece.lots is not None else tuple(range(-(-draws_of(config, piece) // DRAWS_A_SEED)))


def _joined(lots: Sequence[Values]) -> Values:
    return {name: np.concatenate([lot[name] for lot in lots]) for name in lots[0]}


def shares(config: EvaluateConfig, piece: Piece, most: int) -> list[Piece]:
    """The piece in at most so many, of whole lots each, as equal as they can be."""
    lots = lots_of(config, piece)
    return [piece._replace(lots=tuple(map(int, own))) for own in np.array_split(lots, min(most, len(lots)))]


def frame_of(rows: Rows, task: Task, config: EvaluateConfig) -> Frame:
    """The rows of a task, and what of them is drawn. Raises DataError for weights that are none."""
    weights = weights_of(rows)
    if weights is not None:
        tests = tests_of(rows, config.arms)
        ads = rows.ads.codes[task.rows]
        own = weights[task.rows]
        return Frame.of_counts(task.labels, own, units_of(ads, None if tests is None else tests[task.rows], own))
    requests = None if rows.requests is None else rows.requests.codes[task.rows]
    lone = 0 if rows.lone is None else int(rows.lone[task.rows].sum())
    unnamed = None if rows.unnamed is None else rows.unnamed[task.rows]
    return Frame.of(task.labels, rows.users.codes[task.rows], requests, lone, unnamed)


@contextmanager
def measuring(config: EvaluateConfig, measurer: Measurer, factory: Factory, terminal: Terminal) -> Iterator[Measure]:
    """What measures pieces: here one after another, or the workers of the config's cluster, whose work is `factory`."""
    if config.cluster is None:

        def here(pieces: Sequence[Piece]) -> Iterator[Measured]:
            with terminal.progress(_description(measurer, pieces), _draws(config, pieces), unit="draws") as advance:
                for piece in pieces:
                    yield measurer(piece, advance)

        yield here
        return
    payload = config.model_copy(update={"cluster": None}).model_dump(mode="json")
    reads = (config.scored, *config.against, config.labels, config.ads, config.users)
    with Pool(config.cluster, factory, payload, terminal, reads=reads, of="column") as pool:

        def there(pieces: Sequence[Piece]) -> Iterator[Measured]:
            each = -(-pool.workers(MANY) // len(pieces)) if pieces else 1  # columns alone may be fewer than workers
            cut = [shares(config, piece, each) for piece in pieces]
            tasks = [{"name": f"'{share.scores}'", "piece": share} for shared in cut for share in shared]
            with terminal.progress(_description(measurer, pieces), _draws(config, pieces), unit="draws") as advance:
                made = pool.in_order(tasks, len(tasks))
                for shared in cut:
                    parts = []
                    for part in islice(made, len(shared)):
                        parts.append(part)
                        advance(len(next(iter(part.draws.values()), ())))
                    yield parts[0]._replace(draws=_joined([part.draws for part in parts]))
                next(made, None)  # the end is asked for, so that the pool knows that it is done

        yield there


def _description(measurer: Measurer, pieces: Sequence[Piece]) -> str:
    task = measurer.tasks[pieces[0].task].label_name if pieces else ""
    return f"slices of {task}" if pieces and pieces[0].core else f"judging {task}"


def _draws(config: EvaluateConfig, pieces: Sequence[Piece]) -> int:
    return sum(draws_of(config, piece) for piece in pieces)
