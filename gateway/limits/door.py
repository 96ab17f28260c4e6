"""The door of the hot routes: what a request may use is set aside before it is answered, and settled after.

Scopes are asked one at a time and always in this order: everyone, the model or strategy named, the team, the key. In
each, rates come before calls at once, and these before money. Where one refuses, what the earlier ones gave goes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from time import monotonic
from typing import Protocol

from gateway.keys.key import Key
from gateway.limits.bounds import NANO, Bound
from gateway.limits.rates import Rate, Rates, TooFast
from gateway.limits.slices import Exhausted, Slice, Slices
from gateway.limits.windows import Window, window
from gateway.state.store import Store, StoreAway
from protocol.errors import ChorusError, QuotaSpent, RateLimited, StateUnavailable
from protocol.tenancy import LimitSettings, LimitsSettings, Period
from protocol.value import value

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

    def pots(self) -> Iterator[tuple[Pot, int]]:
        """What they hold, in the order in which it is asked for, each with what it counts."""
        if self.requests is not None:
            yield self.requests, CALL
        if self.tokens is not None:
            yield self.tokens, TOKEN
        if self.places is not None:
            yield self.places, PLACE
        for _, money in self.money:
            yield money, MONEY


class Taken(Protocol):
    """Where something was set aside; `now` is on the monotonic clock."""

    def settle(self, taken: int, used: int, now: float) -> None:
        """Of `taken`, `used` turned out to be used."""
        ...


class Pot(Taken, Protocol):
    """A worker's part of what one limit counts."""

    def take(self, amount: int, now: float) -> bool:
        """Set `amount` aside if that needs nobody's leave; whether it did."""
        ...


CALL, TOKEN, PLACE, MONEY = range(4)
"""What pots count: calls and tokens a minute, calls at once, nanodollars."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request of a `key` for one name must fit, found once for many: the gates in their order, and all their
    `pots`, each with what it counts. `settled` are those of which a request may use less than it took, `told` the rates
    of each kind, with the headers that tell of them. They hold until one of the budgets' windows `ends` (seconds since
    the epoch) and until `renewed_at` (the monotonic clock)."""

    key: Key
    gates: tuple[Gate, ...]
    pots: tuple[tuple[Pot, int], ...]
    settled: tuple[tuple[Pot, int], ...]
    told: tuple[tuple[tuple[str, ...], tuple[Rate, ...]], ...]
    metered: bool
    ends: float
    renewed_at: float

    @classmethod
    def of(cls, key: Key, gates: tuple[Gate, ...], ends: float, renewed_at: float) -> Terms:
        """Those that the `gates` make."""
        pots = tuple(pot for gate in gates for pot in gate.pots())
        requests = tuple(gate.requests for gate in gates if gate.requests is not None)
        tokens = tuple(gate.tokens for gate in gates if gate.tokens is not None)
        return cls(
            key,
            gates,
            pots,
            tuple(pot for pot in pots if pot[1] != CALL),
            tuple(each for each in ((REQUESTS, requests), (TOKENS, tokens)) if each[1]),
            any(gate.money for gate in gates),
            ends,
            renewed_at,
        )


