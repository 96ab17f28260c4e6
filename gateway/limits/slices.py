"""A worker's slices of shared accounts: taken from without asking anybody, refilled, reported and given back.

Reserving is arithmetic while the slice lasts. When it does not, those who wait stand in a queue per slice, and
one *pump* asks the store for all of them. What the store cannot give now may still come back, because calls
under way have reserved more than they will cost: then the queue waits, and only what the spent part alone rules
out is refused for good.

A pass every tenth of a second reports what was spent, renews leases before they end and gives back what lies
idle, so that a budget's last cents are spent before anybody is refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from time import monotonic

from gateway.state.accounts import Ask, Grant
from gateway.state.store import Store, StoreAway

__all__ = ["LEASE_S", "Exhausted", "Slice", "Slices"]

log = logging.getLogger("chorus.limits")

LEASE_S = 10.0
"""How long a worker that falls silent keeps what it holds."""
SAFE = 0.8
"""The part of a lease in which its holder believes in it: the store may have counted from earlier on."""
PASS_S = 0.1
IDLE_S = 0.3
"""After so long without a reservation, what is not in use goes back."""
KEPT_S = 60.0
POLL_S = 0.03
AHEAD = 16
"""How many reservations of the last one's size a refill takes along, at least."""
PASSES_AHEAD = 3
"""For how many passes of reservations, at the pace of the last one, it does where more are made."""
BATCH = 200


class Exhausted(Exception):
    """There is not enough left. `final`: it is spent; else calls under way hold it, and some may come back."""

    def __init__(self, *, final: bool) -> None:
        super().__init__("spent" if final else "held")
        self.final = final


@dataclass(slots=True, eq=False)
class Slice:
    """What this worker holds of one account; amounts are cumulative, `reserved` is in use by calls under way.
    `made` counts reservations since the last pass, `pace` those between the two before. Times are on the monotonic
    clock."""

    account: str
    limit: int
    holder: str
    forget_s: float | None
    held: int = 0
    spent: int = 0
    reported: int = 0
    reserved: int = 0
    last: int = 1
    made: int = 0
    pace: int = 0
    believed_until: float = 0.0
    used_at: float = 0.0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    pump: asyncio.Task[None] | None = None

    def free(self, now: float) -> int:
        """What may be reserved without asking."""
        return self.held - self.spent - self.reserved if now < self.believed_until else 0

    def take(self, amount: int, now: float) -> bool:
        """Set `amount` aside if that needs nobody's leave; whether it did."""
        self.used_at, self.last = now, amount or 1
        if self.waiting or now >= self.believed_until or amount > self.held - self.spent - self.reserved:
            return False
        self.made += 1
        self.reserved += amount
        return True

    def settle(self, reserved: int, spent: int, now: float) -> None:
        """The call is over: free what was `reserved`, of which `spent` is used up (of calls at once, nothing)."""
        self.reserved -= reserved
        self.spent += spent
        self.used_at = now
        if self.waiting:
            self.changed.set()

    @property
    def in_use(self) -> int:
        """The least it must hold."""
        return self.spent + self.reserved

    @property
    def ahead(self) -> int:
        """How much a refill takes along: for a crowd that has just come, by how many have come already."""
        return self.last * max(AHEAD, PASSES_AHEAD * max(self.pace, self.made))


