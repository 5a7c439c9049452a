"""Gather the evidence for shown ads: words of query and interests, the nearest past click, the category's share."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.examples import Examples
from adrec.inference.lists.candidates import query_words
from adrec.inference.lists.catalogue import AdColumns, segment
from adrec.inference.lists.linked import SharedLinks
from adrec.inference.lists.reasons import Evidence, sentences
from adrec.inference.lists.vectors import nearest_click
from adrec.prepare.text.clean import language
from adrec.ranking.policy import Candidates, Ranked


def reasons(
    ads: AdColumns,
    users: pa.Table,
    unit_vectors: NDArray[np.float32],
    requests: pa.Table,
    examples: Examples,
    ranked: Ranked,
    candidates: Candidates,
    links: Callable[[Examples, NDArray[np.integer], NDArray[np.integer]], SharedLinks | None],
) -> pa.Array:
    """One sentence for every shown ad of R requests, request by request. `links` tells what ads share with past clicks."""
    row, slot = np.nonzero(ranked.ad >= 0)
    ad = ranked.ad[row, slot]
    interests = interest_words(users, examples.user_index)
    similarity, nearest = nearest_click(examples, unit_vectors, ranked.ad)
    similar = nearest[row, slot]
    category = ads.category[ad]
    words, shared = ads.words, links(examples, row, ad)
    return sentences(
        Evidence(
            chinese=reads_chinese(ads.chinese, query_texts(requests), interests, examples, row, ad),
            query_word=words.shared_word(words.bag(query_words(requests))[row], ad),
            interest_word=words.shared_word(words.bag(interests)[row], ad),
            similarity=similarity[row, slot],
            similar_title=ads.titles.take(pa.array(similar, mask=similar < 0)),
            category=ads.categories.take(pa.array(category, mask=category < 0)),
            category_share=share_of_history(examples, ads.category, row, category),
            score=ranked.score[row, slot],
            explored=ranked.explored[row, slot],
            linked=None if shared is None else (ads.titles.take(shared.click), shared.relation, shared.entity),
        )
    )


def interest_words(users: pa.Table, user: NDArray[np.integer]) -> pa.Array:
    """(R,) the users' interests as words joined by a space; empty where none are declared."""
    rows = pa.array(user)
    if "segmented" in users.column_names:
        return pc.fill_null(combined(users["segmented"]).take(rows), "")
    if "interests" in users.column_names:
        lists = combined(users["interests"]).take(rows)
        return segment(pc.fill_null(pc.binary_join(lists.cast(pa.list_(pa.string())), " "), ""))
    return pa.array([""] * len(rows), pa.string())


def query_texts(requests: pa.Table) -> pa.Array:
    """(R,) what was asked for, empty where nothing was."""
    if "query" not in requests.column_names:
        return pa.array([""] * len(requests), pa.string())
    return pc.fill_null(combined(requests["query"]).cast(pa.string()), "")


def reads_chinese(
    chinese: NDArray[np.bool_],
    queries: pa.Array,
    interests: pa.Array,
    examples: Examples,
    row: NDArray[np.integer],
    ad: NDArray[np.integer],
) -> NDArray[np.bool_]:
    """(N,) whether the reader of ad n, shown at request `row[n]`, reads Chinese: by the query, else the interests, else the
    clicks; where none of them tells, by the ad itself.

    chinese (A,) of the ads; queries, interests (R,) texts, empty where there are none; `examples` holds R requests.
    """
    text = pc.if_else(pc.not_equal(queries, ""), queries, interests)
    has_text = np.asarray(pc.not_equal(text, "").to_numpy(zero_copy_only=False), dtype=bool)
    by_text = np.zeros(len(text), dtype=bool)
    if has_text.any():  # telling languages costs the same for none as for many
        by_text = np.asarray(pc.equal(language(text), "zh").to_numpy(zero_copy_only=False), dtype=bool)
    lengths = np.diff(examples.history_offsets)
    total = np.concatenate([[0], np.cumsum(chinese[examples.history_values])])
    clicked = total[examples.history_offsets[1:]] - total[examples.history_offsets[:-1]]
    by_clicks = (2 * clicked > lengths)[examples.history_of_row]
    no_trace = ~has_text & (lengths == 0)[examples.history_of_row]
    readers: NDArray[np.bool_] = np.where(has_text, by_text, by_clicks)
    return np.asarray(readers[row] | (no_trace[row] & chinese[ad]))


def share_of_history(
    examples: Examples, category: NDArray[np.integer], row: NDArray[np.integer], wanted: NDArray[np.integer]
) -> NDArray[np.float64]:
    """(N,) share of the clicks of request `row` whose category is `wanted`; 0 where -1."""
    lengths = np.diff(examples.history_offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    width = int(category.max(initial=0)) + 1
    code = category[examples.history_values]
    keys, counts = np.unique((owner * width + code)[code >= 0], return_counts=True)
    asked = examples.history_of_row[row].astype(np.int64) * width + wanted
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    if len(keys) == 0:
        return np.zeros(len(row))
    found = (keys[place] == asked) & (wanted >= 0)
    share: NDArray[np.float64] = np.where(found, counts[place], 0) / np.maximum(lengths[examples.history_of_row[row]], 1)
    return share
