"""`adrec rank`: choose from the whole catalogue for every request, block by block, and write RANKED.

Requests are taken in order of time. Every PART_REQUESTS of them become a finished part in a work folder beside the
output, with the ledger's state: a killed run goes on behind its last part and ends in the same bytes. Memory is the
catalogue, the ledger and one block of requests.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table as RichTable
from safetensors.numpy import load_file, save_file

from adrec.bundle import open_bundle
from adrec.config.inference.rank import RankConfig
from adrec.data.arrays import integers
from adrec.data.disk.checks import check_rows
from adrec.data.disk.outputs import LISTS, RECALL, guard_output, recall_file
from adrec.data.disk.row_files import STANDARD_OUTPUT, row_writer, to_standard_output
from adrec.data.disk.tables import file_facts, iter_batches, open_dataset, write_table
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.inference.known import at_no_moment
from adrec.inference.lists.blocks import Counted, Lists, RankTask, lists_of, lists_on_cluster
from adrec.inference.lists.opening import everyone, make_ranker, of, own_tables
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.recall import candidate_recall, sample_requests
from adrec.inference.lists.requests import blocks, split_requests, table_requests, users_at, without_numbers
from adrec.inference.lists.why import AdFate, tell
from adrec.inference.own_tables import OwnTables
from adrec.inference.predictor import Predictor
from adrec.inference.rows import refuse_other_spaces
from adrec.models.rerank.reranker import SETTINGS_FILE
from adrec.prepare.own_files import files_of, with_standard_input
from adrec.ranking.arrays import Ints
from adrec.ranking.pacing import RequestShares
from adrec.ranking.recall import CandidateRecall
from adrec.schema import RANKED
from adrec.stages.candidate_recall import KEY, as_json, recall_table, warn_of_low, write_recall
from adrec.terminal import Terminal

REQUEST_BLOCK = 256
"""Requests ranked at a time, and the step at which `pacing: even` releases budget: scores of a block fit the cache."""
PART_REQUESTS = 4_096
"""Requests per finished part: what a killed run does not have to repeat, some seconds of work."""

_NOT_OF_A_PART = {"output", "search_recall", KEY, "seconds", "distinct"}
"""Of the result: what is made anew at the end."""
_CURE = (
    "The ranking gives that: nothing more was written. Look at the ad's bid and inputs, or train again with 'adrec finetune'."
)


@dataclass
class RankResult:
    """What was ranked."""

    output: Path
    requests: int = 0
    empty: int = 0
    """requests for which no ad could be shown"""
    ads: int = 0
    shown: int = 0
    distinct: int = 0
    expected_spend: float = 0.0
    explored: int = 0
    seconds: float = 0.0
    search_recall: dict[str, float] = field(default_factory=dict)
    """of approximate search against exact, where it was used"""
    candidate_recall: list[CandidateRecall] = field(default_factory=list)
    """by policy; empty where it was not measured"""
    policies: dict[str, int] = field(default_factory=dict)
    """requests a policy"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "output": str(self.output), KEY: as_json(self.candidate_recall)}

    def render(self) -> Iterable[RichTable]:
        """What was ranked, and the candidate recall."""
        table = RichTable(title="Ranked", show_header=False)
        table.add_row("requests", f"{self.requests:,} ({self.empty:,} without an ad)")
        table.add_row("ads shown", f"{self.shown:,} ({self.distinct:,} of {self.ads:,} different ones)")
        table.add_row("by policy", ", ".join(f"{name} {count:,}" for name, count in self.policies.items() if count))
        if self.expected_spend:
            table.add_row("expected spend", f"{self.expected_spend:,.2f}")
        if self.explored:
            table.add_row("by exploration", f"{self.explored:,}")
        for method, reached in self.search_recall.items():
            table.add_row(f"{method} finds of exact search", f"{reached:.3f}")
        table.add_row("speed", f"{self.requests / max(self.seconds, 1e-9):,.0f} requests/s")
        table.add_row("written", str(self.output))
        yield table
        yield from recall_table(self.candidate_recall)


