"""The model card of a bundle, `README.md` in it: what a stranger must know before trusting the scores.

Everything is taken from the bundle's own files and the prepared folder's manifest; nothing is asked of anybody. The front
matter is Hugging Face's, so that a folder that is uploaded shows its figures there. Costs nothing but `intervals`: a sort of
the validation rows a model.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml
from numpy.typing import ArrayLike

from adrec.bundle import CARD
from adrec.data.prepared import Prepared
from adrec.inference.click_model import ClickModel
from adrec.metrics.intervals.paired import around, paired_difference

_METRICS = {
    "auc": "AUC", "auc_request": "AUC per request", "ndcg@10": "nDCG@10", "log_loss": "log loss",
    "rmse": "RMSE",
}  # fmt: skip
_LEAST = 10
"""Clicks, misses and users below which there is no interval."""
FEW = 2_000
"""Clicks of a log below which the card warns of them."""
Intervals = dict[str, dict[str, tuple[float, float]]]


def intervals(scores: Mapping[str, ArrayLike], labels: ArrayLike, requests: ArrayLike, clusters: ArrayLike) -> Intervals:
    """name → metric → 95 % interval of `auc` and `auc_request`, of scores (N,) on the rows whose label (N,) is known.

    A score that says nothing has an AUC of one half on any rows, so the interval is that of the difference to it.
    """
    y = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    y, request, whose = y[known], np.asarray(requests)[known], np.asarray(clusters)[known]
    users = len(np.unique(whose))
    if min((y > 0).sum(), (y <= 0).sum(), users) < _LEAST:
        return {}
    found: Intervals = {}
    for name, score in scores.items():
        for metric in ("auc", "auc_request"):
            value, error = paired_difference(metric, y, np.asarray(score)[known], np.zeros(len(y)), request, whose)
            if np.isfinite(error):
                low, high = around(value + 0.5, error, clusters=users)
                found.setdefault(name, {})[metric] = (max(low, 0.0), min(high, 1.0))
    return found


def write_card(folder: Path, packed: ClickModel, metrics: Mapping[str, Any], prepared: Prepared, *, name: str) -> None:
    """Write the card of the bundle that `folder` will be, of that `name`, beside its other files."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": _code, "plain": _plain}
    template = environment.from_string((files("adrec.stages.training") / "card.md.j2").read_text(encoding="utf-8"))
    body = template.render(**_facts(packed, metrics, prepared, name))
    front = yaml.safe_dump(_front_matter(packed, metrics, prepared, name), allow_unicode=True, sort_keys=False)
    (folder / CARD).write_text(f"---\n{front}---\n\n{body}\n", encoding="utf-8")


def _front_matter(packed: ClickModel, metrics: Mapping[str, Any], prepared: Prepared, name: str) -> dict[str, Any]:
    """As huggingface_hub's ModelCardData reads it. A licence is for whoever publishes the data's model to say."""
    reference = packed.config.text.reference
    languages = [language for language in _languages(prepared) if language != "other"]
    own = metrics["models"]["adrec"]
    results = [{"type": key, "value": round(own[key], 4), "name": _METRICS[key]} for key in _METRICS if key in own]
    index = {
        "task": {"type": "text-ranking"},
        "dataset": {"name": f"validation rows of {prepared.fingerprint}", "type": "private"},
        "metrics": results,
    }
    return {
        **({"language": languages} if languages else {}),
        "library_name": "adrec",
        "pipeline_tag": "text-ranking",
        "tags": ["click-through-rate", "advertising", "recommender-system"],
        **({"base_model": reference} if _is_hub_name(reference) else {}),
        "model-index": [{"name": name, "results": [index]}],
    }


