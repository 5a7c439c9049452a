"""Which past click speaks for a shown ad through the graph: both are linked to the same entity, and by which relation."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined, places
from adrec.data.examples import Catalog, Examples
from adrec.data.features import FeatureSet
from adrec.data.features.categorical import FittedVocabulary
from adrec.data.graph.links import INVERSE, STEP, entity_of, relation_of


@dataclass(frozen=True)
class SharedLinks:
    """(N,) of each shown ad; null where no click shares a link."""

    click: pa.Array
    """the newest click (int64, its row among the ads) that is linked to the entity"""
    relation: pa.Array
    entity: pa.Array
    """its name, else its identifier"""


def shared_links(
    ads: Catalog, features: FeatureSet, entities: pa.Table | None, examples: Examples, row: NDArray[np.integer],
    ad: NDArray[np.integer],
) -> SharedLinks | None:  # fmt: skip
    """Of ads `ad` (N,) shown at requests `row` (N,) of `examples`: the rarest entity shared, as it says most.

    None where ads have no graph. `entities` names entities.
    """
    if ads.paths is None:
        return None
    lists, size = ads.lists[ads.paths.name], len(ads.paths.group)
    history = examples.histories
    clicked = lists.take(history.values)
    order = np.repeat(np.arange(len(history.values)), clicked.lengths)
    key = np.repeat(np.repeat(np.arange(len(history)), history.lengths), clicked.lengths) * size + clicked.values
    known, last = np.unique(key[::-1], return_index=True)  # of equal ones the newest
    newest = order[::-1][last]
    own = lists.take(ad)
    shown = np.repeat(np.arange(len(ad)), own.lengths)
    asked = examples.history_of_row[row].astype(np.int64)[shown] * size + own.values
    place = np.minimum(np.searchsorted(known, asked), max(len(known) - 1, 0))
    shares = (known[place] == asked) & (own.values > 0) if len(known) else np.zeros(len(asked), bool)
    code, click = np.zeros(len(ad), np.int64), np.full(len(ad), -1, np.int64)
    at = np.flatnonzero(shares)
    at = at[np.argsort(own.values[at], kind="stable")]  # commonest values have the lowest codes: the rarest is written last
    code[shown[at]] = own.values[at]
    click[shown[at]] = history.values[newest[place[at]]]
    coder = next(item for item in features.lists if item.name == ads.paths.name)
    assert isinstance(coder, FittedVocabulary), "Paths.of takes no other"
    values = coder.values.take(pa.array(code - 1, mask=code == 0))
    return SharedLinks(pa.array(click, mask=click < 0), _in_words(relation_of(values)), _named(entity_of(values), entities))


def _in_words(relations: pa.Array) -> pa.Array:
    """`is>made_by` as `made by`: that an ad is its entity says nothing."""
    plain = pc.replace_substring(pc.replace_substring(relations, INVERSE, ""), "_", " ")
    return pc.replace_substring(pc.replace_substring_regex(plain, pattern=rf"^is{STEP}", replacement=""), STEP, " › ")


def _named(entity: pa.Array, entities: pa.Table | None) -> pa.Array:
    if entities is None or "name" not in entities.column_names:
        return entity
    place = places(entity, combined(entities["entity_id"]).cast(pa.string()))
    return pc.coalesce(combined(entities["name"]).take(pa.array(place, mask=place < 0)), entity)
