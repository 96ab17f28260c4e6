"""`chorus keys` and `chorus usage`."""

from __future__ import annotations

import csv
import io
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from gateway.cli.application import application
from gateway.keys.key import Key
from gateway.ledger.entry import Entry
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.writer import LedgerWriter
from protocol.errors import BadRequest, NotFound, SettingsError
from protocol.run import Call, Trace
from protocol.usage import Usage
from tests.gateway.ledger.test_texts import transcript

CONFIG = """
models: {one: {openai: {base_url: 'http://x/v1', model: x}}}
state: {folder: state}
"""


@pytest.fixture
def chorus(tmp_path: Path) -> Callable[..., Any]:
    """Runs a command on a config of the test's own."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(application, [*arguments, "--config", str(config)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_a_key_that_may_name_what_is_not_there(chorus: Callable[..., Any]) -> None:
    """It is made, since a later config may have the model; that this one has not is told beside the secret."""
    made = chorus("keys", "create", "--models", "one,onne")
    assert made.exit_code == 0
    assert "no model or strategy 'onne'" in made.stderr
    assert "so far" not in chorus("keys", "create", "--models", "one").stderr


def test_an_alias_that_two_keys_have(chorus: Callable[..., Any]) -> None:
    """It is told when the second is made; the refusal names the ids, any of which does."""
    assert "Another key" not in chorus("keys", "create", "twin").stderr
    assert "Another key has the alias 'twin'" in chorus("keys", "create", "twin").stderr
    with pytest.raises(NotFound, match=r"2 keys have the alias 'twin'.* key_\w+, key_\w+\."):
        chorus("keys", "revoke", "twin")


def test_a_list_that_is_piped_is_whole(chorus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No id is cut off for want of columns where no terminal has columns."""
    monkeypatch.delenv("COLUMNS", raising=False)
    chorus("keys", "create", "a name that needs some room", "--owner", "who needs as much " * 5)
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert key["id"] in chorus("keys", "list").stdout


def test_a_keys_life(chorus: Callable[..., Any]) -> None:
    """Made with its secret alone on standard output; listed without it; rotated; revoked."""
    made = chorus(
        "keys", "create", "alice", "--team", "t", "--models", "one", "--budget", "day=5", "--rpm", "60"
    )
    secret = made.stdout.strip()
    assert secret.startswith("sk-chorus-")
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert (key["alias"], key["team"], key["models"]) == ("alice", "t", ["one"])
    assert key["limits"] == {"rpm": 60, "budgets_usd": {"day": 5.0}}
    assert "alice" in chorus("keys", "list").stdout
    rotated = chorus("keys", "rotate", "alice").stdout.strip()
    assert rotated.startswith("sk-chorus-")
    assert rotated != secret
    chorus("keys", "revoke", "alice")
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert key["revoked"] is not None


def test_a_key_is_changed(chorus: Callable[..., Any]) -> None:
    """What is named changes, and nothing else; that words are stored is said when that begins, and where keys are
    listed."""
    made = chorus("keys", "create", "alice", "--rpm", "60", "--budget", "day=5", "--text-days", "7")
    assert "stored for 7 days" in made.stderr
    assert "stored for 7 days" in chorus("keys", "rotate", "alice").stderr
    told = chorus("keys", "change", "alice", "--tpm", "900", "--budget", "week=9", "--models", "one")
    assert "stored for 7 days" in told.stdout
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert key["limits"] == {"rpm": 60, "tpm": 900, "budgets_usd": {"day": 5.0, "week": 9.0}}
    assert (key["models"], key["text_days"], key["cached"]) == (["one"], 7, True)
    told = chorus("keys", "change", "alice", "--text-days", "0", "--models", "*", "--no-cached")
    assert "removed" in told.stdout
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert (key["models"], key["text_days"], key["cached"]) == (None, None, False)
    with pytest.raises(BadRequest, match="at most 30 days"):
        chorus("keys", "change", "alice", "--text-days", "31")
    told = chorus("keys", "rotate", "alice", "--text-days", "3", "--rpm", "7", "--expires-in-days", "90")
    assert told.stdout.startswith("sk-chorus-")
    assert len(told.stdout.split()) == 1
    assert "stored for 3 days" in told.stderr
    (key,) = [orjson.loads(line) for line in chorus("keys", "list", "--json").stdout.splitlines()]
    assert key["limits"] == {"rpm": 7, "tpm": 900, "budgets_usd": {"day": 5.0, "week": 9.0}}
    assert (key["text_days"], key["cached"]) == (3, False)
    assert key["expires"] == pytest.approx(time.time() + 90 * 86_400, abs=60)
    assert "removed" in chorus("keys", "rotate", "alice", "--text-days", "0").stderr


