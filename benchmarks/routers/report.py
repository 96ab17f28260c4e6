"""The leaderboard as Markdown, from the JSON."""

from __future__ import annotations

from typing import Any

from benchmarks.routers.figures import FEW, comparisons

__all__ = ["markdown"]

HEADINGS = (
    "router", "score [95 %]", "gain over best single", "gap closed", "cost at best single's score",
    "score at half its cost", "AIQ", "APGR", "CPT 50 / 80 %", "ECE", "fit s", "kB", "ms",
)  # fmt: skip

CONSTANT = 0.985
"""Share of one model above which a router's choice at quality 1 is called constant."""
WHY: dict[frozenset[str], str] = {}
"""Pairs that are alike for a reason that their figures do not show."""

PREFACE = """# Routers on published outcome tables

Each router is trained with its default parameters on 70 % of the queries of a source and judged on the other 30 %, held
out by a hash of their text. *Gain* is over the best single model chosen with hindsight on the test queries, with a
paired bootstrap interval. *Gap closed* is the share of the way from that model to the oracle. *Cost* figures read the
non-decreasing hull of the cost-quality curve over λ. *ECE* is the calibration error of the estimated quality: it says
nothing about methods whose quality is a rank or a chance of winning. *ms* is the median of estimating one query, the
embedding excluded. Intervals are per row: among many routers the top one is partly luck. Times are from a shared,
loaded machine and vary severalfold between runs. Routers that fine-tune an encoder or a language model have tables of
their own, "few queries"; those that are language models are also compared with their untrained start (`lm-*.json`).
"""


def markdown(found: dict[str, Any]) -> str:
    """The whole page."""
    about = found["about"]
    lines = [
        PREFACE,
        f"Embedder `{about['embedder']}`; {about['machine']}; `{about['command']}`; {about['made']}.",
        "",
    ]
    for one in comparisons(found):
        if one.few:
            lines += [f"### {one.name}", "", FEW, "", f"`{one.found['command']}`", ""]
        else:
            lines += [f"## {one.name}", ""]
        lines += _compared(one.found)
    return "\n".join(lines)


def _compared(result: dict[str, Any]) -> list[str]:
    """One comparison: its table, who chooses alike, and who is missing."""
    lines = [
        f"{result['train_queries']} training, {result['test_queries']} test queries, {len(result['models'])} models.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    singles = [row for row in result["baselines"] if row["name"].startswith("only ")]
    best = max(singles, key=lambda row: row["score"]["mean"])
    others = [row for row in result["baselines"] if not row["name"].startswith("only ")]
    for rows in (result["routers"], [best, *others]):
        lines += [_row(row) for row in sorted(rows, key=lambda row: -row["score"]["mean"])]
    if result["aiq_singles"] is not None:
        lines += ["", f"Zero router (mixing single models): AIQ {result['aiq_singles']:.4f}."]
    categories = list(result["routers"][0]["apgr_by_category"] or {})
    if categories:
        lines += ["", "APGR within one benchmark (a random router has 0.5):", ""]
        lines += [f"| router | {' | '.join(categories)} |", f"|{'---|' * (1 + len(categories))}"]
        for row in result["routers"]:
            lines.append(
                f"| {row['name']} | {' | '.join(f'{v:.3f}' for v in row['apgr_by_category'].values())} |"
            )
    lines += _alike(result) + _agreement(result)
    if result["absent"]:
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(result["absent"].items()))
        lines += [f"Without figures here: {told}", ""]
    return lines


def _alike(result: dict[str, Any]) -> list[str]:
    """Pairs that choose alike on more than 99 % of the queries, and why."""
    constant = {
        name
        for pair in result["alike"]
        for name, share in zip(pair["pair"], pair["best_single"], strict=True)
        if share > CONSTANT
    }
    lines = [""]
    if constant:
        lines += [
            f"Always, or on more than {CONSTANT:.1%} of the queries, the model that is best on the training queries "
            f"({result['best_single']}), hence alike in what they choose at quality 1, though not in the order in "
            f"which they would give queries to cheaper models: {', '.join(sorted(constant))}.",
            "",
        ]
    others = [pair for pair in result["alike"] if not constant.issuperset(pair["pair"])]
    for pair in others:
        a, b = pair["pair"]
        to_best = min(pair["best_single"])
        why = WHY.get(frozenset((a, b)), f"both choose {result['best_single']} on {to_best:.0%} or more")
        lines += [f"{a} and {b} choose alike on {pair['share']:.1%}: {why}.", ""]
    return lines if constant or others else ["", "No two choose alike on more than 99 % of the queries.", ""]


def _agreement(result: dict[str, Any]) -> list[str]:
    """Share of queries on which two routers choose the same model, in %."""
    names = [row["name"] for row in result["routers"]]
    lines = ["Same choice at quality 1, %:", "", f"| | {' | '.join(map(str, range(1, len(names) + 1)))} |"]
    lines.append(f"|{'---|' * (len(names) + 1)}")
    for i, (name, shares) in enumerate(zip(names, result["agreement"], strict=True), 1):
        lines.append(f"| {i} {name} | {' | '.join(f'{100 * share:.0f}' for share in shares)} |")
    return [*lines, ""]


def _row(row: dict[str, Any]) -> str:
    score, gain = row["score"], row["gain"]
    cpt = [row["cpt50"], row["cpt80"]]
    cells = [
        row["name"],
        f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
        f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]",
        f"{row['gap']:+.0%}",
        _cell(row["cost_at_best"], ".0%"),
        _cell(row["quality_at_half"], ".3f"),
        _cell(row["aiq"], ".4f"),
        _cell(row["apgr"], ".3f"),
        " / ".join(_cell(value, ".0%") for value in cpt) if any(value is not None for value in cpt) else "",
        _cell(row["calibration"], ".3f"),
        _cell(row["fit_s"], ".1f"),
        _cell(row["artefact_bytes"] and row["artefact_bytes"] / 1000, ".0f"),
        _cell(row["estimate_ms"], ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
