"""Ledgers in both places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore

Open = Callable[[], LedgerStore]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.requires("postgres"))])
def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's own ledger, again and again."""
    made: list[LedgerStore] = []
    url = ""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").database(f"t{uuid4().hex}")

    def begin() -> LedgerStore:
        made.append(PostgresLedger(url) if url else SqliteLedger(tmp_path / "ledger.db"))
        return made[-1]

    yield begin
    for store in made:
        store.close()
