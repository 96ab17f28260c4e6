"""Prompts and answers beside the ledger's rows, of keys that have them stored (`text_days`), and of no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.ledger.entry import Entry
from gateway.ledger.store import LedgerStore, Read
from gateway.ledger.streams import put_together

__all__ = ["sweep", "text_of", "text_row"]

DAY_S = 86_400.0
AT_ONCE = 200
"""Texts that one transaction removes, so that no writer waits for long."""
WORDLESS = ("/embeddings",)
"""Surfaces whose answers are numbers."""
KEYS = (
    "WITH RECURSIVE found(key) AS (SELECT min(key) FROM texts UNION ALL "
    "SELECT (SELECT min(key) FROM texts WHERE texts.key > found.key) FROM found WHERE found.key IS NOT NULL) "
    "SELECT key FROM found WHERE key IS NOT NULL"
)
"""The keys that have texts, each found by one step in the index."""


def text_row(entry: Entry, most: int) -> tuple[Any, ...] | None:
    """The row of `texts`, at most `most` bytes of the prompt and as many of the answer; None for a request of which
    nothing is to be stored."""
    held = entry.transcript
    if held is None:
        return None
    answer: bytes | None = bytes(held.answer)
    if entry.path in WORDLESS or not held.answer_type:
        answer = None
    elif held.answer_type == "text/event-stream" and not held.answer_cut:
        answer = put_together(bytes(held.answer)) or answer
    cut = held.prompt_cut or held.answer_cut or len(answer or b"") > most
    return (
        *(entry.id, entry.key.id, entry.at, _words(bytes(held.prompt), most)),
        *(None if answer is None else _words(answer, most), int(cut)),
    )


def _words(raw: bytes, most: int) -> str:
    return raw[:most].decode("utf-8", "replace")


def text_of(read: Read, id: str) -> dict[str, Any] | None:
    """What is stored of the request with this `id` of the ledger's: its "request", "key" and time "at", "prompt",
    "answer" (JSON as it was sent, a stream put together) and whether something was "cut"; None for nothing."""
    rows = read("SELECT key, at, prompt, answer, cut FROM texts WHERE request = ?", [id])
    if not rows:
        return None
    key, at, prompt, answer, cut = rows[0]
    return {"request": id, "key": key, "at": at, "prompt": prompt, "answer": answer, "cut": bool(cut)}


def sweep(store: LedgerStore, days: Mapping[str, float], now: float) -> int:
    """Remove every text that is older than the `days` of its key, and all of keys that are not among them; gives how
    many. Raises `StateUnavailable`."""
    removed = 0
    for (key,) in store.read(KEYS):
        before = now - days[key] * DAY_S if key in days else float("inf")
        count = AT_ONCE
        while count == AT_ONCE:
            count = store.forget(key, before, AT_ONCE)
            removed += count
    return removed
