"""One loaded bundle over one catalogue, ready to answer: what a reload or a changed ad replaces as a whole."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.bundle import open_bundle
from adrec.config.serve import ServeConfig
from adrec.data.arrays import combined, ends
from adrec.data.examples import Examples, examples_from_table
from adrec.data.prepared import Prepared
from adrec.errors import BundleError, DataError
from adrec.inference.lists.past_counters import PastCounters
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.requests import users_at
from adrec.inference.onnx.backend import predictor_of
from adrec.inference.predictor import Catalogs, Predictor
from adrec.schema import STRINGS, TIMESTAMP
from adrec.serve.catalogue import users_of, with_changes
from adrec.serve.messages import UserIn


class Past(NamedTuple):
    """Clicks that the prepared folder knows of: U users' lists, newest last."""

    row_of: dict[str, int]
    """user id → list"""
    offsets: np.ndarray
    ads: np.ndarray
    """rows of the prepared folder's ads, which come first in the catalogue"""
    hours: np.ndarray
    """ages at `moment`"""
    moment: int

    @classmethod
    def of(cls, prepared: Prepared | None) -> "Past":
        """Read it; nothing without a folder."""
        if prepared is None:
            return cls({}, np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0), 0)
        table = next(users_at(prepared, None))
        lists, hours = combined(table["history_index"]), combined(table["history_hours"])
        ids = combined(table["user_id"]).tolist()
        moment = int(pc.cast(table["shown_at"], pa.int64())[0].as_py())
        return cls(
            dict(zip(ids, range(len(ids)), strict=True)),
            lists.offsets.to_numpy().astype(np.int64),
            lists.values.to_numpy().astype(np.int64),
            hours.values.to_numpy().astype(np.float64),
            moment,
        )


class Histories(NamedTuple):
    """Histories of users at a moment."""

    ads: list[np.ndarray]
    hours: list[np.ndarray]
    length: list[int]


