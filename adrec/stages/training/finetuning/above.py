"""What stands above the network, all chosen by validation rows: baselines, the hybrid that joins them, calibration, slots.

What is fitted here and what is reported comes from the outputs of the bundle that will be written (`HeldOut`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.config.training.baselines import CLICK_MEMBERS
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import resolve_device
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import log_form, open_entity_vectors, packed_tables, text_settings
from adrec.inference.predictor import Predictor
from adrec.models.baselines.base import Inputs
from adrec.models.baselines.suite import Suite, fit_all, score_all
from adrec.models.blend.by_request import fit_by_request
from adrec.models.blend.calibration import FEW, Calibration, level_shift, sampling_offset
from adrec.models.blend.calibration import fit as fit_calibration
from adrec.models.blend.hybrid import Hybrid, fit_hybrid
from adrec.models.blend.late_labels import fit_seen
from adrec.models.blend.slots import SlotEffects, fit_slots
from adrec.models.text.encoder_training import merged
from adrec.models.text.text_encoder import TextEncoder
from adrec.stages.data.media import open_media
from adrec.stages.training.finetuning.late import calibrate_late
from adrec.stages.training.finetuning.material import Material
from adrec.stages.training.finetuning.networks import Networks, Refit
from adrec.training.click_data import ClickData
from adrec.training.ctr_module import Raw, main_metrics
from adrec.training.ctr_training import Trained, raw_outputs
from adrec.training.survey import Seen

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Joined:
    """A trained network, and the hybrid above it."""

    trained: Trained
    hybrid: Hybrid
    valid: Raw
    """raw outputs on the validation rows; those of the main task come from a hybrid fitted on other rows of them"""

    @property
    def metrics(self) -> dict[str, float]:
        """Of these outputs."""
        return self.trained.module.metrics(self.valid)


@dataclass(frozen=True)
class Above:
    """The chosen network with its baselines and hybrid."""

    suite: Suite
    bundle: ClickModel
    """the network and the baselines alone, as they would be packed"""
    held_out: HeldOut
    """what that bundle gives for the validation rows"""
    best: Joined
    seeds: list[Joined]
    """each seed's network with a hybrid of the same kind: how much a seed matters"""
    valid: Inputs
    train: Inputs | None
    """None where nobody reads them"""

    @cached_property
    def deviations(self) -> dict[str, float]:
        """Standard deviation of each metric over the seeds; empty with one."""
        if len(self.seeds) < 2:
            return {}
        return {name: float(np.std([run.metrics[name] for run in self.seeds], ddof=1)) for name in self.best.metrics}


def join_baselines(material: Material, networks: Networks) -> Above:
    """Fit the baselines on the training rows, and the hybrid on the validation rows."""
    config, data = material.config, material.data
    valid = material.inputs(data, data.valid)
    train = material.learned_inputs(data) if config.baselines.names or config.refit else None
    suite = _fit_baselines(material, train, valid)
    bundle = click_model(material, data, networks.chosen, suite)
    predictor = Predictor(bundle, device=resolve_device(config.device), cache=config.text.cache)
    held_out = HeldOut(predictor, material.prepared, data.valid)
    chosen = networks.chosen
    chosen = replace(chosen, valid=chosen.valid._replace(logits=held_out.raw))  # from here on: what the bundle gives
    best = _join(material, chosen, suite, held_out.simple, valid, config.hybrid.kind)
    seeds = [
        best
        if run.seed == chosen.seed and not config.ensemble
        else _join(material, run, suite, held_out.simple, valid, best.hybrid.kind)
        for run in (networks.runs if len(networks.runs) > 1 else [chosen])
    ]
    return Above(suite, bundle, held_out, best, seeds, valid, train)


def calibrate(material: Material, above: Above) -> ClickModel:
    """The bundle that validation rows have chosen: calibrated, and with what slots do where the network learned it."""
    calibrations = _calibrations(material, above.best)
    slots = _slots(above.bundle, above.best, calibrations, material.data)
    return replace(above.bundle, hybrid=above.best.hybrid, calibrations=calibrations, slots=slots)