def _facts(packed: ClickModel, metrics: Mapping[str, Any], prepared: Prepared, name: str) -> dict[str, Any]:
    config, manifest = packed.config, prepared.manifest
    model, text, main = config.model, config.text, packed.tasks[0]
    models, told = dict(metrics["models"]), metrics.get("intervals") or {}
    if metrics.get("cross_fitted"):  # what the hybrid does on rows it was not fitted on is the better guess
        models["adrec"] = {**models["adrec"], **metrics["cross_fitted"]}
    names = [key for key in _METRICS if key in models["adrec"]]
    figures = {
        model_name: [_cell(values.get(key), told.get(model_name, {}).get(key)) for key in names]
        for model_name, values in sorted(models.items(), key=lambda item: (item[0] != "adrec", -item[1].get("auc", 0)))
    }
    by_task = ", ".join(f"{task.name} ({'probability' if task.is_binary else 'number'})" for task in packed.tasks)
    networks = f"{config.seeds} networks averaged, each " if config.ensemble and config.seeds > 1 else ""
    parts = f"{', '.join(model.user.parts)} over the newest {model.user.max_history} clicks; interaction {model.interaction}"
    return {
        "title": f"{name}: what is a click worth showing",
        "verdict": _verdict(metrics),
        "data": _data(prepared),
        "findings": manifest.get("findings", []),
        "learned": " and ".join(config.learned_splits),
        "fingerprint": prepared.fingerprint,
        "languages": ", ".join(f"{language} {share:.0%}" for language, share in _languages(prepared).items()),
        "answers": by_task if metrics.get("scores") != "preference" else f"{main.name} (preference; no probability)",
        "encoder": _encoder(packed) if text.reference is not None else "",
        "network": f"{networks}width {model.width}; user: {parts}",
        "members": ", ".join(f"`{member}`" for member in packed.baselines) if packed.hybrid.kind != "none" else "",
        "features": {table: list(fitted.columns) for table, fitted in packed.features.items()},
        "valid_rows": manifest["splits"]["valid"]["rows"],
        "when": {"before the refit": ", before they were learned too"}.get(str(metrics.get("measured")), ""),
        "headings": [_METRICS[key] for key in names],
        "figures": figures,
        "below": _below(metrics),
        "calibration": _calibration(packed, metrics),
        "uses": _uses(packed),
        "limits": _limits(packed, manifest),
        "privacy": _privacy(prepared),
        "seed": config.seed,
    }


def _data(prepared: Prepared) -> dict[str, str]:
    """What the manifest says of the log, by name; what it does not say is left out."""
    manifest = prepared.manifest
    counts = {"rows": "rows", "requests": "requests", "clicks": "clicks", "users": "users", "ads": "ads", "texts": "texts"}
    told = {label: f"{manifest[key]:,}" for key, label in counts.items() if manifest.get(key) is not None}
    if prepared.has.time and manifest.get("first"):
        told["days (UTC)"] = f"{manifest['first'][:10]} to {manifest['last'][:10]}"
    if manifest.get("split"):
        told["split"] = str(manifest["split"])
    return told


