"""The model card of a private bundle: the claim first, then the ledger. It says nothing that bundle.json does not say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adrec.bundle import CARD
from adrec.inference.click_model import ClickModel

_FRONT = {
    "library_name": "adrec",
    "pipeline_tag": "text-ranking",
    "tags": ["click-through-rate", "advertising", "recommender-system", "differential-privacy"],
}


def write_private_card(
    folder: Path, packed: ClickModel, stored: Mapping[str, Any], metrics: Mapping[str, Any], *, name: str
) -> None:
    """Write the card of the bundle that `folder` will be, of that `name`, by its `stored` ledger."""
    lines = [
        f"# {name}: what is a click worth showing",
        "",
        f"({stored['spent']:.3g}, {stored['delta']:g})-differentially private for {stored['neighbours']};"
        f" claimed epsilon {stored['epsilon']:g}.",
        "",
        f"Randomness: {stored['random']}. Accountant: {stored['accountant']}. `adrec inspect` prints the ledger,"
        " `adrec audit` attacks the claim.",
        "",
        "| artefact | is | how |",
        "|---|---|---|",
        *(f"| {line['artefact']} | {line['treatment']} | {line['why']} |" for line in stored["lines"]),
        "",
    ]
    if metrics["models"]:
        own = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics["models"]["adrec"].items())
        lines += ["## On validation rows", "", own, ""]
    lines += [
        "## Use",
        "",
        "Scoring and ranking ads of this log's kind for its users. Not for decisions about people beyond which ad they see.",
        f"Network: width {packed.config.model.width}; columns: "
        + "; ".join(f"{table}: {', '.join(fitted.columns) or 'none'}" for table, fitted in packed.features.items())
        + ".",
        "",
    ]
    front = yaml.safe_dump(_FRONT, allow_unicode=True, sort_keys=False)
    (folder / CARD).write_text(f"---\n{front}---\n\n" + "\n".join(lines), encoding="utf-8")
