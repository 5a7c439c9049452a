"""A store as a whole, copied: a backup is a copy to a file, a restored store one from a file. From either kind to either."""

from adrec.errors import DataError
from adrec.serve.store.contract import Event, Store

_CHUNK = 10_000


def copied(source: Store, target: Store) -> int:
    """Copy events, changed ads and kept sums; returns how many events. Raises DataError where `target` is not empty."""
    if target.after(0, 1).last or target.ads():
        raise DataError("restore: the store holds events or ads already. Name an empty one, or a file that is not there yet.")
    count, last = 0, 0
    while (piece := source.after(last, _CHUNK)).last > last:
        last = piece.last
        names = list(Event._fields)
        cells = (piece.events[name].to_pylist() for name in names)
        count += target.record([Event(*row) for row in zip(*cells, strict=True)]).new
    for ad_id, (_, ad) in source.ads().items():
        target.put_ad(ad_id, ad)
    target.keep(source.kept())
    return count
