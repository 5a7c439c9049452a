"""The store in Redis, for several servers over one state.

Events are recorded by one script, so that each is there as a whole or not at all. How long they live is up to Redis: with
`appendonly yes` they survive its kill -9, with `appendfsync always` the machine's failure too. All keys share a hash tag.

    {prefix}:users        hash, user id → number            {prefix}:log       stream, one entry an event
    {prefix}:impressions  hash, "<number>|<ad id>" → count  {prefix}:spent     hash, ad id → millionths
    {prefix}:event_ids    set                               {prefix}:ad_order  sorted set
    {prefix}:ads          hash, ad id → JSON
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from adrec.ranking.auction import MICRO
from adrec.serve.store import Event, Numbered, StoreError, Totals

_RECORD = """
local p, new = KEYS[1], 0
for i = 1, #ARGV, 6 do
  local user, ad, click, micros, id = ARGV[i], ARGV[i+1], ARGV[i+2] == '1', ARGV[i+3], ARGV[i+4]
  if id == '' or redis.call('SADD', p .. ':event_ids', id) == 1 then
    new = new + 1
    local event = redis.call('INCR', p .. ':last')
    local number = redis.call('HGET', p .. ':users', user)
    if not number then
      number = redis.call('INCR', p .. ':last_user')
      redis.call('HSET', p .. ':users', user, number)
    end
    if click then
      if micros ~= '0' then redis.call('HINCRBY', p .. ':spent', ad, micros) end
    else
      redis.call('HINCRBY', p .. ':impressions', number .. '|' .. ad, 1)
    end
    redis.call('XADD', p .. ':log', event .. '-0', 'user', number, 'event', ARGV[i+5])
  end
end
return new
"""
_PUT = """
redis.call('HSET', KEYS[1] .. ':ads', ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1] .. ':ad_order', 'NX', redis.call('INCR', KEYS[1] .. ':last_ad'), ARGV[1])
"""


class RedisStore:
    """One client with a pool of connections. `prefix` keeps several servers' states apart."""

    def __init__(self, url: str, *, prefix: str = "adrec", timeout_seconds: float = 5.0) -> None:
        self._prefix = f"{{{prefix}}}"
        with self._faults():
            try:
                self._redis: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=timeout_seconds)
            except ValueError as error:
                raise StoreError(f"redis: not an address ({error}). Write redis://host:6379/0.") from None
            self._redis.ping()
            self._record = self._redis.register_script(_RECORD)
            self._put = self._redis.register_script(_PUT)

    @property
    def forgetful(self) -> bool:
        """Whether Redis says that it writes no log: then its restart loses events. Not all servers let a client ask."""
        try:
            return bool(self._redis.config_get("appendonly").get("appendonly") == "no")
        except redis.RedisError:
            return False

    def record(self, events: Sequence[Event]) -> int:
        """Keep events, all in one step; returns how many were new."""
        told: list[str] = []
        for event in events:
            click = event.kind == "click"
            told += [
                event.user_id, event.ad_id, "1" if click else "0", str(round((event.price or 0.0) * MICRO)),
                event.event_id or "", json.dumps(event, ensure_ascii=False),
            ]  # fmt: skip
        with self._faults():
            return int(self._record(keys=[self._prefix], args=told))

    def numbers(self, users: Iterable[str]) -> dict[str, int]:
        """The numbers of those users that have events."""
        wanted = list(set(users))
        with self._faults():
            found = self._redis.hmget(self._name("users"), wanted) if wanted else []
        return {user: int(number) for user, number in zip(wanted, found, strict=True) if number is not None}

    def totals(self) -> Totals:
        """Everything so far, summed, at one moment."""
        with self._faults():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hgetall(self._name("impressions")).hgetall(self._name("spent")).get(self._name("last"))
            shown, spent, last = pipeline.execute()
        parts = [(*key.split("|", 1), count) for key, count in shown.items()]
        return Totals(
            [(int(user), ad, int(count)) for user, ad, count in parts],
            {ad: int(micros) / MICRO for ad, micros in spent.items()},
            int(last or 0),
        )

    def after(self, number: int, limit: int) -> list[Numbered]:
        """The first `limit` events behind a number, in order."""
        with self._faults():
            entries = self._redis.xrange(self._name("log"), min=f"({number}-0", count=limit)
        return [
            Numbered(int(place.partition("-")[0]), int(entry["user"]), Event(*json.loads(entry["event"])))
            for place, entry in entries
        ]

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> None:
        """Remember a new or changed ad, or (None) that it was deleted."""
        with self._faults():
            self._put(keys=[self._prefix], args=[ad_id, json.dumps(ad, ensure_ascii=False)])

    def ads(self) -> dict[str, dict[str, Any] | None]:
        """Changed ads by id, None where deleted."""
        with self._faults():
            ids = self._redis.zrange(self._name("ad_order"), 0, -1)
            texts = self._redis.hmget(self._name("ads"), ids) if ids else []
        return {ad_id: json.loads(text) for ad_id, text in zip(ids, texts, strict=True)}

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _name(self, what: str) -> str:
        return f"{self._prefix}:{what}"

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"redis: the store cannot be used ({error}). See that it runs and is reached.") from None
