"""The graph of entities: who made an ad, what it is about, and what those have to do with each other.

What models read of it is a list for each ad, of what it is linked to: `made_by=Acme` is one link away, `made_by>country=FR`
two, and `~` turns a relation round (`made_by>~owns=Holding`: the holding owns the maker). An ad without links has an empty
list. All is vectorised: a list of two links costs the links of the entities that ads name.

# E entities, R relations, T links between entities, M links of ads, N ads asked about, P paths
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import Longs, combined, ends, integers, lengths_of, places, ranges
from adrec.schema import AD_LINKS, ENTITIES, LINKS

STEP, INVERSE, SEPARATOR = ">", "~", "="
LINKED = "linked"
"""The relation of links that name none."""
_HUB = 200
"""An entity that more others point to by one relation (a country and its companies) is not followed back to them."""


@dataclass(frozen=True)
class Graph:
    """Everything as numbers: entities (E,) and relations (R,) by their place."""

    entities: pa.StringArray
    relations: pa.StringArray
    links: Longs
    """(T, 3) head, relation, tail"""
    ads: pa.StringArray
    """those that are linked"""
    ad_links: Longs
    """(M, 3) place in `ads`, relation, entity"""

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], ads: pa.Array) -> "Graph | None":
        """From the tables `entities`, `links`, `ad_links`, as far as there are any; None where there is no link.

        Without `ad_links`, a name in `links` that one of the `ads` has and no entity is that ad.
        """
        links, ad_links, known = (tables.get(spec.name) for spec in (LINKS, AD_LINKS, ENTITIES))
        if links is None and ad_links is None:
            return None
        head, of_links, tail = _columns(links, LINKS.names)
        ad, of_ads, entity = _columns(ad_links, AD_LINKS.names)
        if ad_links is None:
            named = combined(known[ENTITIES.names[0]]).cast(pa.string()) if known is not None else pa.array([], pa.string())
            from_ad, to_ad = (_are_ads(names, ads, named) for names in (head, tail))
            forward, backward = pc.and_not(from_ad, to_ad), pc.and_not(to_ad, from_ad)
            turned = pc.binary_join_element_wise(INVERSE, of_links.filter(backward), "")
            ad = pa.concat_arrays([head.filter(forward), tail.filter(backward)])
            entity = pa.concat_arrays([tail.filter(forward), head.filter(backward)])
            of_ads = pa.concat_arrays([of_links.filter(forward), turned])
            between = pc.invert(pc.or_(from_ad, to_ad))
            head, of_links, tail = (column.filter(between) for column in (head, of_links, tail))
        entities = pc.unique(pa.concat_arrays([entity, head, tail]))
        relations = pc.unique(pa.concat_arrays([of_ads, of_links]))
        linked = pc.unique(ad)
        return cls(
            entities,
            relations,
            np.stack([places(head, entities), places(of_links, relations), places(tail, entities)], axis=1),
            linked,
            np.stack([places(ad, linked), places(of_ads, relations), places(entity, entities)], axis=1),
        )

    def tables(self) -> dict[str, pa.Table]:
        """The tables `links` and `ad_links` of this graph: what `of` makes it of again, whatever ads are asked about then."""
        names = (self.entities, self.relations, self.entities), (self.ads, self.relations, self.entities)
        made = {}
        for spec, held, numbers in ((LINKS, names[0], self.links), (AD_LINKS, names[1], self.ad_links)):
            columns = [ids.take(pa.array(numbers[:, at])) for at, ids in enumerate(held)]
            made[spec.name] = pa.table(dict(zip(spec.names, columns, strict=True)))
        return made

    def filled(self, ads: pa.Table, column: str, *, hops: int, most: int) -> pa.Table:
        """The ads with their lists in `column`: those of ads that have none are looked up, those that are there completed by
        what their direct entities are linked to.
        """
        made: pa.Array = self.paths(combined(ads["ad_id"]).cast(pa.string()), hops=hops, most=most)
        if column not in ads.column_names:
            return ads.append_column(column, made)
        held = combined(ads[column])
        if not (pa.types.is_list(held.type) or pa.types.is_null(held.type)):
            return ads  # whoever reads lists tells it
        held = held.cast(made.type)
        if hops > 1:
            held = self.completed(held, most=most)
        return ads.set_column(ads.column_names.index(column), column, pc.coalesce(held, made))

    def completed(self, lists: pa.ListArray, *, most: int) -> pa.ListArray:
        """Lists of paths (N,); behind those of direct links alone, the paths that go on from them. Null stays null."""
        lengths = lengths_of(lists)
        paths, row = lists.flatten(), np.repeat(np.arange(len(lengths)), lengths)
        is_far = pc.fill_null(pc.match_substring(paths, STEP), False).to_numpy(zero_copy_only=False)
        whole = (np.bincount(row[is_far], minlength=len(lengths)) > 0) | (lengths == 0)
        if whole.all() or not len(self.links):
            return lists
        entity, relation = places(entity_of(paths), self.entities), places(relation_of(paths), self._labels)
        direct = np.flatnonzero((entity >= 0) & (relation >= 0) & ~whole[row])
        further, at, target = self._further(row[direct], relation[direct], entity[direct])
        added = self._written(further, target)
        every, owner = pa.concat_arrays([paths, added]), np.concatenate([row, at])
        code = every.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        _, first = np.unique(np.stack([owner, np.nan_to_num(code, nan=-1)]), axis=1, return_index=True)
        first = np.sort(first)
        order = first[np.argsort(owner[first], kind="stable")]
        held = np.bincount(owner[order], minlength=len(lengths))
        kept = np.arange(len(order)) - np.repeat(ends(held)[:-1], held) < most
        offsets = ends(np.minimum(held, most)).astype(np.int32)
        values = every.take(pa.array(order[kept]))
        return pa.ListArray.from_arrays(pa.array(offsets), values, mask=lists.is_null())

    def paths(self, ads: pa.Array, *, hops: int, most: int) -> pa.ListArray:
        """(N,) the lists of `ads`, at most `most` of each: near before far, entities with many links before others."""
        of_ad = places(ads, self.ads)
        starts, counts = self._by_ad
        asked = np.flatnonzero(of_ad >= 0)
        lengths = counts[of_ad[asked]]
        rows = self._sorted_ad_links[ranges(starts[of_ad[asked]], lengths)]
        ad, relation, entity = np.repeat(asked, lengths), rows[:, 1], rows[:, 2]
        path, hop = relation * self._size, np.zeros(len(ad), np.int64)
        if hops > 1:
            route, at, target = self._further(ad, relation, entity)
            ad, path, entity = (np.concatenate(pair) for pair in ((ad, at), (path, route), (entity, target)))
            hop = np.concatenate([hop, np.ones(len(at), np.int64)])
        order = np.lexsort((entity, path, -self._degree[entity], hop, ad))
        ad, path, entity = ad[order], path[order], entity[order]
        new = np.ones(len(ad), bool)
        new[1:] = (ad[1:] != ad[:-1]) | (path[1:] != path[:-1]) | (entity[1:] != entity[:-1])
        ad, path, entity = ad[new], path[new], entity[new]
        held = np.bincount(ad, minlength=len(ads))
        kept = np.arange(len(ad)) - np.repeat(ends(held)[:-1], held) < most
        lists = ends(np.minimum(held, most)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(lists), self._written(path[kept], entity[kept]))

    def _further(self, row: Longs, relation: Longs, entity: Longs) -> tuple[Longs, Longs, Longs]:
        """Paths, rows and entities a second link away from direct ones."""
        if not len(self.links):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        begin, count = self._by_entity
        lengths = count[entity]
        step = self._steps[ranges(begin[entity], lengths)]
        onward = step[:, 2] != np.repeat(entity, lengths)
        path = np.repeat(relation * self._size, lengths) + 1 + step[:, 1]
        return path[onward], np.repeat(row, lengths)[onward], step[onward, 2]

    def _written(self, path: Longs, entity: Longs) -> pa.Array:
        """(P,) as text, each distinct one written once."""
        pairs, place = np.unique(path * max(len(self.entities), 1) + entity, return_inverse=True)
        route, target = np.divmod(pairs, max(len(self.entities), 1))
        first, second = np.divmod(route, self._size)
        plain = self._labels
        steps = pa.concat_arrays(
            [
                pa.array([""]),
                pc.binary_join_element_wise(STEP, plain, ""),
                pc.binary_join_element_wise(f"{STEP}{INVERSE}", plain, ""),
            ]
        )
        texts = pc.binary_join_element_wise(
            pc.binary_join_element_wise(plain.take(pa.array(first)), steps.take(pa.array(second)), ""),
            self.entities.take(pa.array(target)),
            SEPARATOR,
        )
        return texts.take(pa.array(place.reshape(-1)))

    @property
    def _size(self) -> int:
        """Numbers of paths that begin with one relation: a second step forwards, backwards, or none."""
        return 2 * len(self.relations) + 1

    @cached_property
    def _labels(self) -> pa.StringArray:
        """(R,) relations without the marks that paths are written with."""
        return pc.replace_substring(pc.replace_substring(self.relations, SEPARATOR, ":"), STEP, "-")

    @cached_property
    def _degree(self) -> Longs:
        named = np.concatenate([self.links[:, 0], self.links[:, 2], self.ad_links[:, 2]])
        return np.bincount(named, minlength=len(self.entities))

    @cached_property
    def _sorted_ad_links(self) -> Longs:
        return self.ad_links[np.argsort(self.ad_links[:, 0], kind="stable")]

    @cached_property
    def _by_ad(self) -> tuple[Longs, Longs]:
        counts = np.bincount(self.ad_links[:, 0], minlength=len(self.ads))
        return ends(counts)[:-1], counts

    @cached_property
    def _steps(self) -> Longs:
        """(S, 3) entity, relation (R and more: turned round), neighbour; by entity. Links back from a hub are left out."""
        count = len(self.relations)
        pointed = self.links[:, 2] * count + self.links[:, 1]
        _, group, size = np.unique(pointed, return_inverse=True, return_counts=True)
        backward = self.links[size[group.reshape(-1)] <= _HUB][:, ::-1] + np.array([0, count, 0])
        both = np.concatenate([self.links, backward])
        return both[np.argsort(both[:, 0], kind="stable")]

    @cached_property
    def _by_entity(self) -> tuple[Longs, Longs]:
        counts = np.bincount(self._steps[:, 0], minlength=len(self.entities))
        return ends(counts)[:-1], counts


def relation_of(paths: pa.Array) -> pa.Array:
    """(P,) the relations of paths, all that stands before the first `=`; of other text the whole."""
    return pc.list_element(pc.split_pattern(paths, SEPARATOR, max_splits=1), 0)


def entity_of(paths: pa.Array) -> pa.Array:
    """(P,) the entities that paths end at; null where text is no path."""
    cut = pc.replace_substring_regex(paths, pattern=rf"^[^{SEPARATOR}]*{SEPARATOR}", replacement="")
    return pc.if_else(pc.match_substring(paths, SEPARATOR), cut, pa.scalar(None, pa.string()))


def hops_of(paths: pa.Array) -> NDArray[np.int64]:
    """(P,) links from the ad: 1 or more."""
    return integers(pc.count_substring(relation_of(paths), STEP), missing=0) + 1


def _columns(table: pa.Table | None, names: Collection[str]) -> tuple[pa.Array, ...]:
    """The three columns of a table of links, rows without a name at either end left out."""
    if table is None:
        return tuple(pa.array([], pa.string()) for _ in names)
    texts = [
        combined(table[name]).cast(pa.string()) if name in table.column_names else pa.nulls(len(table), pa.string())
        for name in names
    ]
    whole = pc.and_(texts[0].is_valid(), texts[2].is_valid())
    first, kind, last = (column.filter(whole) for column in texts)
    return first, pc.fill_null(kind, LINKED), last


def _are_ads(names: pa.Array, ads: pa.Array, entities: pa.Array) -> pa.Array:
    return pc.and_not(pc.is_in(names, value_set=ads), pc.is_in(names, value_set=entities))
