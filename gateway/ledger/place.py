"""The ledger that the settings name, and what they know about prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LEDGER_FILE, LedgerStore, Read
from protocol.errors import SettingsError
from protocol.settings import Settings
from protocol.tenancy import state_folder

if TYPE_CHECKING:
    from gateway.ledger.savings import Savings

__all__ = ["make_ledger", "savings_against"]


def make_ledger(settings: Settings) -> LedgerStore:
    """PostgreSQL where `ledger.url` names one, else the SQLite file of this machine. Nothing is opened yet."""
    if settings.ledger.url is not None:
        return PostgresLedger(settings.ledger.url.get_secret_value())
    return SqliteLedger(state_folder(settings.state) / LEDGER_FILE)


def savings_against(
    settings: Settings, read: Read, model: str, since: float, by: Sequence[str] = ()
) -> Savings:
    """What was saved since then (seconds since the epoch) by not always asking `model`, at the price it has now; told
    apart `by` these, where all are names of `savings.GROUPS`. Raises `SettingsError` for a model that is not known or
    has no price, `StateUnavailable`."""
    from gateway.ledger.savings import GROUPS, savings  # numpy, which a worker that only writes need not load

    known = settings.models.get(model)
    if known is None or known.embedder:
        raise SettingsError(f"against {model!r}: the config has no such model that answers.")
    if known.price is None:
        raise SettingsError(f"against {model!r}: models.{model}.price is not set.")
    merging = [name for name, strategy in settings.strategies.items() if strategy.fuse or strategy.aggregate]
    return savings(
        read, model, known.price.price, since, merging=merging, by=by if set(by) <= set(GROUPS) else ()
    )
