"""The report of a pretraining run: curves, held-out quality, and how the neighbours of ten ads changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from adrec.data.arrays import unit_rows
from adrec.models.text.text_encoder import TextEncoder, encode_texts
from adrec.pages.figures import MUTED, SERIES, Plot, drawing
from adrec.pages.page import Language, rendered
from adrec.training.loop.trainer import FitResult


@dataclass(frozen=True)
class Near:
    """An ad and its nearest other ads with their cosines, nearest first."""

    text: str
    near: list[tuple[float, str]]


@dataclass(frozen=True)
class Neighbours:
    """The nearest ads of one ad before and after training."""

    text: str
    before: list[tuple[float, str]]
    after: list[tuple[float, str]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        sides = {"before": self.before, "after": self.after}
        return {
            "text": self.text,
            **{name: [{"cosine": cosine, "text": text} for cosine, text in side] for name, side in sides.items()},
        }


def neighbours(encoder: TextEncoder, texts: Sequence[str], *, device: str, ads: int = 10, near: int = 3) -> list[Near]:
    """The nearest other texts of `ads` texts spread evenly over the list."""
    if len(texts) < 2:
        return []
    vectors = unit_rows(encode_texts(encoder, texts, device=device))
    chosen = np.linspace(0, len(texts) - 1, min(ads, len(texts))).astype(int)
    cosines = vectors[chosen] @ vectors.T  # (ads, texts)
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    best = np.argsort(-cosines, axis=1)[:, : min(near, len(texts) - 1)]
    return [
        Near(texts[row], [(float(cosines[place, other]), texts[other]) for other in best[place]])
        for place, row in enumerate(chosen)
    ]


def write_report(path: Path, name: str, result: dict[str, Any], run: FitResult, language: Language) -> None:
    """One HTML file that stands alone."""
    held_out, near = result["held_out"], result["neighbours"]
    contents = [("loss", "Loss"), ("held-out", "Held-out masked tokens"), *([("neighbours", "Neighbours")] if near else [])]
    page = rendered(
        Path(str(files("adrec.stages.training.pretraining") / "report.html.j2")),
        language,
        **result,
        name=name,
        plots=[loss_plot(run)] if run.losses else [],
        verdict=_verdict(held_out, result["run"]),
        written_on=datetime.now(UTC).date().isoformat(),
        contents=contents,
    )
    path.write_text(page, encoding="utf-8")


def _verdict(held_out: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """How far the model came."""
    said = []
    rows: dict[str, Any] = held_out.get("all") or next(iter(held_out.values()), {})
    names = list(rows)
    if len(names) > 1:
        last, rest = rows[names[-1]], names[0]
        said.append(
            f"The loss of held-out tokens is {last['loss']:.3f} nats after training, against {rows[rest]['loss']:.3f} of"
            f" {rest}."
        )
    said.append(f"The best held-out loss was {run['best']:.4f}, at step {run['best_step']:,}.")
    if run["stopped_early"]:
        said.append("Training stopped early: it got no better.")
    return said


def loss_plot(run: FitResult) -> Plot:
    """The training loss (smoothed) and the held-out losses by step."""
    losses = np.asarray(run.losses)
    with drawing("Loss by step", "In nats a token; training smoothed over a fiftieth of the run.") as plot:
        steps = np.linspace(1, run.steps, len(losses))
        window = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        plot.axes.plot(steps[window - 1 :], smooth, label="training", color=MUTED, linewidth=1.2)
        names = sorted({name for point in run.evaluations for name in point if name.startswith("valid_")})
        for number, name in enumerate(names):
            points = [(point["step"], point[name]) for point in run.evaluations if name in point]
            colour, label = SERIES[number % len(SERIES)], name.replace("valid_", "held out: ")
            plot.axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, color=colour)
        plot.axes.set(xlabel="step", ylabel="loss (nats)")
        plot.axes.legend()
    return plot