def run(config: RankConfig, terminal: Terminal, predictor: Predictor | None = None) -> "RankResult | AdFate":
    """Rank every request, or tell the fate of one ad. `predictor` is the config's bundle where it is loaded already."""
    if config.output == STANDARD_OUTPUT and config.why is None:
        terminal.leave_stdout()
        with tempfile.TemporaryDirectory(prefix="adrec-lists-") as folder:
            result = run(config.model_copy(update={"output": Path(folder) / "lists.csv"}), terminal)
            to_standard_output(Path(folder) / "lists.csv")
            return replace(result, output=STANDARD_OUTPUT) if isinstance(result, RankResult) else result
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    predictor = predictor or Predictor.load(config.bundle, device=config.device)
    _refuse_unnamed(config, predictor)
    if prepared is not None:
        named = [label for label in ("ads", "users") if getattr(config, label) is not None]
        refuse_other_spaces(prepared, predictor.packed.features, named)
    with tempfile.TemporaryDirectory(prefix="adrec-requests-") as folder:
        if config.requests is not None:
            config = config.model_copy(update={"requests": with_standard_input(config.requests, Path(folder))})
        own = own_tables(config, prepared, predictor, Path(folder))
        return _run(config, terminal, prepared, predictor, own)


def _warn_of_reranker(config: RankConfig, ranker: Ranker, terminal: Terminal) -> None:
    """Of one that was joined with another bundle, or that changes nothing."""
    if ranker.rerank is None:
        return
    if ranker.rerank.reranker.bundle != open_bundle(config.bundle).fingerprint:
        terminal.warn(
            f"rerank.reference: was joined with another bundle's scores than those of {config.bundle}. Run 'adrec "
            "train-reranker' on this one."
        )
    if not ranker.rerank.reranker.blend.reranker:
        terminal.warn("rerank.reference: validation found nothing in it (no weight in the join), so that it changes no list.")


def _run(
    config: RankConfig, terminal: Terminal, prepared: Prepared | None, predictor: Predictor, own: OwnTables
) -> "RankResult | AdFate":
    with terminal.progress("Encoding the catalogue"):
        ranker = make_ranker(config, prepared, predictor, own)
    _warn_of_reranker(config, ranker, terminal)
    total = _count(config, prepared, own)
    pace = _pace(config, prepared, own, ranker, total)
    if config.why is not None:
        return tell(ranker, _blocks(config, prepared, own), config.why.user, config.why.ad, pace)
    work = config.output.with_name(f".{config.output.name}.{_fingerprint(config, prepared)}.parts")
    result = RankResult(config.output, ads=len(ranker.ads), policies=dict.fromkeys(ranker.names, 0))
    result.candidate_recall = _candidate_recall(config, prepared, own, ranker, terminal)
    started = time.perf_counter()
    done = _resume(work, ranker, result, terminal)
    if done:
        terminal.tell(f"Ranking: goes on at request {done:,}")
    with terminal.progress("Ranking", total, unit="requests", done=done) as advance:
        tasks = _tasks(_blocks(config, prepared, own, skip=done), done, pace)
        lists: Iterable[Lists] = (lists_of(ranker, ranker.rank(**task._asdict())) for task in tasks)
        if config.cluster is not None:
            lists = lists_on_cluster(config, config.cluster, ranker, own, tasks, total - done, terminal)
        for number, (table, count) in enumerate(_parts(lists, advance, result), start=_finished(work)):
            done += count
            check_rows(table, RANKED, where=str(config.output), cure=_CURE, first_row=result.shown - table.num_rows)
            _save_part(work, number, table, ranker, done, result)
    _assemble(work, config.output, result)
    write_recall(result.candidate_recall, config.output)
    result.search_recall = ranker.finder.recall
    result.seconds = time.perf_counter() - started
    if result.empty:
        terminal.warn(
            f"{result.empty:,} of {result.requests:,} requests got no ad: what a user has clicked (rules.clicked), other "
            "rules, dates, budgets, limits and value.minimum left none. --set why.user=USER "
            "--set why.ad=AD tells which took one."
        )
    shutil.rmtree(work, ignore_errors=True)
    return result