def test_a_request_is_shown(chorus: Callable[..., Any], tmp_path: Path) -> None:
    """Who asked, what it cost and, where that is stored, what was said: then the audit log says who looked."""
    writer = LedgerWriter(SqliteLedger(tmp_path / "state" / "ledger.db"), text_bytes=64)
    trace = Trace(calls=[Call("one", Usage(7, 8), 23e-6, 0.1)], decision={"reason": "cheapest"})
    for id, said in (("plain", None), ("stored", transcript(b'{"prompt": "how?"}', b'{"text": "so"}'))):
        told = (None, None, "/x", "one", "direct", "ok", 0.1, trace, said)
        writer.add(Entry(id, f"req-{id}", time.time(), Key("key_1", alias="a"), *told))
    writer.start()
    writer.close()
    chorus("keys", "create", "a", "--text-days", "1")
    shown = chorus("usage", "show", "req-plain").stdout
    assert "0.000023000" in shown
    assert "cheapest" in shown
    assert "neither" in shown
    assert "how?" not in chorus("usage", "show", "stored", "--no-text").stdout
    shown = chorus("usage", "show", "stored").stdout
    assert '{"prompt": "how?"}' in shown
    assert '{"text": "so"}' in shown
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as connection:
        deeds = [
            orjson.loads(entry) for (entry,) in connection.execute("SELECT entry FROM audit ORDER BY rowid")
        ]
    assert [deed["action"] for deed in deeds] == ["create", "read text"]
    assert deeds[-1]["request"] == "stored"
    with pytest.raises(SettingsError, match="no request 'none'"):
        chorus("usage", "show", "none")


def test_a_bad_budget(chorus: Callable[..., Any]) -> None:
    """What cannot be read is refused with how to write it."""
    with pytest.raises(SettingsError, match="PERIOD=USD"):
        chorus("keys", "create", "--budget", "five")


def test_usage(chorus: Callable[..., Any], tmp_path: Path) -> None:
    """As a table, as CSV (in which no cell is a formula), and as parquet."""
    writer = LedgerWriter(SqliteLedger(tmp_path / "state" / "ledger.db"))
    key = Key("key_1", alias="=cmd", team="t")
    trace = Trace(calls=[Call("one", Usage(7, 8), 23e-6, 0.1)])
    writer.add(Entry("i", "r", time.time(), key, None, None, "/x", "one", "direct", "ok", 0.1, trace))
    writer.start()
    writer.close()
    assert "0.000023000" in chorus("usage").stdout
    (row,) = csv.DictReader(io.StringIO(chorus("usage", "--by", "key,model", "--format", "csv").stdout))
    assert row["key"] == "'=cmd"
    assert (row["model"], row["cost_usd"], row["completion_tokens"]) == ("one", "0.000023000", "8")
    out = tmp_path / "usage.parquet"
    chorus("usage", "--by", "team", "--format", "parquet", "--out", str(out))
    assert pyarrow.parquet.read_table(out).to_pylist()[0]["team"] == "t"
    with pytest.raises(SettingsError, match="7d"):
        chorus("usage", "--since", "ever")