def _verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence first: how good, and whether something simple does as well."""
    own = metrics.get("cross_fitted") or metrics["models"]["adrec"]
    key = next(name for name in _METRICS if name in own)
    bounds = (metrics.get("intervals") or {}).get("adrec", {}).get(key)
    said = f"{_METRICS[key]} {_cell(own[key], bounds)} on validation rows."
    check = metrics.get("simple_check")
    if check is None:
        return said
    better = "is clearly better" if check["low"] > 0 else "is not clearly better"
    return (
        f"{said} The best simple baseline, `{check['name']}`, {better}: {check['difference']:+.4f}"
        f" [{check['low']:+.4f}, {check['high']:+.4f}]."
    )


def _below(metrics: Mapping[str, Any]) -> list[str]:
    """What stands under the table of figures."""
    lines = []
    if metrics.get("cross_fitted"):
        lines.append("`adrec` is the mixture of network and baselines, each request scored by a fit on other requests.")
    if metrics.get("deviations", {}).get("auc") is not None:
        lines.append(f"Standard deviation of its AUC over seeds: {metrics['deviations']['auc']:.4f}.")
    for recall in metrics.get("candidate_recall") or []:
        lines.append(
            f"Of the {recall['k']} ads that it would put first in the whole catalogue, {recall['recall']:.0%} are among the"
            f" {recall['candidates']} candidates that `rank` gives it ({recall['requests']:,} requests)."
        )
    for baseline, reason in (metrics.get("baselines_left_out") or {}).items():
        lines.append(f"Left out: `{baseline}`, {_plain(reason)}.")
    return lines


def _encoder(packed: ClickModel) -> str:
    text = packed.config.text
    beside = f", {text.lexical} numbers of the texts' words beside it" if text.lexical else ""
    width = f"{packed.encoder.parts[0]} wide, " if packed.encoder is not None else ""
    reference = str(text.reference)
    reference = Path(reference).name if Path(reference).is_absolute() else reference
    return f"{_code(reference)}, {width}{text.train}{beside}; reads {_code(packed.text.ad_template)}"


def _calibration(packed: ClickModel, metrics: Mapping[str, Any]) -> str:
    if metrics.get("scores") == "preference":
        return "None: trained on clicks alone, a score is a preference."
    told = [
        f"`{task}`: {fitted.method}, fitted on {fitted.rows:,} validation rows with {fitted.clicks:,.0f} positives"
        for task, fitted in packed.calibrations.items()
    ]
    return "; ".join(told) + ". Scores are probabilities for rows like those of the log." if told else "None."


def _uses(packed: ClickModel) -> list[str]:
    lines = [
        "Scoring and ranking ads of this log's kind for its users (`adrec score`, `rank`, `serve`), and saying why (`explain`)."
    ]
    if not packed.has.ad:
        lines.append("Not for ranking: the log names no ads.")
    if packed.slots is not None:
        lines.append("What the slot does to a click is learned apart: lists are ordered by the probability for any slot.")
    lines.append(
        "Not for decisions about people beyond which ad they see (credit, work, housing, health), nor for guessing what"
        " they did not state."
    )
    return lines


def _limits(packed: ClickModel, manifest: Mapping[str, Any]) -> list[str]:
    valid = manifest["splits"]["valid"]
    lines = ["It knows what an earlier system chose to show; what was never shown is judged by its words and columns alone."]
    if valid.get("cold_ad_rows") is not None and packed.has.ad:
        lines.append(
            f"{valid['cold_ad_rows']:.0%} of the validation rows have an ad, and {valid['cold_user_rows'] or 0:.0%} a user,"
            " that no training row shows (`cold_ad` and `cold_user` say so beside every score)."
        )
    if manifest.get("clicks", FEW) < FEW:
        lines.append(f"{manifest['clicks']:,} clicks are few: expect other figures from the next log.")
    lacking = [name for name, there in packed.has.as_dict().items() if not there]
    if lacking:
        lines.append(f"The log names no {', no '.join(lacking)}.")
    lines.append("Clicks drift: judge it on every new day (`adrec daily`); compare logs with `adrec inspect A --against B`.")
    return lines


def _privacy(prepared: Prepared) -> list[str]:
    settings = prepared.config.privacy if prepared.config is not None else None
    lines = ["Users of the training rows stand in `seen.parquet` by identifier, with counts; golden rows describe no person."]
    if settings is None:
        return [*lines, "How the log was prepared is not known here."]
    lines.append("Identifiers are keyed pseudonyms." if settings.pseudonymise else "Identifiers are those of the log.")
    lines.append("Contacts in texts are masked." if settings.mask_contacts else "Contacts in texts are not masked.")
    if settings.drop_before is not None:
        lines.append(f"Rows before {settings.drop_before} were left out.")
    if settings.k_anonymity is not None:
        lines.append(f"k-anonymity: {settings.k_anonymity.k} over {', '.join(map(_code, settings.k_anonymity.columns))}.")
    return lines


def _languages(prepared: Prepared) -> dict[str, float]:
    """Language of the ads → its share, most frequent first; empty where ads have none."""
    ads = prepared.ads()
    if "language" not in ads.column_names or not len(ads):
        return {}
    counts = pc.value_counts(ads["language"].combine_chunks()).to_pylist()
    shares = {str(item["values"]): item["counts"] / len(ads) for item in counts if item["values"]}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _is_hub_name(reference: str | None) -> bool:
    """`owner/name` of the hub, which is no folder and no package."""
    return reference is not None and reference.count("/") == 1 and ":" not in reference and not Path(reference).exists()


def _cell(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.4f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds is not None else "")


def _code(text: str) -> str:
    """As code that ends neither its table nor itself, whatever the log's columns are called."""
    return "`" + _plain(text).replace("`", "'") + "`"


def _plain(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
