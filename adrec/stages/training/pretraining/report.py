"""The report of a pretraining run: curves, held-out quality, and how the neighbours of ten ads changed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adrec.models.text.text_encoder import TextEncoder, encode_texts
from adrec.training.trainer import FitResult

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Pretraining report</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}
</style></head><body>
<h1>Pretraining report</h1>
<p>{{ "{:,}".format(parameters) }} parameters, {{ "{:,}".format(texts) }} texts, {{ "{:,}".format(tokens) }} tokens,
{{ "{:,}".format(run.steps) }} steps in {{ "{:,.0f}".format(run.seconds) }} s
({{ "{:,.0f}".format(run.units_per_second) }} tokens/s). Best held-out loss {{ "{:.4f}".format(run.best) }} at step
{{ "{:,}".format(run.best_step) }}{% if run.stopped_early %}; stopped early{% endif %}.</p>
<h2>Loss</h2>{{ curve }}
<h2>Held-out masked tokens</h2>
<table><tr><th>language</th><th>model</th><th>tokens</th><th>loss (nats)</th><th>perplexity</th><th>accuracy</th></tr>
{% for language, rows in held_out.items() %}{% for name, score in rows.items() %}
<tr><td>{{ language }}</td><td>{{ name }}</td><td class="n">{{ "{:,}".format(score.tokens) }}</td>
<td class="n">{{ "{:.3f}".format(score.loss) }}</td><td class="n">{{ "{:,.1f}".format(score.perplexity) }}</td>
<td class="n">{{ "{:.3f}".format(score.accuracy) }}</td></tr>{% endfor %}{% endfor %}</table>
<h2>Nearest neighbours of ten ads</h2>
<table><tr><th>ad</th><th>before</th><th>after</th></tr>
{% for item in neighbours %}<tr><td>{{ item.text }}</td>
{% for side in (item.before, item.after) %}<td>
{% for near in side %}{{ "{:.2f}".format(near.cosine) }} {{ near.text }}<br>{% endfor %}</td>{% endfor %}
</tr>{% endfor %}</table></body></html>
"""


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
    vectors = encode_texts(encoder, texts, device=device)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    chosen = np.linspace(0, len(texts) - 1, min(ads, len(texts))).astype(int)
    cosines = vectors[chosen] @ vectors.T  # (ads, texts)
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    best = np.argsort(-cosines, axis=1)[:, : min(near, len(texts) - 1)]
    return [
        Near(texts[row], [(float(cosines[place, other]), texts[other]) for other in best[place]])
        for place, row in enumerate(chosen)
    ]


def write_report(path: Path, result: dict[str, Any], run: FitResult) -> None:
    """One HTML file that stands alone."""
    from jinja2 import Environment
    from markupsafe import Markup

    page = Environment(autoescape=True).from_string(_PAGE)
    path.write_text(page.render(**result, curve=Markup(draw_curve(run))), encoding="utf-8")


def draw_curve(run: FitResult) -> str:
    """SVG of the training loss (smoothed) and the held-out losses by step."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    losses = np.asarray(run.losses)
    if len(losses):
        steps = np.linspace(1, run.steps, len(losses))
        window = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, label="training", color="#4c78a8")
    for name in sorted({name for point in run.evaluations for name in point if name.startswith("valid_")}):
        points = [(point["step"], point[name]) for point in run.evaluations if name in point]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.replace("valid_", "held out: "))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.legend()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