@value
class Stay:
    """What one request has set aside under its `terms`: `amounts`, by what pots count. `pots` are to be settled."""

    terms: Terms
    amounts: tuple[int, ...]
    pots: tuple[tuple[Taken, int], ...]

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` of the tightest limits that concern it; none without such limits."""
        told: dict[str, str] = {}
        for names, rates in self.terms.told:
            rate = rates[0] if len(rates) == 1 else min(rates, key=_share_left)
            told.update(zip(names, rate.told(), strict=True))
        return told


class _Alone:
    """Places of one scope that this worker counts by itself, `taken` of them."""

    taken = 0

    def within(self, most: int) -> bool:
        """Take one, unless `most` are; whether it did."""
        if self.taken >= most:
            return False
        self.taken += 1
        return True

    def settle(self, taken: int, used: int, now: float) -> None:
        """The call is over."""
        self.taken -= 1


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
        self._alone: dict[str, _Alone] = {}
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
            or monotonic() >= terms.renewed_at
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
        terms = Terms.of(key, gates, ends, monotonic() + TERMS_S)
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
        amounts, now = (1, bound.tokens, 1, bound.nanodollars), monotonic()
        for pot, counts in terms.pots:
            if not pot.take(amounts[counts], now):
                return await self._waited(terms, amounts, pot)
        return Stay(terms, amounts, terms.settled)

    async def _waited(self, terms: Terms, amounts: tuple[int, ...], empty: Pot) -> Stay:
        """Go on from the pot that was found `empty`. Where one refuses, what the earlier ones gave goes back."""
        taken: list[tuple[Taken, int]] = list(takewhile(lambda each: each[0] is not empty, terms.pots))
        try:
            for pot, counts in terms.pots[len(taken) :]:
                if pot is not empty and pot.take(amounts[counts], monotonic()):
                    taken.append((pot, counts))
                    continue
                gate = next(gate for gate in terms.gates if (pot, counts) in gate.pots())
                taken.append((await self._have(gate, pot, counts, amounts[counts]), counts))
        except BaseException:
            for had, counts in taken:
                had.settle(amounts[counts], 0, monotonic())
            raise
        return Stay(terms, amounts, tuple(each for each in taken if each[1] != CALL))

    def leave(self, stay: Stay, nanodollars: int, tokens: int) -> None:
        """The request is over: it cost `nanodollars` and read and wrote `tokens`."""
        amounts, used, now = stay.amounts, (1, tokens, 0, nanodollars), monotonic()
        for pot, counts in stay.pots:
            pot.settle(amounts[counts], used[counts], now)

    async def _have(self, gate: Gate, pot: Pot, counts: int, amount: int) -> Taken:
        """Have `amount` of what the store has; returns where it was set aside."""
        if isinstance(pot, Rate):
            await self._rate(gate, "requests" if counts == CALL else "tokens", pot, amount)
            return pot
        assert isinstance(pot, Slice)
        if counts == PLACE:
            return await self._place(gate, pot)
        period = next(period for period, money in gate.money if money is pot)
        await self._money(gate, period, pot, amount)
        return pot

    async def _rate(self, gate: Gate, what: str, rate: Rate, amount: int) -> None:
        """Take `amount` of what the store has."""
        try:
            await self._rates.take(rate, amount)
        except TooFast as error:
            names = REQUESTS if what == "requests" else TOKENS
            raise RateLimited(
                f"The limit of {rate.capacity} {what} per minute is reached, {gate.whose} own. "
                f"Try again in {max(0.001, error.wait_s):.3g} s.",
                type=what,
                retry_after_s=error.wait_s,
                limits=dict(zip(names, rate.told(), strict=True)),
            ) from None
        except StoreAway:
            raise _unavailable() from None

    async def _place(self, gate: Gate, places: Slice) -> Taken:
        """Wait for a place among `places`; with the store away, for one of those that this worker counts by itself."""
        try:
            await self._slices.reserve(places, 1, patience_s=CONCURRENT_PATIENCE_S)
        except Exhausted:
            raise _too_many(gate, places.limit) from None
        except StoreAway:
            if self._limits.without_store == "refuse":
                raise _unavailable() from None
            alone = self._alone.setdefault(gate.scope, _Alone())
            if not alone.within(places.limit - places.reserved):
                raise _too_many(gate, places.limit) from None
            return alone
        return places

    async def _money(self, gate: Gate, period: Period, money: Slice, amount: int) -> None:
        """Wait for `amount` of a budget."""
        try:
            await self._slices.reserve(money, amount, patience_s=self._limits.patience_s)
        except Exhausted as error:
            if error.final:
                raise QuotaSpent(
                    f"Of the budget {SPOKEN[period]} of {money.limit / NANO:g} USD, {gate.whose} own, too little is "
                    f"left for this request, which may cost up to {amount / NANO:.6f} USD. With a lower max_tokens "
                    "it may fit."
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


def _share_left(rate: Rate) -> float:
    return rate.remaining / rate.capacity
