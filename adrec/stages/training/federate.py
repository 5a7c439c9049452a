"""`adrec federate`: a click model from rows that stay with their owners, over a network or simulated in one process.

What leaves a client are sums: changes of the weights, and counts (clicks of a task, of an ad, between two logits), under masks
where `secure` is set. Vocabularies and scales of features are agreed beforehand: they are the prepared folder's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.config.training.federate import FederateConfig
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError
from adrec.models.blend.calibration import calibration_of, cells_of
from adrec.stages.training.federating.client import join_rounds
from adrec.stages.training.federating.owner import Owner
from adrec.stages.training.federating.private import train_with_noise
from adrec.stages.training.federating.result import FederateResult
from adrec.stages.training.federating.server import serve_rounds
from adrec.stages.training.federating.sides import Side
from adrec.terminal import Terminal
from adrec.training.ctr_training import raw_outputs
from adrec.training.federated.exchange import Message
from adrec.training.federated.rounds import Corrupt, Rounds
from adrec.training.federated.sums import Floats, Summing, Wire

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
    prepared, data = side.prepared, side.data
    assert data.train is not None
    random = np.random.default_rng(config.seed)
    train, valid = _dealt(config.clients, prepared, "train", data.train), _dealt(config.clients, prepared, "valid", data.valid)
    shards = {code: data.train.take(np.flatnonzero(train == code)) for code in np.unique(train)}
    if len(shards) < 2:
        raise ConfigError(f"clients: '{config.clients}' makes {len(shards)} client of {prepared.path}; name another column.")
    summing = Summing(config.secure, config.threshold, config.drop_out, random, wire)
    if config.privacy is not None:
        return _with_noise(config, side, shards, valid, summing)
    side.take(_summed(config, [side.counts(rows) for rows in shards.values()], summing))
    module = side.module()
    rounds = Rounds(module, data.collate, data.sampling, side.local(), side.server(), summing, config.seed, corrupt)
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
        calibrations[task.name] = calibration_of(_summed(config, cells, summing))
    figures = side.write(packed, calibrations, held_out, len(shards), curve)
    return FederateResult(
        str(config.output), len(shards), data.rows, min(map(len, shards.values())), config.rounds, summing.fallen,
        figures, curve,
    )  # fmt: skip


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
        vectors = []
        for code in clients:
            owners[code].module = rounds.module
            vectors.append(owners[code].vector(task))
        return _summed(config, vectors, summing)

    return train_with_noise(config, side, list(shards), ask, rounds)


def _dealt(by: str, prepared: Prepared, split: str, rows: Examples) -> NDArray[np.int64]:
    """(N,) the client of each row; the same value is the same client in every split."""
    if by == "user":
        return rows.user_index.astype(np.int64)
    if by in prepared.columns:
        table = pa.Table.from_batches(list(prepared.iter(split, [by]))).slice(0, len(rows))
        column = table[by].cast(pa.string())
        known = pa.concat_tables([pa.Table.from_batches(list(prepared.iter(name, [by]))) for name in ("train", "valid")])[by]
    else:
        ads = prepared.ads()
        if by not in ads.column_names:
            raise ConfigError(f"clients: neither impressions nor ads of {prepared.path} have a column '{by}'.")
        known = ads[by]
        column = ads[by].cast(pa.string()).take(pa.array(rows.ad_index))
    values = np.unique(known.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(str))
    names = column.fill_null("").to_numpy(zero_copy_only=False).astype(str)
    return np.asarray(np.searchsorted(values, names), np.int64)


def _groups(count: int, most: int) -> Iterator[NDArray[np.int64]]:
    """Clients whose statistics are summed together: so many, and never one alone."""
    yield from np.array_split(np.arange(count), max(1, count // max(most, 2)))


def _summed(config: FederateConfig, vectors: list[NDArray[np.float64]], summing: Summing) -> NDArray[np.float64]:
    total = np.zeros_like(vectors[0])
    for group in _groups(len(vectors), config.clients_per_round):
        total += summing([vectors[number] for number in group])[0]
    return total
