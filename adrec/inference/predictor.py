"""Bundle → scores: the one object that score, rank, explain and serve share, so that all of them agree.

A row's score depends on nothing but the row, its user, its ad and its history: not on batch-mates, padding or batch size.
"""

import copy
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from adrec.bundle import open_bundle
from adrec.data.arrays import combined, places
from adrec.data.batches.collate import Batch, Collator, entities
from adrec.data.batches.dataset import InOrder
from adrec.data.device import encodes_bf16, moved, resolve_device
from adrec.data.examples import Examples, catalog_from_table, examples_from_table
from adrec.data.features.vectors import Modality
from adrec.data.vectors import Vectors, split_vectors
from adrec.errors import AdrecError, BundleError, reason_of
from adrec.inference.ahead import ahead
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import ClickModel, Scores
from adrec.inference.golden import TOLERANCE, Golden, read_golden
from adrec.inference.known import NOTHING, Known, at_no_moment, click_log, placed, users_named
from adrec.inference.packing import unpack
from adrec.inference.rows import checked_ads, checked_users, with_new_users, with_texts
from adrec.inference.scored import with_scores
from adrec.models.baselines.base import Inputs
from adrec.models.baselines.suite import score_all
from adrec.models.match.table import Matcher
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.text_vectors import TextReader
from adrec.schema import as_of_column
from adrec.specs import WORDS
from adrec.terminal import Terminal

BATCH_ROWS = 4096
BATCH_BYTES = 32 * 2**20
_FEWEST_ROWS = 256


