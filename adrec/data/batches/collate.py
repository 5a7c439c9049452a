"""Rows of Examples → one Batch of tensors. Every ad, history and query of the batch is carried once; rows hold indices.

Shapes: B rows, G groups, C contexts (a user at a request), A distinct ads, H history, S skipped, Q distinct queries,
D text width, T tokens, L list length, K tasks. Padding is at the end of the H, S, T and L axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.data.arrays import Longs, ranges
from adrec.data.batches.blocks import Blocks, make_blocks
from adrec.data.examples import Catalog, Examples
from adrec.data.ragged import Ragged

LIST_PADDING = -1


class Texts(NamedTuple):
    """N texts, as vectors of a frozen encoder (N, D) or as tokens (N, T) for one that is trained.

    The interests of users come as vectors (N, P, D), one each; a zero vector is no interest.
    """

    vectors: Tensor | None
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None


class Entities(NamedTuple):
    """N ads or users."""

    texts: Texts
    numeric: Tensor
    """(N, Fn) float32"""
    categorical: Tensor
    """(N, Fc) int64"""
    lists: tuple[Tensor, ...]
    """(N, L) int64 each, LIST_PADDING at the end"""
    identity: Tensor
    """(N,) int64, 0 is unseen"""
    vectors: tuple[Tensor, ...] = ()
    """(N, D) float32 for each modality, standardised; a row of zeros is missing"""


class Batch(NamedTuple):
    """What the click model reads. `ad`, `history` and `skipped` point into `ads`; `context` into `users` and histories."""

    ads: Entities
    users: Entities
    history: Tensor
    """(C, H) int64, 0 where masked"""
    history_mask: Tensor
    """(C, H) bool, True for a click"""
    history_hours: Tensor
    """(C, H) float32, age of the click; 0 where masked or unknown"""
    history_length: Tensor
    """(C,) float32, clicks the user had before, not cut at H"""
    skipped: Tensor
    """(C, S) int64"""
    skipped_mask: Tensor
    """(C, S) bool"""
    queries: Texts
    """Q texts; the first is the empty query"""
    context: Tensor
    """(B,) int64"""
    blocks: Blocks
    """The rows by their context"""
    ad: Tensor
    """(B,) int64"""
    query: Tensor
    """(B,) int64"""
    numeric: Tensor
    """(B, Fn) float32"""
    categorical: Tensor
    """(B, Fc) int64"""
    lists: tuple[Tensor, ...]
    """(B, L) int64 each"""
    position: Tensor
    """(B,) int64, 0 unknown"""
    group: Tensor
    """(B,) int64, 0 to G - 1: the request, or one positive with its sampled negatives"""
    labels: Tensor
    """(B, K) float32, NaN where missing"""
    positive: Tensor
    """(P,) int64, the rows whose first label is above 0"""
    log_frequency: Tensor
    """(B,) float32, log of how often the ad is drawn in training (for in-batch negatives)"""
    matches: Tensor
    """(B, M) float32, how near each candidate is to what its user did and said; (B, 0) before they are made"""
    weight: Tensor | None = None
    """(B,) float32, impressions that each row stands for; None where each is one"""
    elapsed: Tensor | None = None
    """(B,) float32, hours from the showing to the cut; None where labels were not timed"""
    delays: Tensor | None = None
    """(B, K) float32, hours from the showing to what each label says happened; NaN where it has not, or has no moment"""
    click_frequency: Tensor | None = None
    """(A,) float32, log of each ad's share of the clicks in the histories of training; None where nothing learns from them"""


TextInputs = Callable[[NDArray[np.int64]], Texts]
"""Row numbers of a catalog → their texts as tensors."""
QueryInputs = Callable[[Sequence[str]], Texts]
"""Query texts → tensors."""


