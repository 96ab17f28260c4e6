"""`chorus doctor` on the ledger and Redis: what keeps them from being used is found, and nothing is written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.doctor_stores import ledger_file, remote_stores
from gateway.cli.finding import Finding
from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from protocol.settings import Settings, parse_settings
from tests.postgres_server import PostgresServer


def settings(**sections: Any) -> Settings:
    import yaml

    models = {"one": {"openai": {"base_url": "http://x/v1", "model": "x"}}}
    return parse_settings(yaml.safe_dump({"models": models, **sections}))


def told(*findings: Finding) -> list[tuple[str, str]]:
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    return [(finding.level, finding.what) for finding in findings]


def test_a_ledger_in_a_file(tmp_path: Path) -> None:
    """Not there yet, good, older, newer, and no database at all."""
    path = tmp_path / "kept" / "ledger.db"

    def look() -> tuple[str, str]:
        ((level, what),) = told(*ledger_file(settings(state={"folder": str(tmp_path / "kept")}), tmp_path))
        assert str(path) in what
        return level, what

    assert look()[0] == "ok"
    assert not path.parent.exists()
    with closing(SqliteLedger(path)) as ledger:
        ledger.read("SELECT 1")
    assert look() == ("ok", f"ledger: {path} can be written")
    for version, level, word in ((1, "ok", "from version 1"), (99, "wrong", "version 99")):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        assert look()[0] == level
        assert word in look()[1]
    path.write_text("no database at all, but long enough to be looked at as one" * 50)
    assert "cannot be read" in look()[1]
    path.parent.joinpath("f").write_text("")
    assert told(*ledger_file(settings(ledger={"enabled": False}), tmp_path)) == []


@pytest.mark.requires("postgres")
def test_a_ledger_in_postgres(postgres: PostgresServer) -> None:
    """Empty, good, newer, read only, without the rights it takes, and away; nothing of its URL's secrets is told."""
    url = postgres.database("doctor")

    def look(url: str = url) -> tuple[str, str]:
        (finding,) = told(*remote_stores(settings(ledger={"url": url})))
        return finding

    assert look()[0] == "ok"
    with closing(PostgresLedger(url)) as ledger:
        assert ledger.read("SELECT count(*) FROM requests") == [(0,)]
        assert look() == ("ok", f"ledger: {ledger.name} can be written")
        postgres.run(
            "psql", "-h", str(postgres.folder), "-U", "chorus", "-d", "doctor", "-c", "CREATE ROLE poor LOGIN"
        )
        poor = url.replace("chorus@", "poor@")
        assert look(poor)[0] == "wrong"
        grant = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor"
        postgres.run("psql", "-h", str(postgres.folder), "-U", "chorus", "-d", "doctor", "-c", grant)
        assert "INSERT on requests" in look(poor)[1]
        assert "only be read" in look(f"{url}&options=-c%20default_transaction_read_only%3Don")[1]
        postgres.run(
            "psql", "-h", str(postgres.folder), "-U", "chorus", "-d", "doctor", "-c",
            f"UPDATE ledger_version SET version = {len(MIGRATIONS) + 1}",
        )  # fmt: skip
        assert "this Chorus knows" in look()[1]
    level, what = look("postgresql://someone:s3cret-word@127.0.0.1:1/books")
    assert level == "wrong"
    assert "s3cret" not in what


@pytest.mark.requires("redis-server")
async def test_redis(redis: Any) -> None:
    """One that answers, loses what it holds, throws entries out, and is not there."""
    import asyncio

    def look(url: str = redis.url) -> list[tuple[str, str]]:
        return told(*remote_stores(settings(redis={"url": url}, keys={"pepper": "p"})))

    found = await asyncio.to_thread(look)
    assert [level for level, _ in found] == ["note", "ok"]
    client = redis.client()
    await client.run(lambda raw: raw.config_set("maxmemory-policy", "allkeys-lru"))
    await client.run(lambda raw: raw.config_set("appendonly", "yes"))
    found = await asyncio.to_thread(look)
    assert [level for level, _ in found] == ["wrong", "ok"]
    ((level, what),) = await asyncio.to_thread(look, "redis://127.0.0.1:1")
    assert level == "wrong"
    assert "does not answer" in what
    without = settings(redis={"url": "redis://127.0.0.1:1"}, keys={"required": True})
    found = told(*await asyncio.to_thread(lambda: list(remote_stores(without))))
    assert "keys.pepper" in found[0][1]
