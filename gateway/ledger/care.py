"""Whether a ledger is whole: what `chorus ledger check` tells."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore

__all__ = ["Health", "check"]


ADDED = "SELECT {day}, sum(cost_nano) FROM requests GROUP BY 1"
MARKED = (
    "SELECT days.day, coalesce(sum(day_requests.cost_nano), 0) FROM days LEFT JOIN day_requests "
    "ON day_requests.mark = days.mark WHERE days.made = 1 GROUP BY days.day"
)


@dataclass(frozen=True, slots=True)
class Health:
    """`first` and `last`: when the oldest and the newest request was, seconds since the epoch, None without any.
    `expired`: requests older than the retention. `faults`: what is wrong, in words."""

    requests: int
    calls: int
    first: float | None
    last: float | None
    expired: int
    faults: tuple[str, ...]


def check(store: LedgerStore, before: float) -> Health:
    """Read the whole ledger and compare its books: each request costs what its calls cost, no call is without its
    request, and days that were added up cost what their requests cost. Rows from before the time `before`, seconds
    since the epoch, are past their retention. Raises `SettingsError`, `StateUnavailable`."""
    faults = []
    if isinstance(store, SqliteLedger) and (damage := store.damage()):
        faults.append(f"the file is damaged: {damage}")
    ((requests, first, last),) = store.read("SELECT count(*), min(at), max(at) FROM requests")
    ((calls,),) = store.read("SELECT count(*) FROM calls")
    ((expired,),) = store.read("SELECT count(*) FROM requests WHERE at < ?", [before])
    ((unequal,),) = store.read(
        "SELECT count(*) FROM requests LEFT JOIN "
        "(SELECT request, sum(cost_nano) AS cost FROM calls GROUP BY request) AS added "
        "ON added.request = requests.id WHERE requests.cost_nano <> coalesce(added.cost, 0)"
    )
    ((alone,),) = store.read(
        "SELECT count(*) FROM calls LEFT JOIN requests ON requests.id = calls.request "
        "WHERE requests.id IS NULL AND calls.at >= ?",
        [before],  # what is retired goes table by table
    )
    added = {day: int(cost) for day, cost in store.read(ADDED)}
    wrong = sorted(day for day, cost in store.read(MARKED) if added.get(day, 0) != int(cost))
    if wrong:
        faults.append(f"what is added up of {', '.join(wrong)} is not what its requests cost")
    if unequal:
        faults.append(f"{unequal} requests do not cost what their calls cost")
    if alone:
        faults.append(f"{alone} calls have no request")
    return Health(requests, calls, first, last, expired, tuple(faults))