@dataclass(frozen=True)
class Collator:
    """Builds batches from examples over one ads catalog and one users catalog."""

    ads: Catalog
    users: Catalog
    ad_texts: TextInputs
    user_texts: TextInputs
    query_texts: QueryInputs | None = None
    """None: the model does not read queries."""
    tasks: tuple[str, ...] = ("click",)
    log_frequency: NDArray[np.float32] | None = None
    """(ads,) log share of the training rows that show each ad."""
    click_frequency: NDArray[np.float32] | None = None
    """(ads,) log share of the clicks in the histories of the training rows."""

    def __call__(self, examples: Examples, rows: Longs, group: Longs | None = None) -> Batch:
        """The batch of `rows` (any order, repeats allowed); `group` defaults to the request of each row."""
        contexts, context = np.unique(examples.history_of_row[rows], return_inverse=True)
        first_row = rows[_first_of_each(context, len(contexts))]
        history = examples.histories.take(contexts)
        skipped = examples.skipped.take(contexts)
        hours = examples.history_hours[ranges(examples.history_offsets[contexts], history.lengths)]
        named = np.concatenate([examples.ad_index[rows], history.values, skipped.values])
        ads, place = np.unique(named, return_inverse=True)
        of_rows, of_history, of_skipped = np.split(place, [len(rows), len(rows) + len(history.values)])
        clicked, clicked_mask = padded(Ragged(history.offsets, of_history))
        passed, passed_mask = padded(Ragged(skipped.offsets, of_skipped))
        age = np.zeros(clicked.shape, np.float32)
        age[clicked_mask] = np.nan_to_num(hours)
        queries, query = np.unique(np.append(examples.query[rows], 0), return_inverse=True)
        codes = examples.request[rows] if group is None else group
        labels = _by_task(examples.labels, rows, self.tasks)
        return Batch(
            ads=entities(self.ads, ads, self.ad_texts),
            users=entities(self.users, examples.user_index[first_row], self.user_texts),
            history=_tensor(clicked),
            history_mask=_tensor(clicked_mask),
            history_hours=_tensor(age),
            history_length=_tensor(examples.history_length[first_row].astype(np.float32)),
            skipped=_tensor(passed),
            skipped_mask=_tensor(passed_mask),
            queries=self._queries([examples.queries[number] for number in queries]),
            context=_tensor(context),
            blocks=make_blocks(context),
            ad=_tensor(of_rows),
            query=_tensor(query[:-1]),
            numeric=_tensor(examples.numeric[rows]),
            categorical=_tensor(examples.categorical[rows].astype(np.int64)),
            lists=_lists(examples.lists, rows),
            position=_tensor(examples.position[rows].astype(np.int64)),
            group=_tensor(np.unique(codes, return_inverse=True)[1]),
            labels=_tensor(labels),
            positive=_tensor(np.flatnonzero(labels[:, :1] > 0)),
            log_frequency=_tensor(self._frequency(examples.ad_index[rows])),
            matches=_tensor(np.zeros((len(rows), 0), np.float32) if examples.matches is None else examples.matches[rows]),
            weight=None if examples.weight is None else _tensor(examples.weight[rows].astype(np.float32)),
            elapsed=None if examples.elapsed is None else _tensor(examples.elapsed[rows]),
            delays=None if examples.elapsed is None else _tensor(_by_task(examples.delays, rows, self.tasks)),
            click_frequency=None if self.click_frequency is None else _tensor(self.click_frequency[ads]),
        )

    def _queries(self, texts: Sequence[str]) -> Texts:
        return self.query_texts(texts) if self.query_texts is not None else Texts(None)

    def _frequency(self, ads: NDArray[np.int32]) -> NDArray[np.float32]:
        if self.log_frequency is None:
            return np.zeros(len(ads), np.float32)
        return self.log_frequency[ads]


def entities(catalog: Catalog, rows: NDArray[np.integer], texts: TextInputs) -> Entities:
    """Ads or users of the given catalog rows."""
    return Entities(
        texts=texts(rows.astype(np.int64)),
        numeric=_tensor(catalog.numeric[rows]),
        categorical=_tensor(catalog.categorical[rows].astype(np.int64)),
        lists=_lists(catalog.lists, rows),
        identity=_tensor(catalog.identity[rows].astype(np.int64)),
        vectors=tuple(_tensor(held.rows(rows)) for held in catalog.modalities.values()),
    )


def padded(lists: Ragged, *, fill: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lists as a matrix (R, longest, at least 1) with `fill` after the end of each, and the mask of real values."""
    lengths = lists.lengths
    mask = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    matrix = np.full(mask.shape, fill, np.int64)
    matrix[mask] = lists.values
    return matrix, mask


def _lists(lists: dict[str, Ragged], rows: NDArray[np.integer]) -> tuple[Tensor, ...]:
    return tuple(_tensor(padded(values.take(rows), fill=LIST_PADDING)[0]) for values in lists.values())


def _by_task(values: dict[str, NDArray[np.float32]], rows: Longs, tasks: Sequence[str]) -> NDArray[np.float32]:
    missing = np.full(len(rows), np.nan, np.float32)
    columns = [values[task][rows] if task in values else missing for task in tasks]
    return np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), np.float32)


def _first_of_each(codes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    first = np.empty(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
