"""`adrec federate`: a click model from rows that stay with their owners, over a network or simulated in one process.

What leaves a client are sums: changes of the weights, and counts (clicks of a task, of an ad, between two logits), under masks
where `secure` is set. Vocabularies and scales of features are the prepared folder's, or fitted from such sums beforehand.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.config.training.federate import FederateConfig
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError
from adrec.models.blend.calibration_sums import calibration_of, cells_of
from adrec.stages.training.federating.client import join_rounds
from adrec.stages.training.federating.owner import Owner
from adrec.stages.training.federating.private import train_with_noise
from adrec.stages.training.federating.result import FederateResult
from adrec.stages.training.federating.server import serve_rounds
from adrec.stages.training.federating.sides import Side
from adrec.terminal import Terminal
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import raw_outputs
from adrec.training.federated.exchange import Message
from adrec.training.federated.features import Fitting, OwnColumns
from adrec.training.federated.rounds import Corrupt, Rounds
from adrec.training.federated.sums import Floats, Summing, Wire

_JUDGING_ROWS = 4096
"""Of rule zeno: enough for a change that does harm to stand out, and no round waits long for them."""
_LOOKS = 10
"""Times the validation rows are looked at over a run; nothing is chosen by them."""


def run(
    config: FederateConfig, terminal: Terminal, *, wire: Wire | None = None, corrupt: Corrupt | None = None
) -> FederateResult:
    """Train in rounds and write the bundle. `wire` sees all that leaves a client, `corrupt` lets some lie: for tests."""
    if config.role == "server":
        return serve_rounds(config, terminal)
    if config.role == "client":
        return join_rounds(config, terminal)
    side = Side(config, terminal)
    prepared = side.prepared
    random = np.random.default_rng(config.seed)
    summing = Summing(config.secure, config.threshold, config.drop_out, random, wire)
    if side.fitting is not None:
        _fit(config, side, side.fitting, summing)
    data = side.data
    assert data.train is not None
    train, valid = (
        _dealt(config.clients, prepared, split, len(rows)) for split, rows in (("train", data.train), ("valid", data.valid))
    )
    shards = {code: data.train.take(np.flatnonzero(train == code)) for code in np.unique(train)}
    if len(shards) < 2:
        raise ConfigError(f"clients: '{config.clients}' makes {len(shards)} client of {prepared.path}; name another column.")
    if config.privacy is not None:
        return _with_noise(config, side, shards, valid, summing)
    owned = list(shards.values())
    side.take(_summed(config, len(owned), lambda number: side.counts(owned[number]), summing))
    module = side.module()
    judge = None if config.rule != "zeno" else partial(_loss, side, module, _judging(data.valid, config.seed))
    rounds = Rounds(module, data.collate, data.sampling, side.local(), side.server(), summing, config.seed, corrupt, judge)
    curve = []
    codes = np.array(list(shards))
    with terminal.progress("Federated training", config.rounds, unit="rounds") as advance:
        for number in range(config.rounds):
            drawn = random.permutation(codes)[: config.clients_per_round]
            rounds.run(number, [(int(code), shards[code]) for code in drawn])
            if (number + 1) % max(1, config.rounds // _LOOKS) == 0:
                metrics = module.metrics(raw_outputs(module, data.batches(data.valid), side.base.device))
                curve.append({"round": float(number + 1), **metrics})
            advance()
    packed, held_out = side.packed(module)
    calibrations = {}
    for number, task in enumerate(side.data.tasks):
        labels, logits = data.valid.labels[task.name], held_out.raw[:, number]
        cells = [cells_of(logits[valid == code], labels[valid == code]).astype(np.float64) for code in np.unique(valid)]
        calibrations[task.name] = calibration_of(_summed(config, len(cells), cells.__getitem__, summing))
    figures = side.write(packed, calibrations, held_out, len(shards), curve)
    return FederateResult(
        str(config.output), len(shards), data.rows, min(map(len, shards.values())), config.rounds, summing.fallen,
        figures, curve,
    )  # fmt: skip


def _judging(valid: Examples, seed: int) -> Examples:
    """Validation rows by which clients' changes are judged."""
    drawn = np.random.default_rng(seed).permutation(len(valid))[:_JUDGING_ROWS]
    return valid.take(np.sort(drawn))