def _candidate_recall(
    config: RankConfig, prepared: Prepared | None, own: OwnTables, ranker: Ranker, terminal: Terminal
) -> list[CandidateRecall]:
    """Of a sample of the requests, warned of where it is low."""
    if not config.recall_requests:
        return []
    guard_output(recall_file(config.output), RECALL)
    tables = _blocks(config, prepared, own)
    requests = sample_requests(tables, ranker.policy_of, requests=config.recall_requests, ads=len(ranker.ads))
    if requests is None:
        return []
    with terminal.progress("Measuring candidate recall", len(requests), unit="requests") as advance:
        measured = candidate_recall(ranker.without_rerank(), requests, advance)
    warn_of_low(measured, terminal)
    return measured


def _refuse_unnamed(config: RankConfig, predictor: Predictor) -> None:
    """Raise DataError where there is nothing to choose from, or nobody to rank for."""
    if not predictor.packed.has.ad:
        raise DataError(
            f"{config.bundle}: the log names no ads, so that there is nothing to choose from. Say in the preprocess config "
            "which column names them (--set source.impressions.columns.ad_id=COLUMN), and train again."
        )
    if config.requests is None and config.split == "users" and not predictor.packed.has.user:
        raise DataError(f"{config.bundle}: the log names no users to rank for. Take the requests of a split (split: test).")


def _tasks(tables: Iterator[pa.Table], done: int, pace: RequestShares) -> Iterator[RankTask]:
    """The blocks of requests in order, with what each must know of the whole batch."""
    for requests in tables:
        yield RankTask(requests, done, pace.released(done, len(requests)))
        done += len(requests)


def _parts(lists: Iterable[Lists], advance: Any, result: RankResult) -> Iterator[tuple[pa.Table, int]]:
    """Finished tables of at least PART_REQUESTS requests each, and how many requests they hold."""
    waiting: list[pa.Table] = []
    held = 0
    for block in lists:
        waiting.append(block.table)
        _tally(result, block.counts)
        held += block.counts.requests
        advance(block.counts.requests)
        if held >= PART_REQUESTS:
            yield pa.concat_tables(waiting), held
            waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting), held


def _tally(result: RankResult, counts: Counted) -> None:
    result.requests += counts.requests
    result.empty += counts.empty
    result.shown += counts.shown
    result.expected_spend += counts.expected_spend
    result.explored += counts.explored
    for name, count in counts.policies.items():
        result.policies[name] += count


# ------------------------------------------------------------------------------------------------- parts


def _save_part(work: Path, number: int, table: pa.Table, ranker: Ranker, done: int, result: RankResult) -> None:
    """The table and the ledger; the JSON file is written last and makes the part count."""
    write_table(table, work / f"part-{number:05d}.parquet")
    with write_aside(work / f"part-{number:05d}.safetensors") as aside:
        save_file({name: np.ascontiguousarray(values) for name, values in ranker.ledger.state().items()}, aside)
    facts = {name: value for name, value in result.as_dict().items() if name not in _NOT_OF_A_PART}
    with write_aside(work / f"part-{number:05d}.json") as aside:
        aside.write_text(json.dumps({"done": done, **facts}), encoding="utf-8")
    for old in work.glob("part-*.safetensors"):
        if old.name != f"part-{number:05d}.safetensors":
            old.unlink()


def _finished(work: Path) -> int:
    return len(list(work.glob("part-*.json"))) if work.is_dir() else 0


