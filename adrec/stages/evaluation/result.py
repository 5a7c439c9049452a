"""All that an evaluation found out, as values: what metrics.json holds, and what terminal and report show."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.metrics.calibration import reliability
from adrec.metrics.intervals.significance import Interval
from adrec.ranking.recall import CandidateRecall
from adrec.stages.candidate_recall import KEY, as_json
from adrec.stages.data.drift import DriftResult
from adrec.stages.evaluation.catalogue import CatalogueResult
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.off_policy.arms import ArmsResult
from adrec.stages.evaluation.off_policy.lists import ListResult
from adrec.stages.evaluation.off_policy.replay import OffPolicyResult
from adrec.stages.evaluation.reading.delays import Lateness
from adrec.stages.evaluation.reading.tasks import Scores
from adrec.stages.evaluation.slices import SliceResult


@dataclass(frozen=True)
class Evaluation:
    """All that was found out; `as_dict` is what metrics.json holds."""

    output: Path
    name: str
    facts: dict[str, Any]
    """Split, seed, fingerprints of inputs, versions."""
    tasks: tuple[TaskResult, ...]
    slices: dict[str, SliceResult]
    """By label of the task; binary ones only."""
    arms: dict[str, ArmsResult]
    """By label of the task, where the rows are of tests; binary ones only."""
    lists: ListResult | None
    off_policy: OffPolicyResult | None
    catalogue: CatalogueResult | None
    """Ranks of clicks among all ads, where the rows have them."""
    candidate_recall: tuple[CandidateRecall, ...]
    """What `finetune` (of the bundle `training`) or `rank` (of the lists) measured."""
    drift: DriftResult | None
    config: EvaluateConfig
    late: dict[str, Lateness] = field(default_factory=dict)
    """By label, where labels come late."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values; the same input, config and seed give the same bytes."""
        return {
            "run": self.name,
            **self.facts,
            "tasks": {task.task.label_name: self._task(task) for task in self.tasks},
            "lists": None if self.lists is None else self.lists.as_dict(),
            "off_policy": None if self.off_policy is None else self._off_policy(self.off_policy),
            "catalogue": None if self.catalogue is None else self.catalogue.as_dict(),
            KEY: as_json(self.candidate_recall),
            **({} if self.drift is None else {"drift": self.drift.as_dict()}),
        }

    def _task(self, result: TaskResult) -> dict[str, Any]:
        plain = {
            "kind": result.task.kind,
            "counts": result.counts(),
            "runs": {
                scores.name: {"role": scores.role, "metrics": _plain(result.metrics[scores.name])} | self._bins(result, scores)
                for scores in result.task.scores
            },
            "comparisons": [
                {"against": c.other, "role": c.role, "metric": c.metric, **c.difference._asdict(),
                 "adjusted_p": c.adjusted_p, "verdict": c.verdict()}
                for c in result.comparisons
            ],
        }  # fmt: skip
        if result.task.label_name in self.late:
            plain |= {"delay": self.late[result.task.label_name].as_dict()}
        sliced = self.slices.get(result.task.label_name)
        if sliced is not None:
            plain |= {"slices": [_plain(asdict(part)) for part in sliced.slices]}
            plain |= {"alarms": [_plain(asdict(alarm)) for alarm in sliced.alarms]}
        arms = self.arms.get(result.task.label_name)
        if arms is not None:
            plain |= {"arms": arms.as_dict()}
        return plain

    def _bins(self, result: TaskResult, scores: Scores) -> dict[str, Any]:
        """The points of the reliability diagram, which the report draws."""
        if not scores.is_probability:
            return {}
        table = reliability(result.frame.labels, scores.values, weights=result.frame.weights)
        return {"reliability": {name: values.tolist() for name, values in table._asdict().items()}}

    def _off_policy(self, result: OffPolicyResult) -> dict[str, Any]:
        return {
            "policy": result.policy,
            "propensity": {"column": result.propensity, "is": "given_above" if result.given_above else "marginal"},
            "refused": result.refused,
            "estimates": _plain(result.estimates),
            "bias": result.bias,
            "logged": result.logged._asdict(),
            "supported": result.supported._asdict(),
            "effective_sample_size": result.effective,
            "rows": result.rows,
            "matched_rows": result.matched,
            "rows_not_judged": result.not_judged,
        }


def _plain(value: Any) -> Any:
    """Intervals as objects, tuples as lists."""
    if isinstance(value, Interval) or hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
