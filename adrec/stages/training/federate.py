"""`adrec federate`: a click model from rows that stay with their owners, simulated in one process.

What leaves a client are sums: changes of the weights, and counts (clicks of a task, of an ad, between two logits), under masks
where `secure` is set. Vocabularies and scales of features are agreed beforehand: they are the prepared folder's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import save_bundle
from adrec.config.base import load_config
from adrec.config.training.federate import FederateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import ConfigError, DataError
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import pack
from adrec.inference.predictor import Predictor
from adrec.models.baselines.suite import Suite
from adrec.models.blend.calibration import Calibration, calibration_of, cells_of
from adrec.stages.training.card import write_card
from adrec.stages.training.finetuning.above import click_model
from adrec.stages.training.finetuning.material import Material
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import ClickData, Seen, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import LIST_PENALTY, Trained, monitored_metric, raw_outputs
from adrec.training.federated.rounds import Corrupt, LocalTraining, Rounds, Server
from adrec.training.federated.sums import Summing, Wire
from adrec.training.trainer import FitResult

_LOOKS = 10
"""Times the validation rows are looked at over a run; nothing is chosen by them."""


@dataclass(frozen=True)
class FederateResult:
    """How it went."""

    output: str
    clients: int
    rows: int
    smallest: int
    """rows of the smallest client"""
    rounds: int
    fallen: int
    """times that a client fell out"""
    figures: dict[str, float]
    """of the bundle on validation rows"""
    curve: list[dict[str, float]] = field(default_factory=list)
    """`round` and validation metrics of the raw outputs"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return dict(vars(self))

    def render(self) -> Iterable[RenderableType]:
        """The curve, and a line."""
        table = Table("round", title=f"{self.clients:,} clients, {self.rows:,} rows (the smallest has {self.smallest:,})")
        names = [name for name in ("auc", "auc_request", "log_loss") if name in self.figures]
        for name in names:
            table.add_column(name, justify="right")
        for row in self.curve:
            table.add_row(f"{row['round']:.0f}", *(f"{row[name]:.4f}" for name in names))
        table.add_row("bundle", *(f"{self.figures[name]:.4f}" for name in names))
        yield table
        yield f"{self.rounds:,} rounds, clients fell out {self.fallen:,} times; bundle: {self.output}"