def _resume(work: Path, ranker: Ranker, result: RankResult, terminal: Terminal) -> int:
    """Requests that an earlier run finished; its ledger and tallies are taken up. Work of other inputs is removed."""
    for other in work.parent.glob(f"{work.name.rsplit('.', 2)[0]}.*.parts"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    finished = _finished(work)
    if finished == 0:
        return 0
    facts = json.loads((work / f"part-{finished - 1:05d}.json").read_text(encoding="utf-8"))
    ranker.ledger.restore(
        {name: values.copy() for name, values in load_file(work / f"part-{finished - 1:05d}.safetensors").items()}
    )
    done = int(facts.pop("done"))
    for name, value in facts.items():
        setattr(result, name, value)
    terminal.note(f"Going on after {done:,} requests that an earlier run finished.")
    return done


def _assemble(work: Path, output: Path, result: RankResult) -> None:
    """All parts in one file."""
    files = [work / f"part-{number:05d}.parquet" for number in range(_finished(work))]
    if not files:
        raise DataError(f"{output}: there are no requests to rank. Check 'split', or the requests table.")
    seen: set[str] = set()
    schema = pq.read_schema(files[0])
    with write_aside(output, LISTS) as aside, row_writer(aside, schema, "ranked", called=output) as writer:
        for file in files:
            for batch in iter_batches(file):
                writer.write_table(pa.Table.from_batches([batch]))
                seen.update(batch.column("ad_id").unique().tolist())
    result.distinct = len(seen)


def _fingerprint(config: RankConfig, prepared: Prepared | None) -> str:
    """Changes with the config, the bundle and the inputs."""
    facts: list[Any] = [
        config.model_dump(mode="json", exclude={"output", "why", "cluster"}),
        open_bundle(config.bundle, verify=False).fingerprint,
    ]
    if prepared is not None:
        facts.append(prepared.fingerprint)
    if config.rerank is not None:
        facts += file_facts([*sorted(config.rerank.reference.glob("*.safetensors")), config.rerank.reference / SETTINGS_FILE])
    facts += file_facts(
        file for table in (config.ads, config.users, config.requests, config.history) for file in files_of(table)
    )
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------- inputs


def _moment(config: RankConfig) -> int | None:
    return int(config.at.timestamp() * 1_000_000) if config.at is not None else None


def _after(prepared: Prepared) -> int:
    """The moment just behind the last impression."""
    return int(np.datetime64(prepared.manifest["last"].removesuffix("Z"), "us").astype(np.int64)) + 1


def _blocks(config: RankConfig, prepared: Prepared | None, own: OwnTables, *, skip: int = 0) -> Iterator[pa.Table]:
    if own.rows is not None:
        assert config.requests is not None
        tables = table_requests(own.rows, _moment(config), where=config.requests.name)
    elif config.split == "users":
        moment = _moment(config)
        tables = users_at(everyone(prepared, own), _after(of(prepared)) if moment is None else moment)
    else:
        tables = split_requests(of(prepared), config.split)
        if own.ads is not None or own.users is not None:
            tables = without_numbers(tables)
    return blocks(tables, REQUEST_BLOCK, skip=skip)


def _pace(config: RankConfig, prepared: Prepared | None, own: OwnTables, ranker: Ranker, total: int) -> RequestShares:
    """How many requests there are of each day, or of all where budgets are not daily."""
    if not ranker.clock.daily:
        return RequestShares(np.zeros(1, np.int64), np.array([max(total, 1)]))
    days: list[Ints] = [np.zeros(0, np.int64)]
    for table in _blocks(config, prepared, own):
        moments = table if "shown_at" in table.column_names else at_no_moment(table)
        days.append(ranker.clock.day(integers(pc.cast(moments["shown_at"], pa.int64()))))
    return RequestShares.of(np.concatenate(days))


def _count(config: RankConfig, prepared: Prepared | None, own: OwnTables) -> int:
    """How many requests there are: what the progress bar divides by, and even pacing."""
    if own.rows is not None:
        return int(open_dataset(own.rows).count_rows())
    if config.split == "users":
        return sum(len(table) for table in users_at(everyone(prepared, own), 0))
    return sum(len(table) for table in split_requests(of(prepared), config.split))
