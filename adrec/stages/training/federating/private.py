"""Federated training under differential privacy: clients are the units, and the server adds the noise to their sums.

DP-FedAvg (McMahan et al. 2018): each round every client takes part by a draw of its own, its change is cut to `clip`, all weigh
alike. What the server knows beyond the noised sums it must not publish; under masks it knows the sums. The bundle holds what
the ledger counts and nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adrec.config.training.federate import FederateConfig
from adrec.config.training.privacy import TrainingPrivacy
from adrec.errors import ConfigError
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.models.blend.calibration_sums import LINE_STEPS, LineFit
from adrec.privacy.accounting import Event, noise_for
from adrec.privacy.ledger import Ledger, Line
from adrec.privacy.mechanisms import LINE_SENSITIVITY, Releases
from adrec.privacy.noise import Noise
from adrec.stages.training.federating.result import FederateResult
from adrec.stages.training.federating.sides import Side
from adrec.stages.training.finetuning.private_bundle import lines_of_files, write_private_bundle
from adrec.training.federated.exchange import Message
from adrec.training.federated.rounds import Rounds, flat
from adrec.training.federated.sums import Floats

Ask = Callable[[Sequence[Any], Message], Floats]
"""Clients and a task → the sum of what they say."""
_PRIOR = 0.05


def train_with_noise(config: FederateConfig, side: Side, clients: Sequence[Any], ask: Ask, rounds: Rounds) -> FederateResult:
    """All rounds, the calibration, and the bundle with its ledger. `rounds` moves the weights of its module."""
    privacy = config.privacy
    assert privacy is not None
    if "features" not in privacy.public:
        raise ConfigError(
            "privacy: vocabularies and scales are those of the prepared folder, fitted without noise. If anyone may know them,"
            " say so: --set 'privacy.public=[features]'."
        )
    reference = side.base.text.reference
    if reference is not None and Path(reference).exists() and "encoder" not in privacy.public:
        raise ConfigError(
            f"text.reference: {reference} may have learned what users wrote. Take one that was trained elsewhere; or if anyone"
            " may know its texts, say so: --set 'privacy.public=[features,encoder]'."
        )
    randomness = Noise(None if privacy.secure else config.seed)
    if not privacy.secure:
        side.terminal.warn("privacy.secure is false: who knows the seed can take the noise away. The bundle protects nobody.")
    tasks = side.data.tasks
    count = len(tasks) * (1 + LINE_STEPS)
    alone = noise_for(privacy.epsilon * privacy.statistics, privacy.delta, accountant=privacy.accountant)
    releases = Releases(randomness, alone * math.sqrt(count), 0.0)
    rate = min(1.0, config.clients_per_round / len(clients))
    beside = [Event(releases.noise)] * count
    noise = noise_for(
        privacy.epsilon, privacy.delta, rate=rate, steps=config.rounds, beside=beside, accountant=privacy.accountant
    )  # fmt: skip
    side.start(_rates(releases, ask(clients, Message({"task": "shares"}, {})), [task.name for task in tasks]))
    module = rounds.module = side.module()
    means = [task.mean for task in side.data.tasks]
    expected = rate * len(clients)
    with side.terminal.progress("Federated training under noise", config.rounds, unit="rounds") as advance:
        for number in range(config.rounds):
            before = flat(module)
            chosen = np.flatnonzero(randomness.chosen(np.full(len(clients), rate)))
            total = np.zeros_like(before)
            if len(chosen):
                facts = {"task": "clipped", "round": number, "means": means, "clip": config.clip}
                asked = Message(facts, {"weights": before})
                total = ask([clients[at] for at in chosen.tolist()], asked)
            total = total + noise * config.clip * randomness.gaussian(len(total))
            rounds.move(before, total / expected)
            advance()
    fits = [LineFit(releases.noise * LINE_SENSITIVITY) for _ in tasks]
    for step in range(1, LINE_STEPS + 1):
        facts = {"task": "line", "lines": [fit.line for fit in fits], "means": means}
        said = ask(clients, Message(facts, {"weights": flat(module)})).reshape(len(tasks), 5)
        for at, task in enumerate(tasks):
            noised = releases.sums(
                f"calibration of {task.name}, step {step}", said[at], sensitivity=LINE_SENSITIVITY, files=("calibration.json",)
            )
            fits[at].step(noised)
    return _write(config, side, len(clients), module, fits, Event(noise, rate, config.rounds), releases)


def _rates(releases: Releases, said: Floats, names: Sequence[str]) -> list[float]:
    rates = []
    for name, own in zip(names, said.reshape(-1, 2), strict=True):
        there, ones = releases.sums(f"rate of {name}", own, sensitivity=2**0.5, files=("schema.json",))
        strength = 2.0 * releases.noise
        rates.append(float(np.clip((ones + strength * _PRIOR) / max(there + strength, 1.0), 0.001, 0.999)))
    return rates


def _write(
    config: FederateConfig, side: Side, clients: int, module: Any, fits: Sequence[LineFit], event: Event,
    releases: Releases,
) -> FederateResult:  # fmt: skip
    privacy = config.privacy
    assert privacy is not None
    packed, held_out = side.packed(module)
    maps = {task.name: fit.calibration() for task, fit in zip(side.data.tasks, fits, strict=True)}
    packed = replace(packed, calibrations=maps)
    declared = [name for name in privacy.public if name == "encoder"]
    claimed = TrainingPrivacy(epsilon=privacy.epsilon, delta=privacy.delta, public=declared)
    how = (
        f"DP-FedAvg: {event.steps:,} rounds, each client takes part with probability {event.rate:.4g}; changes cut to"
        f" {config.clip:g}, noise by the server"
    )
    weights = Line("weights", "noised", how, ("model.safetensors",), "Gaussian", config.clip, event)
    word = "declared public" if side.fitting is None else "declared public; fitted from sums without noise"
    agreed = Line("vocabularies and scales", "public", word, ("features.json",))
    of_files = lines_of_files(side.base.model_copy(update={"privacy": claimed}), packed, [])
    ledger = Ledger(
        "client", privacy.epsilon, privacy.delta, privacy.accountant, releases.randomness.is_secure,
        (weights, agreed, *releases.lines, *of_files),
    )  # fmt: skip
    return write_copy(side, packed, held_out, ledger.to_json(), clients)


def write_copy(side: Side, packed: ClickModel, held_out: HeldOut, stored: dict[str, Any], clients: int) -> FederateResult:
    """A side's copy of the bundle: the server's ledger, and no word of the side's own rows. Figures are for its own eyes."""
    config = side.config
    figures = held_out.figures(packed)["adrec"]
    claimed = TrainingPrivacy(epsilon=stored["epsilon"], delta=stored["delta"])
    base = side.base.model_copy(update={"privacy": claimed, "output": config.output})
    write_private_bundle(base, packed, {"adrec": figures}, stored)
    rows = side.data.rows
    return FederateResult(str(config.output), clients, rows, 0, config.rounds, 0, figures, privacy=stored)
