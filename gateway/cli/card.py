"""Printing a metrics card: what learning bought, beside what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["show"]

FACTS = {
    "queries": "held-out queries",
    "thresholds": "thresholds",
    "deferred": "share deferred",
    "unjudged": "share that could not be judged",
    "gain_over_random": "score over deferring at random",
    "auc_df": "area under the deferral curve",
    "auc_df_random": "… of deferring at random",
    "auc_df_oracle": "… of an oracle",
    "aiq": "AIQ of the router",
    "aiq_singles": "AIQ of mixing single models",
    "apgr": "APGR (random: 0.5)",
    "cpt50": "CPT(50 %)",
}
"""Keys of a card → what they are called."""


def show(card: Mapping[str, Any]) -> None:
    """Print the card's table, each mean with its 95 % interval, and its single figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "score", "gain over best single", "USD / query", "answered by", box=None, pad_edge=False
    )
    for row in card["rows"]:
        table.add_row(
            row["name"],
            _interval(row["score"], row["score_low"], row["score_high"], ".3f"),
            _interval(row["gain"], row["gain_low"], row["gain_high"], "+.3f"),
            _interval(row["cost_usd"], row["cost_low"], row["cost_high"], ".3g"),
            ", ".join(f"{name} {share:.0%}" for name, share in row["shares"].items() if share),
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for key, name in FACTS.items():
        if card.get(key) is not None:
            console.print(f"{name}: {_fact(card[key])}", markup=False)


def _interval(mean: float | None, low: float | None, high: float | None, form: str) -> str:
    if mean is None:
        return ""
    bounds = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{mean:{form}}{bounds}"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
