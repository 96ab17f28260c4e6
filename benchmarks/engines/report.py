"""What was measured: tables on the console, JSON, a page, and a chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.chart import Bar, Group, chart

__all__ = ["tables", "write"]

Result = Mapping[str, Any]
Cells = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""
GROWTH_MB = 40.0
"""What memory may still grow by over 1,000 short requests, behind a warm-up."""


def tables(result: Result) -> Iterator[Table]:
    """For people who watch."""
    for title, columns, rows in _cells(result):
        table = Table(title=title)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        yield table


def write(result: Result, path: Path, picture: Path | None) -> list[str]:
    """Figures to `path` (JSON), the page beside it (.md), and, with a `picture`, a chart there. Returns the remarks."""
    remarks = list(_remarks(result))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    machine = result["machine"]
    lines = [
        "# What fusing costs",
        "",
        "Written by `make bench-engines`; how it is measured: benchmarks/README.md.",
        "",
        *(f"- {key}: {value}" for key, value in machine.items()),
        f"- {result['dtype']}, greedy, {result['tokens']} tokens an answer; {result['seconds'] / 60:.1f} minutes",
        "",
    ]
    for title, columns, rows in _cells(result):
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    path.with_suffix(".md").write_text(
        "\n".join([*lines, "## Besides", "", *(f"- {line}" for line in remarks), ""]), encoding="utf-8"
    )
    if picture is not None:
        picture.write_text(_chart(result), encoding="utf-8")
    return remarks


def _cells(result: Result) -> Iterator[Cells]:
    rows, loads = result["rows"], sorted({row["concurrent"] for row in result["rows"]})
    by = {(row["model"], row["concurrent"]): row for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))

    def cell(name: str, n: int, told: str) -> str:
        row = by.get((name, n))
        return (
            "" if row is None else f"{row[told]:.1f}" if told == "tokens_per_s" else f"{1e3 * row[told]:.0f}"
        )

    yield (
        "Tokens/s, all requests together",
        ["", *(f"{n} at once" for n in loads), *(f"first words, {n} (ms)" for n in loads)],
        [
            [
                name,
                *(cell(name, n, "tokens_per_s") for n in loads),
                *(cell(name, n, "first_token_s") for n in loads),
            ]
            for name in names
        ],
    )
    steps = []
    for row in (row for name in names for n in loads if (row := by.get((name, n))) and "step_ms" in row):
        parts = row["parts_ms"]
        alone = _alone(by, result, row)
        steps.append(
            [
                row["model"], str(row["concurrent"]), f"{row['step_ms']:.1f}",
                " + ".join(f"{ms:.1f}" for part, ms in parts.items() if part.startswith("forward")),
                *(f"{parts[part]:.2f}" for part in ("align", "mix", "commit")),
                f"{sum(ms for part, ms in parts.items() if part.startswith('finish')):.2f}", f"{row['loop_ms']:.2f}",
                f"{row['step_to_forwards']:.3f}", f"{row['step_to_slowest']:.3f}", f"{alone:.3f}" if alone else "",
            ]
        )  # fmt: skip
    yield (
        "A step, in ms: medians over steps in which every request decodes",
        [
            "", "at once", "step", "forwards", "align", "mix", "commit", "finish", "loop",
            "÷ Σ forwards", "÷ slowest forward", "÷ Σ members alone",
        ],
        steps,
    )  # fmt: skip
    yield (
        "Where the time goes, of all steps",
        ["", "at once", "forwards", "align", "mix", "commit", "finish", "loop"],
        [
            _shares(by[name, n])
            for name in names
            for n in loads
            if (name, n) in by and name in result["methods"]
        ],
    )


def _shares(row: Mapping[str, Any]) -> list[str]:
    share = row["share"]
    sums = {
        part: sum(value for name, value in share.items() if name.startswith(part))
        for part in ("forward", "align", "mix", "commit", "finish")
    }
    values = [*sums.values(), 1 - sum(sums.values())]
    return [row["model"], str(row["concurrent"]), *(f"{value:.1%}" for value in values)]


def _alone(by: Mapping[tuple[str, int], Any], result: Result, row: Mapping[str, Any]) -> float | None:
    """The fused step over its members' own steps under as many requests."""
    forwards = [part.removeprefix("forward ") for part in row["parts_ms"] if part.startswith("forward")]
    if row["model"] not in result["methods"]:
        return None
    members = [by.get((name, row["concurrent"])) for name in forwards]
    if any(m is None or "step_ms" not in m for m in members):
        return None
    return float(row["step_ms"] / sum(m["step_ms"] for m in members if m is not None))