class Predictor:
    """A loaded bundle. `network` and `encoder` replace torch's (batch → (B, K) logits) and the bundle's, as ONNX does."""

    def __init__(
        self,
        packed: ClickModel,
        *,
        device: str | torch.device = "cpu",
        cache: Path | None = None,
        network: Callable[[Batch], torch.Tensor] | None = None,
        encoder: TextEncoder | None = None,
        keep_typed: bool = True,
    ) -> None:
        """`keep_typed` false: no vector of a query or of interests is written to the cache on disk."""
        self.packed = packed
        self.checked = False
        """Whether golden requests had their logits again."""
        self.network = network or self._logits
        self.device = torch.device(device)
        self.model = packed.model.to(self.device).eval()
        text = packed.config.text
        self.reader = TextReader(
            encoder or packed.encoder,
            # A trained encoder's weights lie still now: its vectors can be made once an ad too.
            device=self.device,
            batch_tokens=text.batch_tokens,
            cache=cache or text.cache,
            keep_typed=keep_typed,
            bf16=encodes_bf16(packed.config.training.precision, self.device),
        )

    def apart(self, *, exact: bool = False) -> "Predictor":
        """The same bundle, reading and writing no cache that others share: for texts that nobody else asks about.

        `exact`: texts in float32, as every machine encodes them.
        """
        other = copy.copy(self)
        other.reader = self.reader.apart(exact=exact)
        return other

    def pausing(self, pause: Callable[[], None]) -> "Predictor":
        """The same bundle, which calls `pause` before each batch that it scores."""
        other, network = copy.copy(self), self.network

        def after_pause(batch: Batch) -> torch.Tensor:
            pause()
            return network(batch)

        other.network = after_pause
        return other

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        device: str = "auto",
        verify: bool = True,
        cache: Path | None = None,
        keep_typed: bool = True,
    ) -> "Predictor":
        """Open a bundle folder. Raises BundleError where it is incomplete, altered or of another version.

        `verify` also asks for the logits of its golden requests; `checked` says whether it has any.
        """
        opened = open_bundle(bundle, verify=verify)
        where = resolve_device(device)
        try:
            predictor = cls(unpack(opened), device=where, cache=cache, keep_typed=keep_typed)
            golden = read_golden(opened) if verify else None
            if golden is not None:
                predictor.check(golden, where=str(bundle))
        except AdrecError:
            raise
        except Exception as error:  # files that fit together in no way that we have thought of
            raise BundleError(f"{bundle}: cannot be used ({reason_of(error)}). Run 'adrec finetune' again.") from error
        return predictor

    def golden_scores(self, golden: Golden) -> Scores:
        """Logits and probabilities of golden requests, the same on every machine."""
        exact = self.apart(exact=True) if self.reader.bf16 else self
        catalogs = exact.catalogs(golden.ads, golden.users, where="golden ads")
        return exact.score_examples(self.examples_of(golden.impressions), catalogs, baselines=False)

    def check(self, golden: Golden, *, where: str) -> None:
        """Raises BundleError where a golden request has another logit, or probability, than when the bundle was made."""
        made = self.golden_scores(golden)
        for what, now, then in (("logits", made.logit, golden.logits), ("probabilities", made.score, golden.scores)):
            if then is None and what == "probabilities":
                continue
            if then is None or now.shape != then.shape:
                raise BundleError(f"{where}: golden requests without their {what}. Run 'adrec finetune' again.")
            difference = float(np.abs(now - then).max(initial=0.0))
            if not difference <= TOLERANCE:  # NaN is refused too
                raise BundleError(
                    f"{where}: golden requests differ by {difference:.2g} in their {what} from when the bundle was made"
                    f" (at most {TOLERANCE:g}). Run 'adrec finetune' again, or use the versions that made it."
                )
        self.checked = True

    def catalogs(
        self,
        ads: pa.Table,
        users: pa.Table | None,
        wanted_users: pa.Array | None = None,
        *,
        where: str = "ads",
        ad_vectors: Mapping[str, Vectors] | None = None,
    ) -> Catalogs:
        """Make ads and users ready. Raw tables are rendered by the bundle's templates; `wanted_users` get a row each.

        Vectors are columns of the tables, or those of the ads come apart in `ad_vectors`; the catalogs hold them, and the
        tables in the catalogs do not.

        Texts are encoded when a row needs them, each once. Raises DataError where a table breaks the contract.
        """
        packed, text = self.packed, self.packed.text
        words = {name: WORDS in packed.features[name].columns for name in ("ads", "users")}
        apart = ad_vectors or {}
        ads = self.with_media(ads, apart)
        ads = packed.with_links(ads)
        of_ads = packed.features["ads"].modalities(ads, where=where)
        of_ads |= {name: Modality(apart[name], held.fitted) for name, held in of_ads.items() if name in apart}
        of_ads = packed.with_entities(of_ads, ads)
        ads = split_vectors(ads, of_ads)[0]
        ads = with_texts(checked_ads(ads, where=where), text.ad_template, text, words=words["ads"])
        users = with_new_users(checked_users(users) if users is not None else None, _or_empty(wanted_users))
        of_users = packed.features["users"].modalities(users, where="users")
        users = with_texts(split_vectors(users, of_users)[0], text.user_template, text, words=words["users"])
        for reader in packed.media.values():
            keep = self.reader.use_cache and self.reader.keep_typed
            of_users = reader.with_words(of_users, users["text"], cache=self.reader.cache, keep=keep)
        seen_ads, seen_users = combined(packed.seen_ads["id"]), combined(packed.seen_users["id"])
        ad_rows = catalog_from_table(ads, packed.features["ads"], key="ad_id", own=packed.own_vectors("ads"))
        user_rows = catalog_from_table(users, packed.features["users"], key="user_id", own=packed.own_vectors("users"))
        nothing = np.zeros(0, np.int64)
        ad_rows, user_rows = replace(ad_rows, modalities=of_ads), replace(user_rows, modalities=of_users)
        ad_rows, ad_texts = self.reader.read(ad_rows, nothing)
        interests = self.reader if packed.dimensions.interests else TextReader(None)
        user_texts = interests.interests(user_rows, nothing, apart=packed.config.text.train == "frozen")
        return Catalogs(
            ads=ad_rows,
            users=user_rows,
            ad_texts=ad_texts,
            user_texts=user_texts,
            queries=self.reader.queries([]) if packed.dimensions.queries else None,
            cold_ad=_not_in(ad_rows.ids, seen_ads),
            cold_user=_not_in(user_rows.ids, seen_users),
            ad_table=ads,
            user_table=users,
        )

    def with_media(self, ads: pa.Table, apart: Container[str] = ()) -> pa.Table:
        """Ads with the vectors of their pictures and sounds, where the bundle reads these and the table has them alone.
        Modalities that come `apart` need none."""
        for reader in self.packed.media.values():
            if reader.spec.name not in apart:
                ads = reader.with_vectors(ads, cache=self.reader.cache, keep=self.reader.use_cache)
        return ads

    def score(
        self, impressions: pa.Table, ads: pa.Table, users: pa.Table | None = None, *, history: pa.Table | None = None
    ) -> pa.Table:
        """The impressions with `logit`, `score`, `score_<task>`, cold flags, `history_length` and `baseline_*` beside them.

        Labels are not needed; ads and users may be new. History comes from the rows' `history` column, or from the click log
        `history` (user_id, ad_id, shown_at). Raises DataError where a table breaks the contract.
        """
        catalogs = self.catalogs(ads, users, users_named(impressions))
        examples = self.examples(impressions, catalogs, _by_clicks(history, catalogs))
        return with_scores(impressions, examples, catalogs, self.score_examples(examples, catalogs))

    def examples(
        self,
        impressions: pa.Table,
        catalogs: Catalogs,
        known: Known = NOTHING,
        *,
        where: str = "impressions",
        first_row: int = 0,
    ) -> Examples:
        """Raw impressions as arrays over the catalogs, with what is `known` of the past at their moments."""
        user, ad = placed(impressions, catalogs.ads.ids, catalogs.users.ids, self.packed.has, where=where, first_row=first_row)
        return self.examples_at(impressions, catalogs, known, user, ad)

    def examples_at(
        self, rows: pa.Table, catalogs: Catalogs, known: Known, user: NDArray[Any], ad: NDArray[Any], **how: bool
    ) -> Examples:
        """N rows of (user, ad, moment) as arrays; user, ad (N,) point into the catalogs. `how`: see `Known.attach`."""
        return self.examples_of(self.attached(rows, catalogs, known, user, ad, **how))

    def attached(
        self, rows: pa.Table, catalogs: Catalogs, known: Known, user: NDArray[Any], ad: NDArray[Any], **how: bool
    ) -> pa.Table:
        """The same rows as prepared impressions. A model that knows no moments sees them all at one."""
        if not self.packed.has.time:
            rows = at_no_moment(rows)
        limit = self.packed.config.model.user.max_history
        return known.attach(
            rows,
            ads=catalogs.ad_table,
            users=catalogs.user_table,
            user=user,
            ad=ad,
            limit=limit,
            described=self.described,
            **how,
        )

    @property
    def described(self) -> list[str]:
        """Columns of the impressions that models read and that hold an ad's or a user's as of the row."""
        return [column for column in self.packed.features["impressions"].columns if as_of_column(column) is not None]

    def examples_of(self, table: pa.Table) -> Examples:
        """Prepared impressions as arrays: the one way to a model's inputs."""
        limit = self.packed.config.model.user.max_history
        return examples_from_table(table, self.packed.features["impressions"], max_history=limit)

    def score_examples(
        self,
        examples: Examples,
        catalogs: Catalogs,
        *,
        batch_rows: int = BATCH_ROWS,
        baselines: bool = True,
        terminal: Terminal | None = None,
    ) -> Scores:
        """Scores of examples over the catalogs, in order."""
        examples = self.matched(examples, catalogs, terminal)
        raw = self.raw(examples, catalogs, batch_rows)
        wanted = self.packed.baselines
        if not baselines:
            wanted = {name: baseline for name, baseline in wanted.items() if name in self.packed.hybrid.names}
        inputs = self.inputs(examples, catalogs)
        scores = self.packed.joined(raw, score_all(wanted, inputs), inputs)
        return scores if baselines else replace(scores, baselines={})

    def matched(self, examples: Examples, catalogs: Catalogs, terminal: Terminal | None = None) -> Examples:
        """The examples with their matches, made anew; encodes the texts that are not there yet."""
        self.encode(examples, catalogs, terminal)
        return self._matcher(catalogs)(examples)

    def _matcher(self, catalogs: Catalogs) -> Matcher:
        d = self.packed.dimensions
        interests = catalogs.user_texts if d.interests else None
        return Matcher(d.match, catalogs.ads, catalogs.users, interests=interests, queries=catalogs.queries)

    def encode(self, examples: Examples, catalogs: Catalogs, terminal: Terminal | None = None) -> None:
        """Encode the texts that `examples` need and that are not there yet, all at once: faster than batch by batch."""
        for texts, rows, what in (
            (catalogs.ad_texts, examples.ads_used(), "ads"),
            (catalogs.user_texts, np.unique(examples.user_index), "interests"),
        ):
            ensure = getattr(texts, "ensure", None)
            if ensure is not None:
                ensure(rows, terminal.progress if terminal is not None else None, what)
        if catalogs.queries is not None:
            catalogs.queries(examples.queries)

    def encode_ads(self, ads: pa.Table) -> NDArray[np.float32]:
        """(A, D) ad vectors, whose dot product with user vectors serves retrieval."""
        return self.ad_vectors(self.catalogs(ads, None))

    def ad_vectors(self, catalogs: Catalogs, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """(A, D) vectors of ads `first` up to `last` of the catalogs, the end where None."""
        last = len(catalogs.ads) if last is None else min(last, len(catalogs.ads))
        made = np.zeros((0, self.packed.vector_width), np.float32)
        with torch.inference_mode():
            for start in range(first, last, BATCH_ROWS):
                rows = np.arange(start, min(start + BATCH_ROWS, last))
                batch = moved(entities(catalogs.ads, rows, catalogs.ad_texts), self.device)
                vectors = self.model.encode_ads(batch).float().cpu().numpy()
                if start == first:  # a list of batches would lie between what they have freed, and be copied in the end
                    made = np.empty((last - first, vectors.shape[1]), np.float32)
                made[rows - first] = vectors
        return made

    def encode_users(
        self, moments: pa.Table, ads: pa.Table, users: pa.Table | None = None, *, history: pa.Table | None = None
    ) -> NDArray[np.float32]:
        """(U, D) vectors of users at moments: rows of `user_id`, `shown_at` and their history, as in `score`."""
        catalogs = self.catalogs(ads, users, combined(moments["user_id"]).cast(pa.string()))
        if "ad_id" not in moments.column_names:
            # A user's vector looks at no candidate; the row needs one only to be an impression.
            first = catalogs.ads.ids.take(pa.array(np.zeros(len(moments), np.int64)))
            moments = moments.append_column("ad_id", first)
        return self.user_vectors(self.examples(moments, catalogs, _by_clicks(history, catalogs)), catalogs)

    def user_vectors(self, examples: Examples, catalogs: Catalogs) -> NDArray[np.float32]:
        """(N, D) the user's vector at each row."""
        self.encode(examples, catalogs)
        parts = []
        with torch.inference_mode():
            for batch in self._batches(examples, catalogs, BATCH_ROWS):
                vectors = self.model.encode_users(batch)[batch.context]
                parts.append(vectors.float().cpu().numpy())
        return np.concatenate(parts)

    def inputs(self, examples: Examples, catalogs: Catalogs) -> Inputs:
        """Rows that have their matches as the baselines read them: with text vectors only where they were fitted with them."""
        frozen = self.packed.config.text.train == "frozen"
        ads = catalogs.ads if frozen else replace(catalogs.ads, vectors=None)
        names = replace(self._matcher(catalogs), ads=ads).names(self.packed.columns.ad_categorical)
        return Inputs(examples, ads, catalogs.users, self.packed.columns, names)

    def raw(self, examples: Examples, catalogs: Catalogs, batch_rows: int = BATCH_ROWS) -> NDArray[np.float32]:
        """(N, K) outputs of the network alone, of rows whose matches are made."""
        if len(examples) == 0:
            return np.zeros((0, len(self.packed.tasks)), np.float32)
        batch_rows = min(batch_rows, self._rows_that_fit(catalogs))
        batches = self._batches(examples, catalogs, batch_rows)
        with torch.inference_mode(), closing(ahead(batches) if len(examples) > batch_rows else batches) as ready:
            parts = [self.network(batch).float().cpu().numpy() for batch in ready]
        return np.concatenate(parts)

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.model(batch).logits
        return logits

    @staticmethod
    def _rows_that_fit(catalogs: Catalogs) -> int:
        """Rows whose ads' and users' own vectors take BATCH_BYTES: the network holds several copies of them."""
        held = [*catalogs.ads.modalities.values(), *catalogs.users.modalities.values()]
        return max(_FEWEST_ROWS, BATCH_BYTES // max(4 * sum(modality.fitted.width for modality in held), 1))

    def _batches(self, examples: Examples, catalogs: Catalogs, batch_rows: int) -> Generator[Batch, None, None]:
        collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
        for batch in InOrder(examples, collate, batch_rows, splits=True):
            yield moved(batch, self.device)


def _by_clicks(history: pa.Table | None, catalogs: Catalogs) -> Known:
    return Known(clicks=click_log(history, catalogs.ad_table)) if history is not None else NOTHING


def _not_in(ids: pa.Array, known: pa.Array) -> NDArray[np.bool_]:
    return places(ids, known) < 0


def _or_empty(ids: pa.Array | None) -> pa.Array:
    return ids if ids is not None else pa.array([], pa.string())
