"""Where held-out clicks stand among all ads that were available: recall@k, nDCG@k and MRR of the ranks that `score` wrote.

Means are over clicks, each with one relevant ad; intervals draw users. All runs are judged on the same clicks, so that the
differences are paired.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.metrics.intervals.bootstrap import Values, bootstrap, of_groups, point
from adrec.metrics.intervals.significance import LEVEL, Difference, Interval, adjust, difference, interval
from adrec.metrics.ties import Floats
from adrec.schema import CATALOGUE_RANK, CATALOGUE_SIZE
from adrec.stages.evaluation.judge import Comparison
from adrec.stages.evaluation.measures import Frame
from adrec.stages.evaluation.reading.rows import Rows
from adrec.stages.evaluation.reading.tasks import Role
from adrec.stages.evaluation.support import FEWEST

RECALL_AT = (1, 3, 5, 10, 20)
GAIN_AT = (5, 10, 20)
COMPARED = ("recall@10", "ndcg@10", "mrr")
SHOWN = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")


@dataclass(frozen=True)
class CatalogueResult:
    """What was found out of T clicks of some users."""

    clicks: int
    users: int
    unranked: int
    """clicks without a rank: their ads were not available before"""
    ads: float
    """how many a click was ranked among, on average"""
    roles: dict[str, Role]
    runs: dict[str, dict[str, Interval]]
    """run → metric → interval; the model first, then the best by recall@10"""
    comparisons: tuple[Comparison, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "clicks": self.clicks,
            "users": self.users,
            "unranked_clicks": self.unranked,
            "ads": self.ads,
            "runs": {
                run: {"role": self.roles[run]} | {name: found._asdict() for name, found in metrics.items()}
                for run, metrics in self.runs.items()
            },
            "comparisons": [
                {"against": c.other, "metric": c.metric, **c.difference._asdict(), "adjusted_p": c.adjusted_p,
                 "verdict": c.verdict()}
                for c in self.comparisons
            ],
        }  # fmt: skip

    def gap(self, run: str) -> Comparison | None:
        """The model minus that run in recall@10."""
        return next((c for c in self.comparisons if c.other == run and c.metric == COMPARED[0]), None)

    def render(self, name: str) -> Iterable[RenderableType]:
        """The table for the terminal."""
        table = Table(
            title=f"{name}: {self.clicks:,} clicks of {self.users:,} users, each ranked among {self.ads:,.0f} ads",
            caption=f"± half of the {LEVEL:.0%} interval (bootstrap over users)",
            title_justify="left",
            caption_justify="left",
            box=box.HORIZONTALS,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("run", no_wrap=True)
        for metric in SHOWN:
            table.add_column(metric, justify="right", no_wrap=True)
        for run, metrics in self.runs.items():
            is_model = self.roles[run] == "model"
            cells = [f"{metrics[metric].value:.4f}" + (_half(metrics[metric]) if is_model else "") for metric in SHOWN]
            table.add_row(run, *cells, style="bold" if is_model else "")
        yield table
        best = next((run for run in self.runs if self.roles[run] == "baseline"), None)
        if best is not None and (gap := self.gap(best)) is not None:
            d = gap.difference
            reach = f"({d.low:+.4f} to {d.high:+.4f})" if np.isfinite(d.low) else "(too few users for an interval)"
            yield f"recall@10, the model minus the best baseline ({best}): {d.value:+.4f} {reach}"
        if self.unranked:
            yield f"{self.unranked:,} clicks have no rank: their ads were not available before."


def judge_catalogue(
    rows: Rows, against: Sequence[tuple[str, Rows]], config: EvaluateConfig, generator: np.random.Generator
) -> CatalogueResult | None:
    """The ranks of all runs; None where the rows have none."""
    if CATALOGUE_RANK not in rows:
        return None
    ranks, roles = _ranks(rows, against)
    rows_ranked = np.flatnonzero(np.all([~np.isnan(values) for values in ranks.values()], axis=0))
    if not len(rows_ranked):
        return None
    frame = Frame.of(
        np.ones(len(rows_ranked)),
        rows.users.codes[rows_ranked],
        None if rows.requests is None else rows.requests.codes[rows_ranked],
        unnamed=None if rows.unnamed is None else rows.unnamed[rows_ranked],
    )
    users, count = frame.users, frame.user_count
    seed = int(generator.integers(2**63))
    values: dict[str, dict[str, float]] = {}
    draws: dict[str, Values] = {}
    for run, rank in ranks.items():
        measures = [of_groups(_of_clicks(rank[rows_ranked]), users, count)]
        values[run] = point(measures, count)
        draws |= bootstrap(
            {run: measures}, users=count, replicates=config.bootstrap.replicates, generator=np.random.default_rng(seed)
        )
    comparisons = []
    for role in ("against", "baseline"):
        family = [
            (run, metric, _difference(values["model"][metric] - values[run][metric], gaps, count))
            for run in ranks
            if roles[run] == role
            for metric in COMPARED
            for gaps in [draws["model"][metric] - draws[run][metric]]
        ]
        adjusted = adjust([gap.p_value for _, _, gap in family])
        comparisons += [
            Comparison(run, roles[run], metric, gap, float(p)) for (run, metric, gap), p in zip(family, adjusted, strict=True)
        ]
    order = sorted(ranks, key=lambda run: (roles[run] != "model", -values[run]["recall@10"]))
    clicked = np.nan_to_num(rows.numbers("click")) > 0 if "click" in rows else np.ones(len(rows), np.bool_)
    return CatalogueResult(
        clicks=len(rows_ranked),
        users=count,
        unranked=int(clicked.sum()) - len(rows_ranked),
        ads=float(rows.numbers(CATALOGUE_SIZE)[rows_ranked].mean()) if CATALOGUE_SIZE in rows else float("nan"),
        roles=roles,
        runs={run: {name: _interval(value, draws[run][name], count) for name, value in values[run].items()} for run in order},
        comparisons=tuple(comparisons),
    )


def _ranks(rows: Rows, against: Sequence[tuple[str, Rows]]) -> tuple[dict[str, Floats], dict[str, Role]]:
    """Ranks (N,) of each run, NaN where a row has none. Raises DataError for what is no rank."""
    ranks: dict[str, Floats] = {"model": _column(rows, CATALOGUE_RANK)}
    roles: dict[str, Role] = {"model": "model"}
    for name, other in against:
        if CATALOGUE_RANK in other:
            ranks[name], roles[name] = _column(other, CATALOGUE_RANK), "against"
    for column in rows.table.column_names:
        if column.startswith(f"{CATALOGUE_RANK}_"):
            name = column.removeprefix(f"{CATALOGUE_RANK}_")
            ranks[name], roles[name] = _column(rows, column), "baseline"
    return ranks, roles


def _column(rows: Rows, column: str) -> Floats:
    values = rows.numbers(column).astype(np.float64)
    bad = np.flatnonzero(values < 1)
    if len(bad):
        raise DataError(f"{rows.path}: column '{column}', row {bad[0]}: {values[bad[0]]:g} is no rank, which counts from 1.")
    return values


def _of_clicks(rank: Floats) -> dict[str, Floats]:
    """Metrics of each click (T,), all in [0, 1]: one ad is relevant, so that recall@k is whether it is among the first k and
    nDCG@k its gain 1 / log2(1 + rank) (Järvelin and Kekäläinen 2002). A tie has the rank in its middle."""
    values = {f"recall@{k}": (rank <= k).astype(np.float64) for k in RECALL_AT}
    values |= {f"ndcg@{k}": np.where(rank <= k, 1 / np.log2(1 + rank), 0.0) for k in GAIN_AT}
    return values | {"mrr": 1 / rank}


def _interval(value: float, draws: Floats, users: int) -> Interval:
    return interval(value, draws) if users >= FEWEST else Interval(value, float("nan"), float("nan"))


def _difference(value: float, draws: Floats, users: int) -> Difference:
    return difference(value, draws, users=users) if users >= FEWEST else Difference(value, *(float("nan"),) * 3)


def _half(found: Interval) -> str:
    half = (found.high - found.low) / 2
    return f"\n±{half:.3f}" if np.isfinite(half) else ""
