"""The arithmetic of shared limits, without a clock and without I/O: amounts, times and asks go in, grants come out.

**Account**: an amount that may be used up once (US dollars of a day), or held for a while (calls at once).
Workers do not ask for every request: each *holds* a slice and reports what it has used of it. A holder's two
numbers are cumulative, so that repeating a report changes nothing, and a report whose answer was lost can be
sent again:

    spent   all that this holder has used up so far
    held    all that it may use up so far (spent ≤ held); the slice in its hand is held - spent
    Σ held of all holders + settled ≤ limit      is the law; nobody can overspend together

A holder that stays silent past its lease is dead: its slice goes back (`held = spent`), and an hour later its
row is folded into `settled`. Redis runs the same rules as a Lua script; a test compares the two.

A clock that is set back neither prolongs a lease nor stops a bucket from filling.

**Bucket**: a rate. It fills by itself, so a worker that dies with a slice of it leaks nothing for long, and it
needs no holders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FOLD_S", "SHARE", "Account", "Ask", "Bucket", "Grant", "Holder", "Taken", "Want", "sync", "take"]

FOLD_S = 3600.0
"""How long the row of a dead holder is kept: should it only have slept, its reports still count once."""
SHARE = 8
"""A grant beyond what is needed now takes at most this part (1/8) of what is left, so that the last of a
budget is not spread over idle hands."""


@dataclass(slots=True)
class Holder:
    """One worker's part of an account; `expires` in seconds of the store's clock."""

    spent: int = 0
    held: int = 0
    expires: float = 0.0


@dataclass(slots=True)
class Account:
    """All holders' parts, and what holders that are gone have spent."""

    settled: int = 0
    holders: dict[str, Holder] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """One holder's report and wish, all amounts cumulative: it has `spent`, must `need` and would like to
    `want` hold.

    `want < held` gives the difference back. `close` ends the holder. The lease runs `ttl_s` seconds from
    now; `forget_s` seconds after its last use the account itself may be forgotten (None: never).
    """

    account: str
    limit: int
    holder: str
    spent: int
    need: int
    want: int
    ttl_s: float
    forget_s: float | None = None
    close: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder may use up by now (`held`, cumulative), and what all holders have `spent`, the gone
    included."""

    held: int
    spent: int


def sync(account: Account, ask: Ask, now: float) -> Grant:
    """Apply `ask` to `account`, in place. `now`: seconds of the store's clock. Grants all that is needed or no more
    than before."""
    for name, holder in list(account.holders.items()):
        holder.expires = min(holder.expires, now + ask.ttl_s)
        if holder.expires <= now and name != ask.holder:
            holder.held = holder.spent
            if holder.expires + FOLD_S <= now:
                account.settled += holder.spent
                del account.holders[name]
    own = account.holders.setdefault(ask.holder, Holder())
    if own.expires <= now:
        own.held = own.spent  # it slept too long: what it held may be another's by now
    own.expires = now + ask.ttl_s
    own.spent = max(own.spent, ask.spent)
    own.held = max(own.held, own.spent)
    others = account.settled + sum(holder.held for holder in account.holders.values()) - own.held
    room = ask.limit - others
    if ask.want <= own.held:
        own.held = max(own.spent, ask.want)
    elif room >= ask.need:
        own.held = max(own.held, ask.need + min(ask.want - ask.need, (room - ask.need) // SHARE))
    held = own.held
    spent = account.settled + sum(holder.spent for holder in account.holders.values())
    if ask.close:
        account.settled += own.spent
        del account.holders[ask.holder]
    return Grant(held, spent)


@dataclass(slots=True)
class Bucket:
    """`level` as it was `at` that time, in seconds of the store's clock; below 0 it is in debt."""

    level: float
    at: float


@dataclass(frozen=True, slots=True)
class Want:
    """A bucket of `capacity` that fills within `period_s` is asked for at least `need` and at most `want`.

    First `debit` is taken off it whether it is there or not (below 0: given back).
    """

    bucket: str
    capacity: int
    period_s: float
    need: int
    want: int
    debit: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """`granted` is 0 or at least what was needed; `level` is what is left; `wait_s` seconds until it would be
    enough."""

    granted: int
    level: float
    wait_s: float


def take(bucket: Bucket, want: Want, now: float) -> Taken:
    """Apply `want` to `bucket`, in place."""
    rate = want.capacity / want.period_s
    full = float(want.capacity)
    filled = min(full, bucket.level + max(0.0, now - bucket.at) * rate)
    level = max(-full, min(full, filled - want.debit))
    granted = 0
    if level >= want.need:
        granted = want.need + min(want.want - want.need, int((level - want.need) // SHARE))
    bucket.level, bucket.at = level - granted, now
    wait_s = 0.0 if level >= want.need else (want.need - level) / rate
    return Taken(granted, bucket.level, wait_s)