def learn_all_rows(material: Material, above: Above, chosen: ClickModel, refit: Refit) -> ClickModel:
    """The chosen bundle with network and baselines that have learned the validation rows too."""
    suite = above.suite
    if suite.fitted:
        train = material.learned_inputs(refit.data)
        with material.terminal.progress("Baselines on all rows", len(suite.fitted), unit="models") as advance:
            suite = fit_all(
                list(suite.fitted),
                train,
                max_rows=material.config.baselines.max_rows,
                seed=material.config.seed,
                like=suite.fitted,
                advance=advance,
            )
    assert above.train is not None
    parts = [above.train, above.valid]
    calibrations = _levelled(material.config, refit, chosen.hybrid, suite, parts, chosen.calibrations)
    model = click_model(material, refit.data, refit.trained, suite)
    return replace(model, hybrid=chosen.hybrid, calibrations=calibrations, slots=chosen.slots)


def figures(material: Material, above: Above, chosen: ClickModel) -> Figures:
    """Name → metrics on the validation rows, of the bundle, the network in it and every baseline."""
    labels, valid = material.data.valid.labels[material.data.sampling.label], material.data.valid

    def of(score: NDArray[np.float32], *, is_probability: bool) -> dict[str, float]:
        return main_metrics(score, labels, valid.request, valid.weight, is_probability=is_probability)

    models = above.held_out.figures(chosen)
    if chosen.hybrid.kind != "none":
        models["network"] = of(above.held_out.raw[:, 0], is_probability=False)
    fitted = above.suite.fitted
    models |= {name: of(score, is_probability=fitted[name].is_probability) for name, score in above.held_out.simple.items()}
    return {name: _sensible(material, metrics) for name, metrics in models.items()}


def cross_fitted(material: Material, above: Above, chosen: ClickModel) -> dict[str, float] | None:
    """Metrics of a hybrid's cross-fitted logits, calibrated and in their slots; None without a hybrid."""
    if chosen.hybrid.kind == "none":
        return None
    best = above.best
    logits = best.valid.logits.copy()
    logits[:, 0] = placed_logits(material, above, chosen)
    return _sensible(material, best.trained.module.metrics(best.valid._replace(logits=logits)))


def placed_logits(material: Material, above: Above, chosen: ClickModel) -> NDArray[np.float32]:
    """(N,) of the main task on validation rows, calibrated and in their slots; a hybrid's are cross-fitted."""
    logits = chosen.calibrations[material.data.tasks[0].name].logit(above.best.valid.logits[:, 0])
    placed = logits if chosen.slots is None else logits + chosen.slots.of(material.data.valid)
    return np.asarray(placed, dtype=np.float32)


def _sensible(material: Material, metrics: dict[str, float]) -> dict[str, float]:
    """Of negatives that were drawn there is a preference, and no log loss."""
    return {name: value for name, value in metrics.items() if name != "log_loss" or not material.prepared.is_implicit}


def _fit_baselines(material: Material, train: Inputs | None, valid: Inputs) -> Suite:
    """Validation rows say when to stop."""
    settings = material.config.baselines
    if not settings.names or train is None:
        return Suite()
    with material.terminal.progress("Baselines", len(settings.names), unit="models") as advance:
        seed = material.config.seed
        return fit_all(settings.names, train, valid, max_rows=settings.max_rows, seed=seed, advance=advance)


def click_model(material: Material, data: ClickData, trained: Trained, suite: Suite) -> ClickModel:
    """Everything that goes into a bundle but what is fitted above network and baselines."""
    own_encoder = trained.module.model.text_encoder
    return ClickModel(
        config=material.config,
        features=data.features,
        dimensions=data.dimensions,
        tasks=data.tasks,
        model=trained.module.model.cpu(),
        encoder=merged(cast(TextEncoder, own_encoder)) if own_encoder is not None else material.encoder,
        calibrations={},
        seen_ads=seen_table(data.seen_ads),
        seen_users=seen_table(data.seen_users),
        text=text_settings(data.prepared),
        form=log_form(data.prepared),
        tables=packed_tables(data.prepared),
        entity_vectors=open_entity_vectors(data.prepared),
        baselines=suite.fitted,
        media=open_media(data.prepared),
    )


def seen_table(seen: Seen) -> pa.Table:
    """As a bundle keeps it."""
    return pa.table({"id": seen.ids, "impressions": seen.impressions, "clicks": seen.clicks})


def _join(
    material: Material,
    trained: Trained,
    suite: Suite,
    simple: dict[str, NDArray[np.float32]],
    valid: Inputs,
    kind: Literal["none", "single", "average", "weighted", "stack", "auto"],
) -> Joined:
    """The hybrid of one run, fitted on the validation rows."""
    network, seed = trained.valid.logits[:, 0], material.config.seed
    if material.prepared.is_implicit and kind != "none":
        hybrid, joined = fit_by_request(network, simple, valid, may_join=CLICK_MEMBERS, seed=seed)
    else:
        hybrid, joined = fit_hybrid(
            kind, network, suite.fitted, simple, valid, metric=trained.module.monitor, seed=seed,
            also=material.config.hybrid.also,
        )  # fmt: skip
    logits = trained.valid.logits.copy()
    logits[:, 0] = joined
    return Joined(trained, hybrid, trained.valid._replace(logits=logits))


