"""The door of the hot routes: what a request may use is set aside before it is answered, and settled after.

Scopes are asked one at a time and always in this order: everyone, the model or strategy named, the team, the key. In
each, rates come before calls at once, and these before money. Where one refuses, what the earlier ones gave goes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

from gateway.keys.key import Key
from gateway.limits.bounds import NANO, Bound
from gateway.limits.rates import PERIOD_S, Rate, Rates, TooFast
from gateway.limits.slices import Exhausted, Slice, Slices
from gateway.limits.windows import Window, window
from gateway.state.store import Store, StoreAway
from protocol.errors import ChorusError, QuotaSpent, RateLimited, StateUnavailable
from protocol.tenancy import LimitSettings, LimitsSettings, Period

__all__ = ["Door", "Gate", "Stay", "Terms", "money_account"]

KEEP_S = 2 * 86_400.0
"""How long a window's account is kept after its end: calls that began in it still settle there."""
IDLE_ACCOUNT_S = 3600.0
CONCURRENT_PATIENCE_S = 0.5
"""How long a request waits for a place that another worker holds idle."""
TERMS_S = 20.0
"""For how long a key's terms hold what they found; rates and slices are kept longer than that when nobody uses them."""
KNOWN = 10_000
"""Of how many keys and names the terms are remembered."""
REQUESTS, TOKENS = (
    tuple(f"x-ratelimit-{told}-{what}" for told in ("limit", "remaining", "reset"))
    for what in ("requests", "tokens")
)
"""The headers that tell of a rate."""
SPOKEN: dict[Period, str] = {"day": "today", "week": "this week", "month": "this month", "total": "in total"}


