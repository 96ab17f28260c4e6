"""The door of the hot routes: what a request may use is set aside before it is answered, and settled after.

Scopes are asked one at a time and always in this order: everyone, the model or strategy named, the team, the key. In
each, rates come before calls at once, and these before money. Where one refuses, what the earlier ones gave goes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from gateway.keys.key import Key
from gateway.limits.bounds import Bound
from gateway.limits.rates import Rate, Rates, TooFast
from gateway.limits.slices import Exhausted, Slice, Slices
from gateway.limits.windows import Window, window
from gateway.state.store import Store, StoreAway
from protocol.errors import ChorusError, QuotaSpent, RateLimited, StateUnavailable
from protocol.tenancy import LimitSettings, LimitsSettings, Period

__all__ = ["Door", "Stay", "money_account"]

KEEP_S = 2 * 86_400.0
"""How long a window's account is kept after its end: calls that began in it still settle there."""
IDLE_ACCOUNT_S = 3600.0
CONCURRENT_PATIENCE_S = 0.5
"""How long a request waits for a place that another worker holds idle."""
SPOKEN: dict[Period, str] = {"day": "today", "week": "this week", "month": "this month", "total": "in total"}


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of one scope. `scope` names it in accounts ("key:key_1"), `whose` to the caller ("this key's")."""

    scope: str
    whose: str
    settings: LimitSettings


@dataclass(slots=True)
class Stay:
    """What one request has set aside. `metered`: a budget of money concerns it."""

    metered: bool = False
    slices: list[tuple[Slice, int, bool]] = field(default_factory=list)
    requests: list[tuple[Rate, int]] = field(default_factory=list)
    tokens: list[tuple[Rate, int]] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` of the tightest limits that concern it; none without such limits."""
        told: dict[str, str] = {}
        for what, rates in (("requests", self.requests), ("tokens", self.tokens)):
            if rates:
                rate = min((rate for rate, _ in rates), key=lambda rate: rate.remaining / rate.capacity)
                told |= _told(what, rate)
        return told


