"""Measure candidate recall: a sample of requests is scored against every ad that the rules allow, beside what is retrieved.

`finetune` measures the bundle that it wrote on validation requests, `rank` its policies on the requests that it ranks. Cost:
requests times ads pairs through the full scorer; where the catalogue is large the sample is smaller.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.config.inference.rank import Policy
from adrec.data.arrays import combined
from adrec.data.examples import Examples
from adrec.data.hashing import hash_strings, mix
from adrec.data.prepared import Prepared
from adrec.inference.known import known_of, users_named
from adrec.inference.lists.candidates import query_words
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.requests import split_requests
from adrec.inference.predictor import Predictor
from adrec.ranking.arrays import Ints
from adrec.ranking.channels import merge_channels
from adrec.ranking.recall import CandidateRecall, best_of, best_shares, shares_of

MOST_PAIRS = 2_000_000
"""Pairs scored at most, unless LEAST_REQUESTS of each policy need more."""
LEAST_REQUESTS = 10
_BLOCK_PAIRS = 262_144
_BATCH_PAIRS = 16_384  # the network makes the vectors of a batch's ads once, so that few batches are cheap


def sample_requests(
    tables: Iterable[pa.Table], policy_of: Callable[[pa.Table], Ints], *, requests: int, ads: int
) -> pa.Table | None:
    """About `requests` rows of the tables, drawn by a hash of their request id, as many of each policy as there are.

    The same rows in any order of the tables. Memory: `requests` rows a policy. None where the tables hold no row.
    """
    drawn: pa.Table | None = None
    for table in tables:
        table = table if drawn is None else pa.concat_tables([drawn, table], promote_options="default")
        drawn = table.take(pa.array(_drawn(table, policy_of(table), requests)))
    if drawn is None or not len(drawn):
        return None
    policy = policy_of(drawn)
    present = len(np.unique(policy))
    affordable = max(LEAST_REQUESTS, MOST_PAIRS // max(ads * present, 1))
    return drawn.take(pa.array(_drawn(drawn, policy, min(affordable, max(requests // present, 1)))))


def candidate_recall(
    ranker: Ranker, requests: pa.Table, advance: Callable[[int], None] = lambda requests: None
) -> list[CandidateRecall]:
    """That of every policy which one of the R requests has, by channel and of all together, under its rules."""
    policy, measured = ranker.policy_of(requests), []
    for index in np.unique(policy).tolist():
        some = requests.filter(pa.array(policy == index))
        if _all_are_candidates(ranker, index):
            measured.append(_whole(ranker, index, len(some)))
        elif (looked := _look(ranker, index, some, advance)) is not None:
            measured.append(_summary(ranker, index, looked, ranker.finder.merged(index, looked.channels)))
    return measured


def bundle_recall(
    predictor: Predictor,
    prepared: Prepared,
    *,
    requests: int,
    seed: int,
    split: str = "valid",
    advance: Callable[[int], None] = lambda requests: None,
) -> CandidateRecall | None:
    """That of `rank`'s usual policy over the folder's catalogue, for a sample of a split's requests, with the best shares of
    its channels. The recall is that of shares which the other half of the requests chose.

    None where the log names no ads, or all of them are candidates anyway. Encodes the texts of the whole catalogue.
    """
    if not prepared.has.ad:
        return None
    ads, users = prepared.ads(), prepared.users()
    tables = split_requests(prepared, split)
    drawn = sample_requests(tables, lambda table: np.zeros(len(table), np.int64), requests=requests, ads=len(ads))
    if drawn is None:
        return None
    catalogs = predictor.catalogs(ads, users)
    known = known_of(prepared, catalogs.ad_table, asked_users=users_named(drawn).unique())
    ranker = Ranker(predictor, catalogs, ads, users, {"default": Policy()}, always="default", known=known, seed=seed)
    if _all_are_candidates(ranker, 0):
        return _whole(ranker, 0, len(drawn))
    looked = _look(ranker, 0, drawn, advance)
    if looked is None:
        return None
    channels, best, k = looked.channels, looked.by_score, ranker.policies[0].retrieval.candidates
    candidates = ranker.finder.merged(0, channels)
    half = np.arange(len(best)) % 2 == 0
    for judged, chooses in ((half, ~half), (~half, half)):
        if chooses.any() and judged.any():
            shares = best_shares({name: ad[chooses] for name, ad in channels.items()}, best[chooses], k)
            candidates[judged] = merge_channels([ad[judged] for ad in channels.values()], k, [*shares.values()])
    return replace(_summary(ranker, 0, looked, candidates), shares=best_shares(channels, best, k))


@dataclass(frozen=True)
class _Looked:
    """Of the requests (r,) of one policy that may be shown an ad: what is best, and what each channel finds."""

    channels: dict[str, Ints]
    """(r, C)"""
    by_score: Ints
    """(r, K) ads"""
    by_value: Ints
    """(r, K) ads"""
    eligible: Ints
    """(r,) how many ads the rules allow"""


def _all_are_candidates(ranker: Ranker, index: int) -> bool:
    """Whether policy `index` leaves nothing to be measured: one of its channels proposes the whole catalogue."""
    retrieval = ranker.policies[index].retrieval
    return len(ranker.ads) <= retrieval.candidates and not {"model", "popular"}.isdisjoint(retrieval.channels)


def _whole(ranker: Ranker, index: int, requests: int) -> CandidateRecall:
    policy = ranker.policies[index]
    return CandidateRecall(
        ranker.names[index], requests, policy.top_n, policy.retrieval.candidates, len(ranker.ads), {}, recall=1.0, deviation=0.0
    )


def _look(ranker: Ranker, index: int, requests: pa.Table, advance: Callable[[int], None]) -> _Looked | None:
    """At requests of policy `index`; None where none of them may be shown an ad."""
    table = ranker.attached(requests)
    examples = ranker.predictor.examples_of(table)
    words, rows = query_words(requests), np.arange(len(requests))
    by_score, by_value, eligible = _best(ranker, table, examples, index, words, advance)
    some = eligible > 0
    if not some.any():
        return None
    vectors = ranker.predictor.user_vectors(examples, ranker.catalogs)
    channels = ranker.finder.channels(index, examples, vectors, rows[some], words)
    return _Looked(channels, by_score[some], by_value[some], eligible[some])


def _summary(ranker: Ranker, index: int, looked: _Looked, candidates: Ints) -> CandidateRecall:
    policy = ranker.policies[index]
    shares = shares_of(looked.by_score, candidates)
    return CandidateRecall(
        policy=ranker.names[index],
        requests=len(shares),
        k=policy.top_n,
        candidates=policy.retrieval.candidates,
        eligible=float(looked.eligible.mean()),
        channels={name: float(shares_of(looked.by_score, ad).mean()) for name, ad in looked.channels.items()},
        recall=float(shares.mean()),
        deviation=float(shares.std() / np.sqrt(len(shares))),
        shares=ranker.finder.shares_of(index),
        by_value=None if policy.value.kind == "score" else float(shares_of(looked.by_value, candidates).mean()),
    )


def _best(
    ranker: Ranker, table: pa.Table, examples: Examples, index: int, words: pa.Array, advance: Callable[[int], None]
) -> tuple[Ints, Ints, Ints]:
    """(R, k) the ads of largest score, (R, k) those of largest value, of all that the rules of policy `index` allow each of R
    requests; and how many are allowed, (R,).
    """
    ads, (rules, _), k = len(ranker.ads), ranker.finder.rules[index], ranker.policies[index].top_n
    by_score, by_value, eligible = [], [], []
    step = max(1, _BLOCK_PAIRS // max(ads, 1))
    for start in range(0, len(table), step):
        some = np.arange(start, min(start + step, len(table)))
        asking = ranker.finder.asking(index, examples, some, words.take(pa.array(some)))
        allowed = rules.eligible(asking, slice(0, len(some)), slice(0, ads))
        every = np.where(allowed, np.arange(ads), -1)
        logit, value = _scored(ranker, table.take(pa.array(some)), examples.take(some), np.full(len(some), index), every)
        by_score.append(best_of(logit, k))
        by_value.append(best_of(np.where(allowed, value, -np.inf), k))
        eligible.append(allowed.sum(axis=1))
        advance(len(some))
    return np.concatenate(by_score), np.concatenate(by_value), np.concatenate(eligible)


def _scored(
    ranker: Ranker, table: pa.Table, examples: Examples, policy: Ints, every: Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and values of all ads (r, A) of r requests, in memory for `_BLOCK_PAIRS` of them."""
    step = max(1, _BLOCK_PAIRS // len(table))
    parts = [
        ranker.candidates(table, examples, policy, every[:, start : start + step], batch_rows=_BATCH_PAIRS)
        for start in range(0, every.shape[1], step)
    ]
    logit = np.concatenate([logit for _, logit, _ in parts], axis=1)
    return logit, np.concatenate([scored.value for scored, _, _ in parts], axis=1)


def _drawn(table: pa.Table, policy: Ints, count: int) -> Ints:
    """Rows of the `count` lowest hashes of each policy, in their order."""
    key = mix(hash_strings(combined(table["request_id"]).cast(pa.string())))
    order = np.lexsort((key, policy))
    place = np.arange(len(order)) - np.searchsorted(policy[order], policy[order])
    return np.sort(order[place < count])