class Slices:
    """All slices of one worker, whose name `worker` no other worker ever has. `run` must be running as a task."""

    def __init__(self, store: Store, worker: str, *, lease_s: float = LEASE_S) -> None:
        self._store, self._worker, self._lease_s = store, worker, lease_s
        self._slices: dict[str, Slice] = {}
        self._made = 0

    def slice(self, account: str, limit: int, forget_s: float | None = None) -> Slice:
        """The worker's slice of `account`; `forget_s`: see `Ask`. It is kept for as long as it is used, and `KEPT_S`
        after."""
        found = self._slices.get(account)
        if found is None:
            self._made += 1
            # A name of its own for every slice: a forgotten one's reports must never be taken for the next one's.
            found = Slice(account, limit, f"{self._worker}.{self._made}", forget_s)
            self._slices[account] = found
        found.limit, found.used_at = limit, monotonic()
        return found

    async def reserve(self, slice: Slice, amount: int, *, patience_s: float) -> None:
        """Set `amount` aside, waiting for it at most `patience_s` seconds. Raises `Exhausted`, `StoreAway`."""
        if slice.take(amount, monotonic()):
            return
        slice.made += 1
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slice.waiting.append((amount, ticket))
        if slice.pump is None or slice.pump.done():
            slice.pump = asyncio.create_task(self._pump(slice))
        try:
            async with asyncio.timeout(patience_s):
                await ticket
        except TimeoutError:
            raise (StoreAway("no answer") if self._store.degraded else Exhausted(final=False)) from None
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                self.release(slice, amount)  # granted and left at the same moment
            raise

    def release(self, slice: Slice, reserved: int, spent: int = 0) -> None:
        """The call is over: free what was `reserved`, of which `spent` is used up."""
        slice.settle(reserved, spent, monotonic())

    async def run(self) -> None:
        """Keep reporting, renewing and giving back, until cancelled."""
        while True:
            await asyncio.sleep(PASS_S)
            for slice in self._slices.values():
                slice.pace, slice.made = slice.made, 0
            try:
                await self.report()
            except StoreAway as error:
                log.debug("slices are not reported: %s", error)

    async def report(self, *, closing: bool = False) -> None:
        """One pass over the slices. Raises `StoreAway`."""
        now = monotonic()
        due = [s for s in self._slices.values() if not s.asking.locked() and (closing or self._due(s, now))]
        for start in range(0, len(due), BATCH):
            await self._report(due[start : start + BATCH], now, closing)

    async def close(self) -> None:
        """Give everything back. A store that is away will see the leases end instead."""
        try:
            await self.report(closing=True)
        except StoreAway as error:
            log.warning("slices could not be given back: %s", error)

    def _due(self, slice: Slice, now: float) -> bool:
        idle = now - slice.used_at > IDLE_S and not slice.waiting
        return (
            slice.spent > slice.reported
            or (idle and slice.held > slice.in_use)
            or (slice.held > slice.spent and now > slice.believed_until - self._lease_s * SAFE / 2)
            or (idle and now - slice.used_at > KEPT_S and not slice.reserved)
        )

    async def _report(self, due: list[Slice], now: float, closing: bool) -> None:
        asks = []
        for slice in due:
            idle = now - slice.used_at > IDLE_S and not slice.waiting
            over = idle and not slice.reserved and (closing or now - slice.used_at > KEPT_S)
            # What lies idle goes back; what is in use stays; where use goes on, the next slice is fetched ahead.
            low = not idle and slice.free(now) < slice.ahead // 2
            want = slice.in_use if idle or closing else max(slice.held, slice.in_use + slice.ahead * low)
            asks.append(self._ask(slice, min(slice.in_use, want), want, close=over or closing))
            if over:
                del self._slices[slice.account]
        async with AsyncExitStack() as locked:
            for slice in due:
                await locked.enter_async_context(slice.asking)  # free, or it would not be due
            await self._told(due, asks)

    async def _pump(self, slice: Slice) -> None:
        """Serve the queue until it is empty."""
        while self._serve(slice):
            amounts = [amount for amount, _ in slice.waiting]
            slice.changed.clear()
            try:
                async with slice.asking:
                    need = slice.in_use + amounts[0]
                    (grant,) = await self._told(
                        [slice], [self._ask(slice, need, need + sum(amounts[1:]) + slice.ahead)]
                    )
                    if self._serve(slice):
                        self._refuse_the_impossible(slice, grant)
                        # Two workers must not each keep half of what one request needs.
                        await self._told([slice], [self._ask(slice, slice.in_use, slice.in_use)])
            except StoreAway as error:
                if error.sure:
                    for _, ticket in slice.waiting:
                        if not ticket.done():
                            ticket.set_exception(error)
            if slice.waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S * random.uniform(0.5, 1.5)):
                        await slice.changed.wait()

    def _serve(self, slice: Slice) -> bool:
        """Hand out what is free, in order. Returns whether somebody still waits."""
        now = monotonic()
        while slice.waiting:
            amount, ticket = slice.waiting[0]
            if not ticket.done():
                if slice.free(now) < amount:
                    return True
                slice.reserved += amount
                ticket.set_result(None)
            slice.waiting.popleft()
        return False

    def _refuse_the_impossible(self, slice: Slice, grant: Grant) -> None:
        """Refuse who would not fit if all that is held came back."""
        for amount, ticket in slice.waiting:
            if not ticket.done() and grant.spent + amount > slice.limit:
                ticket.set_exception(Exhausted(final=True))

    def _ask(self, slice: Slice, need: int, want: int, *, close: bool = False) -> Ask:
        return Ask(
            slice.account,
            slice.limit,
            slice.holder,
            slice.spent,
            need,
            want,
            self._lease_s,
            slice.forget_s,
            close,
        )

    async def _told(self, slices: list[Slice], asks: list[Ask]) -> list[Grant]:
        """Send the asks and take over the answers. Raises `StoreAway`; then what was asked back is not believed in,
        for the store may have it."""
        sent_at = monotonic()
        for slice, ask in zip(slices, asks, strict=True):
            slice.held = min(slice.held, ask.want)
        grants = await self._store.sync(asks)
        for slice, ask, grant in zip(slices, asks, grants, strict=True):
            slice.held, slice.reported = grant.held, max(slice.reported, ask.spent)
            slice.believed_until = sent_at + self._lease_s * SAFE
        return grants