def run(
    config: FederateConfig, terminal: Terminal, *, wire: Wire | None = None, corrupt: Corrupt | None = None
) -> FederateResult:
    """Train in rounds and write the bundle. `wire` sees all that leaves a client, `corrupt` lets some lie: for tests."""
    base = _base(config)
    prepared = open_prepared(base.prepared)
    if prepared.is_implicit:
        raise DataError(f"{prepared.path}: its negatives were drawn by what everybody clicked; federate a log of impressions.")
    encoder = open_text_encoder(base, prepared)
    reader = text_reader(base, encoder)
    data = load_click_data(base, prepared, reader, terminal, is_private=True)
    if data.train is None or data.train.weight is not None:
        raise DataError(f"{prepared.path}: its rows must fit in memory, one impression each. See training.in_memory_rows.")
    random = np.random.default_rng(config.seed)
    train, valid = _dealt(config.clients, prepared, "train", data.train), _dealt(config.clients, prepared, "valid", data.valid)
    shards = {code: data.train.take(np.flatnonzero(train == code)) for code in np.unique(train)}
    if len(shards) < 2:
        raise ConfigError(f"clients: '{config.clients}' makes {len(shards)} client of {prepared.path}; name another column.")
    summing = Summing(config.secure, config.threshold, config.drop_out, random, wire)
    data = _with_sums(config, data, list(shards.values()), summing)
    module = _module(base, data)
    rounds = Rounds(
        module, data.collate, data.sampling,
        LocalTraining(config.local_epochs, base.training.batch_rows, base.training.learning_rate, base.training.weight_decay,
                      config.proximal if config.algorithm == "fedprox" else 0.0),
        Server(config.algorithm, config.rule, config.clip, config.trim, config.server_learning_rate),
        summing, config.seed, corrupt,
    )  # fmt: skip
    curve = []
    codes = np.array(list(shards))
    with terminal.progress("Federated training", config.rounds, unit="rounds") as advance:
        for number in range(config.rounds):
            drawn = random.permutation(codes)[: config.clients_per_round]
            rounds.run(number, [(int(code), shards[code]) for code in drawn])
            if (number + 1) % max(1, config.rounds // _LOOKS) == 0:
                metrics = module.metrics(raw_outputs(module, data.batches(data.valid), base.device))
                curve.append({"round": float(number + 1), **metrics})
            advance()
    packed, held_out = _packed(config, base, prepared, data, module, valid, summing, (encoder, reader), terminal)
    figures = held_out.figures(packed)["adrec"]
    result = FederateResult(
        str(config.output), len(shards), data.rows, min(map(len, shards.values())), config.rounds, summing.fallen,
        figures, curve,
    )  # fmt: skip
    _write(config, prepared, packed, result)
    return result


def _base(config: FederateConfig) -> FinetuneConfig:
    """The finetune config without what needs all rows in one place."""
    fixed = [f"seed={config.seed}", f"device={config.device}"]
    base = load_config(
        config.finetune, FinetuneConfig, [*fixed, *config.overrides], overrides_base=config.finetune.parent
    )  # fmt: skip
    faults = {
        "text.train": base.text.train != "frozen",
        "start_from": base.start_from is not None,
        "model.identities": "users" in base.model.identities,
        "privacy": base.privacy is not None,
        "loss.task_weights": base.loss.task_weights != "fixed",
        "loss.terms: next_click": base.learns_next_click,
    }
    if any(faults.values()):
        named = ", ".join(key for key, is_set in faults.items() if is_set)
        raise ConfigError(f"{config.finetune}: {named} cannot be federated; leave it out.")
    return base.model_copy(
        update={
            "baselines": base.baselines.model_copy(update={"names": []}),
            "hybrid": base.hybrid.model_copy(update={"kind": "none"}),
            "delay": base.delay.model_copy(update={"method": "none"}),
            "model": base.model.model_copy(update={"position_bias": False}),
            "refit": False, "seeds": 1, "ensemble": False, "recall_requests": 0, "calibration": "platt",
        }
    )  # fmt: skip


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


def _with_sums(config: FederateConfig, data: ClickData, shards: list[Examples], summing: Summing) -> ClickData:
    """The data with what clients counted: the rate each task starts from, impressions and clicks of every ad."""
    width, main = len(data.ads), data.sampling.label
    vectors = []
    for rows in shards:
        known = [~np.isnan(rows.labels[task.name]) for task in data.tasks]
        counts = [np.array([own.sum(), np.nansum(rows.labels[task.name])]) for task, own in zip(data.tasks, known, strict=True)]
        clicked = rows.ad_index[rows.labels[main] > 0]
        vectors.append(
            np.concatenate([*counts, np.bincount(rows.ad_index, minlength=width), np.bincount(clicked, minlength=width)])
        )
    total = _summed(config, [vector.astype(np.float64) for vector in vectors], summing)
    rates = total[: 2 * len(data.tasks)].reshape(-1, 2)
    if any(not task.is_binary for task in data.tasks):
        raise ConfigError("tasks: only those whose label is yes or no can be federated; leave out rating and dwell_seconds.")
    tasks = tuple(
        replace(task, mean=float(ones / max(rows, 1.0)), deviation=1.0)
        for task, (rows, ones) in zip(data.tasks, rates, strict=True)
    )
    shown, clicks = np.rint(total[2 * len(data.tasks) :]).astype(np.int64).reshape(2, width)
    order = np.argsort(-shown, kind="stable")
    seen = Seen(data.ads.ids.take(pa.array(order)), shown[order], clicks[order])
    return replace(data, tasks=tasks, seen_ads=seen, newest=None)


def _module(base: FinetuneConfig, data: ClickData) -> CTRModule:
    torch.manual_seed(base.seed)
    has_categories = base.loss.next_category > 0
    model = build_model(
        base.model, data.dimensions, data.tasks, text_encoder=None, next_category=has_categories, centres=data.centres
    )
    return CTRModule(
        model=model,
        tasks=data.tasks,
        terms=[(term.kind, term.weight) for term in base.loss.terms],
        learned_weights=False,
        next_category=base.loss.next_category,
        category=data.dimensions.category or 0,
        list_penalty=LIST_PENALTY,
        monitor=monitored_metric(base, data),
    ).to(resolve_device(base.device))


def _packed(
    config: FederateConfig, base: FinetuneConfig, prepared: Prepared, data: ClickData, module: CTRModule,
    valid: NDArray[np.int64], summing: Summing, text: tuple[Any, Any], terminal: Terminal,
) -> tuple[ClickModel, HeldOut]:  # fmt: skip
    """The bundle, calibrated by the clients' counts of clicks between logits on their validation rows."""
    raw = raw_outputs(module, data.batches(data.valid), base.device)
    run = FitResult(0.0, 0, config.rounds, [], [], 0.0, 0.0, False, 0)
    material = Material(base, prepared, text[0], text[1], None, data, terminal)
    packed = click_model(material, data, Trained(module, run, base.seed, raw, 1), Suite())
    held_out = HeldOut(Predictor(packed, device=resolve_device(base.device), cache=base.text.cache), prepared, data.valid)
    maps: dict[str, Calibration] = {}
    for number, task in enumerate(data.tasks):
        labels, logits = data.valid.labels[task.name], held_out.raw[:, number]
        cells = [cells_of(logits[valid == code], labels[valid == code]).astype(np.float64) for code in np.unique(valid)]
        maps[task.name] = calibration_of(_summed(config, cells, summing))
    return replace(packed, calibrations=maps), held_out


def _write(config: FederateConfig, prepared: Prepared, packed: ClickModel, result: FederateResult) -> None:
    metrics: dict[str, Any] = {"split": "valid", "measured": "as shipped", "scores": "probability"}
    metrics |= {"models": {"adrec": result.figures}, "federated": result.curve}
    how = {"algorithm": config.algorithm, "rule": config.rule, "secure": config.secure, "clients": result.clients}
    with save_bundle(
        config.output,
        data_fingerprint=prepared.fingerprint,
        learned_splits=["train"],
        learned_until=None,
        seed=config.seed,
        kind="click_model",
        federated=how,
    ) as folder:
        pack(folder, packed, metrics)
        write_card(folder, packed, metrics, prepared, name=config.output.name)
