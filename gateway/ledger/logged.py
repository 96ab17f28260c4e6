"""The decisions of a routed strategy as the ledger keeps them, to be replayed under another policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from gateway.ledger.store import Read
from gateway.limits.bounds import NANO
from protocol.routing import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MOST", "Decisions", "logged_decisions"]

MOST = 50_000
"""Decisions that are looked at, the latest."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """`ids`: for each decision the ledger's id of its request, and the caller's; in the order of time.

    `estimate`: what was believed of every candidate, NaN where a model was none. `chosen`: columns of it.
    `cost_usd`: what the whole request did cost. `routers`: how many each artefact decided. `left_out`: answered
    requests of the strategy that estimates did not decide, or that a cache answered.
    """

    ids: tuple[tuple[str, str], ...]
    estimate: Estimate
    chosen: NDArray[np.intp]
    propensity: NDArray[np.float64]
    cost_usd: NDArray[np.float64]
    routers: Mapping[str, int]
    left_out: int

    def __len__(self) -> int:
        return len(self.ids)

    def scores(self, given: Mapping[str, float]) -> tuple[NDArray[np.float64], int]:
        """Of each decision the score that its request was given, by either id, NaN where none; and how many of those
        given found no decision, or by a caller's id several."""
        callers = Counter(caller for _, caller in self.ids)
        used: set[str] = set()
        found = np.full(len(self.ids), np.nan)
        for row, (own, caller) in enumerate(self.ids):
            name = own if own in given else caller
            if name in given and (name == own or callers[name] == 1):
                used.add(name)
                found[row] = given[name]
        return found, len(given) - len(used)


def logged_decisions(read: Read, strategy: str, since: float, until: float = float("inf")) -> Decisions:
    """Of answered requests to `strategy` itself between these times (seconds since the epoch). Raises
    `StateUnavailable`."""
    rows = read(
        "SELECT id, request_id, cost_nano, decision FROM requests WHERE at >= ? AND at < ? AND strategy = ? "
        "AND outcome = 'ok' AND path <> '/route' AND decision IS NOT NULL ORDER BY at DESC LIMIT ?",
        [since, until, strategy, MOST],
    )
    kept: list[tuple[tuple[str, str], float, Mapping[str, Any]]] = []
    for own, caller, nano, told in reversed(rows):
        facts = orjson.loads(told)
        if _estimated(facts):
            kept.append(((own, caller), nano / NANO, facts))
    models = tuple(sorted({model for _, _, facts in kept for model in facts["estimates"]}))
    return Decisions(
        tuple(ids for ids, _, _ in kept),
        Estimate(
            models,
            _matrix(models, [facts["estimates"] for _, _, facts in kept], "quality"),
            _matrix(models, [facts["estimates"] for _, _, facts in kept], "cost_usd"),
        ),
        np.array([models.index(facts["chosen"]) for _, _, facts in kept], dtype=np.intp),
        np.array([facts["propensity"] for _, _, facts in kept], dtype=np.float64),
        np.array([cost for _, cost, _ in kept], dtype=np.float64),
        Counter(str(facts.get("router")) for _, _, facts in kept),
        len(rows) - len(kept),
    )


def _estimated(facts: Mapping[str, Any]) -> bool:
    """Whether estimates decided, with a propensity, and a model answered."""
    return (
        facts.get("chosen") in (facts.get("estimates") or {})
        and bool(facts.get("propensity"))
        and facts.get("cache") not in ("exact", "semantic")
    )


def _matrix(
    models: Sequence[str], estimates: Sequence[Mapping[str, Mapping[str, float | None]]], what: str
) -> NDArray[np.float64]:
    """Shape (n_decisions, n_models); NaN where nothing is known."""
    unknown: Mapping[str, float | None] = {}
    rows = [[row.get(model, unknown).get(what) for model in models] for row in estimates]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(models))
