"""`adrec audit`: attack a training, and hold what the attack proves against what the training claims.

Not the bundle that is there is attacked but the training that makes it: only who draws the members knows who is one. A
bundle of the same config has learned twice as many units, and tells no more of each.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.evaluation.audit import AuditConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.disk.outputs import AUDIT
from adrec.data.disk.writing import write_aside
from adrec.data.examples import Examples, load_examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.subset import write_subset
from adrec.errors import ConfigError, DataError
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.metrics.membership import caught, confidence, least_epsilon, likelihood_ratios, membership_auc
from adrec.privacy.ledger import KEY
from adrec.stages.evaluation.auditing.canaries import Canaries, attack_pretraining
from adrec.stages.evaluation.auditing.leaks import Attribute, Leaks, Reconstruction, guess_attributes, reconstruct
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.loop.trainer import work_folder
from adrec.training.private.features import Refitted

FALSE_ALARMS = 0.01
_FEWEST = 20


@dataclass(frozen=True)
class Membership:
    """What the attacks on membership found. Figures are means over the models; `deviation` is that of LiRA's AUC."""

    unit: Literal["user", "row"]
    units: int
    models: int
    threshold_auc: float
    """of a unit's mean loss alone (Yeom et al. 2018)"""
    lira_auc: float
    deviation: float
    caught: float
    """members that LiRA finds at 1 % false alarms"""
    least_epsilon: float
    """proved at `confidence`, by the better attack on the first model"""
    confidence: float
    claimed: float | None
    """the ledger's epsilon; None where the training claims none"""

    @property
    def refutes(self) -> bool:
        """Whether the claim is proved wrong."""
        return self.claimed is not None and self.least_epsilon > self.claimed


@dataclass(frozen=True)
class AuditResult:
    """All findings."""

    output: str
    membership: Membership | None
    canaries: Canaries | None
    leaks: Leaks | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "audit": 1,
            "membership": asdict(self.membership) if self.membership is not None else None,
            "canaries": asdict(self.canaries) if self.canaries is not None else None,
            "leaks": asdict(self.leaks) if self.leaks is not None else None,
        }

    def render(self) -> Iterable[RenderableType]:
        """A table an attack, and a verdict."""
        found = self.membership
        if found is not None:
            table = Table("attack", title=f"Membership of {found.units:,} {found.unit}s, {found.models} models")
            for heading in ("AUC", f"found at {FALSE_ALARMS:.0%} false alarms"):
                table.add_column(heading, justify="right")
            table.add_row("loss", f"{found.threshold_auc:.4f}", "")
            table.add_row("LiRA", f"{found.lira_auc:.4f} ± {found.deviation:.4f}", f"{found.caught:.2%}")
            yield table
            claim = "none is claimed" if found.claimed is None else f"claimed: {found.claimed:g}"
            yield f"epsilon is at least {found.least_epsilon:.3g}, at {found.confidence:.0%} confidence; {claim}"
        if self.leaks is not None:
            yield from self.leaks.render()
        if self.canaries is not None:
            yield from self.canaries.render()
        yield f"findings: {self.output}"


@dataclass(frozen=True)
class Attack:
    """On one model."""

    score: NDArray[np.float64]
    """(U,) how sure it is of each unit's labels"""
    claimed: float | None
    """the epsilon of its ledger"""
    leaks: Leaks = field(default_factory=Leaks)


