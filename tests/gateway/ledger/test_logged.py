"""Decisions as the ledger keeps them, in both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gateway.keys.key import ANYONE
from gateway.ledger.entry import Entry
from gateway.ledger.logged import logged_decisions
from gateway.ledger.store import LedgerStore
from gateway.ledger.writer import LedgerWriter
from protocol.run import Call, Trace
from protocol.usage import Usage


def decided(number: int, caller: str, facts: Mapping[str, Any], **changes: Any) -> Entry:
    trace = Trace([Call("weak", Usage(7, 8), 15e-6, 0.1)], decision=dict(facts))
    path = changes.get("path", "/chat/completions")
    fields = (None, None, path, "auto", changes.get("strategy", "auto"), changes.get("outcome", "ok"), 0.1)
    return Entry(f"id-{number:03}", caller, time.time() - 1000 + number, ANYONE, *fields, trace)


def facts(**changes: Any) -> dict[str, Any]:
    estimates = {"weak": {"quality": 0.7, "cost_usd": 1e-6}, "strong": {"quality": 0.9, "cost_usd": 9e-6}}
    return {"router": "knn@1", "chosen": "weak", "propensity": 1.0, "estimates": estimates, **changes}


def write(store: LedgerStore, *entries: Entry) -> None:
    writer = LedgerWriter(store)
    for entry in entries:
        writer.add(entry)
    writer.start()
    writer.close()


def test_decisions_of_the_ledger(open_ledger: Callable[[], LedgerStore]) -> None:
    """Only what estimates decided for the strategy's own answered requests, in the order of time; a
    model that was no candidate is unknown; scores are found by either id, but not by one that several carry."""
    store = open_ledger()
    entries = [
        decided(4, "twice", facts(chosen="strong", propensity=0.25)),
        decided(2, "twice", facts(estimates={"weak": {"quality": 0.5, "cost_usd": None}})),
        decided(3, "once", facts(router="knn@2")),
        decided(5, "x", {"reason": "default: no_text", "chosen": "weak"}),
        decided(6, "x", facts(cache="semantic")),
        decided(7, "x", facts(), strategy="other"),
        decided(8, "x", facts(), outcome="late"),
        decided(9, "x", facts(), path="/route"),
    ]
    write(store, *entries)
    found = logged_decisions(open_ledger().read, "auto", time.time() - 2000)
    assert [own for own, _ in found.ids] == ["id-002", "id-003", "id-004"]
    assert found.estimate.models == ("strong", "weak")
    assert np.array_equal(found.estimate.quality, [[np.nan, 0.5], [0.9, 0.7], [0.9, 0.7]], equal_nan=True)
    assert np.array_equal(found.estimate.cost_usd, [[np.nan] * 2, [9e-6, 1e-6], [9e-6, 1e-6]], equal_nan=True)
    assert found.chosen.tolist() == [1, 1, 0]
    assert found.propensity.tolist() == [1, 1, 0.25]
    assert found.cost_usd.tolist() == [15e-6] * 3
    assert (found.routers, found.left_out) == ({"knn@1": 2, "knn@2": 1}, 2)
    scores, unmatched = found.scores({"once": 0.3, "twice": 0.4, "id-004": 0.5, "nobody": 0.6})
    assert np.array_equal(scores, [np.nan, 0.3, 0.5], equal_nan=True)
    assert unmatched == 2
    assert not logged_decisions(open_ledger().read, "nobody", 0.0).ids