@dataclass
class Live:
    """Predictor, ranker and lookups over one catalogue."""

    predictor: Predictor
    ranker: Ranker
    ads: pa.Table
    users: pa.Table
    row_of_ad: dict[str, int]
    deleted: set[str]
    fingerprint: str

    @classmethod
    def load(
        cls,
        config: ServeConfig,
        bundle: Path,
        ads: pa.Table,
        users: pa.Table,
        changes: dict[str, dict[str, Any] | None],
        *,
        counters: PastCounters | None,
        predictor: Predictor | None = None,
        onnx: bool = False,
    ) -> "Live":
        """Load the bundle (or take the loaded `predictor`), encode the catalogue, check that it scores.

        `onnx`: on the onnxruntime graphs that the config names, if it does.
        """
        if predictor is None:
            graphs = config.onnx if onnx else None
            predictor = predictor_of(bundle, device=config.device, cache=config.cache, onnx=graphs, int8=config.onnx_int8)
        table, gone = with_changes(ads, changes, predictor.packed)
        catalogs = predictor.catalogs(table, users.slice(0, 1))
        ranker = Ranker(predictor, catalogs, table, users.slice(0, 1), config.policies, counters=counters, seed=config.seed)
        for rules, _ in ranker.finder.rules:
            rules.allowed[gone] = False
        ranker.finder.prepare()  # aside, before a request needs it
        ids = ranker.ads.ids.tolist()
        live = cls(
            predictor=predictor,
            ranker=ranker,
            ads=table,
            users=users,
            row_of_ad=dict(zip(ids, range(len(ids)), strict=True)),
            deleted={ad_id for ad_id, ad in changes.items() if ad is None},
            fingerprint=open_bundle(bundle, verify=False).fingerprint,
        )
        live.check()
        return live

    def check(self) -> None:
        """Score a few ads for a user without a past. Raises BundleError where a score is no probability."""
        ids = [ad for ad in self.row_of_ad if ad not in self.deleted][:8]
        if not ids:
            raise DataError("The catalogue has no ad. Give one with at least one row.")
        user = UserIn(user_id="adrec-check", history=ids[:2])
        _, catalogs = self.catalogs([user])
        empty = Histories(
            [np.array([self.row_of_ad[ad] for ad in ids[:2]])] * len(ids), [np.full(2, np.nan)] * len(ids), [2] * len(ids)
        )
        rows = [{"user_id": user.user_id, "ad_id": ad, "shown_at": int(datetime.now(UTC).timestamp() * 1e6)} for ad in ids]
        scores = self.predictor.score_examples(
            self.examples(rows, np.zeros(len(ids), np.int64), empty), catalogs, baselines=False
        )
        if not (np.isfinite(scores.score).all() and (scores.score >= 0).all() and (scores.score <= 1).all()):
            raise BundleError("The bundle gives scores that are no probabilities. The earlier one stays.")

    def place(self, ad_id: str) -> int:
        """Row of a servable ad. Raises DataError where there is none."""
        row = self.row_of_ad.get(ad_id)
        if row is None or ad_id in self.deleted:
            raise DataError(f"ad_id '{ad_id}' is not in the catalogue. PUT /v1/ads/{{id}} adds it.")
        return row

    def catalogs(self, described: list[UserIn]) -> tuple[pa.Table, Catalogs]:
        """The described users as a table, and catalogs of them over the live ads."""
        users = users_of(self.users, described, self.predictor.packed)
        small = self.predictor.catalogs(self.ads.slice(0, 1), users)
        whole = self.ranker.catalogs
        return users, replace(whole, users=small.users, user_texts=small.user_texts, cold_user=small.cold_user)

    def history(
        self, past: Past, user: UserIn, clicks: list[tuple[str, int]], at: int, limit: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Rows and ages in hours of a user's clicks, newest last: given with the request, else known before `at`."""
        if user.history is not None:
            rows = [self.row_of_ad[ad] for ad in user.history if ad in self.row_of_ad]
            return np.array(rows[-limit:], np.int64), np.full(min(len(rows), limit), np.nan), len(rows)
        place = past.row_of.get(user.user_id)
        span = slice(past.offsets[place], past.offsets[place + 1]) if place is not None else slice(0, 0)
        aged = past.hours[span] + (at - past.moment) / 3.6e9
        earlier = ~(aged <= 0)  # an unknown age counts as earlier
        live = [(self.row_of_ad[ad], (at - moment) / 3.6e9) for ad, moment in clicks if ad in self.row_of_ad]
        rows_known = np.concatenate([past.ads[span][earlier], np.array([row for row, _ in live], np.int64)])
        hours = np.concatenate([aged[earlier], np.array([age for _, age in live])])
        return rows_known[-limit:].astype(np.int64), hours[-limit:], len(rows_known)

    def table(self, rows: list[dict[str, Any]], histories: Histories) -> pa.Table:
        """Rows with their histories as prepared columns."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        kinds = {"shown_at": pa.int64(), "user_index": pa.int32(), "ad_index": pa.int32()}
        columns = {name: _column([row.get(name) for row in rows], kinds.get(name)) for name in names}
        columns["shown_at"] = columns["shown_at"].cast(TIMESTAMP)
        offsets = ends(np.array([len(ads) for ads in histories.ads], np.int64))
        flat = np.concatenate([np.zeros(0, np.int64), *histories.ads]).astype(np.int32)
        hours = np.concatenate([np.zeros(0), *histories.hours]).astype(np.float32)
        columns["history_index"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))
        columns["history_hours"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(hours))
        columns["history_length"] = pa.array(histories.length, pa.int32())
        if "request_id" not in columns:
            columns["request_id"] = pa.array([str(number) for number in range(len(rows))])
        return pa.table(columns)

    def examples(self, rows: list[dict[str, Any]], user: np.ndarray, histories: Histories) -> Examples:
        """Rows of (user, ad) as arrays; `user` (N,) rows of the described users."""
        placed = [
            {**row, "ad_index": self.place(row["ad_id"]), "user_index": int(place)}
            for row, place in zip(rows, user, strict=True)
        ]
        packed = self.predictor.packed
        return examples_from_table(
            self.table(placed, histories), packed.features["impressions"],
            max_history=packed.config.model.user.max_history, labels=(),
        )  # fmt: skip


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """A column of plain values; where they disagree in kind, as text."""
    if kind is not None:
        return pa.array(values, kind)
    if any(isinstance(value, list) for value in values):
        return pa.array([value if isinstance(value, list) else None for value in values], STRINGS)
    if any(isinstance(value, str) for value in values) or all(value is None for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array([None if value is None else float(value) for value in values], pa.float64())
