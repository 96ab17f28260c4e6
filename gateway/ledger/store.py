"""Where a ledger is kept: what its writer and its readers need of a database, whichever it is.

Statements are written once, with `?` for parameters and `{day}` for the UTC day of a request; each store speaks its
own dialect from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = [
    "FORGET",
    "LEDGER_FILE",
    "RETIRE",
    "TABLES",
    "UNMARK",
    "LedgerStore",
    "Read",
    "Row",
    "Rows",
    "RowsRefused",
    "nothing",
    "reading",
]

LEDGER_FILE = "ledger.db"
TABLES = {"requests": ("id",), "calls": ("request", "number")}
"""The ledger's tables and their primary keys."""
RETIRE = tuple(
    f"DELETE FROM {table} WHERE ({', '.join(key)}) IN "  # noqa: S608 - names of our own
    f"(SELECT {', '.join(key)} FROM {table} WHERE at < ? ORDER BY at LIMIT ?)"
    for table, key in TABLES.items()
)
"""Of each table the oldest rows from before a time, at most so many."""
UNMARK = "DELETE FROM days WHERE day <= ?"
"""What is removed of a day is in its sums no more."""
FORGET = "DELETE FROM texts WHERE request IN (SELECT request FROM texts WHERE key = ? AND at < ? LIMIT ?)"

Row = tuple[Any, ...]
Rows = Sequence[Row]
Read = Callable[[str, Sequence[Any]], list[Row]]
"""Gives the rows of a statement of our own and its parameters."""


class RowsRefused(Exception):
    """The database works, but does not take these rows: writing them again would not help."""


class LedgerStore(Protocol):
    """One connection, opened on first use, for one thread. Every method but `close` raises `StateUnavailable` while
    the database is away, and `SettingsError` where its tables cannot be used."""

    @property
    def name(self) -> str:
        """What it is called in messages; no secret in it."""
        ...

    def exists(self) -> bool:
        """Whether there is anything to read. Makes nothing."""
        ...

    def write(self, requests: Rows, calls: Rows, texts: Rows = ()) -> None:
        """Add rows, all or none; those that are there already stay. Late ones take away their days' marks
        (`gateway.ledger.rollups`). Raises `RowsRefused`."""
        ...

    def retire(self, before: float, most: int) -> int:
        """Remove at most `most` rows of each table from before that time; gives how many went of the fuller."""
        ...

    def forget(self, key: str, before: float, most: int) -> int:
        """Remove at most `most` texts of a key from before that time; gives how many. Where it can be seen to, their
        bytes go too, not their place in a table alone."""
        ...

    def change(self, statements: Sequence[tuple[str, Sequence[Any]]], *, alone: bool = False) -> None:
        """Run statements of our own with their parameters, all or none; `alone`: while nobody writes a late row or
        removes old ones. Raises `RowsRefused`."""
        ...

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a statement of our own."""
        ...

    def close(self) -> None: ...


def reading(store: LedgerStore) -> Read:
    """What reads `store`; nothing where there is no ledger yet, of which none is made."""
    return store.read if store.exists() else nothing


def nothing(statement: str, parameters: Sequence[Any]) -> list[Row]:
    """There is no ledger yet."""
    return []
