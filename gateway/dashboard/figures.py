"""Every figure that the dashboard shows, as JSON: read off the ledger, the metrics and the accounts of budgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from gateway.dashboard.drift import drift
from gateway.dashboard.frontier import estimated, measured, on_the_frontier
from gateway.dashboard.meters import meters
from gateway.keys.key import Key
from gateway.ledger import views
from gateway.ledger.glance import Glance
from gateway.ledger.place import savings_against
from gateway.ledger.store import Read
from gateway.ledger.texts import text_of
from gateway.limits.bounds import NANO
from gateway.limits.door import money_account
from gateway.limits.slices import LEASE_S
from gateway.state.accounts import Ask
from gateway.state.store import Store
from protocol.errors import BadRequest, NotFound, SettingsError
from protocol.settings import Settings
from protocol.tenancy import LimitSettings

__all__ = ["Figures"]

T = TypeVar("T")
DAY_S = 86_400.0
MOST_MINUTES = 90 * 24 * 60
MOST_GROUPS = 50
MOST_ACCOUNTS = 200
BUCKETS = 60
IN_DAYS = 20
"""A stretch of so many days is shown by whole days, which the ledger has added up."""
SAVINGS_BY = tuple(name for name in views.GROUPINGS if name != "all")
LOOKER = "looker"
"""The holder that only asks what others have spent."""


class Figures:
    """Answers the reading routes below `/admin` for whoever has been admitted. `settings()` are those in force,
    `status()` the supervisor's report."""

    def __init__(
        self,
        glance: Glance,
        store: Store,
        settings: Callable[[], Settings],
        status: Callable[[], dict[str, Any]],
        metrics: Path | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._glance, self._store, self._settings = glance, store, settings
        self._status, self._metrics, self._now = status, metrics, now

    async def live(self, request: web.Request) -> dict[str, Any]:
        """Traffic of the last `minutes` (default 15), and what is so at this moment."""
        minutes = _whole(request, "minutes", 15, 24 * 60)
        since, bucket_s, _ = self._stretch(minutes)

        def work(read: Read) -> tuple[Any, list[float]]:
            return views.timeline(read, "all", since, bucket_s, BUCKETS), views.latencies(read, since)

        (groups, took), told = await asyncio.gather(
            self._look(("live", minutes), work, 1.0), asyncio.to_thread(meters, self._metrics)
        )
        whole = groups[0] if groups else views.Group("all")
        return {
            "object": "live",
            "since": since,
            "bucket_s": bucket_s,
            "ledger": self._settings().ledger.enabled,
            **told,
            **whole.wire(BUCKETS),
            "latency_s": {
                "sample": len(took),
                **{name: _quantile(took, share) for name, share in QUANTILES.items()},
            },
            "status": self._status(),
        }

    async def timeline(self, request: web.Request) -> dict[str, Any]:
        """What was used in the last `minutes` (default a day), `by` key, team, model or strategy."""
        minutes = _whole(request, "minutes", 1440, MOST_MINUTES)
        by = request.query.get("by", "key")
        if by not in views.GROUPINGS:
            raise BadRequest(f"'by' must be one of {', '.join(views.GROUPINGS)}.", param="by")
        since, bucket_s, buckets = self._stretch(minutes)
        groups = await self._look(
            ("timeline", by, minutes),
            lambda read: views.timeline(read, by, since, bucket_s, buckets),
            _fresh_s(minutes),
        )
        shown, rest = groups[:MOST_GROUPS], groups[MOST_GROUPS:]
        return {
            "object": "timeline",
            "by": by,
            "since": since,
            "bucket_s": bucket_s,
            "counts": "calls" if views.GROUPINGS[by][0] == "calls" else "requests",
            "total": {
                "count": sum(one.count for one in groups),
                "failed": sum(one.failed for one in groups),
                "prompt_tokens": sum(one.prompt_tokens for one in groups),
                "completion_tokens": sum(one.completion_tokens for one in groups),
                "cost_usd": sum(one.cost_nano for one in groups) / NANO,
            },
            "left_out": {"groups": len(rest), "cost_usd": sum(one.cost_nano for one in rest) / NANO},
            "data": [one.wire(buckets) for one in shown],
        }

    async def savings(self, request: web.Request) -> dict[str, Any]:
        """What was saved in the stretch that `timeline` shows by not always asking the model `against`."""
        minutes = _whole(request, "minutes", 1440, MOST_MINUTES)
        against, by = request.query.get("against", ""), request.query.get("by", "key")
        if by not in SAVINGS_BY:
            raise BadRequest(f"'by' must be one of {', '.join(SAVINGS_BY)}.", param="by")
        (since, _, _), settings = self._stretch(minutes), self._settings()
        known = settings.models.get(against)
        try:
            told = await self._look(
                ("savings", against, by, minutes, repr(known and known.price)),
                lambda read: savings_against(settings, read, against, since, (by,)),
                _fresh_s(minutes),
            )
        except SettingsError as error:
            raise BadRequest(error.message, param="against") from None
        shown, rest = told.groups[:MOST_GROUPS], told.groups[MOST_GROUPS:]
        return {
            "object": "savings",
            "by": by,
            "since": since,
            **replace(told, groups=shown).wire(),
            "told": told.told(),
            "left_out_groups": len(rest),
        }

    async def requests(self, request: web.Request) -> dict[str, Any]:
        """The latest requests of the last `days` (default 7); `before` is a former answer's `next`."""
        limit = _whole(request, "limit", 50, views.MOST_REQUESTS)
        since = self._now() - _whole(request, "days", 7, 400) * DAY_S
        before = _place(request.query.get("before"))
        where = {
            name: request.query[name] for name in ("key", "strategy", "outcome") if request.query.get(name)
        }
        rows = await self._look(
            ("requests", limit, before, *sorted(where.items()), request.query.get("days")),
            lambda read: views.recent(read, since, limit, before, where),
            1.0,
        )
        last = rows[-1] if len(rows) == limit else None
        told = None if last is None else f"{last['at']!r},{last['id']}"
        return {"object": "list", "data": rows, "next": told}

    async def request(self, request: web.Request) -> dict[str, Any]:
        """One request with its calls."""
        name = request.match_info["name"]
        now = self._now()
        told = await self._look(("request", name), lambda read: views.request(read, name, now), 1.0)
        if told is None:
            raise NotFound("The ledger has no such request; it is written a moment after the answer.")
        return {"object": "request", **told}

    async def text(self, request: web.Request) -> dict[str, Any]:
        """What is stored of a request's prompt and answer; read anew each time, and kept nowhere."""
        name, now = request.match_info["name"], self._now()

        def work(read: Read) -> dict[str, Any] | None:
            found = views.request(read, name, now)
            return text_of(read, found["id"]) if found else None

        told = await self._look(("text", name), work, 0.0)
        if told is None:
            raise NotFound("Nothing is stored of what was said in this request.")
        return {"object": "text", **told}

    async def frontier(self, request: web.Request) -> dict[str, Any]:
        """Quality against cost, estimated over the last `minutes` (default a day) and measured in training."""
        rows = await self._decided(request)
        live, trained = estimated(rows), await asyncio.to_thread(measured, self._settings())
        return {"object": "frontier", "estimated": _by_strategy(live), "measured": _by_strategy(trained)}

    async def routers(self, request: web.Request) -> dict[str, Any]:
        """How the strategies that decide have decided, over the last `minutes` (default a day)."""
        told = await asyncio.to_thread(meters, self._metrics)
        return {
            "object": "routers",
            "data": drift(await self._decided(request)),
            "left_alone": told["left_alone"],
            "degraded": told["degraded"],
            "status": self._status(),
        }

    async def budgets(self, keys: Iterable[Key]) -> dict[str, Any]:
        """Every budget in force and what has been spent of it, as its account knows: what admits the next request."""
        limits = self._settings().limits
        scopes: list[tuple[str, str, LimitSettings]] = [("everyone", "everyone", limits.everyone)]
        scopes += [(f"model:{name}", name, told) for name, told in limits.models.items()]
        scopes += [(f"team:{name}", name, told) for name, told in limits.teams.items()]
        scopes += [(f"key:{key.id}", key.alias or key.id, key.limits) for key in keys]
        asked = [
            (scope, name, period, usd)
            for scope, name, told in scopes
            for period, usd in told.budgets_usd.items()
        ]
        now = self._now()
        accounts = [money_account(scope, period, now) for scope, _, period, _ in asked[:MOST_ACCOUNTS]]
        grants = await self._store.sync(
            [
                Ask(account, 0, LOOKER, 0, 0, 0, LEASE_S, forget_s, close=True)
                for account, forget_s in accounts
            ]
        )
        rows = [
            {
                "scope": scope,
                "name": name,
                "period": period,
                "limit_usd": usd,
                "spent_usd": grant.spent / NANO,
            }
            for (scope, name, period, usd), grant in zip(asked, grants, strict=False)
        ]
        return {"object": "list", "data": rows, "left_out": max(0, len(asked) - MOST_ACCOUNTS)}

    async def names(self, request: web.Request) -> dict[str, Any]:
        """What the config in force names."""
        settings = self._settings()
        models = {name: model for name, model in settings.models.items() if not model.embedder}
        return {
            "object": "names",
            "models": list(models),
            "priced": [name for name, model in models.items() if model.price is not None],
            "strategies": list(settings.strategies),
            "teams": list(settings.limits.teams),
            "keys_required": settings.keys.required or settings.server.master_key is not None,
        }

    async def _decided(self, request: web.Request) -> list[views.Decided]:
        minutes = _whole(request, "minutes", 1440, MOST_MINUTES)
        since = self._now() - minutes * 60
        rows: list[views.Decided] = await self._look(
            ("decided", minutes), lambda read: views.decided(read, since), _fresh_s(minutes)
        )
        return rows

    async def _look(self, name: tuple[Any, ...], work: Callable[[Read], T], fresh_s: float) -> T:
        told: T = await self._glance.look(name, work, fresh_s=fresh_s)
        return told

    def _stretch(self, minutes: int) -> tuple[float, float, int]:
        """When the first bucket of the last `minutes` begins, how many seconds each has, and how many they are. The
        last one is under way, and buckets stay where they are; those of long stretches are whole days (UTC)."""
        days = minutes * 60 / DAY_S
        bucket_s, buckets = minutes * 60 / BUCKETS, BUCKETS
        if days >= IN_DAYS:
            bucket_s = ceil(days / BUCKETS) * DAY_S
            buckets = ceil(days * DAY_S / bucket_s)
        return ((self._now() // bucket_s) - buckets + 1) * bucket_s, bucket_s, buckets


QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _quantile(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed."""
    return ordered[max(0, ceil(len(ordered) * share) - 1)] if ordered else None


def _fresh_s(minutes: int) -> float:
    """For how long an answer over so much time is told again, in seconds: the longer, the slower it changes."""
    return min(60.0, max(1.0, minutes / 300))


def _by_strategy(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(point["strategy"] for point in points)
    told = []
    for name in names:
        own = [point for point in points if point["strategy"] == name]
        told.append({"strategy": name, "points": own, "frontier": on_the_frontier(own)})
    return told


def _whole(request: web.Request, name: str, default: int, most: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= most):
        raise BadRequest(f"'{name}' must be a whole number from 1 to {most}.", param=name)
    return int(given)


def _place(given: str | None) -> tuple[float, str] | None:
    if not given:
        return None
    at, _, id = given.partition(",")
    try:
        return float(at), id
    except ValueError:
        raise BadRequest("'before' must be the 'next' of a former answer.", param="before") from None
