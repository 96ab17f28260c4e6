"""What `chorus doctor` finds out about the places where things are kept: the ledger and Redis. Nothing is written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.finding import Finding

if TYPE_CHECKING:
    from protocol.settings import Settings

__all__ = ["ledger_file", "remote_stores"]

PATIENCE_S = 3
NEWER = "Install the Chorus that wrote it, or a newer one."


def ledger_file(settings: Settings, config: Path) -> Iterator[Finding]:
    """Where the ledger is a file: it can be written, and its tables are ones that we know."""
    from gateway.ledger.schema import MIGRATIONS
    from gateway.ledger.store import LEDGER_FILE
    from protocol.tenancy import state_folder

    if not settings.ledger.enabled or settings.ledger.url is not None:
        return
    path = state_folder(settings.state) / LEDGER_FILE
    folder = next(each for each in path.parents if each.exists())
    named = f"ledger: {path}"
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        yield Finding(
            "wrong", f"{named} cannot be written by this user", "Set state.folder, or change its owner."
        )
        return
    if not path.exists():
        yield Finding("ok", f"{named} is made with the first request")
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        yield Finding(
            "wrong", f"{named} cannot be read: {error}", "`chorus ledger restore` puts a backup in its place."
        )
        return
    yield _versioned(named, version, len(MIGRATIONS))


def _versioned(named: str, version: int, known: int) -> Finding:
    if version > known:
        return Finding(
            "wrong", f"{named} has tables of version {version}, and this Chorus knows {known}", NEWER
        )
    later = "" if version == known else f"; they are brought from version {version} to {known} when it starts"
    return Finding("ok", f"{named} can be written{later}")


def remote_stores(settings: Settings) -> Iterator[Finding]:
    """A ledger and a Redis that the settings name answer, and do what is needed of them."""
    if settings.ledger.enabled and settings.ledger.url is not None:
        yield from _postgres(settings.ledger.url.get_secret_value())
    if settings.redis is not None:
        yield from _redis(settings, settings.redis.url.get_secret_value())


def _postgres(url: str) -> Iterator[Finding]:
    from gateway.ledger.postgres_ledger import PostgresLedger
    from gateway.ledger.schema import MIGRATIONS

    named = f"ledger: {PostgresLedger(url).name}"
    if find_spec("psycopg") is None:
        yield Finding(
            "wrong", "ledger: psycopg is not installed", "pip install 'chorus-gateway[postgres]' brings it."
        )
        return
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=PATIENCE_S, application_name="chorus doctor") as connection:
            connection.read_only = True
            connection.execute(f"SET LOCAL statement_timeout = {PATIENCE_S * 1000}")
            told = connection.execute(
                "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool, "
                "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), "
                "to_regclass('ledger_version') IS NOT NULL"
            ).fetchone()
            assert told is not None
            read_only, creates, made = told
            version, lacking = 0, []
            if made:
                row = connection.execute("SELECT version FROM ledger_version").fetchone()
                version = row[0] if row else 0
                lacking = [
                    f"{right} on {table}"
                    for table in ("requests", "calls")
                    for right in ("SELECT", "INSERT", "DELETE")
                    if connection.execute("SELECT has_table_privilege(%s, %s)", [table, right]).fetchone()
                    != (True,)
                ]
    except psycopg.Error as error:
        # Its type and state alone: the message may hold the address.
        state = f" ({error.sqlstate})" if error.sqlstate else ""
        yield Finding(
            "wrong",
            f"{named} does not answer as it should: {type(error).__name__}{state}",
            "Check ledger.url, the network, and pg_hba.conf; rows wait in the queue until it does.",
        )
        return
    if read_only:
        yield Finding("wrong", f"{named} can only be read", "ledger.url must name the primary.")
    elif lacking:
        yield Finding(
            "wrong", f"{named} does not let this user {', '.join(lacking)}", "GRANT these to the user."
        )
    elif version < len(MIGRATIONS) and not creates:
        yield Finding(
            "wrong",
            f"{named} lacks tables of version {len(MIGRATIONS)}, and this user may not make them",
            "GRANT CREATE ON SCHEMA … TO the user.",
        )
    else:
        yield _versioned(named, version, len(MIGRATIONS))


def _redis(settings: Settings, url: str) -> Iterator[Finding]:
    from gateway.state.redis_client import RedisClient
    from gateway.state.store import StoreAway

    if settings.keys.pepper is None:
        yield Finding(
            "wrong" if settings.keys.required else "note",
            "redis: without keys.pepper there are no virtual keys",
            "Set keys.pepper, the same for all gateways of this Redis.",
        )

    async def told() -> Mapping[str, Any]:
        client = RedisClient(url, timeout_s=PATIENCE_S)
        try:
            answer: Mapping[str, Any] = await client.run(lambda redis: redis.info())
            return answer
        finally:
            await client.close()

    try:
        answer = asyncio.run(told())
    except StoreAway as error:
        yield Finding(
            "wrong", f"redis: does not answer: {error}", "Check redis.url, its TLS files and the network."
        )
        return
    # A cluster tells of each of its nodes.
    nodes = list(answer.values()) if all(isinstance(each, dict) for each in answer.values()) else [answer]
    if any(node.get("maxmemory_policy", "noeviction") != "noeviction" for node in nodes):
        yield Finding(
            "wrong",
            "redis: it throws entries out when its memory is full: keys and budgets would be lost",
            "maxmemory-policy noeviction",
        )
    if not all(node.get("aof_enabled", 1) for node in nodes):
        yield Finding(
            "note",
            "redis: a restart loses keys and total budgets made since its last snapshot",
            "appendonly yes",
        )
    yield Finding("ok", f"redis: answers{f', {len(nodes)} nodes' if len(nodes) > 1 else ''}")
