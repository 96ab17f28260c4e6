"""Whether routers still do what they did: the newer half of the latest decisions against the older half.

What is compared is the share of each chosen model. Two halves of the same traffic differ, too, by chance; how much, the
square root of their sizes says, and a change is called one only beyond twice that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Any

from gateway.decisions import chosen_of
from gateway.ledger.views import Decided

__all__ = ["FEWEST", "drift"]

FEWEST = 50
"""Decisions that each half must have for a verdict."""
CHANCE = 0.4
"""Half of the mean distance from zero of a normal value of spread 1, sqrt(2 / pi) / 2."""
NOTABLE = 0.05
"""A change of shares below this concerns nobody, however sure it is."""


def drift(rows: Iterable[Decided]) -> list[dict[str, Any]]:
    """Of each strategy that decides: how many decisions were looked at, what share could not be estimated and took
    the default, the mean estimated quality, shares of the chosen in both halves, their total variation distance
    (0 to 1), how much of it chance explains, and a verdict: "steady", "shifted", or "too few"."""
    strategies: dict[str, list[Decided]] = defaultdict(list)
    for row in rows:
        if row.facts.get("cache") not in ("exact", "semantic"):
            strategies[row.strategy].append(row)
    told = []
    for name, decisions in sorted(strategies.items()):
        middle = len(decisions) // 2
        told.append({"strategy": name, **_compared(decisions[:middle], decisions[middle:])})
    return told


def _compared(newer: Sequence[Decided], older: Sequence[Decided]) -> dict[str, Any]:
    both = [*newer, *older]
    now, before = _shares(newer), _shares(older)
    names = sorted(now.keys() | before.keys())
    distance = sum(abs(now.get(name, 0.0) - before.get(name, 0.0)) for name in names) / 2
    chance = _chance(both, len(newer), len(older))
    enough = min(len(newer), len(older)) >= FEWEST
    shifted = distance > max(NOTABLE, 2 * chance)
    return {
        "count": len(both),
        "since": min(row.at for row in both),
        "defaulted": sum(str(row.facts.get("reason", "")).startswith("default") for row in both) / len(both),
        "quality": {"newer": _quality(newer), "older": _quality(older)},
        "chosen": [
            {"name": name, "newer": now.get(name, 0.0), "older": before.get(name, 0.0)} for name in names
        ],
        "distance": distance,
        "chance": chance,
        "verdict": "too few" if not enough else "shifted" if shifted else "steady",
    }


def _shares(rows: Sequence[Decided]) -> dict[str, float]:
    counts = Counter(chosen_of(row.facts) for row in rows)
    return {name: count / len(rows) for name, count in counts.items()}


def _chance(rows: Sequence[Decided], newer: int, older: int) -> float:
    """The distance to expect of two such halves when nothing has changed."""
    if not newer or not older:
        return 1.0
    spread = sqrt(1 / newer + 1 / older)
    return CHANCE * spread * sum(sqrt(share * (1 - share)) for share in _shares(rows).values())


def _quality(rows: Sequence[Decided]) -> float | None:
    """The mean quality that was estimated for the chosen, where there are estimates."""
    estimates = [(row.facts.get("estimates") or {}).get(row.facts.get("chosen"), {}) for row in rows]
    known = [told["quality"] for told in estimates if told.get("quality") is not None]
    return sum(known) / len(known) if known else None