def _calibrations(material: Material, best: Joined) -> dict[str, Calibration]:
    """One map a binary task, fitted on the validation rows, which are never down-sampled."""
    config, maps = material.config, {}
    carried: Mapping[str, Calibration] = {}
    if material.start is not None and material.prepared.read_as and best.hybrid.kind == "none":
        carried = material.start.calibrations  # on other scales the same logit would mean other odds
    for number, task in enumerate(material.data.tasks):
        if task.name in material.data.late:
            maps[task.name] = calibrate_late(config, material.data, best.trained, best.hybrid.kind, best.valid, number)
        elif task.is_binary and task.name in carried and config.calibration == "auto" and _are_few(best.valid, number):
            undone = sampling_offset(config.loss.negative_rate if number == 0 else 1.0)
            maps[task.name] = replace(carried[task.name], offset=undone)
        elif task.is_binary:
            maps[task.name] = fit_calibration(
                best.valid.logits[:, number],
                best.valid.labels[:, number],
                weights=best.valid.weight,
                method=config.calibration,
                # A hybrid is fitted on rows that are not down-sampled: nothing is left to undo.
                negative_rate=config.loss.negative_rate if number == 0 and best.hybrid.kind == "none" else 1.0,
                groups=best.valid.request,
                seed=config.seed,
            )
    return maps


def _are_few(valid: Raw, task: int) -> bool:
    """Whether the validation rows tell less of a map than the bundle does that the network started from."""
    clicks = valid.labels[:, task]
    known = ~np.isnan(clicks)
    weight = known.astype(np.float64) if valid.weight is None else np.where(known, valid.weight, 0.0)
    return bool(min(weight[clicks > 0].sum(), weight[clicks == 0].sum()) < FEW)


def _levelled(
    config: FinetuneConfig,
    refit: Refit,
    hybrid: Hybrid,
    suite: Suite,
    parts: list[Inputs],
    calibrations: dict[str, Calibration],
) -> dict[str, Calibration]:
    """The maps that validation rows chose, moved to the level of the model that has learned those rows too.

    `parts` are training and validation rows.
    """
    members = {name: model for name, model in suite.fitted.items() if name in hybrid.names}
    raw = [raw_outputs(refit.trained.module, refit.data.batches(rows.examples), config.device) for rows in parts]
    for raw_part, inputs in zip(raw, parts, strict=True):
        raw_part.logits[:, 0] = hybrid.logit(raw_part.logits[:, 0], score_all(members, inputs), inputs)
    logits, labels = (np.concatenate([getattr(raw_part, name) for raw_part in raw]) for name in ("logits", "labels"))
    weights = (
        None if raw[0].weight is None else np.concatenate([raw_part.weight for raw_part in raw if raw_part.weight is not None])
    )
    times = np.concatenate([rows.examples.shown_at for rows in parts])
    is_recent = np.repeat([False, True], [len(rows) for rows in parts])
    moved = {}
    for number, task in enumerate(refit.data.tasks):
        if task.is_binary:
            calibrated = calibrations[task.name]
            if task.name in refit.data.late:
                elapsed = np.concatenate([rows.examples.elapsed for rows in parts])
                share = refit.data.late[task.name].valid.by(elapsed)
                level = fit_seen(calibrated.logit(logits[:, number]), labels[:, number], share, is_level=True)
                moved[task.name] = calibrated.shifted(level.intercept)
                continue
            shift = level_shift(calibrated.logit(logits[:, number]), labels[:, number], times, is_recent, weights)
            moved[task.name] = calibrated.shifted(shift)
    return moved


def _slots(packed: ClickModel, best: Joined, calibrations: dict[str, Calibration], data: ClickData) -> SlotEffects | None:
    """What slots do to the clicks of the main task, fitted on the validation rows; None where it is not to be learned."""
    learned = packed.model.slot_effects()
    if learned is None:
        return None
    return fit_slots(
        calibrations[data.tasks[0].name].logit(best.valid.logits[:, 0]),
        best.valid.labels[:, 0],
        data.valid,
        learned.detach().cpu().numpy(),
        placement=data.dimensions.placement,
        weights=best.valid.weight,
    )
