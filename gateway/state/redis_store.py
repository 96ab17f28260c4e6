"""Accounts and buckets in Redis: what gateways on several machines share.

The rules are those of `accounts`, as Lua, because only a script is one step there. A script touches one key,
so it runs on any node of a cluster. The clock is Redis's own: replicas need not agree on the time. Amounts
stay below 2^53, the largest a Lua number holds exactly. Every key expires, but those of budgets without end.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from gateway.state.accounts import FOLD_S, SHARE, Ask, Grant, Taken, Want
from gateway.state.redis_client import RedisClient

__all__ = ["RedisStore"]

_NOW = """
local now = tonumber(ARGV[1])
if not now then local t = redis.call('TIME'); now = tonumber(t[1]) + tonumber(t[2]) / 1e6 end
local function whole(x) return string.format('%.0f', x) end
"""

_SYNC = f"""{_NOW}
local key, me = KEYS[1], ARGV[2]
local limit, spent, need, want = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ttl, forget, close = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9] == '1'
local row = redis.call('HGETALL', key)
local settled, held_by_others, spent_by_others = 0, 0, 0
local own = {{spent = 0, held = 0, expires = 0}}
for i = 1, #row, 2 do
  if row[i] == 'settled' then settled = settled + tonumber(row[i + 1]) else
    local s, h, e = string.match(row[i + 1], '^(%S+) (%S+) (%S+)$')
    s, h, e = tonumber(s), tonumber(h), tonumber(e)
    if e > now + ttl then
      e = now + ttl
      redis.call('HSET', key, row[i], whole(s) .. ' ' .. whole(h) .. ' ' .. string.format('%.6f', e))
    end
    if row[i] == 'h:' .. me then own = {{spent = s, held = h, expires = e}}
    elseif e <= now and e + {FOLD_S} <= now then
      settled = settled + s
      redis.call('HDEL', key, row[i])
    else
      if e <= now then
        h = s
        redis.call('HSET', key, row[i], whole(s) .. ' ' .. whole(s) .. ' ' .. string.format('%.6f', e))
      end
      held_by_others = held_by_others + h
      spent_by_others = spent_by_others + s
    end
  end
end
if own.expires <= now then own.held = own.spent end
own.spent = math.max(own.spent, spent)
own.held = math.max(own.held, own.spent)
local room = limit - settled - held_by_others
if want <= own.held then own.held = math.max(own.spent, want)
elseif room >= need then
  own.held = math.max(own.held, need + math.min(want - need, math.floor((room - need) / {SHARE})))
end
local all = settled + spent_by_others + own.spent
if close then
  settled = settled + own.spent
  redis.call('HDEL', key, 'h:' .. me)
else
  redis.call('HSET', key, 'h:' .. me,
    whole(own.spent) .. ' ' .. whole(own.held) .. ' ' .. string.format('%.6f', now + ttl))
end
redis.call('HSET', key, 'settled', whole(settled))
if forget then redis.call('PEXPIRE', key, whole(forget * 1000)) else redis.call('PERSIST', key) end
return {{whole(own.held), whole(all)}}
"""

_TAKE = f"""{_NOW}
local capacity, period = tonumber(ARGV[2]), tonumber(ARGV[3])
local need, want, debit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(kept[1] or ARGV[2]), tonumber(kept[2] or now)
local rate = capacity / period
level = math.min(capacity, level + math.max(0, now - at) * rate)
level = math.max(-capacity, math.min(capacity, level - debit))
local granted, wait = 0, 0
if level >= need then granted = need + math.min(want - need, math.floor((level - need) / {SHARE}))
else wait = (need - level) / rate end
level = level - granted
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], whole(1000 + 1000 * (capacity - level) / rate))
return {{whole(granted), string.format('%.6f', level), string.format('%.6f', wait)}}
"""


_DIGESTS = {code: hashlib.sha1(code.encode(), usedforsecurity=False).hexdigest() for code in (_SYNC, _TAKE)}


class RedisStore:
    """A `Store` behind `client`; its keys begin with `prefix`. `now`, in seconds since the epoch, replaces Redis's
    clock."""

    def __init__(self, client: RedisClient, prefix: str, now: float | None = None) -> None:
        self._client, self._prefix, self.now = client, prefix, now

    @property
    def degraded(self) -> bool:
        return self._client.breaker.open

    async def sync(self, asks: Sequence[Ask]) -> list[Grant]:
        async def all_of(client: Any) -> list[Grant]:
            if len({ask.account for ask in asks}) == len(asks):
                return await asyncio.gather(*(self._sync_one(client, ask) for ask in asks))
            # Over several connections the later of two asks may be the first to arrive.
            return [await self._sync_one(client, ask) for ask in asks]

        return await self._client.run(all_of)

    async def take(self, want: Want) -> Taken:
        async def one(client: Any) -> Taken:
            arguments = [want.capacity, want.period_s, want.need, want.want, want.debit]
            granted, level, wait_s = await self._script(client, _TAKE, want.bucket, arguments)
            return Taken(int(granted), float(level), float(wait_s))

        return await self._client.run(one)

    async def open(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    async def _sync_one(self, client: Any, ask: Ask) -> Grant:
        forget = "" if ask.forget_s is None else ask.forget_s
        arguments = [ask.holder, ask.limit, ask.spent, ask.need, ask.want, ask.ttl_s, forget, int(ask.close)]
        held, spent = await self._script(client, _SYNC, ask.account, arguments)
        return Grant(int(held), int(spent))

    async def _script(self, client: Any, code: str, name: str, arguments: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        now = "" if self.now is None else self.now
        told = [1, f"{self._prefix}:{name}", now, *arguments]
        try:
            return await client.evalsha(_DIGESTS[code], *told)
        except NoScriptError:  # the server was restarted, or is another one
            return await client.eval(code, *told)
