"""Which ledger the settings name."""

from __future__ import annotations

from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LEDGER_FILE, LedgerStore
from protocol.settings import Settings
from protocol.tenancy import state_folder

__all__ = ["make_ledger"]


def make_ledger(settings: Settings) -> LedgerStore:
    """PostgreSQL where `ledger.url` names one, else the SQLite file of this machine. Nothing is opened yet."""
    if settings.ledger.url is not None:
        return PostgresLedger(settings.ledger.url.get_secret_value())
    return SqliteLedger(state_folder(settings.state) / LEDGER_FILE)
