"""What every side of a federated training does: read its config, count its rows, train, and write what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from adrec.bundle import save_bundle
from adrec.config.base import load_config
from adrec.config.training.baselines import HybridConfig
from adrec.config.training.federate import FederateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.features import FeatureSet
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import ConfigError, DataError
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import pack
from adrec.inference.predictor import Predictor
from adrec.models.baselines.suite import Suite
from adrec.models.blend.calibration import Calibration
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.text_vectors import TextReader
from adrec.stages.training.card import write_card
from adrec.stages.training.finetuning.above import click_model
from adrec.stages.training.finetuning.material import Material
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import ClickData, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import Trained, loss_settings, raw_outputs
from adrec.training.federated.features import TABLES, Fitting
from adrec.training.federated.rounds import LocalTraining, Server
from adrec.training.federated.sums import Floats
from adrec.training.loop.trainer import FitResult
from adrec.training.private.features import Refitted
from adrec.training.survey import Seen


def federated_base(config: FederateConfig) -> FinetuneConfig:
    """The finetune config without what needs all rows in one place."""
    fixed = [f"seed={config.seed}", f"device={config.device}"]
    base = load_config(
        config.finetune, FinetuneConfig, [*fixed, *config.overrides], overrides_base=config.finetune.parent
    )  # fmt: skip
    faults = {
        "text.train": base.text.train != "frozen",
        "start_from": base.start_from is not None,
        "model.identities": "users" in base.model.identities,
        "model.identity_optimizer": base.model.identity_optimizer != "adamw",
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
            "hybrid": HybridConfig(kind="none"),
            "delay": base.delay.model_copy(update={"method": "none"}),
            "model": base.model.model_copy(update={"position_bias": False}),
            "refit": False, "seeds": 1, "ensemble": False, "recall_requests": 0, "calibration": "platt",
        }
    )  # fmt: skip


class Side:
    """One side's prepared folder, read: config, data, encoder and reader. Raises DataError where it cannot be federated."""

    def __init__(self, config: FederateConfig, terminal: Terminal) -> None:
        self.config, self.terminal = config, terminal
        self.base = federated_base(config)
        self.prepared: Prepared = open_prepared(self.base.prepared)
        if self.prepared.is_implicit:
            raise DataError(
                f"{self.prepared.path}: its negatives were drawn by what everybody clicked; federate a log of impressions."
            )
        self.encoder: TextEncoder | None = open_text_encoder(self.base, Refitted(self.prepared, self.prepared.features()))
        self.reader: TextReader = text_reader(self.base, self.encoder)
        self.fitting: Fitting | None = None
        """what is fitted together before there is `data`"""
        self.data: ClickData
        if config.features == "federated":
            self.fitting = Fitting.of(self.prepared, config.feature_buckets, seed=config.seed)
        else:
            self._load(self.prepared)

    def fit(self, features: Mapping[str, FeatureSet]) -> None:
        """Read the data by features that all sides fitted together."""
        assert self.fitting is not None
        own = {"ads": self.fitting.stored["ads"], **{table: features[table] for table in TABLES}}
        self._load(Refitted(self.prepared, own))

    def _load(self, prepared: Prepared) -> None:
        self.data = load_click_data(self.base, prepared, self.reader, self.terminal, is_private=True)
        if self.data.train is None or self.data.train.weight is not None:
            raise DataError(
                f"{self.prepared.path}: its rows must fit in memory, one impression each. See training.in_memory_rows."
            )
        if any(not task.is_binary for task in self.data.tasks):
            raise ConfigError(
                "tasks: only those whose label is yes or no can be federated; leave out rating and dwell_seconds."
            )

    @property
    def agreed(self) -> str:
        """Changes with whatever all sides must have alike: settings of the network, features, ads and encoder."""
        base = self.base.model_dump(mode="json")
        alike = {name: base[name] for name in ("model", "tasks", "loss")}
        alike |= {name: base["text"][name] for name in ("pooling", "lexical", "prompts", "dimensions", "max_tokens")}
        names: list[Any]
        if self.fitting is not None:
            names, ids = [self.reader.width, self.fitting.declared], self.prepared.ads()["ad_id"]
        else:
            fitted = {table: own.to_json() for table, own in self.data.features.items()}
            names, ids = [self.data.dimensions.to_json(), fitted], self.data.ads.ids
        encoder = None if self.encoder is None else self.encoder.fingerprint
        ads = sha256("\n".join(ids.to_pylist()).encode()).hexdigest()
        told = json.dumps([alike, *names, encoder, ads], sort_keys=True, default=str)
        return sha256(told.encode()).hexdigest()[:16]

    def local(self) -> LocalTraining:
        """How a client trains."""
        config, training = self.config, self.base.training
        proximal = config.proximal if config.algorithm == "fedprox" else 0.0
        rate = config.local_learning_rate if config.is_plain else training.learning_rate
        return LocalTraining(
            config.local_epochs, training.batch_rows, rate, training.weight_decay, proximal,
            "sgd" if config.is_plain else "adamw",
        )  # fmt: skip

    def server(self) -> Server:
        """How the server goes on from what the clients send."""
        config = self.config
        return Server(config.algorithm, config.rule, config.clip, config.trim, config.server_learning_rate, config.rounds)

    def counts(self, rows: Examples) -> Floats:
        """Of each task how many labels are known and how many are ones; impressions and clicks of every ad."""
        width = len(self.data.ads)
        of_tasks = [rows.labels[task.name] for task in self.data.tasks]
        counts = [np.array([(~np.isnan(labels)).sum(), np.nansum(labels)], np.float64) for labels in of_tasks]
        clicked = rows.ad_index[rows.labels[self.data.sampling.label] > 0]
        of_ads = [np.bincount(index, minlength=width).astype(np.float64) for index in (rows.ad_index, clicked)]
        return np.concatenate([*counts, *of_ads])

    def start(self, means: Sequence[float]) -> None:
        """The data with the rates that the server was told by all clients together."""
        tasks = tuple(replace(task, mean=float(mean), deviation=1.0) for task, mean in zip(self.data.tasks, means, strict=True))
        self.data = replace(self.data, tasks=tasks, newest=None)

    def take(self, total: Floats) -> None:
        """The data with what all clients counted: the rate each task starts from, impressions and clicks of every ad."""
        count = 2 * len(self.data.tasks)
        tasks = tuple(
            replace(task, mean=float(ones / max(rows, 1.0)), deviation=1.0)
            for task, (rows, ones) in zip(self.data.tasks, total[:count].reshape(-1, 2), strict=True)
        )
        shown, clicks = np.rint(total[count:]).astype(np.int64).reshape(2, len(self.data.ads))
        order = np.argsort(-shown, kind="stable")
        seen = Seen(self.data.ads.ids.take(pa.array(order)), shown[order], clicks[order])
        self.data = replace(self.data, tasks=tasks, seen_ads=seen, newest=None)

    def module(self) -> CTRModule:
        """The network as it begins."""
        torch.manual_seed(self.base.seed)
        has_categories = self.base.loss.next_category > 0
        model = build_model(
            self.base.model,
            self.data.dimensions,
            self.data.tasks,
            text_encoder=None,
            next_category=has_categories,
            centres=self.data.centres,
        )
        module = CTRModule(model=model, **loss_settings(self.base, self.data))
        return module.to(resolve_device(self.base.device))

    def packed(self, module: CTRModule) -> tuple[ClickModel, HeldOut]:
        """The bundle without calibration, and its outputs on this side's validation rows."""
        raw = raw_outputs(module, self.data.batches(self.data.valid), self.base.device)
        run = FitResult(0.0, 0, self.config.rounds, [], [], 0.0, 0.0, False, 0)
        material = Material(self.base, self.prepared, self.encoder, self.reader, None, self.data, self.terminal)
        packed = click_model(material, self.data, Trained(module, run, self.base.seed, raw, 1), Suite())
        predictor = Predictor(packed, device=resolve_device(self.base.device), cache=self.base.text.cache)
        return packed, HeldOut(predictor, self.prepared, self.data.valid)

    def write(
        self,
        packed: ClickModel,
        calibrations: Mapping[str, Calibration],
        held_out: HeldOut,
        clients: int,
        curve: list[dict[str, float]],
    ) -> dict[str, float]:
        """Write the bundle; its figures on this side's validation rows."""
        config = self.config
        packed = replace(packed, calibrations=dict(calibrations))
        figures = held_out.figures(packed)["adrec"]
        metrics: dict[str, Any] = {"split": "valid", "measured": "as shipped", "scores": "probability"}
        metrics |= {"models": {"adrec": figures}, "federated": curve}
        how = {"algorithm": config.algorithm, "rule": config.rule, "secure": config.secure, "clients": clients}
        with save_bundle(
            config.output,
            data_fingerprint=self.prepared.fingerprint,
            learned_splits=["train"],
            learned_until=None,
            seed=config.seed,
            kind="click_model",
            federated=how,
        ) as folder:
            pack(folder, packed, metrics)
            write_card(folder, packed, metrics, self.prepared, name=config.output.name)
        return figures
