"""Quality against cost: what strategies and the models behind them gave for their money.

Two sources, never mixed. *Estimated*: the quality that routers estimated for requests that were really served, beside
what these cost. *Measured*: what the artefact's training measured on held-out outcomes, with intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gateway.ledger.views import Decided
from protocol.settings import Settings

__all__ = ["estimated", "measured", "on_the_frontier"]


@dataclass(slots=True)
class _Sum:
    count: int = 0
    quality: float = 0.0
    cost_usd: float = 0.0

    def add(self, quality: float, cost_usd: float) -> None:
        self.count += 1
        self.quality += quality
        self.cost_usd += cost_usd


@dataclass(slots=True)
class _Sums:
    own: _Sum = field(default_factory=_Sum)
    models: dict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))


def estimated(rows: Iterable[Decided]) -> list[dict[str, Any]]:
    """For each strategy that routes, and each model that it chooses among, the mean of the estimated quality (0 to 1)
    and of the cost in US dollars a request: the strategy's as charged, the models' as estimated for the same requests.
    Requests answered from a cache, and those that could not be estimated, are left out."""
    sums: dict[str, _Sums] = {}
    for row in rows:
        estimates: Mapping[str, Any] = row.facts.get("estimates") or {}
        quality = estimates.get(str(row.facts.get("chosen")), {}).get("quality")
        if quality is None or row.facts.get("cache") in ("exact", "semantic"):
            continue
        one = sums.setdefault(row.strategy, _Sums())
        one.own.add(quality, row.cost_usd)
        for model, estimate in estimates.items():
            if estimate.get("quality") is not None and estimate.get("cost_usd") is not None:
                one.models[model].add(estimate["quality"], estimate["cost_usd"])
    told: list[dict[str, Any]] = []
    for strategy, one in sorted(sums.items()):
        told.append(_point(strategy, strategy, "strategy", one.own))
        told += [_point(model, strategy, "model", total) for model, total in sorted(one.models.items())]
    return told


def _point(name: str, strategy: str, kind: str, total: _Sum) -> dict[str, Any]:
    return {
        "name": name,
        "strategy": strategy,
        "kind": kind,
        "quality": total.quality / total.count,
        "cost_usd": total.cost_usd / total.count,
        "count": total.count,
    }


def measured(settings: Settings) -> list[dict[str, Any]]:
    """The rows that the artefact of each strategy keeps of its training: mean score and cost in US dollars a query
    on held-out queries, and the interval of each. Artefacts that hold none are left out."""
    told: list[dict[str, Any]] = []
    for name, strategy in settings.strategies.items():
        made = strategy.route or strategy.cascade
        if made is None:
            continue
        card = _card(made.artefact / "manifest.json")
        for row in card.get("rows") or ():
            if row.get("cost_usd") is None or row.get("score") is None:
                continue  # an oracle knows no cost
            kind = "model" if row["name"] in settings.models else "baseline"
            if row["name"].startswith(("router", "cascade")):
                kind = "strategy"
            told.append(
                {
                    "name": row["name"],
                    "strategy": name,
                    "kind": kind,
                    "quality": row["score"],
                    "quality_low": row.get("score_low"),
                    "quality_high": row.get("score_high"),
                    "cost_usd": row["cost_usd"],
                    "count": card.get("queries"),
                }
            )
    return told


def on_the_frontier(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which `points` no other one beats: none is at least as good for less, or better for no more. In order of
    cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i]["cost_usd"], -points[i]["quality"]))
    best, kept = float("-inf"), []
    for i in order:
        if points[i]["quality"] > best:
            best = points[i]["quality"]
            kept.append(i)
    return kept


def _card(manifest: Path) -> Mapping[str, Any]:
    try:
        metrics = orjson.loads(manifest.read_bytes()).get("metrics")
    except (OSError, orjson.JSONDecodeError):
        return {}  # the gateway says so itself, where it loads the artefact
    return metrics if isinstance(metrics, dict) else {}
