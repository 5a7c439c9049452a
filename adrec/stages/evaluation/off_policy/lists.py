"""What the lists look like: a policy's ranked lists, or the top of each request by score."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.data.disk.tables import read_table
from adrec.errors import DataError
from adrec.metrics import lists
from adrec.metrics.intervals.bootstrap import Measure, bootstrap, divide, of_groups, of_sums, point
from adrec.metrics.intervals.significance import Interval, interval
from adrec.metrics.ranking import RankedGroups
from adrec.metrics.ties import Floats, Ints, group_codes, totals
from adrec.stages.evaluation.measures import Frame, owners
from adrec.stages.evaluation.reading.rows import AnyInts, Rows, as_floats, encode, look_up
from adrec.stages.evaluation.reading.truth import list_truth
from adrec.stages.evaluation.support import FEWEST


@dataclass(frozen=True)
class ListResult:
    """Metrics of lists; those over the whole table at once have no interval."""

    what: str
    """Which lists, in words."""
    lists: int
    rows: int
    metrics: dict[str, Interval]
    skipped: dict[str, int]
    exposures: Floats
    """How often each ad of the catalogue is shown, for the plot; zeros included."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values, without the exposures."""
        metrics = {name: value._asdict() for name, value in self.metrics.items()}
        return {"what": self.what, "lists": self.lists, "rows": self.rows, "metrics": metrics, "skipped": self.skipped}


def judge_lists(
    rows: Rows, ads: pa.Table | None, popularity: pa.Table | None, config: EvaluateConfig, generator: np.random.Generator
) -> ListResult | None:
    """Coverage, diversity, novelty, concentration and revenue of lists; hit rates too where clicks are known.

    `popularity` has `ad_id` and `impressions` of training. None where the rows form no lists.
    """
    depth = config.cutoffs[0]
    groups = rows.group.codes
    if rows.is_ranked:
        in_list, what = np.arange(len(rows)), "the ranked lists"
    elif rows.requests is not None and len(rows) > len(rows.requests) and "score" in rows and "ad_id" in rows:
        in_list, what = _top(rows, depth), f"the {depth} best ads of each request, by score"
    else:
        return None
    frame = Frame.of(np.zeros(len(in_list)), rows.users.codes[in_list], groups[in_list])
    codes, list_count = group_codes(groups[in_list])
    listed = rows.ads.codes[in_list]
    exposures = _exposures(rows, listed, ads)
    whole = _whole_table(rows, listed, ads, exposures)
    measures = _per_list(rows, in_list, codes, ads, config, frame)
    if popularity is not None:
        counts = _popularity(rows, popularity)
        bits = lists.novelty(counts[listed], float(counts.sum()))
        measures.append(_mean("novelty_bits", bits, frame))
    measures += _revenue(rows, in_list, ads, frame)
    skipped: dict[str, int] = {}
    metrics = {name: Interval(value, float("nan"), float("nan")) for name, value in whole.items()}
    metrics |= _with_intervals(measures, frame.user_count, config, generator)
    if rows.is_ranked:
        outcome = _outcome(rows, config, generator)
        if outcome is not None:
            metrics |= outcome[0]
            skipped["lists_without_a_click"] = list_count - outcome[1]
            skipped["clicked_requests_without_a_list"] = outcome[2]
    return ListResult(what, list_count, len(in_list), metrics, skipped, exposures)


def _with_intervals(
    measures: list[Measure], users: int, config: EvaluateConfig, generator: np.random.Generator
) -> dict[str, Interval]:
    if not measures:
        return {}
    draws = bootstrap({"": measures}, users=users, replicates=config.bootstrap.slice_replicates, generator=generator)[""]
    too_few = users < FEWEST
    nothing = float("nan")
    return {
        name: Interval(value, nothing, nothing) if too_few else interval(value, draws[name])
        for name, value in point(measures, users).items()
    }


def _top(rows: Rows, depth: int) -> Ints:
    """Row numbers of the `depth` best of each request; equal scores in file order. Rows of no request are in no list."""
    order = np.lexsort((-rows.numbers("score"), rows.group.codes))
    if rows.lone is not None:
        order = order[~rows.lone[order]]
    codes = rows.group.codes[order]
    first = np.searchsorted(codes, codes, side="left")
    return order[np.arange(len(order)) - first < depth]


def _exposures(rows: Rows, listed: AnyInts, ads: pa.Table | None) -> Floats:
    """Rows of each ad, zeros for those of the catalogue that no list has."""
    catalogue = ads.num_rows if ads is not None else len(rows.ads)
    return totals(listed, None, max(catalogue, len(rows.ads)))


