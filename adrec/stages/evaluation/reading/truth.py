"""Join what happened (impressions with clicks) to tables that lack it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from adrec.errors import DataError
from adrec.stages.evaluation.reading.rows import LABELS, AnyInts, Floats, Ints, Rows, ShortInts, codes_in, load_rows


@dataclass(frozen=True)
class ListTruth:
    """Relevance of ranked lists: rows of the lists, then the clicked ads that no list had, at the bottom of theirs.

    Arrays (M,), M >= number of ranked rows of groups with a known outcome.
    """

    relevance: Floats
    scores: Floats
    """Minus the rank; clicked ads that were not listed come last."""
    groups: AnyInts
    users: AnyInts
    unlisted: int = 0
    """Requests (or users) with a click that have no list at all; they are not among the groups."""


def with_labels(rows: Rows, path: Path) -> Rows:
    """`rows` with the label columns of the impressions at `path`, matched by request (else user) and ad.

    Several impressions of one pair count as one: its largest label. Raises DataError where nothing matches.
    """
    truth = load_rows(path)
    key, known = _pair_keys(rows, truth)
    table = rows.table
    labels = [name for name in LABELS if name in truth and name not in rows]
    if not labels:
        raise DataError(f"{path}: none of the columns {', '.join(LABELS)} is there to judge by.")
    distinct, place = np.unique(known, return_inverse=True)
    position = np.searchsorted(distinct, key)
    matched = np.zeros(len(key), dtype=bool)
    inside = position < len(distinct)
    matched[inside] = distinct[position[inside]] == key[inside]
    matched &= key >= 0
    if not matched.any():
        raise DataError(f"{path}: no impression has the request (or user) and ad of any row of {rows.path}.")
    for name in labels:
        largest = np.full(len(distinct), -np.inf)
        np.maximum.at(largest, place, np.nan_to_num(truth.numbers(name).astype(np.float64), nan=-np.inf))
        values = np.full(len(key), np.nan)
        values[matched] = largest[position[matched]]
        values[~np.isfinite(values)] = np.nan
        table = table.append_column(name, pa.array(values, from_pandas=True))
    return replace(rows, table=table, columns=(*rows.columns, *labels))


def list_truth(rows: Rows, path: Path | None) -> ListTruth | None:
    """Relevance (a click) of ranked lists, from the table's own `click` or from the impressions at `path`.

    Only groups with at least one known click are judged. None where nothing is known.
    """
    rank = rows.numbers("rank").astype(np.float64)
    groups, users = rows.group.codes, rows.users.codes
    if path is None:
        if "click" not in rows:
            return None
        return _with_clicks(np.nan_to_num(rows.numbers("click").astype(np.float64)), -rank, groups, users)
    truth = load_rows(path)
    if "click" not in truth:
        raise DataError(f"{path}: column 'click' is missing.")
    clicked = truth.numbers("click") == 1
    key, known = _pair_keys(rows, truth)
    _, shared = _shared_groups(rows, truth)
    known, truth_groups = known[clicked], shared[clicked]
    relevance = np.isin(key, known).astype(np.float64)
    # A clicked ad whose request was ranked but which no list had; its key is negative where the ad was never listed.
    absent = (truth_groups >= 0) & ((known < 0) | ~np.isin(known, key))
    missing = np.unique(np.stack([truth_groups[absent], truth.ads.codes[clicked][absent]]), axis=1)[0]
    owner = np.zeros(len(rows.group), dtype=np.int64)
    owner[groups] = users
    below = np.full(len(missing), -rank.max() - 1)
    unlisted = len(np.unique(truth.group.codes[clicked & (shared < 0)]))
    judged = _with_clicks(
        np.concatenate([relevance, np.ones(len(missing))]),
        np.concatenate([-rank, below]),
        np.concatenate([groups, missing]),
        np.concatenate([users, owner[missing]]),
    )
    return None if judged is None else replace(judged, unlisted=unlisted)


def _with_clicks(relevance: Floats, scores: Floats, groups: AnyInts, users: AnyInts) -> ListTruth | None:
    has_click = np.bincount(groups, relevance) > 0
    is_clicked = has_click[groups]
    if not is_clicked.any():
        return None
    return ListTruth(relevance[is_clicked], scores[is_clicked], groups[is_clicked], users[is_clicked])


def _pair_keys(rows: Rows, truth: Rows) -> tuple[Ints, Ints]:
    """One integer for each (group, ad), equal in both tables where both are equal; -1 for what `rows` does not have."""
    groups, truth_groups = _shared_groups(rows, truth)
    ads = codes_in(truth.ads, rows.ads.values)
    width = len(rows.ads)
    known = np.where((truth_groups >= 0) & (ads >= 0), truth_groups * width + ads, -1)
    return groups.astype(np.int64) * width + rows.ads.codes, known


def _shared_groups(rows: Rows, truth: Rows) -> tuple[ShortInts, Ints]:
    """Codes of requests in both tables, or of users where the tables share no request."""
    if rows.requests is not None and truth.requests is not None:
        found = codes_in(truth.requests, rows.requests.values)
        if (found >= 0).any():
            return rows.requests.codes, found
    if rows.requests is None:
        if "user_id" not in rows or "user_id" not in truth:
            raise DataError(f"{rows.path}: has neither request_id nor user_id, by which labels could be joined to its rows.")
        return rows.users.codes, codes_in(truth.users, rows.users.values)
    # Users were ranked: the request id is the user id.
    return rows.requests.codes, codes_in(truth.users, rows.requests.values)