def _loss(side: Side, module: CTRModule, rows: Examples) -> float:
    """Of the main task."""
    raw = raw_outputs(module, side.data.batches(rows), side.base.device)
    labels, logits = raw.labels[:, 0], raw.logits[:, 0].astype(np.float64)
    known = ~np.isnan(labels)
    return float(np.mean(np.logaddexp(0.0, logits[known]) - labels[known] * logits[known]))


def _with_noise(
    config: FederateConfig, side: Side, shards: dict[Any, Examples], valid: NDArray[np.int64], summing: Summing
) -> FederateResult:
    """The simulation under `privacy`; clients share one network, since they take turns."""
    data = side.data
    owners = {
        code: Owner(side, rows, data.valid.take(np.flatnonzero(valid == code)), number=int(code))
        for code, rows in shards.items()
    }
    rounds = Rounds(side.module(), data.collate, data.sampling, side.local(), side.server(), summing, config.seed)

    def ask(clients: Sequence[Any], task: Message) -> Floats:
        def vector(number: int) -> Floats:
            owner = owners[clients[number]]
            owner.module = rounds.module
            return owner.vector(task)

        return _summed(config, len(clients), vector, summing)

    return train_with_noise(config, side, list(shards), ask, rounds)


def _fit(config: FederateConfig, side: Side, fitting: Fitting, summing: Summing) -> None:
    """The features, by what each client says of its own rows; then the data read by them."""
    whole = OwnColumns.of(fitting, side.prepared)
    train = _dealt(config.clients, side.prepared, "train", len(whole))
    owners = [np.flatnonzero(train == code) for code in np.unique(train)]

    def ask(task: Message) -> Floats:
        return _summed(config, len(owners), lambda number: whole.take(owners[number]).vector(task), summing)

    side.fit(fitting.together(ask))


def _dealt(by: str, prepared: Prepared, split: str, rows: int) -> NDArray[np.int64]:
    """(N,) the client of each of the first rows; the same value is the same client in every split."""
    named = by if by != "user" and by in prepared.columns else f"{'user' if by == 'user' else 'ad'}_index"
    read = pa.Table.from_batches(list(prepared.iter(split, [named]))).slice(0, rows)[named]
    if by == "user":
        return np.asarray(read.to_numpy(), np.int64)
    if by in prepared.columns:
        column = read.cast(pa.string())
        known = pa.concat_tables([pa.Table.from_batches(list(prepared.iter(name, [by]))) for name in ("train", "valid")])[by]
    else:
        ads = prepared.ads()
        if by not in ads.column_names:
            raise ConfigError(f"clients: neither impressions nor ads of {prepared.path} have a column '{by}'.")
        known = ads[by]
        column = ads[by].cast(pa.string()).take(read.combine_chunks())
    values = np.unique(known.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(str))
    names = column.fill_null("").to_numpy(zero_copy_only=False).astype(str)
    return np.asarray(np.searchsorted(values, names), np.int64)


def _groups(count: int, most: int) -> Iterator[NDArray[np.int64]]:
    """Clients whose statistics are summed together: so many, and never one alone."""
    yield from np.array_split(np.arange(count), max(1, count // max(most, 2)))


def _summed(config: FederateConfig, count: int, vector: Callable[[int], Floats], summing: Summing) -> Floats:
    """Over so many clients; `vector` makes each one's summand when its group's turn comes."""
    groups = _groups(count, config.clients_per_round)
    return np.asarray(np.sum([summing([vector(int(number)) for number in group])[0] for group in groups], axis=0))