def _whole_table(rows: Rows, listed: AnyInts, ads: pa.Table | None, exposures: Floats) -> dict[str, float]:
    values = {"coverage": lists.coverage(listed, len(exposures)), "gini": lists.gini(exposures)}
    for column, name in (("advertiser_id", "advertiser"), ("category", "category")):
        owner = ad_column(rows, ads, column)
        if owner is not None:
            owned = encode(pa.chunked_array([owner])).codes[listed]
            values |= {f"{name}_top_share": lists.top_share(owned), f"{name}_concentration": lists.concentration(owned)}
    return values


def _per_list(rows: Rows, kept: Ints, codes: Ints, ads: pa.Table | None, config: EvaluateConfig, frame: Frame) -> list[Measure]:
    values: dict[str, Floats] = {}
    category = ad_column(rows, ads, "category")
    if category is not None:
        kinds = encode(pa.chunked_array([category])).codes[rows.ads.codes[kept]]
        values["category_diversity"] = lists.category_diversity(kinds, codes)
    if config.vectors is not None:
        table = read_table(config.vectors)
        if not {"ad_id", "vector"} <= set(table.column_names):
            raise DataError(f"{config.vectors}: expected columns 'ad_id' and 'vector', as 'adrec encode' writes them.")
        column = look_up(rows.ads.values, table, "ad_id", ["vector"], where=str(config.vectors))["vector"].combine_chunks()
        if column.null_count:
            missing = rows.ads.values.filter(pc.is_null(column))[0].as_py()
            raise DataError(
                f"{config.vectors}: no vector for ad '{missing}' ({column.null_count:,} such ads). Encode them too."
            )
        vectors = np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
        values["intra_list_diversity"] = lists.intra_list_diversity(vectors[rows.ads.codes[kept]], codes)
    return [of_groups(values, owners(codes, frame.users), frame.user_count)] if values else []


def _revenue(rows: Rows, in_list: Ints, ads: pa.Table | None, frame: Frame) -> list[Measure]:
    """Revenue per thousand impressions: expected from scores, and what came in from clicks."""
    price = None
    if "price" in rows:
        price = np.nan_to_num(rows.numbers("price").astype(np.float64))[in_list]
    else:
        bid = ad_column(rows, ads, "bid")
        if bid is not None:
            each = as_floats(pa.chunked_array([bid]), where="column 'bid'")
            price = np.nan_to_num(each.astype(np.float64))[rows.ads.codes[in_list]]
    if price is None:
        return []
    measures = []
    if "score" in rows:
        measures.append(_mean("expected_revenue_per_thousand", 1000 * rows.numbers("score")[in_list] * price, frame))
    if "click" in rows:
        clicks = np.nan_to_num(rows.numbers("click").astype(np.float64))[in_list]
        measures.append(_mean("observed_revenue_per_thousand", 1000 * clicks * price, frame))
    return measures


def _outcome(rows: Rows, config: EvaluateConfig, generator: np.random.Generator) -> tuple[dict[str, Interval], int, int] | None:
    """Hit rate, nDCG, precision, recall and MAP of ranked lists against clicks; lists so judged; clicks without a list."""
    truth = list_truth(rows, config.labels)
    if truth is None:
        return None
    frame = Frame.of(truth.relevance, truth.users, truth.groups)
    assert frame.requests is not None
    ranked = RankedGroups(truth.relevance, truth.scores, frame.requests)
    values: dict[str, Any] = {"mrr": ranked.mrr()}
    for k in config.cutoffs:
        values |= {f"ndcg@{k}": ranked.ndcg(k), f"hit_rate@{k}": ranked.hit_rate(k), f"precision@{k}": ranked.precision(k)}
        values |= {f"recall@{k}": ranked.recall(k), f"map@{k}": ranked.average_precision(k)}
    measure = of_groups(values, owners(frame.requests, frame.users), frame.user_count)
    return _with_intervals([measure], frame.user_count, config, generator), ranked.count, truth.unlisted


def ad_column(rows: Rows, ads: pa.Table | None, column: str) -> pa.Array | None:
    """A column for each distinct ad of the rows (their order in `rows.ads`), from the ads table or the rows themselves."""
    if ads is not None and column in ads.column_names:
        return look_up(rows.ads.values, ads, "ad_id", [column], where="the ads table")[column].combine_chunks()
    if column in rows:
        first = np.zeros(len(rows.ads), dtype=np.int64)
        first[rows.ads.codes[::-1]] = np.arange(len(rows))[::-1]
        return rows.table[column].take(pa.array(first)).combine_chunks()
    return None


def _popularity(rows: Rows, popularity: pa.Table) -> Floats:
    table = look_up(rows.ads.values, popularity, "ad_id", ["impressions"], where="seen.parquet")
    return np.nan_to_num(as_floats(table["impressions"], where="column 'impressions'").astype(np.float64))


def _mean(name: str, values: Floats, frame: Frame) -> Measure:
    columns = {"sum": values, "rows": np.ones(len(values))}
    return of_sums(columns, frame.users, frame.user_count, lambda sums: {name: divide(sums["sum"], sums["rows"])})
