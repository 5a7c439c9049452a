"""Rows to score, shard by shard: each becomes a finished Parquet part, in this process, by several workers or on a cluster.

Shard k is rows k * shard_rows up to (k + 1) * shard_rows whoever scores it, so that any worker may, and a killed run needs
only the parts that are missing. Within a process reading, computing and writing overlap (`adrec.inference.ahead`).
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import cache
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from adrec.bundle import Bundle, open_bundle
from adrec.cluster.pool import Pool
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.device import resolve_device, use_threads
from adrec.data.disk.checks import check_rows
from adrec.data.disk.row_files import row_writer
from adrec.data.disk.writing import write_aside
from adrec.errors import ResourceError
from adrec.inference.ahead import ahead
from adrec.inference.catalogue_ranks import CatalogueRanks
from adrec.inference.onnx.backend import predictor_of
from adrec.inference.own_tables import OwnTables
from adrec.inference.score_source import open_source
from adrec.inference.scored import with_scores
from adrec.schema import SCORED
from adrec.terminal import Terminal

FULL_UP_TO, SAMPLED = 20_000, 1_000
"""Ads up to which `catalogue: auto` ranks among all of them, and how many it draws where there are more."""
FEW_REPEATS = 0.01
_CURE = "The bundle gives that: nothing was written. Look at the row's inputs, or train again with 'adrec finetune'."


def part_path(work: Path, number: int) -> Path:
    """Where shard `number` is kept when it is finished."""
    return work / f"part-{number:06d}.parquet"


class ShardScorer:
    """An opened bundle over opened rows."""

    def __init__(self, config: ScoreConfig, own: OwnTables, device: str, terminal: Terminal) -> None:
        if config.threads is not None:
            use_threads(config.threads)
        self.config, self.terminal = config, terminal
        self.predictor = predictor_of(config.bundle, device=device, cache=config.cache, onnx=config.onnx, int8=config.onnx_int8)
        self.source = open_source(config, self.predictor, own)
        self.ranks: CatalogueRanks | None = None
        if (wanted := catalogue_of(config, open_bundle(config.bundle, verify=False), len(self.source.ads))) is not None:
            self.ranks = CatalogueRanks(
                self.predictor,
                self.source.catalogs,
                self.source.known_then(),
                self.source.availability(),
                candidates=wanted.candidates,
                drop_clicked=wanted.drop_clicked,
                baselines=config.baselines,
            )

    def write(self, number: int, work: Path) -> int:
        """Score one shard into its part; the number of its rows."""
        rows = 0
        with closing(ahead(self._scored(number), depth=1)) as tables, write_aside(part_path(work, number)) as aside:
            first = next(tables)
            with row_writer(aside, first.schema, "scored", called=part_path(work, number)) as writer:
                table: pa.Table | None = first
                while table is not None:
                    first_row = number * self.config.shard_rows + rows
                    check_rows(table, SCORED, where=str(self.config.output), cure=_CURE, first_row=first_row)
                    writer.write_table(table)
                    rows += table.num_rows
                    table = next(tables, None)
        return rows

    def _scored(self, number: int) -> Iterator[pa.Table]:
        start = number * self.config.shard_rows
        with closing(ahead(self.source.chunks(start, start + self.config.shard_rows), depth=1)) as chunks:
            for chunk in chunks:
                scores = self.predictor.score_examples(
                    chunk.examples,
                    self.source.catalogs,
                    batch_rows=self.config.batch_rows,
                    baselines=self.config.baselines,
                    terminal=self.terminal,
                )
                scored = with_scores(chunk.table, chunk.examples, self.source.catalogs, scores)
                if self.ranks is not None:
                    for name, values in self.ranks.columns(chunk.rows, chunk.examples).items():
                        scored = scored.append_column(name, values)
                yield scored


class Wanted(NamedTuple):
    """Ranks over the catalogue that a run writes."""

    candidates: int | None
    """None: all ads"""
    drop_clicked: bool


def catalogue_of(config: ScoreConfig, bundle: Bundle, ads: int) -> Wanted | None:
    """What `catalogue` and `catalogue_clicked` come to for this bundle and so many ads; None for no ranks."""
    implicit = bundle.manifest.get("implicit") or {}
    if config.catalogue == "none" or (config.catalogue == "auto" and not implicit):
        return None
    clicked = config.catalogue_clicked
    repeated = implicit.get("repeated_clicks")
    drop = clicked == "drop" or (clicked == "auto" and repeated is not None and repeated <= FEW_REPEATS)
    if config.catalogue == "auto":
        return Wanted(None if ads <= FULL_UP_TO else SAMPLED, drop)
    return Wanted(None if config.catalogue == "full" else config.catalogue, drop)


def score_shards(config: ScoreConfig, own: OwnTables, numbers: Sequence[int], work: Path, terminal: Terminal) -> Iterator[int]:
    """Score the given shards into `work`; yields the rows of each as it is finished, in any order. `own` are the tables read.

    With several workers each is a process with its own copy of the model, on the next GPU in turn where there are GPUs.
    Raises ResourceError where one was killed.
    """
    if config.cluster is not None:
        yield from _on_cluster(config, config.cluster, own, numbers, work, terminal)
        return
    workers = min(config.workers, len(numbers))
    if workers <= 1:
        scorer = ShardScorer(config, own, resolve_device(config.device), terminal)
        for number in numbers:
            yield scorer.write(number, work)
        return
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for worker in range(workers):
        devices.put(_device_of(worker, resolve_device(config.device)))
    shared = config if config.threads is not None else config.model_copy(update={"threads": _share(workers)})
    text = shared.model_dump_json()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(devices,)) as pool:
        try:
            for done in as_completed([pool.submit(_score_shard, text, own, number, work) for number in numbers]):
                yield done.result()
        except BrokenProcessPool:
            raise ResourceError(
                "score: a worker was killed, most likely for want of memory. Run the same command again to go on,"
                " with fewer `workers` or less `chunk_rows`."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _on_cluster(
    config: ScoreConfig, cluster: ClusterConfig, own: OwnTables, numbers: Sequence[int], work: Path, terminal: Terminal
) -> Iterator[int]:
    """The same by workers of a cluster. What a worker makes comes here as the bytes of the part: no disk need be shared."""
    alone = config.model_copy(update={"cluster": None})
    payload = {"config": alone.model_dump(mode="json"), "own": [None if path is None else str(path) for path in own]}
    reads = (config.bundle, config.prepared, config.onnx, *own)
    with Pool(cluster, scoring_worker, payload, terminal, reads=reads, of="shard") as pool:
        for number, (rows, made) in pool.each(numbers):
            with write_aside(part_path(work, number)) as aside:
                aside.write_bytes(memoryview(made))
            yield rows


def scoring_worker(payload: dict[str, Any], scratch: Path) -> Callable[[int], tuple[int, NDArray[np.uint8]]]:
    """In a worker of a cluster: from the number of a shard to its rows and the bytes of its part."""
    config = ScoreConfig.model_validate(payload["config"])
    own = OwnTables(*(None if path is None else Path(path) for path in payload["own"]))
    scorer = ShardScorer(config, own, resolve_device(config.device), Terminal(quiet=True))

    def score(number: int) -> tuple[int, NDArray[np.uint8]]:
        rows = scorer.write(number, scratch)
        made = np.fromfile(part_path(scratch, number), np.uint8)
        part_path(scratch, number).unlink()
        return rows, made

    return score


def _device_of(worker: int, device: str) -> str:
    return f"cuda:{worker % torch.cuda.device_count()}" if device == "cuda" else device


def _share(workers: int) -> int:
    return max(1, torch.get_num_threads() // workers)


# ------------------------------------------------------------------------------------------ in a worker process


_DEVICE: list[str] = []


def _begin(devices: "SimpleQueue[str]") -> None:
    """Take a device; and end with the parent, even one that is killed, lest a rerun meets this process at its parts."""
    _DEVICE.append(devices.get())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score_shard(config: str, own: OwnTables, number: int, work: Path) -> int:
    return _scorer(config, own).write(number, work)


@cache
def _scorer(config: str, own: OwnTables) -> ShardScorer:
    return ShardScorer(ScoreConfig.model_validate_json(config), own, _DEVICE[0], Terminal(quiet=True))