class Door:
    """Over one worker's `slices` and `rates`. `now` tells seconds since the epoch."""

    def __init__(
        self,
        limits: LimitsSettings,
        store: Store,
        slices: Slices,
        rates: Rates,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._limits, self._store, self._now = limits, store, now
        self._slices, self._rates = slices, rates
        self._alone: dict[str, int] = {}
        self._windows: dict[Period, Window] = {}

    def renewed(self, limits: LimitsSettings) -> Door:
        """A door with other limits, over the same accounts."""
        door = Door(limits, self._store, self._slices, self._rates, self._now)
        door._alone = self._alone
        return door

    def concerns(self, key: Key, name: str) -> list[Limit]:
        """The limits that a request of `key` for the model or strategy `name` must fit, in their order."""
        limits = self._limits
        found = []
        if not limits.everyone.empty:
            found.append(Limit("everyone", "the gateway's", limits.everyone))
        if name in limits.models and not limits.models[name].empty:
            found.append(Limit(f"model:{name}", "this model's", limits.models[name]))
        if key.team is not None and key.team in limits.teams and not limits.teams[key.team].empty:
            found.append(Limit(f"team:{key.team}", "this team's", limits.teams[key.team]))
        if not key.limits.empty:
            found.append(Limit(f"key:{key.id}", "this key's", key.limits))
        return found

    async def enter(self, limits: list[Limit], bound: Bound) -> Stay:
        """Set aside what `bound` says. Raises `RateLimited`, `QuotaSpent`, `StateUnavailable`."""
        stay = Stay()
        try:
            for limit in limits:
                await self._rate(limit, "requests", limit.settings.rpm, 1, stay)
                await self._rate(limit, "tokens", limit.settings.tpm, bound.tokens, stay)
                await self._concurrent(limit, stay)
                for period, usd in limit.settings.budgets_usd.items():
                    await self._money(limit, period, round(usd * 1e9), bound.nanodollars, stay)
        except BaseException:
            for rate, taken in (*stay.requests, *stay.tokens):
                self._rates.correct(rate, taken, 0)
            self.leave(stay, 0, None)
            raise
        return stay

    def leave(self, stay: Stay, nanodollars: int, tokens: int | None) -> None:
        """The request is over: it cost `nanodollars` and read and wrote `tokens` (None: already given back)."""
        for slice, reserved, money in stay.slices:
            self._slices.release(slice, reserved, nanodollars if money else 0)
        if tokens is not None:
            for rate, taken in stay.tokens:
                self._rates.correct(rate, taken, tokens)
        for scope in stay.alone:
            self._alone[scope] -= 1
        stay.slices.clear()
        stay.alone.clear()

    async def _rate(self, limit: Limit, what: str, capacity: int | None, amount: int, stay: Stay) -> None:
        if capacity is None:
            return
        rate = self._rates.rate(f"{what}/{limit.scope}", capacity)
        try:
            taken = await self._rates.take(rate, amount)
        except TooFast as error:
            raise RateLimited(
                f"The limit of {capacity} {what} per minute is reached, {limit.whose} own. "
                f"Try again in {max(0.001, error.wait_s):.3g} s.",
                type=what,
                retry_after_s=error.wait_s,
                limits=_told(what, rate),
            ) from None
        except StoreAway:
            raise _unavailable() from None
        (stay.requests if what == "requests" else stay.tokens).append((rate, taken))

    async def _concurrent(self, limit: Limit, stay: Stay) -> None:
        most = limit.settings.concurrent
        if most is None:
            return
        slice = self._slices.slice(f"concurrent/{limit.scope}", most, IDLE_ACCOUNT_S)
        try:
            await self._slices.reserve(slice, 1, patience_s=CONCURRENT_PATIENCE_S)
        except Exhausted:
            raise _too_many(limit, most) from None
        except StoreAway:
            if self._limits.without_store == "refuse":
                raise _unavailable() from None
            if self._alone.get(limit.scope, 0) + slice.reserved >= most:
                raise _too_many(limit, most) from None
            self._alone[limit.scope] = self._alone.get(limit.scope, 0) + 1
            stay.alone.append(limit.scope)
            return
        stay.slices.append((slice, 1, False))

    async def _money(self, limit: Limit, period: Period, budget: int, amount: int, stay: Stay) -> None:
        stay.metered = True
        now = self._now()
        current = self._windows.get(period)
        if current is None or (current.ends is not None and now >= current.ends):
            current = self._windows[period] = window(period, now)
        forget_s = None if current.ends is None else current.ends - now + KEEP_S
        slice = self._slices.slice(f"usd/{period}/{current.name}/{limit.scope}", budget, forget_s)
        try:
            await self._slices.reserve(slice, amount, patience_s=self._limits.patience_s)
        except Exhausted as error:
            if error.final:
                raise QuotaSpent(
                    f"The budget {SPOKEN[period]} of {budget / 1e9:g} USD does not cover this request any more, "
                    f"which may cost up to {amount / 1e9:.6f} USD; it is {limit.whose} own."
                ) from None
            raise RateLimited(
                f"Requests being answered now hold the rest of {limit.whose} budget {SPOKEN[period]}.",
                type="insufficient_quota",
                retry_after_s=1.0,
            ) from None
        except StoreAway:
            raise _unavailable() from None
        stay.slices.append((slice, amount, True))


def money_account(scope: str, period: Period, now: float) -> tuple[str, float | None]:
    """The account of a scope's budget for the `period` that is now, and when it may be forgotten, in seconds from
    now."""
    current = window(period, now)
    forget_s = None if current.ends is None else current.ends - now + KEEP_S
    return f"usd/{period}/{current.name}/{scope}", forget_s


def _too_many(limit: Limit, most: int) -> ChorusError:
    return RateLimited(
        f"No more than {most} requests at once are allowed, by {limit.whose} own limit.",
        type="requests",
        retry_after_s=1.0,
    )


def _unavailable() -> ChorusError:
    return StateUnavailable("The store of limits and budgets does not answer; try again soon.")


def _told(what: str, rate: Rate) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(rate.capacity),
        f"x-ratelimit-remaining-{what}": str(rate.remaining),
        f"x-ratelimit-reset-{what}": _duration(rate.reset_s),
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `250ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
