"""What the leaderboard's figures show, from its JSON: series to draw, whoever draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["COLOURS", "FEW", "Chart", "Comparison", "charts", "comparisons"]

COLOURS = ("#2f6fdf", "#d9541e", "#2a9d4a", "#a23fc4", "#c79a00", "#0b9aa8", "#d6336c", "#6b5b3e")
"""Of the best few, in order; the others are grey until pointed at."""

FEW = """Routers that fine-tune an encoder or a language model take minutes of a core for a hundred queries. Here they,
and some that train in seconds, all learn from the same few queries, and are judged on the same part of the held-out
ones: compare within this table only."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Routers that learnt from the same queries of a `source` and were judged on the same; `few`: those that include
    what fine-tunes. `found`: its figures."""

    source: str
    few: bool
    found: dict[str, Any]

    @property
    def name(self) -> str:
        """Source and kind, as headings have it."""
        return f"{self.source}, few queries" if self.few else self.source


def comparisons(found: dict[str, Any]) -> list[Comparison]:
    """All that was measured, source by source; of a source either may be missing."""
    measured = []
    for source, result in found["sources"].items():
        if "routers" in result:
            measured.append(Comparison(source, False, result))
        if few := result.get("few"):
            measured.append(Comparison(source, True, few))
    return measured


@dataclass(frozen=True, slots=True)
class Chart:
    """`name`: kind and source, as its file has them; `series`: (name, points), best first; `marks`: (name, x, y) of
    single models and the oracle."""

    name: str
    kind: str
    title: str
    x: str
    y: str
    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    marks: tuple[tuple[str, float, float], ...]


def charts(found: dict[str, Any]) -> list[Chart]:
    """Cost-quality frontiers of sources with costs, then deferral curves of those with two models."""
    drawn = []
    for one in comparisons(found):
        result = one.found
        singles = [row for row in result["baselines"] if row["name"].startswith("only ")]
        others = {row["name"]: row for row in result["baselines"]}
        if any(row["frontier"] for row in result["routers"]):
            rows = sorted(
                (row for row in result["routers"] if row["frontier"]), key=lambda row: -(row["aiq"] or 0)
            )
            marks = [(row["name"][5:], row["cost_usd"], row["score"]["mean"]) for row in singles]
            right = others.get("oracle, cheapest right")
            if right and right["cost_usd"]:
                marks.append(("oracle, cheapest right", right["cost_usd"], right["score"]["mean"]))
            drawn.append(
                Chart(
                    _file_name("frontier", one),
                    "frontier",
                    f"{one.name}: score for money",
                    "mean cost of a query, US dollars",
                    "mean score on held-out queries",
                    _series(rows, "frontier"),
                    tuple(marks),
                )
            )
    for one in comparisons(found):
        rows = sorted(
            (row for row in one.found["routers"] if row["deferral"]), key=lambda row: -(row["apgr"] or 0)
        )
        if rows:
            first, *_, last = rows[0]["deferral"]
            chance = ("random", (tuple(first), tuple(last)))
            drawn.append(
                Chart(
                    _file_name("deferral", one),
                    "deferral",
                    f"{one.name}: score by calls of the better model",
                    "share of queries sent to the better model",
                    "mean score on held-out queries",
                    (*_series(rows, "deferral"), chance),
                    (),
                )
            )
    return drawn


def _file_name(kind: str, of: Comparison) -> str:
    return f"{kind}-{of.source}-few" if of.few else f"{kind}-{of.source}"


def _series(
    rows: list[dict[str, Any]], curve: str
) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    return tuple((row["name"], tuple((x, y) for x, y in row[curve])) for row in rows)
