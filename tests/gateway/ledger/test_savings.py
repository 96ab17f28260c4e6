"""Savings against always asking one model, on ledgers whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.keys.key import ANYONE
from gateway.ledger.entry import Entry
from gateway.ledger.savings import FEWEST, Savings, savings
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore, reading
from protocol.errors import SettingsError
from protocol.run import Call, Trace
from protocol.usage import Price, Usage
from tests.gateway.ledger.conftest import Open

BIG, SMALL = Price(3e-6, 15e-6), Price(1e-7, 4e-7)


def ledger_of(store: LedgerStore, seed: int, requests: int = 500, share: float = 0.35) -> float:
    """Fill `store` with requests that a router gave to `big` or `small`; gives what was truly saved by it, in US
    dollars. `big` writes the longer the prompt is, with wide scatter."""
    random = np.random.default_rng(seed)
    saved, rows = 0.0, []
    for number in range(requests):
        prompt = int(random.lognormal(4, 1)) + 3
        written = {
            "big": int(random.gamma(1.5, 20 + prompt**0.5 * 12)) + 1,
            "small": int(random.gamma(2, 30)) + 1,
        }
        name = "big" if random.random() < share else "small"
        usage = Usage(prompt, written[name])
        cost = (BIG if name == "big" else SMALL).cost_usd(usage)
        saved += BIG.cost_usd(Usage(prompt, written["big"])) - cost
        rows.append(_request(f"{seed}-{number}", Call(name, usage, cost, 0.1)).rows())
    store.write([row for row, _ in rows], [call for _, calls in rows for call in calls])
    return saved


def _request(id: str, *calls: Call, strategy: str = "auto", path: str = "/chat/completions") -> Entry:
    trace = Trace(calls=list(calls))
    return Entry(id, "req", 1e9, ANYONE, None, None, path, "auto", strategy, "ok", 0.1, trace)


def test_the_interval_covers(tmp_path: Path) -> None:
    """Of 60 ledgers the 95 % interval holds the truth in about 57, and is no wider than that needs."""
    covered, errors, widths = 0, [], []
    for seed in range(60):
        store = SqliteLedger(tmp_path / f"{seed}.db")
        truth = ledger_of(store, seed)
        told = savings(store.read, "big", BIG)
        store.close()
        assert told.usd is not None
        assert told.low_usd is not None
        assert told.high_usd is not None
        covered += told.low_usd <= truth <= told.high_usd
        errors.append(told.usd - truth)
        widths.append(told.high_usd - told.low_usd)
    assert covered >= 52
    spread = float(np.std(errors))
    assert abs(np.mean(errors)) < spread / 2  # no bias to speak of: 4 standard errors
    assert 2.5 * spread < np.mean(widths) < 6 * spread  # 3.9 if it were exact


def test_both_places_agree(open_ledger: Open, tmp_path: Path) -> None:
    """SQLite and PostgreSQL tell the same estimate, to the last figure."""
    here, there = SqliteLedger(tmp_path / "other.db"), open_ledger()
    for store in (here, there):
        ledger_of(store, 1)
    told = savings(there.read, "big", BIG)
    expected = savings(here.read, "big", BIG)
    here.close()
    assert (told.requests, told.measured, told.answers) == (500, told.answers, expected.answers)
    assert told.usd == pytest.approx(expected.usd, rel=1e-9)
    assert told.low_usd == pytest.approx(expected.low_usd, rel=0.05)


def test_groups(open_ledger: Open) -> None:
    """Groups add up to the whole, each with its own requests and interval; a request that asked several models is of
    none; a small group's interval is wide for what it holds."""
    store = open_ledger()
    ledger_of(store, 3)
    both = _request(
        "both", Call("big", Usage(9, 9), 1e-4, 0.1), Call("small", Usage(9, 9), 1e-6, 0.1), strategy="vote"
    )
    row, calls = both.rows()
    store.write([row], calls)
    told = savings(store.read, "big", BIG, by=("strategy", "model"))
    groups = {one.group: one for one in told.groups}
    assert set(groups) == {("auto", "big"), ("auto", "small"), ("vote", "several")}
    assert sum(one.requests for one in told.groups) == told.requests == 501
    assert sum(one.measured for one in told.groups) == told.measured
    assert sum(one.usd for one in told.groups) == pytest.approx(told.usd)
    assert groups["auto", "big"].usd == pytest.approx(0, abs=1e-9)  # it was asked, and cost what it cost
    assert groups["auto", "big"].high_usd == pytest.approx(groups["auto", "big"].low_usd)
    small = groups["auto", "small"]
    assert small.low_usd < small.usd < small.high_usd
    assert [one["usd"] for one in told.wire()["groups"]] == [one.usd for one in told.groups]
    for by in ("key", "team", "owner", "user", "requested", "day"):
        (all_of_them,) = savings(store.read, "big", BIG, by=(by,)).groups
        assert all_of_them.requests == 501
    with pytest.raises(SettingsError, match="outcome"):
        savings(store.read, "big", BIG, by=("outcome",))


def test_too_few(tmp_path: Path) -> None:
    """Below a hundred measured answers it says so, and no figure."""
    store = SqliteLedger(tmp_path / "few.db")
    ledger_of(store, 2, requests=FEWEST - 1, share=1.0)
    told = savings(store.read, "big", BIG)
    store.close()
    assert (told.answers, told.usd, told.low_usd) == (FEWEST - 1, None, None)
    assert "99" in told.told()
    assert "USD" not in told.told()
    assert savings(reading(SqliteLedger(tmp_path / "none.db")), "big", BIG) == Savings("big", 0)


def test_what_counts(tmp_path: Path) -> None:
    """Always asking X, alone: nothing is saved, exactly. What was guessed, failed, embedded or merged teaches nothing;
    of a cascade the caller's prompt is the shortest; what was answered from the cache is left out and counted."""
    store = SqliteLedger(tmp_path / "ledger.db")
    entries = [
        _request(f"x{i}", Call("big", Usage(10, 20), BIG.cost_usd(Usage(10, 20)), 0.1)) for i in range(FEWEST)
    ]
    odd = Usage(10, 100_000)
    entries += [
        _request("guessed", Call("small", Usage(10, 1), 0.0, 0.1), Call("big", odd, 0.0, 0.1, "cancelled")),
        _request(
            "merged", Call("small", Usage(10, 1), 0.0, 0.1), Call("big", odd, 0.0, 0.1), strategy="fused"
        ),
        _request("vectors", Call("mini", Usage(50_000, 0), 0.0, 0.1), path="/embeddings"),
        _request("cascade", Call("small", Usage(10, 5), 0.0, 0.1), Call("judge", Usage(900, 1), 0.0, 0.1)),
        _request("cached"),
    ]
    rows = [entry.rows() for entry in entries]
    store.write([row for row, _ in rows], [call for _, calls in rows for call in calls])
    told = savings(store.read, "big", BIG, merging=["fused"])
    store.close()
    assert (told.answers, told.requests, told.measured, told.left_out) == (100, 103, 101, 1)
    each = BIG.cost_usd(Usage(10, 20))
    assert told.against_usd == pytest.approx(102 * each + BIG.cost_usd(odd))
    assert told.usd == pytest.approx(2 * each + BIG.cost_usd(odd))
    assert told.low_usd == pytest.approx(told.high_usd)
