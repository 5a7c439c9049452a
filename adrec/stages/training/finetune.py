"""`adrec finetune`: prepared folder + text encoder → bundle, with every baseline beside it."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.bundle import save_bundle
from adrec.config.training.baselines import CLICK_MEMBERS
from adrec.config.training.finetune import FinetuneConfig, for_clicks_alone
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.golden import draw_golden
from adrec.inference.held_out import HeldOut
from adrec.inference.lists.recall import bundle_recall
from adrec.inference.packing import ClickModel, log_form, pack, packed_tables, text_settings
from adrec.inference.predictor import Predictor
from adrec.inference.starting import open_start
from adrec.models.baselines.base import Columns, Inputs
from adrec.models.baselines.declared import declared_columns
from adrec.models.baselines.suite import Suite, fit_all, score_all
from adrec.models.blend.by_request import fit_by_request
from adrec.models.blend.calibration import Calibration, level_shift
from adrec.models.blend.calibration import fit as fit_calibration
from adrec.models.blend.hybrid import Hybrid, fit_hybrid
from adrec.models.blend.slots import SlotEffects, fit_slots
from adrec.models.text.encoder_training import merged
from adrec.models.text.text_encoder import TextEncoder
from adrec.ranking.recall import CandidateRecall
from adrec.stages.candidate_recall import KEY, as_json, warn_of_low
from adrec.stages.training.card import Intervals, intervals, write_card
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.simple_check import simple_check
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, Seen, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader, trained_encoder
from adrec.training.ctr_module import Raw, main_metrics
from adrec.training.ctr_training import Trained, best_run, best_share, ensemble, raw_outputs, train_again, train_click_model
from adrec.training.trainer import work_folder

_SLOT_FEATURES = ("position", "counter_position_rate")


def run(config: FinetuneConfig, terminal: Terminal) -> FinetuneResult:
    """Train, calibrate, compare, and write the bundle. A killed run goes on from its last checkpoint."""
    prepared = open_prepared(config.prepared)
    if prepared.is_implicit:
        config = for_clicks_alone(config, uniform=not prepared.drawn_by)
    for finding in prepared.manifest.get("findings", []):
        terminal.warn(finding["message"])
    start = open_start(config.start_from, config.trusted_keys) if config.start_from is not None else None
    encoder = open_text_encoder(config, prepared, start)
    text_space = encoder.fingerprint if encoder is not None else ""
    if encoder is not None and encoder.clicks_of == prepared.fingerprint:
        terminal.warn(
            f"{config.text.reference} learned from the clicks of these training rows: likeness looks better there than it"
            " is, and what reads it trusts it too much. Pretrain with `positives: [parts, categories]`, or compare the two."
        )
    _warn_of_positions(config, prepared, terminal)
    reader = text_reader(config, encoder)
    until = start.learned_until if start is not None else None
    data = load_click_data(config, prepared, reader, terminal, learned_until=until)
    if until is not None and data.newest is not None and int(data.valid.shown_at.min()) <= until:
        terminal.warn(
            f"{config.start_from}: has learned validation rows, if it is of this log: what they choose and measure flatters it."
            " Go on from a bundle that ends before them, or let later files come first."
        )
    work = work_folder(config.output)
    runs = [
        train_click_model(
            config,
            data,
            seed=config.seed + number,
            work=work / f"seed{config.seed + number}",
            terminal=terminal,
            text_encoder=trained_encoder(config, encoder),
            description="Training" if config.seeds == 1 else f"Training {number + 1}/{config.seeds}",
            is_last=number == config.seeds - 1 and not config.refit,
            start=start,
            text_space=text_space,
        )
        for number in range(config.seeds)
    ]
    kept = runs if config.ensemble else [best_run(runs)]
    again: _Again | None = None
    if config.refit:
        both = load_click_data(config, prepared, reader, terminal, splits=config.learned_splits, learned_until=until)
        share = best_share(config, runs)
        encoders = partial(trained_encoder, config, encoder)
        networks = train_again(
            config,
            both,
            kept,
            share=share,
            work=work,
            terminal=terminal,
            text_encoders=encoders,
            start=start,
            text_space=text_space,
        )
        again = _Again(both, share, _one(networks))
    valid = _inputs(config, data, data.valid)
    train = _inputs(config, data, _baseline_rows(config, data)) if config.baselines.names or config.refit else None
    suite = _baselines(config, train, valid, terminal)
    own = _one(kept)
    chosen = _click_model(config, data, own, encoder, suite)
    held_out = HeldOut(Predictor(chosen, device=resolve_device(config.device), cache=config.text.cache), prepared, data.valid)
    simple = held_out.simple
    own = replace(own, valid=own.valid._replace(logits=held_out.raw))  # from here on: what the bundle gives
    best = _join(config, data, own, suite, simple, valid, config.hybrid.kind)
    # What was chosen for the network that is kept joins the others too: their figures say how much a seed matters.
    joined = [
        best
        if run.seed == own.seed and not config.ensemble
        else _join(config, data, run, suite, simple, valid, best.hybrid.kind)
        for run in (runs if len(runs) > 1 else [own])
    ]
    calibrations = _calibrate(config, data, best)
    chosen = replace(chosen, hybrid=best.hybrid, calibrations=calibrations, slots=_slots(chosen, best, calibrations, data))
    models = held_out.figures(chosen)
    if best.hybrid.kind != "none":
        models["network"] = _simple_metrics(held_out.raw[:, 0], False, data)
    models |= {name: _simple_metrics(score, suite.fitted[name].is_probability, data) for name, score in simple.items()}
    check = simple_check(best.valid.logits[:, 0], simple, suite.fitted, valid, metric=best.trained.module.monitor)
    packed = chosen
    if again is not None:
        assert train is not None
        fitted = _baselines_again(config, again.data, suite, terminal)
        moved = _levelled(config, again, best.hybrid, fitted, [train, valid], calibrations)
        packed = _click_model(config, again.data, again.trained, encoder, fitted)
        packed = replace(packed, hybrid=best.hybrid, calibrations=moved, slots=chosen.slots)
    if prepared.is_implicit:  # of negatives that were drawn: a preference has no log loss
        models = {name: {key: value for key, value in found.items() if key != "log_loss"} for name, found in models.items()}
    predictor = Predictor(packed, cache=config.text.cache)
    recall = _candidate_recall(config, predictor, prepared, terminal)
    packed = replace(packed, shares=recall[0].shares if recall else {})
    deviations = _deviations(joined)
    cross_fitted = _calibrated_metrics(best, chosen, data) if best.hybrid.kind != "none" else None
    refit = again.as_dict(best.trained) if again is not None else None
    metrics = {
        "split": "valid",
        "measured": "before the refit" if again is not None else "as shipped",
        "scores": "preference" if prepared.is_implicit else "probability",
        "models": models,
        "intervals": _intervals({"adrec": best.valid.logits[:, 0], **simple}, valid),
        "seeds": {str(one.trained.seed): one.metrics for one in joined},
        "deviations": deviations,
        "training": best.trained.run.as_dict(),
        "curves": {str(one.trained.seed): one.trained.run.evaluations for one in joined},
        "calibration": {name: found.to_json() for name, found in packed.calibrations.items()},
        "baselines_left_out": suite.left_out,
        "hybrid": {"kind": best.hybrid.kind, "quality": dict(best.hybrid.quality)},
        "cross_fitted": cross_fitted,
        "simple_check": asdict(check) if check is not None else None,
        "refit": refit,
        KEY: as_json(recall),
    }
    learned = list(config.learned_splits)
    implicit = {"implicit": {"repeated_clicks": prepared.manifest.get("repeated_clicks")}} if prepared.is_implicit else {}
    with save_bundle(
        config.output,
        data_fingerprint=prepared.fingerprint,
        learned_splits=learned,
        learned_until=(data if again is None else again.data).newest,
        seed=best.trained.seed,
        kind="click_model",
        **({"started_from": start.fingerprint} if start is not None else {}),
        **implicit,
    ) as folder:
        pack(folder, packed, metrics)
        write_card(folder, packed, metrics, prepared, name=config.output.name)
        golden = draw_golden(prepared, data.features, seed=config.seed)
        made = predictor.golden_scores(golden)
        golden.save(folder, made.logit, made.score)
    shutil.rmtree(work, ignore_errors=True)
    return FinetuneResult(
        output=str(config.output),
        rows=data.rows,
        valid_rows=len(data.valid),
        seeds=[run.seed for run in runs],
        best_seed=best.trained.seed,
        epochs=best.trained.run.steps * config.training.accumulate * config.training.devices / best.trained.batches_per_epoch,
        seconds=best.trained.run.seconds,
        rows_per_second=best.trained.run.units_per_second,
        models=models,
        deviations=deviations,
        calibration=packed.calibrations[data.tasks[0].name].method,
        left_out=suite.left_out,
        hybrid=best.hybrid.kind,
        cross_fitted=cross_fitted,
        simple_check=check,
        refit=refit,
        candidate_recall=recall,
    )


def _intervals(scores: dict[str, NDArray[np.float32]], valid: Inputs) -> Intervals:
    """Of what is judged on validation rows; rows of counts have theirs from `evaluate`."""
    if valid.weights is not None:
        return {}
    return intervals(scores, valid.clicks, valid.examples.request, valid.clusters)


def _candidate_recall(
    config: FinetuneConfig, predictor: Predictor, prepared: Prepared, terminal: Terminal
) -> list[CandidateRecall]:
    """Of what is shipped, on validation requests; warned of where it is low."""
    if not config.recall_requests:
        return []
    with terminal.progress("Measuring candidate recall", config.recall_requests, unit="requests") as advance:
        measured = bundle_recall(predictor, prepared, requests=config.recall_requests, seed=config.seed, advance=advance)
    found = [measured] if measured is not None else []
    warn_of_low(found, terminal)
    return found


def _warn_of_positions(config: FinetuneConfig, prepared: Prepared, terminal: Terminal) -> None:
    """A slot that is a feature is known in the log alone: whoever ranks promises the first place the clicks of the average."""
    features = prepared.features()["impressions"]
    named = [name for name in (*features.categorical_names, *features.numeric_names) if name in _SLOT_FEATURES]
    if named:
        terminal.warn(
            f"{prepared.path}: '{named[0]}' is a feature, but no slot is known when ads are ranked. Leave it out of the "
            "preprocess config and set model.position_bias to true: what slots do is then learned apart."
        )


@dataclass(frozen=True)
class _Again:
    """The networks trained once more, on training and validation rows."""

    data: ClickData
    share: float
    trained: Trained

    def as_dict(self, chosen: Trained) -> dict[str, float]:
        """Rows, steps, and how alike the network and the chosen one order the validation rows (Spearman's correlation)."""
        from scipy.stats import spearmanr

        agreement = spearmanr(chosen.valid.logits[:, 0], self.trained.valid.logits[:, 0]).statistic
        return {"rows": self.data.rows, "share": self.share, "steps": self.trained.run.steps, "agreement": float(agreement)}


def _click_model(
    config: FinetuneConfig, data: ClickData, trained: Trained, encoder: TextEncoder | None, suite: Suite
) -> ClickModel:
    """Everything that goes into a bundle but what is fitted above network and baselines."""
    own_encoder = trained.module.model.text_encoder
    return ClickModel(
        config=config,
        features=data.features,
        dimensions=data.dimensions,
        tasks=data.tasks,
        model=trained.module.model.cpu(),
        encoder=merged(cast(TextEncoder, own_encoder)) if own_encoder is not None else encoder,
        calibrations={},
        seen_ads=_seen_table(data.seen_ads),
        seen_users=_seen_table(data.seen_users),
        text=text_settings(data.prepared),
        form=log_form(data.prepared),
        tables=packed_tables(data.prepared),
        baselines=suite.fitted,
    )


def _one(runs: Sequence[Trained]) -> Trained:
    return runs[0] if len(runs) == 1 else ensemble(runs)


@dataclass(frozen=True)
class _Joined:
    """A trained network, and what stands above it."""

    trained: Trained
    hybrid: Hybrid
    valid: Raw
    """raw outputs on the validation rows; those of the main task come from a hybrid fitted on other rows of them"""

    @property
    def metrics(self) -> dict[str, float]:
        return self.trained.module.metrics(self.valid)


def _inputs(config: FinetuneConfig, data: ClickData, rows: Examples) -> Inputs:
    """Training or validation rows as the baselines read them."""
    d, texts, declared = data.dimensions, data.collate, {}
    if config.baselines.names:
        interests, queries = texts.user_texts if d.interests else None, texts.query_texts if d.queries else None
        declared = declared_columns(rows, data.ads, interests, queries, d.text_parts)
    return Inputs(rows, data.ads, data.users, Columns.of(data.features), declared)


def _join(
    config: FinetuneConfig,
    data: ClickData,
    trained: Trained,
    suite: Suite,
    simple: dict[str, NDArray[np.float32]],
    valid: Inputs,
    kind: Literal["none", "single", "average", "weighted", "stack", "auto"],
) -> _Joined:
    """The hybrid of one run, fitted on the validation rows."""
    network = trained.valid.logits[:, 0]
    monitor = trained.module.monitor
    if data.prepared.is_implicit and kind != "none":
        hybrid, joined = fit_by_request(network, simple, valid, may_join=CLICK_MEMBERS, seed=config.seed)
    else:
        hybrid, joined = fit_hybrid(kind, network, suite.fitted, simple, valid, metric=monitor, seed=config.seed)
    logits = trained.valid.logits.copy()
    logits[:, 0] = joined
    return _Joined(trained, hybrid, trained.valid._replace(logits=logits))


def _calibrate(config: FinetuneConfig, data: ClickData, best: _Joined) -> dict[str, Calibration]:
    """One map a binary task, fitted on the validation rows, which are never down-sampled."""
    maps = {}
    for number, task in enumerate(data.tasks):
        if task.is_binary:
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


def _levelled(
    config: FinetuneConfig,
    again: _Again,
    hybrid: Hybrid,
    suite: Suite,
    parts: list[Inputs],
    calibrations: dict[str, Calibration],
) -> dict[str, Calibration]:
    """The maps that validation rows chose, moved to the level of the model that has learned those rows too.

    `parts` are training and validation rows.
    """
    members = {name: model for name, model in suite.fitted.items() if name in hybrid.names}
    raw = [raw_outputs(again.trained.module, again.data.batches(part.examples), config.device) for part in parts]
    for raw_part, inputs in zip(raw, parts, strict=True):
        raw_part.logits[:, 0] = hybrid.logit(raw_part.logits[:, 0], score_all(members, inputs), inputs)
    logits, labels = (np.concatenate([getattr(raw_part, name) for raw_part in raw]) for name in ("logits", "labels"))
    weights = (
        None if raw[0].weight is None else np.concatenate([raw_part.weight for raw_part in raw if raw_part.weight is not None])
    )
    times = np.concatenate([part.examples.shown_at for part in parts])
    is_recent = np.repeat([False, True], [len(part) for part in parts])
    moved = {}
    for number, task in enumerate(again.data.tasks):
        if task.is_binary:
            calibrated = calibrations[task.name]
            shift = level_shift(calibrated.logit(logits[:, number]), labels[:, number], times, is_recent, weights)
            moved[task.name] = calibrated.shifted(shift)
    return moved


def _baselines(config: FinetuneConfig, train: Inputs | None, valid: Inputs, terminal: Terminal) -> Suite:
    """Fitted on the training rows; validation rows say when to stop."""
    names = config.baselines.names
    if not names or train is None:
        return Suite()
    with terminal.progress("Baselines", len(names), unit="models") as advance:
        return fit_all(names, train, valid, max_rows=config.baselines.max_rows, seed=config.seed, advance=advance)


def _baselines_again(config: FinetuneConfig, data: ClickData, chosen: Suite, terminal: Terminal) -> Suite:
    """The same baselines, fitted on all rows of `data`."""
    if not chosen.fitted:
        return chosen
    train = _inputs(config, data, _baseline_rows(config, data))
    with terminal.progress("Baselines on all rows", len(chosen.fitted), unit="models") as advance:
        return fit_all(
            list(chosen.fitted),
            train,
            max_rows=config.baselines.max_rows,
            seed=config.seed,
            like=chosen.fitted,
            advance=advance,
        )


def _baseline_rows(config: FinetuneConfig, data: ClickData) -> Examples:
    return data.train if data.train is not None else data.sample(config.baselines.max_rows, config.seed)


def _slots(packed: ClickModel, best: _Joined, calibrations: dict[str, Calibration], data: ClickData) -> SlotEffects | None:
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


def _calibrated_metrics(best: _Joined, packed: ClickModel, data: ClickData) -> dict[str, float]:
    """Metrics of a hybrid's cross-fitted logits, calibrated and in their slots."""
    logits = best.valid.logits.copy()
    logits[:, 0] = packed.calibrations[data.tasks[0].name].logit(logits[:, 0])
    if packed.slots is not None:
        logits[:, 0] += packed.slots.of(data.valid)
    metrics = best.trained.module.metrics(best.valid._replace(logits=logits))
    return {name: value for name, value in metrics.items() if name != "log_loss" or not data.prepared.is_implicit}


def _deviations(runs: list[_Joined]) -> dict[str, float]:
    if len(runs) < 2:
        return {}
    return {name: float(np.std([run.metrics[name] for run in runs], ddof=1)) for name in runs[0].metrics}


def _seen_table(seen: Seen) -> pa.Table:
    return pa.table({"id": seen.ids, "impressions": seen.impressions, "clicks": seen.clicks})


def _simple_metrics(score: NDArray[np.float32], is_probability: bool, data: ClickData) -> dict[str, float]:
    """Validation metrics of a baseline; a log loss only where its score means a probability."""
    labels = data.valid.labels[data.sampling.label]
    return main_metrics(score, labels, data.valid.request, data.valid.weight, is_probability=is_probability)
