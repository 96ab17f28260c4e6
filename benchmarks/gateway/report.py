"""What was measured, told four ways: a table on the console, JSON, a page, and a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.chart import Bar, Group, chart
from benchmarks.gateway.endurance import Endurance
from benchmarks.gateway.measure import Latency, Plan, Row
from benchmarks.gateway.targets import COMPARED
from benchmarks.gateway.workload import WORKLOADS

__all__ = ["Report", "console_table", "write"]

COLUMNS = (
    "workload", "target", "version", "peak req/s", "CPU µs/req", "(rounds)", "× vllm-router", "rate",
    "added ms p50", "p99", "p99.9", "first byte p50", "p99", "direct p99", "RSS MB", "requests", "",
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """All of one run. `estimates`: stored queries → microseconds; `absent`: target → why it did not run."""

    machine: dict[str, str]
    plan: Plan
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    endurance: Endurance | None = None
    estimates: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every row of ours, and the endurance, is in order."""
        ours = (row for row in self.rows if row.target.startswith(("direct", "chorus", "other")))
        return all(row.passed for row in ours) and not (self.endurance and self.endurance.faults)

    def row(self, target: str, workload: str) -> Row | None:
        """The row of a target and workload."""
        found = (row for row in self.rows if (row.target, row.workload) == (target, workload))
        return next(found, None)

    def ratio(self, row: Row) -> float | None:
        """Processor time per request over vllm-router's, of the same run and workload."""
        theirs = self.row("vllm-router", row.workload)
        return row.cpu_us / theirs.cpu_us if theirs and theirs.cpu_us and row.cpu_us else None

    def remarks(self) -> Iterator[str]:
        """What the tables do not say."""
        whole = WORKLOADS[0].name
        ours, off = self.row("chorus", whole), self.row("chorus-off", whole)
        for name, what in (
            ("chorus-2", "two workers"),
            ("chorus-knn", "a kNN route, text known"),
            ("chorus-knn-fresh", "a kNN route, every text embedded on CPU"),
            ("chorus-log", "the access log"),
        ):
            if ours and (row := self.row(name, whole)):
                yield (
                    f"{what}: CPU per request × {row.cpu_us / ours.cpu_us:.2f}, "
                    f"throughput × {row.peak_rate / ours.peak_rate:.2f} of one worker without"
                )
        for name in ("chorus", "chorus-keys", "chorus-redis"):
            if off and (row := self.row(name, whole)):
                yield (
                    f"{name}: CPU per request × {row.cpu_us / off.cpu_us:.2f}, throughput × "
                    f"{row.peak_rate / off.peak_rate:.2f} of the same without key and ledger"
                )
        if (held := self.endurance) is not None:
            yield f"RSS over {held.requests:,} requests: {_course(held.requests_mb)} MB"
            yield f"RSS over {held.streams:,} streams after these: {_course(held.streams_mb)} MB"
            yield f"{held.idle_streams:,} idle streams: {held.idle_mb:.1f} MB more"
        for stored, us in self.estimates.items():
            yield (
                f"kNN estimate with the embedding known, {int(stored):,} stored queries × 10 models: "
                f"{us:,.0f} µs of processor time"
            )
        for row in self.rows:
            faults = dict.fromkeys(fault[:200] for fault in row.faults)
            yield from (f"FAILED {row.target}, {row.workload}: {fault}" for fault in faults)
        if self.endurance is not None:
            yield from (f"FAILED endurance: {fault[:200]}" for fault in self.endurance.faults)
        for name, reason in self.absent.items():
            yield f"{name} did not run: {reason}"


def console_table(report: Report) -> Table:
    """For people who watch."""
    table = Table(title="What a gateway costs: one core, closed loop, then open loop at half its own peak")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right")
    for workload in dict.fromkeys(row.workload for row in report.rows):
        for row in report.rows:
            if row.workload == workload:
                table.add_row(*_cells(report, row))
        table.add_section()
    return table


def write(report: Report, path: Path, chart: Path | None) -> None:
    """Figures to `path` (JSON), the page beside it (.md), and, with a `chart`, a picture there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "machine": report.machine,
        "plan": asdict(report.plan),
        "rows": [asdict(row) for row in report.rows],
        "endurance": asdict(report.endurance) if report.endurance else None,
        "knn_estimate_us": report.estimates,
        "absent": report.absent,
    }
    path.write_text(json.dumps(_numbers(told), indent=1, allow_nan=False) + "\n")
    path.with_suffix(".md").write_text(_page(report))
    if chart is not None:
        chart.write_text(_chart(report))


def _numbers(value: Any) -> Any:
    """`value` with null where there is no number."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _page(report: Report) -> str:
    lines = [
        "# What a gateway costs", "",
        "Written by `make bench-gateway`; how it is measured: benchmarks/README.md.", "",
        *(f"- {key}: {value}" for key, value in report.machine.items()), "",
    ]  # fmt: skip
    for workload in dict.fromkeys(row.workload for row in report.rows):
        lines += [
            f"## {workload}",
            "",
            f"| {' | '.join(COLUMNS[1:])} |",
            "|---|" + "---:|" * (len(COLUMNS) - 2),
        ]
        lines += [
            f"| {' | '.join(_cells(report, row)[1:])} |" for row in report.rows if row.workload == workload
        ]
        lines.append("")
    return "\n".join([*lines, "## Besides", "", *(f"- {line}" for line in report.remarks()), ""])


def _cells(report: Report, row: Row) -> list[str]:
    ratio = report.ratio(row)
    rounds = f"{min(row.cpu_us_rounds):,.0f}-{max(row.cpu_us_rounds):,.0f}" if row.cpu_us else ""
    return [
        row.workload, row.target, row.version, f"{row.peak_rate:,.0f}",
        f"{row.cpu_us:,.0f}" if row.cpu_us else "", rounds, f"{ratio:.2f}" if ratio else "", f"{row.rate:,.0f}",
        *_ms(row.added), *_ms(row.added_first_byte)[:2], _ms(row.alone)[1],
        f"{row.rss_mb:,.0f}" if row.rss_mb else "", f"{row.requests:,}", "ok" if row.passed else "FAILED",
    ]  # fmt: skip


def _ms(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["", "", ""]
    return [f"{1000 * value:.2f}" for value in (latency.p50, latency.p99, latency.p999)]


def _course(samples: Sequence[float]) -> str:
    return f"{samples[0]:.1f} → {samples[-1]:.1f} (at most {max(samples):.1f})" if samples else "?"


def _chart(report: Report) -> str:
    """Processor time per request, by workload; Chorus's bar is a third of the width."""
    groups = []
    for workload in WORKLOADS:
        found = (report.row(target, workload.name) for target in COMPARED)
        rows = [row for row in found if row is not None and row.passed and row.cpu_us]
        ours = report.row("chorus", workload.name)
        if ours is not None and rows:
            bars = [Bar(row.target, row.cpu_us, f"{row.cpu_us:,.0f}", ours=row is ours) for row in rows]
            bars.sort(key=lambda bar: bar.value)
            groups.append(Group(f"CPU µs per request: {workload.name}", bars, full=3 * ours.cpu_us))
    return chart(groups, "CPU time per request")
