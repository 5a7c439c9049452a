"""The store in Redis, for several servers over one state.

Events are recorded by one script that writes only after everything that can fail has been tried, so that a batch is there as
a whole or not at all and a retry finds nothing half done. How long they live is up to Redis: with `appendonly yes` they
survive its kill -9, with `appendfsync always` the machine's failure too. All keys share a hash tag.

    {prefix}:log          stream, one entry an event      {prefix}:last, :last_ad   numbers
    {prefix}:event_ids    set                             {prefix}:ad_order         sorted set, ad id → number of its change
    {prefix}:ads          hash, ad id → JSON              {prefix}:kept_impressions hash, JSON [user, ad] → count
    {prefix}:version      of these keys                   {prefix}:kept_spent       hash, ad id → millionths
    {prefix}:epoch        how often events went away      {prefix}:snapshot         hash: definition, digest, pieces
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from adrec.serve.store.contract import (
    COLUMNS,
    NUMBER,
    Erased,
    Event,
    Recorded,
    Slice,
    StoreError,
    Totals,
    columns_of_rows,
    digest_of,
    pieces_of,
    slice_of,
)

VERSION = 4
_TAKEN_AT_ONCE = 2_000
_REWRITE_TRIES = 100
_RECORD = """
local p = KEYS[1]
local last = tonumber(redis.call('GET', p .. ':last') or '0')
local newest = redis.call('XREVRANGE', p .. ':log', '+', '-', 'COUNT', 1)
if newest[1] then last = math.max(last, tonumber(string.match(newest[1][1], '^%d+'))) end
local told, fresh = {}, {}
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  if id == '' or (not told[id] and redis.call('SISMEMBER', p .. ':event_ids', id) == 0) then
    told[id] = true
    fresh[#fresh + 1] = i
  end
end
for _, i in ipairs(fresh) do
  last = last + 1
  redis.call('XADD', p .. ':log', string.format('%d-0', last), 'event', ARGV[i + 1])
  if ARGV[i] ~= '' then redis.call('SADD', p .. ':event_ids', ARGV[i]) end
end
if #fresh > 0 then redis.call('SET', p .. ':last', string.format('%d', last)) end
return {#fresh, last}
"""
_PUT = """
local number = redis.call('INCR', KEYS[1] .. ':last_ad')
redis.call('HSET', KEYS[1] .. ':ads', ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1] .. ':ad_order', number, ARGV[1])
return number
"""
_PUT_SNAPSHOT = """
local p = KEYS[1]
if tonumber(redis.call('GET', p .. ':epoch') or '0') ~= tonumber(ARGV[1]) then return 0 end
redis.call('RENAME', KEYS[2], p .. ':snapshot')
redis.call('PERSIST', p .. ':snapshot')
return 1
"""
_SNAPSHOT_SECONDS = 600
"""What is written aside and nobody finishes lives so long."""
_NAMES = ("user_id", "request_id", "event_id")
_OF_VERSION_1 = ("users", "last_user", "impressions", "spent")
"""Sums that are made from the log now."""


class RedisStore:
    """One client with a pool of connections. `prefix` keeps several servers' states apart."""

    def __init__(self, url: str, *, prefix: str = "adrec", timeout_seconds: float = 5.0) -> None:
        self._prefix = f"{{{prefix}}}"
        with self._faults():
            try:
                # No retries of the client's own: a Redis that hangs costs one time-out, and who asked may ask again.
                self._redis: Any = redis.Redis.from_url(
                    url, decode_responses=True, encoding_errors="surrogatepass", socket_timeout=timeout_seconds,
                    socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0),
                )  # fmt: skip
            except ValueError as error:
                raise StoreError(f"redis: not an address ({error}). Write redis://host:6379/0.") from None
            self._redis.ping()
            self._migrate()
            self._record = self._redis.register_script(_RECORD)
            self._put = self._redis.register_script(_PUT)
            self._take_snapshot = self._redis.register_script(_PUT_SNAPSHOT)
            # Pieces are bytes, which the other client would read as text.
            self._binary: Any = redis.Redis.from_url(
                url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0)
            )

    @property
    def forgetful(self) -> bool:
        """Whether Redis says that it writes no log: then its restart loses events. Not all servers let a client ask."""
        try:
            return bool(self._redis.config_get("appendonly").get("appendonly") == "no")
        except redis.RedisError:
            return False

    def record(self, events: Sequence[Event]) -> Recorded:
        """Keep events, all in one step."""
        cells: list[str] = []
        for event in events:
            cells += [event.event_id or "", json.dumps(event)]
        with self._faults():
            new, last = self._record(keys=[self._prefix], args=cells)
        return Recorded(int(new), int(last))

    def after(self, number: int, limit: int) -> Slice:
        """The first `limit` events behind a number, in order."""
        with self._faults():
            entries = self._redis.xrange(self._name("log"), min=f"({number}-0", count=limit)
        numbers = [int(place.partition("-")[0]) for place, _ in entries]
        texts = [entry.get("event", "") for _, entry in entries]
        try:
            events = json.loads(f"[{','.join(texts)}]")
        except ValueError:
            events = [_loaded(text) for text in texts]
        width = len(Event._fields)
        rows = [
            (place, *event, *[None] * (width - len(event))) if isinstance(event, list) and len(event) <= width
            else (place, *[None] * width)
            for place, event in zip(numbers, events, strict=True)
        ]  # fmt: skip
        columns = columns_of_rows(rows, (NUMBER, *Event._fields))
        return slice_of({name: columns[name] for name in (NUMBER, *COLUMNS)}, max(numbers, default=number))

    def kept(self) -> Totals:
        """What the events that were taken away added up to."""
        with self._faults():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hgetall(self._name("kept_impressions")).hgetall(self._name("kept_spent"))
            shown, spent = pipeline.execute()
        return Totals(
            [(*json.loads(key), int(count)) for key, count in shown.items()], {ad: int(micros) for ad, micros in spent.items()}
        )

    def keep(self, totals: Totals) -> None:
        """Add to what is kept."""
        with self._faults():
            pipeline = self._redis.pipeline(transaction=True)
            self._add_kept(pipeline, totals)
            self._begin_epoch(pipeline)
            pipeline.execute()

    def drop_before(self, moment: int) -> int:
        """Take away old events and keep their sums, some thousands in one transaction."""
        return sum(map(len, self._taken_away(lambda event: event[3] < moment, keeps_sums=True)))

    def erase(self, user_id: str) -> Erased:
        """Take away everything of a user."""
        taken = list(self._taken_away(lambda event: event[0] == user_id, keeps_sums=False))
        with self._faults():
            pipeline = self._redis.pipeline(transaction=True)
            names = [key for key in self._redis.hkeys(self._name("kept_impressions")) if json.loads(key)[0] == user_id]
            if names:
                pipeline.hdel(self._name("kept_impressions"), *names)
            self._begin_epoch(pipeline)
            pipeline.execute()
        events = [event for some in taken for event in some]
        columns = columns_of_rows(events, Event._fields)
        cells = {NUMBER: [0] * len(events), **{name: columns[name] for name in COLUMNS}}
        return Erased(slice_of(cells, 0).events, len(taken) + 1)

    def rename(self, named: Callable[[str], str]) -> int:
        """Keep users, requests and events under other names: the log is written anew aside, then put there in one step. Entries
        that are no events, whatever they name, are left out.
        """
        aside = {what: self._name(f"{what}-{secrets.token_hex(8)}") for what in ("log", "event_ids")}
        with self._faults(), self._redis.pipeline(transaction=True) as commit:
            changed, start, epoch = 0, "-", self.epoch()
            while True:
                commit.watch(*(self._name(what) for what in ("log", "epoch", "kept_impressions")))
                if int(commit.get(self._name("epoch")) or 0) != epoch:  # events have gone away meanwhile
                    self._redis.unlink(*aside.values())
                    changed, start, epoch = 0, "-", self.epoch()
                    continue
                entries = commit.xrange(self._name("log"), min=start, count=_TAKEN_AT_ONCE)
                if entries:
                    start = f"({entries[-1][0]}"
                    changed += self._copied(entries, aside, named)
                    continue
                shown = self._redis.hgetall(self._name("kept_impressions"))
                exist = [what for what, name in aside.items() if self._redis.exists(name)]
                commit.multi()
                for what, name in aside.items():
                    if what in exist:
                        commit.rename(name, self._name(what)).persist(self._name(what))
                    else:
                        commit.unlink(self._name(what))
                commit.unlink(self._name("kept_impressions"))
                kept = [(named(user), ad_id, int(count)) for key, count in shown.items() for user, ad_id in [json.loads(key)]]
                self._add_kept(commit, Totals(kept, {}))
                self._begin_epoch(commit)
                try:
                    commit.execute()
                    return changed
                except redis.WatchError:  # something was recorded since: it is copied too
                    continue

    def _copied(self, entries: list[tuple[str, dict[str, str]]], aside: dict[str, str], named: Callable[[str], str]) -> int:
        """Write entries of the log aside under other names; returns how many had others."""
        events = _events_in(entries)
        renamed = [(place, _under(named, event)) for place, event in events]
        first = self._redis.pipeline(transaction=False)
        for _, event in renamed:
            first.sadd(aside["event_ids"], event.event_id) if event.event_id else first.time()
        is_new = first.execute() if renamed else []
        write = self._redis.pipeline(transaction=False)
        for (place, event), new in zip(renamed, is_new, strict=True):
            if new:
                write.xadd(aside["log"], {"event": json.dumps(event)}, id=place)
        for name in aside.values():
            write.expire(name, _SNAPSHOT_SECONDS)
        write.execute()
        return sum(event != before for (_, event), (_, before) in zip(renamed, events, strict=True))

    def epoch(self) -> int:
        """How often events have been taken away."""
        with self._faults():
            return int(self._redis.get(self._name("epoch")) or 0)

    def put_snapshot(self, definition: str, epoch: int, content: bytes) -> bool:
        """Keep sums in place of the earlier ones: written aside, then put there in one step."""
        aside = self._name(f"snapshot-{secrets.token_hex(8)}")
        with self._faults():
            self._binary.hset(aside, mapping={"definition": definition, "epoch": epoch, "digest": digest_of(content)})
            self._binary.expire(aside, _SNAPSHOT_SECONDS)
            for place, piece in enumerate(pieces_of(content)):
                self._binary.hset(aside, f"piece-{place}", piece)
            is_valid = bool(self._take_snapshot(keys=[self._prefix, aside], args=[epoch]))
            if not is_valid:
                self._binary.unlink(aside)
        return is_valid

    def snapshot(self, definition: str) -> bytes | None:
        """The sums that were kept under a definition in this epoch."""
        name = self._name("snapshot")
        with self._faults():
            said, epoch, digest = self._redis.hmget(name, ["definition", "epoch", "digest"])
            if said != definition or int(epoch) != self.epoch():
                return None
            pieces: list[bytes] = []
            while (piece := self._binary.hget(name, f"piece-{len(pieces)}")) is not None:
                pieces.append(piece)
        content = b"".join(pieces)
        return content if digest_of(content) == digest else None

    def compact(self) -> None:
        """Let Redis write its log anew, where it keeps one."""
        with self._faults():
            for wait in [*[0.1] * _REWRITE_TRIES, None]:
                try:
                    self._redis.bgrewriteaof()
                    return
                except redis.ResponseError:  # an earlier one is under way, which may still hold what was taken away
                    if wait is None:
                        raise
                    time.sleep(wait)

    def _taken_away(self, chosen: Callable[[Event], bool], *, keeps_sums: bool) -> Iterator[list[Event]]:
        """The chosen events, some at a time, each time after they were taken away and an epoch has begun."""
        start = "-"
        while True:
            with self._faults():
                entries = self._redis.xrange(self._name("log"), min=start, count=_TAKEN_AT_ONCE)
            if not entries:
                return
            start = f"({entries[-1][0]}"
            mine = [(place, event) for place, event in _events_in(entries) if isinstance(event.at, int) and chosen(event)]
            if not mine:
                continue
            with self._faults():
                pipeline = self._redis.pipeline(transaction=True)
                if keeps_sums:
                    self._add_kept(pipeline, _summed([event for _, event in mine]))
                ids = [event.event_id for _, event in mine if event.event_id]
                if ids:
                    pipeline.srem(self._name("event_ids"), *ids)
                pipeline.xdel(self._name("log"), *(place for place, _ in mine))
                self._begin_epoch(pipeline)
                pipeline.execute()
            yield [event for _, event in mine]

    def _begin_epoch(self, pipeline: Any) -> None:
        pipeline.incr(self._name("epoch")).unlink(self._name("snapshot"))

    def _add_kept(self, pipeline: Any, totals: Totals) -> None:
        for user, ad_id, shown in totals.impressions:
            pipeline.hincrby(self._name("kept_impressions"), json.dumps([user, ad_id]), shown)
        for ad_id, micros in totals.spent.items():
            pipeline.hincrby(self._name("kept_spent"), ad_id, micros)

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> int:
        """Remember a new or changed ad, or (None) that it was deleted."""
        with self._faults():
            return int(self._put(keys=[self._prefix], args=[ad_id, json.dumps(ad)]))

    def ads(self, after: int = 0) -> dict[str, tuple[int, dict[str, Any] | None]]:
        """Ads changed behind a number, None where deleted."""
        with self._faults():
            changed = self._redis.zrange(self._name("ad_order"), f"({after}", "+inf", byscore=True, withscores=True)
            texts = self._redis.hmget(self._name("ads"), [ad_id for ad_id, _ in changed]) if changed else []
        ads = [(ad_id, int(number), _loaded(text)) for (ad_id, number), text in zip(changed, texts, strict=True)]
        return {ad_id: (number, ad) for ad_id, number, ad in ads if ad is None or isinstance(ad, dict)}

    def probe(self) -> None:
        """Try to write."""
        with self._faults():
            self._redis.incr(self._name("probe"))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._binary.close()

    def _migrate(self) -> None:
        version = int(self._redis.get(self._name("version")) or 0)
        if version > VERSION:
            raise StoreError(f"redis: '{self._prefix}' was written by a newer adrec (version {version}). Use that one.")
        if version < VERSION:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.unlink(*(self._name(name) for name in _OF_VERSION_1)).set(self._name("version"), VERSION)
            pipeline.execute()

    def _name(self, what: str) -> str:
        return f"{self._prefix}:{what}"

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"redis: the store cannot be used ({error}). See that it runs and is reached.") from None


def _summed(events: Sequence[Event]) -> Totals:
    """What events add up to."""
    shown = Counter((event.user_id, event.ad_id) for event in events if event.kind == "impression")
    spent: Counter[str] = Counter()
    for event in events:
        if event.price:
            spent[event.ad_id] += round(event.price * 1e6)
    return Totals([(user, ad_id, count) for (user, ad_id), count in shown.items()], dict(spent))


def _events_in(entries: Sequence[tuple[str, dict[str, str]]]) -> list[tuple[str, Event]]:
    """Those entries of the log that are events, with their places."""
    loaded = [(place, _loaded(entry.get("event"))) for place, entry in entries]
    width = len(Event._fields)
    return [(place, Event(*cells)) for place, cells in loaded if isinstance(cells, list) and 4 <= len(cells) <= width]


def _under(named: Callable[[str], str], event: Event) -> Event:
    names: dict[str, Any] = {name: named(value) for name in _NAMES if (value := getattr(event, name)) is not None}
    return event._replace(**names)


def _loaded(text: str | None) -> Any:
    """What JSON says; "" where it says nothing, which is no event and no ad."""
    try:
        return json.loads(text or "")
    except ValueError:
        return ""
