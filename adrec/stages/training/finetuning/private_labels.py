"""`adrec finetune` under `privacy` with unit label: what was clicked is secret, who was there and what he was shown is not.

Every label of training and validation is turned around by a coin of its own before anything reads it; what follows learns
from the drawn ones, as often as it likes. Columns that count clicks would tell the true ones: they are left out, and a
history of clicks is read on the owner's word alone.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adrec.asof.spec import counter_name
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.features import FeatureSet
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError, DataError
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.models.baselines.suite import Suite
from adrec.models.blend.calibration import Calibration
from adrec.models.blend.calibration_sums import LINE_STEPS, LineFit, line_sums
from adrec.privacy.labels import debiased, flip_share, randomised
from adrec.privacy.ledger import Line
from adrec.privacy.noise import Noise
from adrec.schema import COUNTER_PREFIX
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.finetuning.above import click_model
from adrec.stages.training.finetuning.material import Material
from adrec.stages.training.finetuning.private_bundle import finish_privately, lines_of_files
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.ctr_training import train_click_model
from adrec.training.loop.trainer import work_folder
from adrec.training.private.features import Refitted
from adrec.training.private.training import units_of

_HISTORY = "history"
_FILES = ("model.safetensors", "schema.json", "calibration.json")


def run_with_private_labels(config: FinetuneConfig, prepared: Prepared, terminal: Terminal) -> FinetuneResult:
    """Train on drawn labels and write the bundle with its ledger. `config` is what `for_privacy` made of it."""
    privacy = config.privacy
    assert privacy is not None
    given = prepared.manifest.get("history", {}).get("source") == "given"  # a log without users may bring them
    if (prepared.has.user or given) and _HISTORY not in privacy.public:
        raise ConfigError(
            f"{prepared.path}: its rows carry histories, which are earlier clicks. If those may be known, say so: "
            "--set 'privacy.public=[history]'; a click is then secret until a later row of its user shows it. If not, set "
            "privacy.unit to row or user."
        )
    randomness = Noise(None if privacy.secure else config.seed)
    features, lacking = _without_clicks(prepared, set(privacy.public))
    if lacking:
        terminal.note(f"left out, since they count clicks: {', '.join(lacking)} (privacy.public takes in what anyone may know)")
    prepared = Refitted(prepared, features)
    encoder = open_text_encoder(config, prepared)
    reader = text_reader(config, encoder)
    data = load_click_data(config, prepared, reader, terminal, is_private=True)
    units_of(config, data)  # refuses rows that are streamed, or that are counts
    _refuse_telling_gaps(data)
    # What happens after a click says that there was one: the labels of a row share its epsilon.
    epsilon = privacy.epsilon / len(data.tasks)
    drawn = _drawn(data, epsilon, randomness)
    work = work_folder(config.output)
    trained = train_click_model(config, drawn, seed=config.seed, work=work, terminal=terminal, share=1.0)
    material = Material(config, prepared, encoder, reader, None, data, terminal)
    packed = click_model(material, drawn, trained, Suite())
    held_out = HeldOut(Predictor(packed, device=resolve_device(config.device), cache=config.text.cache), prepared, data.valid)
    packed = replace(packed, calibrations=_calibrations(config, drawn, held_out.raw))
    how = (
        f"randomised response: a share of {flip_share(epsilon):.4g} of the labels is turned around, once, before anything reads"
        " them; losses and calibration count them without bias"
    )
    lines = [
        Line(f"labels of {task.name}", "noised", how, _FILES, "randomised response", pure=epsilon) for task in data.tasks
    ]  # fmt: skip
    known = "only labels are protected, not which rows have one"
    lines.append(Line("users, rows, features", "public", known, ("features.json", "schema.json")))
    if _HISTORY in privacy.public:
        lines.append(Line("histories", "public", "declared public: earlier clicks, as later rows show them"))
    lines += lines_of_files(config, packed, lacking)
    return finish_privately(config, data, trained, packed, held_out, lines, randomness, work=work, terminal=terminal)


def _without_clicks(prepared: Prepared, public: set[str]) -> tuple[dict[str, FeatureSet], list[str]]:
    """The folder's own features but counters of clicks and conversions, and the columns that were left out."""
    stored = prepared.features()
    shown = {
        counter_name(spec, measure, window)
        for spec in prepared.counters()
        for measure in spec.measures
        if measure in {"impressions", "hours_since_first"}
        for window in (*spec.half_lives_hours, None)
    }
    rows = stored["impressions"]
    kept = [
        item for item in rows.numerics
        if item.name in shown | public
        or not (item.name.startswith(COUNTER_PREFIX) or (item.name == "history_length" and _HISTORY not in public))
    ]  # fmt: skip
    names = {item.name for item in kept}
    spec = replace(rows.spec, numeric=tuple(item for item in rows.spec.numeric if item.column in names))
    own = replace(rows, spec=spec, numerics=tuple(kept))
    return {**stored, "impressions": own}, [item.name for item in rows.numerics if item.name not in names]


def _refuse_telling_gaps(data: ClickData) -> None:
    """Which rows have a label is not drawn: where those of one task lack it by what another says, they would tell that.

    Raises DataError: conversions that are empty where nothing was clicked name every click.
    """
    assert data.train is not None
    main = data.tasks[0].name
    for rows in (data.train, data.valid):
        for task in data.tasks[1:]:
            if (np.isnan(rows.labels[task.name]) != np.isnan(rows.labels[main])).any():
                raise DataError(
                    f"{data.prepared.path}: '{task.name}' is empty in rows where '{main}' is not, or the other way round, and"
                    f" where it is empty is no secret: it may tell '{main}'. Write 0 where it did not happen."
                )


def _drawn(data: ClickData, epsilon: float, randomness: Noise) -> ClickData:
    """The data with drawn labels in place of the true ones, and rates by them."""

    def of(rows: Examples) -> Examples:
        return replace(rows, labels={
            name: debiased(randomised(labels, epsilon, randomness), epsilon) if name in wanted else labels
            for name, labels in rows.labels.items()
        })  # fmt: skip

    wanted = {task.name for task in data.tasks}
    assert data.train is not None
    train, valid = of(data.train), of(data.valid)
    tasks = tuple(
        replace(task, mean=float(np.clip(np.nanmean(train.labels[task.name]), 0.001, 0.999)), deviation=1.0)
        for task in data.tasks
    )
    return replace(data, train=train, valid=valid, tasks=tasks, mean_weight=1.0, newest=None)


def _calibrations(config: FinetuneConfig, drawn: ClickData, raw: NDArray[np.float32]) -> dict[str, Calibration]:
    """Platt's line a task through the drawn labels of the validation rows, whose own noise shrinks it."""
    maps = {}
    for number, task in enumerate(drawn.tasks):
        labels = drawn.valid.labels[task.name]
        known = ~np.isnan(labels)
        if config.calibration == "none" or not known.any():
            maps[task.name] = Calibration()
            continue
        fit = LineFit(float(np.std(labels[known]) * np.sqrt(known.sum())))
        for _ in range(LINE_STEPS):  # each anew: the same labels say the same again
            fit = LineFit(fit.deviation, fit.line)
            fit.step(line_sums(raw[known, number], labels[known], fit.line).sum(axis=0))
        maps[task.name] = fit.calibration()
    return maps