@dataclass(frozen=True, slots=True)
class Gate:
    """One scope's limits, with this worker's part of what each of them counts. `scope` names it in accounts
    ("key:key_1"), `whose` to the caller ("this key's")."""

    scope: str
    whose: str
    settings: LimitSettings
    requests: Rate | None
    tokens: Rate | None
    places: Slice | None
    money: tuple[tuple[Period, Slice], ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request of a `key` for one name must fit, found once for many: the gates in their order. They hold until
    one of the budgets' windows `ends` (seconds since the epoch) and until `renewed_at` (the event loop's clock)."""

    key: Key
    gates: tuple[Gate, ...]
    metered: bool
    ends: float
    renewed_at: float


class Stay:
    """What one request has set aside; `metered`: a budget of money concerns it."""

    __slots__ = ("alone", "metered", "requests", "slices", "tokens")

    def __init__(self, metered: bool) -> None:
        self.metered = metered
        self.slices: list[tuple[Slice, int, bool]] = []
        self.requests: list[tuple[Rate, int]] = []
        self.tokens: list[tuple[Rate, int]] = []
        self.alone: tuple[str, ...] = ()

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` of the tightest limits that concern it; none without such limits."""
        told: dict[str, str] = {}
        if self.requests:
            _tell(told, REQUESTS, _tightest(self.requests))
        if self.tokens:
            _tell(told, TOKENS, _tightest(self.tokens))
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
        self._terms: dict[tuple[str, str], Terms] = {}

    def renewed(self, limits: LimitsSettings) -> Door:
        """A door with other limits, over the same accounts."""
        door = Door(limits, self._store, self._slices, self._rates, self._now)
        door._alone = self._alone
        return door

    def concerns(self, key: Key, name: str) -> Terms:
        """What a request of `key` for the model or strategy `name` must fit."""
        terms = self._terms.get((key.id, name))
        if (
            terms is None
            or (terms.key is not key and terms.key != key)
            or self._now() >= terms.ends
            or asyncio.get_running_loop().time() >= terms.renewed_at
        ):
            terms = self._find(key, name)
        return terms

    def _find(self, key: Key, name: str) -> Terms:
        limits = self._limits
        concerned = [("everyone", "the gateway's", limits.everyone)]
        if name in limits.models:
            concerned.append((f"model:{name}", "this model's", limits.models[name]))
        if key.team is not None and key.team in limits.teams:
            concerned.append((f"team:{key.team}", "this team's", limits.teams[key.team]))
        concerned.append((f"key:{key.id}", "this key's", key.limits))
        now = self._now()
        gates = tuple(self._gate(*each, now) for each in concerned if not each[2].empty)
        periods = {period for gate in gates for period, _ in gate.money}
        ends = min((self._windows[period].ends or inf for period in periods), default=inf)
        terms = Terms(key, gates, bool(periods), ends, asyncio.get_running_loop().time() + TERMS_S)
        if len(self._terms) >= KNOWN:
            self._terms.clear()
        self._terms[key.id, name] = terms
        return terms

    def _gate(self, scope: str, whose: str, limits: LimitSettings, now: float) -> Gate:
        rates, slices = self._rates, self._slices
        money = []
        for period, usd in limits.budgets_usd.items():
            current = self._windows.get(period)
            if current is None or (current.ends is not None and now >= current.ends):
                current = self._windows[period] = window(period, now)
            account, forget_s = _money_account(scope, period, current, now)
            money.append((period, slices.slice(account, round(usd * NANO), forget_s)))
        return Gate(
            scope,
            whose,
            limits,
            None if limits.rpm is None else rates.rate(f"requests/{scope}", limits.rpm),
            None if limits.tpm is None else rates.rate(f"tokens/{scope}", limits.tpm),
            None
            if limits.concurrent is None
            else slices.slice(f"concurrent/{scope}", limits.concurrent, IDLE_ACCOUNT_S),
            tuple(money),
        )

    async def enter(self, terms: Terms, bound: Bound) -> Stay:
        """Set aside what `bound` says. What this worker holds is taken at once; for the rest the store is asked. Raises
        `RateLimited`, `QuotaSpent`, `StateUnavailable`."""
        stay, now = Stay(terms.metered), asyncio.get_running_loop().time()
        try:
            for gate in terms.gates:
                if (rate := gate.requests) is not None:
                    if not rate.take(1, now):
                        await self._rate(gate, "requests", rate, 1)
                    stay.requests.append((rate, 1))
                if (rate := gate.tokens) is not None:
                    amount = min(bound.tokens, rate.capacity)
                    if not rate.take(amount, now):
                        await self._rate(gate, "tokens", rate, amount)
                    stay.tokens.append((rate, amount))
                if (places := gate.places) is not None:
                    if places.take(1, now) or await self._place(gate, places):
                        stay.slices.append((places, 1, False))
                    else:
                        stay.alone = (*stay.alone, gate.scope)
                for period, money in gate.money:
                    if not money.take(bound.nanodollars, now):
                        await self._money(gate, period, money, bound.nanodollars)
                    stay.slices.append((money, bound.nanodollars, True))
        except BaseException:
            for rate, taken in (*stay.requests, *stay.tokens):
                rate.correct(taken, 0)
            self.leave(stay, 0, None)
            raise
        return stay

    def leave(self, stay: Stay, nanodollars: int, tokens: int | None) -> None:
        """The request is over: it cost `nanodollars` and read and wrote `tokens` (None: already given back)."""
        now = asyncio.get_running_loop().time()
        for slice, reserved, money in stay.slices:
            slice.settle(reserved, nanodollars if money else 0, now)
        if tokens is not None:
            for rate, taken in stay.tokens:
                rate.correct(taken, tokens)
        for scope in stay.alone:
            self._alone[scope] -= 1
        stay.slices, stay.alone = [], ()

    async def _rate(self, gate: Gate, what: str, rate: Rate, amount: int) -> None:
        """Take `amount` of what the store has."""
        try:
            await self._rates.take(rate, amount)
        except TooFast as error:
            limits: dict[str, str] = {}
            _tell(limits, REQUESTS if what == "requests" else TOKENS, rate)
            raise RateLimited(
                f"The limit of {rate.capacity} {what} per minute is reached, {gate.whose} own. "
                f"Try again in {max(0.001, error.wait_s):.3g} s.",
                type=what,
                retry_after_s=error.wait_s,
                limits=limits,
            ) from None
        except StoreAway:
            raise _unavailable() from None

    async def _place(self, gate: Gate, places: Slice) -> bool:
        """Wait for a place among `places`. False: with the store away, for one that this worker counts by itself."""
        try:
            await self._slices.reserve(places, 1, patience_s=CONCURRENT_PATIENCE_S)
        except Exhausted:
            raise _too_many(gate, places.limit) from None
        except StoreAway:
            if self._limits.without_store == "refuse":
                raise _unavailable() from None
            alone = self._alone.get(gate.scope, 0)
            if alone + places.reserved >= places.limit:
                raise _too_many(gate, places.limit) from None
            self._alone[gate.scope] = alone + 1
            return False
        return True

    async def _money(self, gate: Gate, period: Period, money: Slice, amount: int) -> None:
        """Wait for `amount` of a budget."""
        try:
            await self._slices.reserve(money, amount, patience_s=self._limits.patience_s)
        except Exhausted as error:
            if error.final:
                raise QuotaSpent(
                    f"The budget {SPOKEN[period]} of {money.limit / NANO:g} USD does not cover this request any "
                    f"more, which may cost up to {amount / NANO:.6f} USD; it is {gate.whose} own."
                ) from None
            raise RateLimited(
                f"Requests being answered now hold the rest of {gate.whose} budget {SPOKEN[period]}.",
                type="insufficient_quota",
                retry_after_s=1.0,
            ) from None
        except StoreAway:
            raise _unavailable() from None


def money_account(scope: str, period: Period, now: float) -> tuple[str, float | None]:
    """The account of a scope's budget for the `period` that is now, and when it may be forgotten, in seconds from
    now."""
    return _money_account(scope, period, window(period, now), now)


def _money_account(scope: str, period: Period, current: Window, now: float) -> tuple[str, float | None]:
    forget_s = None if current.ends is None else current.ends - now + KEEP_S
    return f"usd/{period}/{current.name}/{scope}", forget_s


def _too_many(gate: Gate, most: int) -> ChorusError:
    return RateLimited(
        f"No more than {most} requests at once are allowed, by {gate.whose} own limit.",
        type="requests",
        retry_after_s=1.0,
    )


def _unavailable() -> ChorusError:
    return StateUnavailable("The store of limits and budgets does not answer; try again soon.")


def _tightest(rates: list[tuple[Rate, int]]) -> Rate:
    if len(rates) == 1:
        return rates[0][0]
    return min((rate for rate, _ in rates), key=lambda rate: rate.remaining / rate.capacity)


def _tell(told: dict[str, str], names: tuple[str, ...], rate: Rate) -> None:
    """Add to `told`, by these `names`, how much of `rate` is left."""
    limit, left, reset = names
    remaining = rate.remaining
    told[limit], told[left] = str(rate.capacity), str(remaining)
    told[reset] = _duration((rate.capacity - remaining) * PERIOD_S / rate.capacity)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `250ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{max(0, ceil(seconds * 1000))}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
