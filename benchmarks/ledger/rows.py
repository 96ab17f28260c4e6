"""A large ledger, made by the database itself: requests spread evenly over ninety days, as a fleet of a few teams would
leave them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from gateway.ledger.postgres_ledger import spelled
from gateway.ledger.schema import MIGRATIONS

__all__ = ["DAYS", "fill_postgres", "fill_sqlite"]

DAYS = 90
DAY_S = 86_400.0
RELEASED = 2
"""The version of the schema that the release before had."""
AT_ONCE = 250_000

_KEY = "((n * 7919) % 200)"
_ROUTED = "n % 10 < 7"
_LARGE = "(n * 31) % 100 < 30"
REQUESTS = f"""
INSERT INTO requests SELECT
  {{id}}, {{id}}, {{at}}, 'key_' || {_KEY}, 'alias-' || {_KEY}, NULL, 'team-' || ({_KEY} % 12), NULL, NULL, NULL,
  '/chat/completions', CASE WHEN {_ROUTED} THEN 'auto' ELSE 'large' END,
  CASE WHEN {_ROUTED} THEN 'auto' ELSE 'direct' END, CASE WHEN n % 50 = 0 THEN 'upstream_timeout' ELSE 'ok' END,
  50 + (n * 17) % 1500, 20 + (n * 13) % 400, 1000 * (50 + n % 977), 0.2 + (n % 997) / 1000.0,
  CASE WHEN {_ROUTED} THEN '{{{{"router":"knn-router@1","chosen":"small","reason":"best utility at quality 0.5",'
    || '"estimates":{{{{"small":{{{{"quality":0.51,"cost_usd":0.00026}}}},'
    || '"large":{{{{"quality":0.74,"cost_usd":0.0041}}}}}}}}}}}}'
  END
FROM {{numbers}}
"""
CALLS = f"""
INSERT INTO calls SELECT
  {{id}}, {{number}}, {{at}}, CASE WHEN {_LARGE} THEN 'large' ELSE 'small' END, 'answer',
  CASE WHEN n % 50 = 0 THEN 'upstream_timeout' ELSE 'ok' END, 1, 0, 50 + (n * 17) % 1500, 20 + (n * 13) % 400, 0, 0,
  1000 * (50 + n % 977), 0.2 + (n % 997) / 1000.0, 0.001, ''
FROM {{numbers}}
"""
EMBEDDINGS = f"""
INSERT INTO calls SELECT
  {{id}}, 1, {{at}}, 'mini', 'embedding', 'ok', 1, 0, 40 + n % 300, 0, 0, 0, 0, 0.004, 0.0, ''
FROM {{numbers}} WHERE {_ROUTED}
"""


def fill_sqlite(path: Path, count: int, until: float, told: Callable[[int], None]) -> None:
    """A file of the release before, with `count` requests and 1.7 times as many calls, the last at `until`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.executescript(f"{';'.join(MIGRATIONS[:RELEASED])}; PRAGMA user_version = {RELEASED}")
        at = f"({until!r} - {DAYS * DAY_S!r} * (1 - n / {float(count)!r}))"
        words = {"id": "printf('%012x%020x', CAST(AT * 1000 AS INTEGER), n)".replace("AT", at), "at": at}

        def numbers(first: int, last: int) -> str:
            return (
                f"(WITH RECURSIVE r(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM r WHERE n < {last}) "
                "SELECT n FROM r)"
            )

        _fill(connection.execute, words, numbers, count, told)


def fill_postgres(url: str, count: int, until: float, told: Callable[[int], None]) -> None:
    """The same in an empty database."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for script in MIGRATIONS[:RELEASED]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(spelled(statement))  # type: ignore[arg-type]
        connection.execute("CREATE TABLE ledger_version (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO ledger_version VALUES (%s)", [RELEASED])
        at = f"({until!r}::float8 - {DAYS * DAY_S!r} * (1 - n / {float(count)!r}::float8))"
        words = {
            "id": f"lpad(to_hex(CAST({at} * 1000 AS BIGINT)), 12, '0') || lpad(to_hex(n), 20, '0')",
            "at": at,
        }
        _fill(
            lambda statement: connection.execute(statement.replace("%", "%%"), []),  # type: ignore[arg-type]
            words,
            lambda first, last: f"generate_series({first}::bigint, {last}::bigint) AS n",
            count,
            told,
        )
        connection.execute("VACUUM ANALYZE")


def _fill(
    execute: Callable[[str], Any],
    words: dict[str, str],
    numbers: Callable[[int, int], str],
    count: int,
    told: Callable[[int], None],
) -> None:
    for first in range(1, count + 1, AT_ONCE):
        some = {**words, "numbers": numbers(first, min(count, first + AT_ONCE - 1)), "number": "0"}
        execute("BEGIN")
        for statement in (REQUESTS, CALLS, EMBEDDINGS):
            execute(statement.format(**some))
        execute("COMMIT")
        told(min(count, first + AT_ONCE - 1))
