"""What a finetune config becomes under `privacy`: whatever would tell of people without being counted is switched off."""

from collections.abc import Callable
from typing import Any, NamedTuple

from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import ConfigError


class _Rule(NamedTuple):
    """What a setting must be."""

    key: str
    value: Any
    """in place of a default that is another"""
    why: str
    allows: Callable[[Any], bool] | None = None
    """further values that may be set; None: no other"""


_RULES = (
    _Rule("baselines.names", [], "trees, neighbours and counts learn the log without noise"),
    _Rule("hybrid.kind", "none", "its members learn the log without noise"),
    _Rule("hybrid.also", [], "its members learn the log without noise"),
    _Rule("recall_requests", 0, "shares of retrieval are chosen by users' requests"),
    _Rule("refit", False, "nothing is chosen by validation rows, so there is nothing to learn again"),
    _Rule("seeds", 1, "the better of two trainings costs as much privacy as both"),
    _Rule("ensemble", False, "each network costs privacy of its own"),
    _Rule("start_from", None, "the earlier bundle would have to be counted too"),
    _Rule("text.train", "frozen", "gradients a unit need an encoder that stays as it is"),
    _Rule("loss.negatives", None, "rows of a unit are drawn by themselves"),
    _Rule("loss.negative_rate", 1.0, "rows of a unit are drawn by themselves"),
    _Rule("loss.next_category", 0.0, "only the tasks' own losses are told apart by unit"),
    _Rule("loss.task_weights", "fixed", "only the network's weights are noised"),
    _Rule("delay.method", "none", "delays of conversions are measured without noise"),
    _Rule("model.position_bias", False, "effects of slots are fitted on validation rows"),
    _Rule("training.devices", 1, "a step's sample is drawn in one process"),
    _Rule("training.nodes", 1, "a step's sample is drawn in one process"),
    _Rule("training.strategy", "auto", "a step's sample is drawn in one process"),
    _Rule("training.accumulate", 1, "set privacy.units_per_step instead"),
    _Rule("training.precision", "fp32", "gradients are summed in float32", lambda value: value == "auto"),
    _Rule("training.resume", False, "a run that starts over draws all noise anew", lambda value: True),
    _Rule("calibration", "platt", "it is fitted on noised counts", lambda value: value in {"auto", "none"}),
)


def for_privacy(config: FinetuneConfig) -> FinetuneConfig:
    """The config as a private training reads it. Raises ConfigError naming all settings that privacy does not allow."""
    assert config.privacy is not None
    faults = [fault for rule in _RULES if (fault := _fault(config, rule)) is not None]
    if any(term.kind != "bce" for term in config.loss.terms):
        faults.append("loss.terms may only be bce: the others compare rows of several units")
    if any(not task.is_binary for task in config.tasks):
        faults.append("tasks may only be those whose label is yes or no: leave out rating and dwell_seconds")
    if config.model.identities:
        faults.append("model.identities must be []: who has a vector of his own tells who was there, and how often")
    if "gru" in config.model.user.parts:
        faults.append("model.user.parts names gru, which cannot be run a unit at a time: take soft, global or local")
    if faults:
        raise ConfigError(f"privacy: {'; '.join(faults)}.")
    changed = config.model_dump()
    for rule in _RULES:
        section, name = _section(changed, rule.key)
        if rule.allows is None or not (section[name] != "auto" and rule.allows(section[name])):
            section[name] = rule.value
    changed["training"]["resume"] = False
    return FinetuneConfig.model_validate(changed)


def _fault(config: FinetuneConfig, rule: _Rule) -> str | None:
    """A sentence where the config sets by itself what is not allowed."""
    owner: Any = config
    *sections, name = rule.key.split(".")
    for section in sections:
        owner = getattr(owner, section)
    value = getattr(owner, name)
    if name not in owner.model_fields_set or value == rule.value or (rule.allows is not None and rule.allows(value)):
        return None
    return f"{rule.key} must be {rule.value if rule.value is not None else 'left out'}: {rule.why}"


def _section(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    return values, name
