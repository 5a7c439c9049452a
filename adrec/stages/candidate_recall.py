"""Candidate recall as people read it: a table, a warning with its cure, and the file beside ranked lists.

`finetune`, `rank` and `evaluate` tell it in the same words; `evaluate` reads what the other two wrote and loads no model.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from adrec.data.disk.outputs import RECALL, recall_file
from adrec.data.disk.writing import write_aside
from adrec.errors import DataError
from adrec.ranking.recall import LOW, CandidateRecall
from adrec.terminal import Terminal

KEY = "candidate_recall"
"""Of a bundle's metrics.json, of an evaluation's, and of the file beside lists."""


def write_recall(measured: Sequence[CandidateRecall], lists: Path) -> None:
    """Write it beside the lists; where nothing was measured, what lies there of earlier lists goes.

    Raises ResourceError where a file of that name is not adrec's.
    """
    if not measured:
        file = recall_file(lists)
        if file.is_file() and RECALL.is_earlier(file):
            file.unlink()
        return
    with write_aside(recall_file(lists), RECALL) as aside:
        aside.write_text(json.dumps({KEY: as_json(measured)}, indent=2) + "\n", encoding="utf-8")


def read_recall(file: Path) -> tuple[CandidateRecall, ...]:
    """What was written to a bundle's metrics.json or beside lists; nothing where there is no such file, or it has none.

    Raises DataError where the figures are not as adrec writes them.
    """
    if not file.is_file():
        return ()
    try:
        return tuple(CandidateRecall(**values) for values in json.loads(file.read_text(encoding="utf-8")).get(KEY) or ())
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{file}: its '{KEY}' is not as adrec writes it. Run 'adrec finetune' or 'adrec rank' again.") from None


def as_json(measured: Sequence[CandidateRecall]) -> list[dict[str, Any]]:
    """JSON-safe values."""
    return [found.as_dict() for found in measured]


def recall_table(measured: Sequence[CandidateRecall]) -> Iterable[Table]:
    """One table, a row a policy; none where nothing was measured."""
    if not measured:
        return
    with_value = any(recall.by_value is not None for recall in measured)
    table = Table(title="Candidate recall: share of the scorer's best ads that are retrieved", title_justify="left")
    for name in (
        "policy",
        "requests",
        "best",
        "candidates",
        "recall",
        *(["by value"] if with_value else []),
        "each channel alone",
    ):
        table.add_column(name, justify="left" if name in {"policy", "each channel alone"} else "right")
    for recall in measured:
        alone = [
            f"{name} {share:.3f}" + (f" (share {recall.shares[name]:.2f})" if recall.shares else "")
            for name, share in recall.channels.items()
        ]
        alone = alone or ["all ads are candidates"]
        value = "–" if recall.by_value is None else f"{recall.by_value:.3f}"
        table.add_row(
            recall.policy, f"{recall.requests:,}", f"{recall.k:,}", f"{recall.candidates:,} of {recall.eligible:,.0f}",
            f"{recall.recall:.3f}\n±{1.96 * recall.deviation:.3f}", *([value] if with_value else []), "\n".join(alone),
            style="yellow" if recall.is_low else "",
        )  # fmt: skip
    yield table


def warn_of_low(measured: Sequence[CandidateRecall], terminal: Terminal) -> None:
    """Say where retrieval hides more than a fifth of the best ads, and what helps."""
    for recall in measured:
        if recall.is_low:
            terminal.warn(
                f"policy '{recall.policy}': only {recall.recall:.2f} of the scorer's {recall.k} best ads are among the"
                f" {recall.candidates:,} candidates (less than {LOW}). Raise retrieval.candidates in the policy, name the best"
                " channels alone (retrieval.channels), or train the vectors: finetune with {kind: in_batch, weight: 0.03} among"
                " loss.terms."
            )
