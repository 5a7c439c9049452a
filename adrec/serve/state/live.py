"""One loaded bundle over one catalogue, ready to answer: what a reload or a changed ad replaces as a whole."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.asof.reader import AsOf
from adrec.bundle import open_bundle, trusting
from adrec.config.inference.serve import ServeConfig
from adrec.data.arrays import combined
from adrec.data.examples import Examples
from adrec.data.vectors import split_vectors
from adrec.errors import BundleError, DataError
from adrec.inference.catalogs import Catalogs
from adrec.inference.known import Known
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.rerank import open_rerank
from adrec.inference.onnx.backend import predictor_of
from adrec.inference.predictor import Predictor
from adrec.schema import STRINGS, TIMESTAMP
from adrec.serve.intake.columns import Columns
from adrec.serve.intake.messages import UserIn
from adrec.serve.state.catalogue import Change, ad_of, users_of, vectors_of, vectors_with_changes, with_changes
from adrec.serve.state.world import World
from adrec.serve.turns import at_once


class UnknownAdError(DataError):
    """The catalogue has no such ad."""


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
    card: str
    """the bundle's model card"""
    context_columns: Columns
    """what a request may say of its impressions"""
    user_columns: Columns
    """and of its users"""

    @classmethod
    def load(
        cls,
        config: ServeConfig,
        bundle: Path,
        world: World,
        changes: Mapping[str, Change],
        *,
        before: "Live | None" = None,
        campaigns: pa.Array | None = None,
        onnx: bool = False,
        pause: Callable[[], None] = at_once,
    ) -> "Live":
        """Load the bundle (or take the loaded one of `before`), encode the catalogue, check that it scores.

        `onnx`: on the onnxruntime graphs that the config names, if it does. `campaigns`: that a ledger has numbers for. `pause`
        is called between the steps.
        """
        users, asof = world.users, world.asof
        if before is not None:
            predictor, fingerprint, card = before.predictor, before.fingerprint, before.card
            rerank = before.ranker.rerank
        else:
            with trusting(config.trusted_keys):
                opened = open_bundle(bundle, verify=False)
                fingerprint, card = opened.fingerprint, opened.card
                pause()
                graphs = config.onnx if onnx else None
                predictor = predictor_of(
                    bundle,
                    device=config.device,
                    cache=config.cache,
                    onnx=graphs,
                    int8=config.onnx_int8,
                    keep_typed=config.keep_typed,
                )
            rerank = open_rerank(config.rerank, config.device, fingerprint)
        if before is None:
            world.refuse_other_spaces(predictor.packed.features)
        pause()
        read = predictor.packed.with_links(predictor.with_media(world.ads))
        fitted = predictor.packed.features["ads"].modalities(read)
        plain = split_vectors(read, fitted)[0]
        vectors = vectors_with_changes({name: held.vectors for name, held in fitted.items()}, plain, changes, predictor.packed)
        table, gone = with_changes(plain, changes, predictor.packed)
        pause()
        catalogs = predictor.catalogs(table, users.slice(0, 1), ad_vectors=vectors)
        # A changed ad is what the change says, at any moment.
        attributes = replace(world.attributes, ads=world.attributes.ads.without(pa.array(list(changes), pa.string())))
        known = Known(asof.over(catalogs.ad_table), None, world.timeless, attributes)
        pause()
        ranker = Ranker(
            predictor,
            catalogs,
            table,
            users.slice(0, 1),
            config.policies,
            known=known,
            campaigns=campaigns,
            seed=config.seed,
            rerank=rerank,
        )
        ranker.finder = ranker.finder.without(gone)
        pause()
        ranker.finder.prepare()  # aside, before a request needs it
        ids = ranker.ads.ids.tolist()
        live = cls(
            predictor=predictor,
            ranker=ranker,
            ads=table,
            users=users,
            row_of_ad=dict(zip(ids, range(len(ids)), strict=True)),
            deleted={ad_id for ad_id, change in changes.items() if change.deleted},
            fingerprint=fingerprint,
            card=card,
            context_columns=Columns.of_context(predictor.packed, asof.over(catalogs.ad_table).row_columns),
            user_columns=Columns.of_users(predictor.packed, users),
        )
        pause()
        live.check()
        return live

    def apart(self, pause: Callable[[], None]) -> "Live":
        """The same bundle over the same catalogue for explaining: what it reads anew reaches no cache of others, and it calls
        `pause` between its steps.
        """
        predictor = self.predictor.apart().pausing(pause)
        catalogs = self.ranker.catalogs
        queries = predictor.reader.queries([]) if catalogs.queries is not None else None
        ranker = copy.copy(self.ranker)
        ranker.catalogs = replace(catalogs, queries=queries)
        return replace(self, predictor=predictor, ranker=ranker)

    def joined_to(self, asof: AsOf) -> "Live":
        """The same, with what is recorded in another view of the log."""
        known, ranker = self.ranker.known, copy.copy(self.ranker)
        assert known.asof is not None, "a server always has one, if only of a log to come"
        ranker.known = replace(known, asof=known.asof.joined_to(asof))
        return replace(self, ranker=ranker)

    def with_change(self, ad_id: str, change: Change, pause: Callable[[], None] = at_once) -> "Live | None":
        """The same over a catalogue in which one ad has changed, made of that ad alone; None where it brings a new column.
        `pause` is called between the steps.
        """
        row = self.row_of_ad.get(ad_id, len(self.ads))
        deleted = self.deleted - {ad_id} | ({ad_id} if change.deleted else set())
        gone = [place for name in deleted if (place := self.row_of_ad.get(name)) is not None]
        if change.ad is None or change.deleted:
            ranker = copy.copy(self.ranker)
            ranker.finder = ranker.finder.without(gone)
            return replace(self, ranker=ranker, deleted=deleted)
        ad = ad_of(ad_id, change.ad, self.ads.schema, self.predictor.packed)
        if not set(ad.column_names) <= set(self.ads.column_names):
            return None
        vectors = vectors_of([change.ad], self.predictor.packed)
        pause()
        own, known = self.predictor.catalogs(ad, self.users.slice(0, 1), ad_vectors=vectors), self.ranker.known
        assert known.asof is not None, "a server always has one, if only of a log to come"
        attributes = replace(known.attributes, ads=known.attributes.ads.without(pa.array([ad_id])))
        known = replace(known, asof=known.asof.with_ad(row, own.ad_table), attributes=attributes)
        pause()
        ranker = self.ranker.with_ad(row, ad, own, known, gone)
        ranker.finder.prepare()
        pause()
        live = replace(self, ranker=ranker, ads=ranker.ads.table, row_of_ad={**self.row_of_ad, ad_id: row}, deleted=deleted)
        live.check([ad_id])
        return live

    def check(self, ids: Sequence[str] | None = None) -> None:
        """Score some ads for a user without a past, a few where None. Raises BundleError where a score is no probability."""
        if ids is None:
            ids = list(islice((ad for ad in self.row_of_ad if ad not in self.deleted), 8))
        if not ids:
            raise DataError("The catalogue has no ad. Give one with at least one row.")
        user = UserIn.model_construct(user_id="adrec-check", history=list(ids[:2]))
        _, catalogs = self.catalogs([user])
        rows = [{"user_id": user.user_id, "ad_id": ad, "shown_at": int(datetime.now(UTC).timestamp() * 1e6)} for ad in ids]
        examples = self.examples(rows, [user], np.zeros(len(ids), np.int64), catalogs)
        scores = self.predictor.score_examples(examples, catalogs, baselines=False)
        if not (np.isfinite(scores.score).all() and (scores.score >= 0).all() and (scores.score <= 1).all()):
            raise BundleError("The bundle gives scores that are no probabilities. The earlier one stays.")

    def __contains__(self, ad_id: str) -> bool:
        return ad_id in self.row_of_ad and ad_id not in self.deleted

    def place(self, ad_id: str) -> int:
        """Row of a servable ad. Raises UnknownAdError where there is none."""
        if not self.predictor.packed.has.ad:
            return 0  # of a log without ads: one stands for all
        row = self.row_of_ad.get(ad_id)
        if row is None or ad_id in self.deleted:
            raise UnknownAdError(f"ad_id '{ad_id}' is not in the catalogue. PUT /v1/ads/{{id}} adds it.")
        return row

    def vectors(self, row: int) -> dict[str, list[float]]:
        """The vectors of an ad by column, those that it has."""
        found = {name: held.vectors.rows(np.array([row]))[0] for name, held in self.ranker.catalogs.ads.modalities.items()}
        return {name: vector.tolist() for name, vector in found.items() if np.isfinite(vector).all()}

    def links(self, row: int) -> list[str]:
        """What an ad is linked to, as the bundle reads it."""
        paths, table = self.predictor.packed.paths, self.ranker.catalogs.ad_table
        return [] if paths is None or paths.column not in table.column_names else table[paths.column][row].as_py() or []

    def rows(self, ad_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """(N,) rows of ads, deleted ones too, -1 where the catalogue lacks them."""
        encoded = combined(ad_ids).dictionary_encode()
        row = np.array([self.row_of_ad.get(ad_id, -1) for ad_id in encoded.dictionary.tolist()], np.int64)
        rows: np.ndarray = np.append(row, -1)[encoded.indices.fill_null(len(row)).to_numpy(zero_copy_only=False)]
        return rows

    def catalogs(self, described: list[UserIn]) -> tuple[pa.Table, Catalogs]:
        """The described users as a table, and catalogs of them over the live ads."""
        users = users_of(self.users, described, self.user_columns, self.predictor.packed)
        small = self.predictor.catalogs(self.ads.slice(0, 1), users)
        whole = self.ranker.catalogs
        return users, replace(
            whole, users=small.users, user_texts=small.user_texts, cold_user=small.cold_user, user_table=small.user_table
        )

    def table(self, rows: list[dict[str, Any]], users: list[UserIn]) -> pa.Table:
        """Rows of described users (N) as a table, `context` in columns of its own. Who names no history has null there: what
        is known is taken.
        """
        kinds = {"shown_at": pa.int64(), "user_index": pa.int32()}
        columns = {
            name: pa.array([row[name] for row in rows], kinds.get(name, pa.string())) for name in rows[0] if name != "context"
        }
        contexts = [row.get("context", {}) for row in rows]
        for name in dict.fromkeys(name for context in contexts for name in context):
            columns[name] = self.context_columns.array(name, [context.get(name) for context in contexts])
        columns["shown_at"] = columns["shown_at"].cast(TIMESTAMP)
        if any(user.history is not None for user in users):
            columns["history"] = pa.array([user.history for user in users], STRINGS)
        if "request_id" not in columns:
            columns["request_id"] = pa.array([str(number) for number in range(len(rows))])
        return pa.table(columns)

    def examples(self, rows: list[dict[str, Any]], users: list[UserIn], user: np.ndarray, catalogs: Catalogs) -> Examples:
        """Rows of (user, ad) as arrays; `user` (N,) rows of the described users, who stand in `catalogs`."""
        ad = np.array([self.place(row["ad_id"]) for row in rows], np.int64)
        table = self.table(rows, [users[place] for place in user])
        return self.predictor.examples_at(table, catalogs, self.ranker.known, user, ad, null_is_known=True)
