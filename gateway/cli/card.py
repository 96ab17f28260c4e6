"""Printing a metrics card: what learning bought, beside what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outcomes.compare import Comparison

__all__ = ["show", "show_comparison"]

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


def show_comparison(found: Comparison) -> None:
    """Print all rows, best score first within baselines and routers, and which routers decide how much alike."""
    from rich.console import Console
    from rich.table import Table

    headings = (
        "",
        "score",
        "gain over best single",
        "gap",
        "USD / query",
        "AIQ",
        "APGR",
        "ECE",
        "fit s",
        "kB",
        "ms",
    )
    table = Table(*headings, box=None, pad_edge=False)
    for rows in (found.baselines, found.routers):
        for row in sorted(rows, key=lambda row: -row.score.mean):
            table.add_row(
                row.name,
                _interval(row.score.mean, row.score.low, row.score.high, ".3f"),
                _interval(row.gain.mean, row.gain.low, row.gain.high, "+.3f"),
                f"{row.gap:+.0%}",
                *(
                    _or_blank(value, ".3g")
                    for value in (row.cost_usd, row.aiq, row.apgr, row.calibration, row.fit_s)
                ),
                _or_blank(row.artefact_bytes and row.artefact_bytes / 1000, ".0f"),
                _or_blank(row.estimate_ms, ".2f"),
            )
        table.add_section()
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    facts = (
        f"{found.train_queries} training and {found.test_queries} test queries, {len(found.models)} models"
    )
    console.print(
        facts + (f"; AIQ of mixing single models {found.aiq_singles:.3g}" if found.aiq_singles else "")
    )
    names = [row.name for row in found.routers]
    agreement = Table("same choice, %", *map(str, range(1, len(names) + 1)), box=None, pad_edge=False)
    for i, (name, shares) in enumerate(zip(names, found.agreement, strict=True), 1):
        agreement.add_row(f"{i} {name}", *(f"{100 * share:.0f}" for share in shares))
    console.print(agreement)
    for a, b, share in found.alike():
        console.print(f"{a} and {b} choose alike on {share:.1%} of the queries", markup=False)


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(mean: float | None, low: float | None, high: float | None, form: str) -> str:
    if mean is None:
        return ""
    bounds = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{mean:{form}}{bounds}"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