def _remarks(result: Result) -> Iterator[str]:
    """What the tables do not say; those that begin with FAILED are faults."""
    machine = result["machine"]
    if not result["complete"]:
        yield "not complete: the run was ended before it was through, and what is missing was not measured"
    for name in ("tcmalloc", "libiomp5"):
        yield f"{name} was {'' if machine[name] else 'not '}preloaded"
    by = {(row["model"], row["concurrent"]): row for row in result["rows"]}
    for row in result.get("alone", ()):
        yield (
            f"{row['model']} with no fusion running, {row['concurrent']} at once: {row['host']:.1f} tokens/s in the "
            f"host, {row['vllm']:.1f} in vLLM alone, {row['lost']:+.1%} lost (target: ≤ 3 %)"
        )
    for name in ("gac", "unite"):
        for n, target in ((1, 1.03), (8, 1.04)):
            if (row := by.get((name, n))) and "step_ms" in row:
                yield (
                    f"{name}, {n} at once: a step is {row['step_to_forwards']:.3f} × its forwards (target: "
                    f"≤ {target}), {row['step_to_slowest']:.3f} × the slowest"
                )
    for row in result.get("plain", ()):
        if fused := by.get((row["fusion"], 8)):
            rate = fused["tokens_per_s"]
            yield (
                f"{row['fusion']}, 8 requests: {rate:.1f} tokens/s; plain transformers {row['one_by_one']:.1f} one "
                f"after another ({rate / row['one_by_one']:.1f} ×, target ≥ 10), {row['batch_of_8']:.1f} as a "
                f"static batch ({rate / row['batch_of_8']:.2f} ×, target ≥ 1.65)"
            )
    for name, drafts in result.get("drafts", {}).items():
        yield (
            f"{name}: {drafts['accepted']:.1%} of drafts accepted, {drafts['forwards_per_symbol']:.2f} forwards a "
            f"symbol"
        )
        for n in (1, 8):
            if (ours := by.get((name, n))) and (theirs := by.get((drafts["rule_alone"], n))):
                ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
                yield f"{name}, {n} at once: {ratio:.2f} × the tokens/s of {drafts['rule_alone']}"
    if busy := result.get("both_busy"):
        yield (
            f"{busy['fused_streams']} streams of {busy['fusion']} with plain ones beside them: "
            f"{sum(busy['fused_tokens_per_s']):.1f} tokens/s; KV cache at most {busy['kv_usage_at_most']:.0%} full; "
            f"memory {busy['rss_mb_before']:,.0f} → {busy['rss_mb_after']:,.0f} MB"
        )
        for name, told in busy["plain"].items():
            shares = ", ".join(f"{share:.0%}" for share in told["shares"])
            yield f"plain streams of {name} beside them: {shares} of their rate without"
            if min(told["shares"]) <= 0.02:
                yield f"FAILED: a plain stream of {name} starved"
    if soak := result.get("soak"):
        course = soak["rss_mb"]
        yield (
            f"{soak['requests']:,} short requests of {soak['fusion']} in {soak['seconds']:.0f} s: memory "
            f"{course[0]:,.0f} → {course[-1]:,.0f} MB (at most {max(course):,.0f}); "
            f"{soak['left_in_engines']} requests left in the engines, KV cache {soak['kv_usage_after']:.1%} full"
        )
        if course[-1] - course[0] > GROWTH_MB:
            yield f"FAILED: memory grew by {course[-1] - course[0]:.0f} MB"
        if soak["left_in_engines"] or soak["without_text"]:
            yield f"FAILED: {soak['left_in_engines']} requests were left, {soak['without_text']} had no text"
    if result.get("left_out"):
        yield f"left out for time: {', '.join(result['left_out'])}"


def _chart(result: Result) -> str:
    """Tokens/s under one request and under eight."""
    groups = []
    for n in (1, 8):
        rows = [row for row in result["rows"] if row["concurrent"] == n]
        bars = [
            Bar(
                row["model"],
                row["tokens_per_s"],
                f"{row['tokens_per_s']:.0f}",
                ours=row["model"] in result["methods"],
            )
            for row in rows
        ]
        key, told = ("one_by_one", "loop") if n == 1 else ("batch_of_8", "static batch")
        bars += [
            Bar(f"{row['fusion']}, transformers {told}", row[key], f"{row[key]:.0f}")
            for row in result.get("plain", ())
        ]
        bars.sort(key=lambda bar: -bar.value)
        if rows:
            title = f"Tokens/s, {n} request{'s at once' if n > 1 else ''}"
            groups.append(Group(title, bars, full=max(bar.value for bar in bars)))
    return chart(
        groups, "Tokens per second of members alone, fusions, and plain transformers loops", label=220
    )