def run(config: AuditConfig, terminal: Terminal) -> AuditResult:
    """Attack, and write the findings. A killed audit goes on after the last model that it finished."""
    work = work_folder(config.output)
    membership, leaks = _membership(config, work, terminal) if config.finetune is not None else (None, None)
    canaries = None
    if config.canaries is not None:
        canaries = attack_pretraining(
            config.canaries, work / "canaries", seed=config.seed, device=config.device, terminal=terminal
        )
    result = AuditResult(str(config.output), membership, canaries, leaks)
    with write_aside(config.output, AUDIT) as aside:
        aside.write_text(json.dumps(result.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    if membership is not None and membership.refutes:
        terminal.warn(
            f"an epsilon of {membership.claimed:g} is claimed, and the attack proves {membership.least_epsilon:.3g} or more."
            " Do not publish bundles of this config."
        )
    return result


def _membership(config: AuditConfig, work: Path, terminal: Terminal) -> tuple[Membership, Leaks | None]:
    assert config.finetune is not None
    fixed = [f"seed={config.seed}", f"device={config.device}"]
    base = load_config(
        config.finetune, FinetuneConfig, [*fixed, *config.overrides], overrides_base=config.finetune.parent
    )  # fmt: skip
    claimed_unit = base.privacy.unit if base.privacy is not None else "user"
    if claimed_unit == "label":
        raise ConfigError(
            f"{config.finetune}: with privacy.unit label nobody's membership is hidden, so there is nothing to attack."
        )
    unit = claimed_unit if config.unit == "auto" else config.unit
    prepared = open_prepared(base.prepared)
    label = base.tasks[0].name
    rows = load_examples(prepared, "train", max_history=base.model.user.max_history, labels=[label])
    own = _units(rows, rows.labels[label], unit)
    units = int(own.max(initial=-1)) + 1
    if units < _FEWEST:
        raise DataError(f"{prepared.path}: has {units} {unit}s with a known {label}; an audit needs {_FEWEST} or more.")
    # A coin for each, not half of each: who is in how many of the others must not tell whether he is in this one.
    member = np.random.default_rng(config.seed).random((config.models, units)) < 0.5
    identity = json.dumps([config.model_dump(mode="json"), base.model_dump(mode="json"), prepared.fingerprint], sort_keys=True)
    stem = hashlib.sha256(identity.encode()).hexdigest()[:12]
    work.mkdir(parents=True, exist_ok=True)
    scores, claims, leaks = [], [], []
    with terminal.progress("Auditing", config.models, unit="models") as advance:
        for number in range(config.models):
            kept = work / f"{stem}-{number}.npz"
            if not kept.exists():
                attributes = config.attributes if number == 0 else []
                attack = _attacked(base, prepared, rows, own, member[number], unit, work / "model", number, attributes)
                claimed = np.nan if attack.claimed is None else attack.claimed
                with write_aside(kept) as aside, open(aside, "wb") as handle:
                    np.savez(handle, score=attack.score, claimed=claimed, leaks=json.dumps(asdict(attack.leaks)))
            with np.load(kept) as stored:
                scores.append(stored["score"])
                claims.append(float(stored["claimed"]))
                leaks.append(json.loads(str(stored["leaks"])))
            advance()
    first = leaks[0]["reconstruction"]
    found = Leaks(
        Reconstruction(**first) if first is not None else None, [Attribute(**values) for values in leaks[0]["attributes"]]
    )
    return _judged(np.stack(scores), member, claims[0], base, unit, config.confidence), found


def _units(rows: Examples, labels: NDArray[np.float32], unit: str) -> NDArray[np.int64]:
    """(N,) numbers of the units, -1 where the label is not known."""
    known = ~np.isnan(labels)
    own = np.full(len(rows), -1, np.int64)
    of = rows.user_index if unit == "user" else np.arange(len(rows))
    own[known] = np.unique(of[known], return_inverse=True)[1]
    return own


def _attacked(
    base: FinetuneConfig,
    prepared: Prepared,
    rows: Examples,
    own: NDArray[np.int64],
    member: NDArray[np.bool_],
    unit: str,
    folder: Path,
    number: int,
    attributes: Sequence[str],
) -> Attack:
    """Train on the members, and ask the bundle."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    masks = {"train": np.where(own >= 0, member[own], True)}
    if unit == "user":  # what validation rows choose would tell of their users too
        outside = np.unique(rows.user_index[(own >= 0) & ~member[own]])
        valid = np.concatenate([batch["user_index"].to_numpy() for batch in prepared.iter("valid", ["user_index"])])
        masks["valid"] = ~np.isin(valid, outside)
    half = write_subset(prepared, folder / "prepared", masks)
    output = folder / "bundle"
    cache = base.text.cache
    changed = base.model_copy(
        update={"prepared": half.path, "output": output, "seed": base.seed + number, "recall_requests": 0}
    )
    finetune.run(changed, Terminal(quiet=True))
    predictor = Predictor.load(output, device=base.device, cache=cache)
    # The rows as the bundle reads them: a private one has scales and columns of its own.
    read = load_examples(
        Refitted(prepared, predictor.packed.features), "train", max_history=base.model.user.max_history,
        labels=[base.tasks[0].name],
    )  # fmt: skip
    score = HeldOut(predictor, prepared, read).scores(predictor.packed).score
    sure = confidence(score, rows.labels[base.tasks[0].name])
    known = own >= 0
    total = np.bincount(own[known], weights=sure[known])
    claimed = open_bundle(output, verify=False).manifest.get(KEY)
    leaks = _leaks(predictor, prepared, read, masks["train"] & known, base, unit, attributes)
    shutil.rmtree(folder, ignore_errors=True)
    return Attack(total / np.bincount(own[known]), float(claimed["epsilon"]) if claimed is not None else None, leaks)


def _leaks(
    predictor: Predictor,
    prepared: Prepared,
    rows: Examples,
    learned: NDArray[np.bool_],
    base: FinetuneConfig,
    unit: str,
    attributes: Sequence[str],
) -> Leaks:
    """What the bundle tells of the clicks of those it `learned` (N,), and of what they are."""
    seen, ids = predictor.packed.seen_ads, prepared.ads()["ad_id"].cast(pa.string())
    at = pc.index_in(seen["id"], value_set=ids.combine_chunks()).to_numpy(zero_copy_only=False)
    published = np.zeros(len(ids))
    published[at.astype(np.int64)] = seen["clicks"].to_numpy()
    labels = rows.labels[base.tasks[0].name]
    reconstruction = None
    if prepared.has.user and rows.weight is None:
        reconstruction = reconstruct(
            published,
            rows.user_index[learned].astype(np.int64),
            rows.ad_index[learned].astype(np.int64),
            labels[learned] > 0,
            once=base.privacy is not None and base.privacy.unit == "user",
        )
    if attributes and unit != "user":
        raise ConfigError("attributes: they are guessed of users. Set `unit` to user, or leave them out.")
    member = np.isin(np.arange(len(prepared.users())), rows.user_index[learned])
    return Leaks(reconstruction, guess_attributes(predictor, prepared, rows, labels, member, attributes))


def _judged(
    scores: NDArray[np.float64],
    member: NDArray[np.bool_],
    claimed: float,
    base: FinetuneConfig,
    unit: Literal["user", "row"],
    level: float,
) -> Membership:
    ratios = likelihood_ratios(scores, member)
    aucs = membership_auc(ratios, member)
    delta = base.privacy.delta if base.privacy is not None else 0.0
    # Two attacks, each at half of what may go wrong.
    proofs = [least_epsilon(of[0], member[0], delta=delta, level=(1 + level) / 2) for of in (scores, ratios)]
    return Membership(
        unit=unit,
        units=scores.shape[1],
        models=len(scores),
        threshold_auc=float(membership_auc(scores, member).mean()),
        lira_auc=float(aucs.mean()),
        deviation=float(aucs.std(ddof=1)),
        caught=float(
            np.mean([caught(of, inside, false_alarms=FALSE_ALARMS) for of, inside in zip(ratios, member, strict=True)])
        ),
        least_epsilon=max(proofs),
        confidence=level,
        claimed=None if np.isnan(claimed) else claimed,
    )
