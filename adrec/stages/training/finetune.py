"""`adrec finetune`: prepared folder + text encoder → bundle, every baseline beside it. Its steps are those of its docs page."""

from dataclasses import asdict, replace
from typing import Any

from adrec.bundle import save_bundle
from adrec.config.training.finetune import FinetuneConfig
from adrec.inference.click_model import ClickModel
from adrec.inference.golden import draw_golden
from adrec.inference.lists.recall import bundle_recall
from adrec.inference.packing import pack
from adrec.inference.predictor import Predictor
from adrec.inference.worth import worth
from adrec.ranking.recall import CandidateRecall
from adrec.stages.candidate_recall import KEY, as_json, warn_of_low
from adrec.stages.training.card import Intervals, intervals, write_card
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.finetuning.above import (
    Above,
    calibrate,
    cross_fitted,
    figures,
    join_baselines,
    learn_all_rows,
    placed_logits,
)
from adrec.stages.training.finetuning.material import Material, read_material
from adrec.stages.training.finetuning.networks import Networks, train_networks
from adrec.stages.training.simple_check import simple_check
from adrec.terminal import Terminal
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import work_folder


def run(config: FinetuneConfig, terminal: Terminal) -> FinetuneResult:
    """Train, calibrate, compare, and write the bundle. A killed run goes on from its last checkpoint."""
    if config.privacy is not None:
        from adrec.stages.training.finetuning.private import run_privately

        return run_privately(config, terminal)
    material = read_material(config, terminal)
    work = work_folder(config.output)
    networks = train_networks(material, work)
    above = join_baselines(material, networks)
    chosen = calibrate(material, above)
    shipped = chosen if networks.refit is None else learn_all_rows(material, above, chosen, networks.refit)
    result = _write(material, networks, above, chosen, shipped)
    close_work(work, terminal)
    return result


def _write(material: Material, networks: Networks, above: Above, chosen: ClickModel, shipped: ClickModel) -> FinetuneResult:
    """The bundle `shipped`, with the figures of `chosen`, which has not learned the rows that judge it."""
    config, data, best, refit = material.config, material.data, above.best, networks.refit
    predictor = Predictor(shipped, cache=config.text.cache)
    recall = _candidate_recall(material, predictor)
    shipped = replace(shipped, shares=recall[0].shares if recall else {})
    result = FinetuneResult(
        output=str(config.output),
        rows=data.rows,
        valid_rows=len(data.valid),
        seeds=[run.seed for run in networks.runs],
        best_seed=best.trained.seed,
        epochs=best.trained.run.steps * config.training.accumulate * config.training.processes / best.trained.batches_per_epoch,
        seconds=best.trained.run.seconds,
        rows_per_second=best.trained.run.units_per_second,
        models=figures(material, above, chosen),
        deviations=above.deviations,
        calibration=shipped.calibrations[data.tasks[0].name].method,
        left_out=above.suite.left_out,
        hybrid=best.hybrid.kind,
        cross_fitted=cross_fitted(material, above, chosen),
        simple_check=simple_check(
            best.valid.logits[:, 0], above.held_out.simple, above.suite.fitted, above.valid, metric=best.trained.module.monitor
        ),
        refit=refit.as_dict(best.trained) if refit is not None else None,
        candidate_recall=recall,
        modalities=worth(above.held_out.predictor, chosen, above.held_out.catalogs, data.valid),
    )
    facts: dict[str, Any] = {"started_from": material.start.fingerprint} if material.start is not None else {}
    if material.prepared.is_implicit:
        facts["implicit"] = {"repeated_clicks": material.prepared.manifest.get("repeated_clicks")}
    with save_bundle(
        config.output,
        data_fingerprint=material.prepared.fingerprint,
        learned_splits=list(config.learned_splits),
        learned_until=(data if refit is None else refit.data).newest,
        seed=best.trained.seed,
        kind="click_model",
        **facts,
    ) as folder:
        metrics = _metrics(material, above, shipped, result)
        pack(folder, shipped, metrics)
        write_card(folder, shipped, metrics, material.prepared, name=config.output.name)
        golden = draw_golden(material.prepared, data.features, seed=config.seed)
        made = predictor.golden_scores(golden)
        golden.save(folder, made.logit, made.score)
    return result


def _metrics(material: Material, above: Above, shipped: ClickModel, result: FinetuneResult) -> dict[str, Any]:
    """metrics.json."""
    best, check = above.best, result.simple_check
    return {
        "split": "valid",
        "measured": "before the refit" if result.refit is not None else "as shipped",
        "scores": "preference" if material.prepared.is_implicit else "probability",
        "models": result.models,
        "intervals": _intervals(material, above, shipped),
        "seeds": {str(run.trained.seed): run.metrics for run in above.seeds},
        "deviations": result.deviations,
        "training": best.trained.run.as_dict(),
        "curves": {str(run.trained.seed): run.trained.run.evaluations for run in above.seeds},
        "calibration": {name: fitted.to_json() for name, fitted in shipped.calibrations.items()},
        "baselines_left_out": result.left_out,
        "hybrid": {"kind": best.hybrid.kind, "quality": dict(best.hybrid.quality)},
        "cross_fitted": result.cross_fitted,
        "simple_check": asdict(check) if check is not None else None,
        "refit": result.refit,
        "modalities": {found.name: asdict(found) for found in result.modalities},
        KEY: as_json(result.candidate_recall),
    }


def _intervals(material: Material, above: Above, shipped: ClickModel) -> Intervals:
    """Of what is judged on validation rows; rows of counts have theirs from `evaluate`."""
    valid = above.valid
    if valid.weights is not None or not shipped.tasks[0].is_binary:
        return {}
    scores = {"adrec": placed_logits(material, above, shipped), **above.held_out.simple}
    if shipped.slots is not None:
        scores["any_slot"] = above.best.valid.logits[:, 0]
    return intervals(scores, valid.clicks, valid.examples.request, valid.clusters)


def _candidate_recall(material: Material, predictor: Predictor) -> list[CandidateRecall]:
    """Of what is shipped, on validation requests; warned of where it is low."""
    requests, terminal = material.config.recall_requests, material.terminal
    if not requests:
        return []
    with terminal.progress("Measuring candidate recall", requests, unit="requests") as advance:
        measured = bundle_recall(predictor, material.prepared, requests=requests, seed=material.config.seed, advance=advance)
    recalls = [measured] if measured is not None else []
    warn_of_low(recalls, terminal)
    return recalls
