"""The command: run the targets, print the table, write the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.gateway.load import Server
from benchmarks.gateway.measure import Latency, Plan, Row, measure, warm_up
from benchmarks.gateway.processes import Cores, Process, free_port, wait_for
from benchmarks.gateway.targets import DEFAULT, ROOT, TARGETS, Bench, Chorus, Unavailable, started
from benchmarks.gateway.workload import WORKLOADS

RESULTS = ROOT / "benchmarks/results"
FULL = Plan(connections=32, warm_s=1.0, closed_s=5.0, open_s=5.0)
QUICK = Plan(connections=32, warm_s=0.5, closed_s=2.0, open_s=2.0)


def main() -> int:
    """Exit status 1 when a row of Chorus failed; a peer's failure is told and shown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 s per load instead of 5")
    parser.add_argument("--targets", default=",".join(DEFAULT), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--workloads", default="", help="how its name begins; all by default")
    parser.add_argument("--other", type=Path, help="another checkout of Chorus, measured too as 'other'")
    parser.add_argument("--cache", type=Path, default=_cache(), help="where peers are installed")
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway.json")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    workloads = [workload for workload in WORKLOADS if workload.name.startswith(arguments.workloads)]
    targets = dict(TARGETS)
    names = arguments.targets.split(",")
    if arguments.other:
        targets["other"] = Chorus("other", root=arguments.other.resolve())
        names.append("other")
    console, cores = Console(width=None if sys.stdout.isatty() else 170), Cores()
    cores.pin_self()
    rows: list[Row] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        argv = [sys.executable, "-m", "benchmarks.gateway.upstream", "--port", str(port)]
        log, env = Path(scratch) / "upstream.log", {"PYTHONPATH": str(ROOT)}
        with Process(argv, cores=cores.load, log=log, env=env, cwd=ROOT) as upstream:
            wait_for(f"http://127.0.0.1:{port}/health", upstream, 15)
            bench = Bench(port, cores.gateway, Path(scratch), arguments.cache)
            for name in names:
                try:
                    with started(targets[name], bench) as running:
                        warm_up(running.server, plan)
                        for workload in workloads:
                            console.print(f"[dim]{name}: {workload.name} …[/]")
                            rows.append(measure(name, running, workload, plan, Server(port)))
                except Unavailable as error:
                    absent[name] = str(error)
    machine = _machine(cores)
    console.print(_table(rows))
    for name, reason in absent.items():
        console.print(f"[yellow]{name} did not run:[/] {reason[-400:]}", highlight=False, markup=True)
    for row in rows:
        for fault in row.faults:
            console.print(f"[red]{row.target}, {row.workload}:[/]", fault[:200], highlight=False)
    console.print(
        " · ".join(f"{key}: {value}" for key, value in machine.items()), style="dim", highlight=False
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine, "plan": asdict(plan), "rows": [asdict(row) for row in rows], "absent": absent}
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    ours = (row for row in rows if row.target.startswith(("direct", "chorus", "other")))
    return 0 if all(row.passed for row in ours) else 1


def _table(rows: list[Row]) -> Table:
    table = Table(title="What a gateway costs: one core, closed loop, then open loop at half its own peak")
    for column in ("workload", "target", "version"):
        table.add_column(column)
    numbers = (
        "peak req/s", "CPU µs/req", "× chorus", "rate", "CPU µs/req\nat rate", "added ms\np50", "p99", "p99.9",
        "first byte\nadded p50", "p99", "RSS MB", "requests", "",
    )  # fmt: skip
    for column in numbers:
        table.add_column(column, justify="right")
    ours = {row.workload: row.cpu_us for row in rows if row.target == "chorus"}
    for workload in dict.fromkeys(row.workload for row in rows):
        for row in (row for row in rows if row.workload == workload):
            own = ours.get(workload)
            table.add_row(
                workload, row.target, row.version, f"{row.peak_rate:,.0f}",
                f"{row.cpu_us:,.0f}" if row.cpu_us else "", f"{row.cpu_us / own:.2f}" if own and row.cpu_us else "",
                f"{row.rate:,.0f}", f"{row.open_cpu_us:,.0f}" if row.cpu_us else "",
                *_ms(row.added), *_ms(row.added_first_byte)[:2],
                f"{row.rss_mb:,.0f}" if row.rss_mb else "", f"{row.requests:,}", "ok" if row.passed else "FAILED",
            )  # fmt: skip
        table.add_section()
    return table


def _ms(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["", "", ""]
    return [f"{1000 * value:.2f}" for value in (latency.p50, latency.p99, latency.p999)]


def _machine(cores: Cores) -> dict[str, str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{os.cpu_count()} × {model}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("uvicorn", "uvloop", "httptools", "aiohttp")},
        "load average before": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "placement": cores.note,
    }


def _cache() -> Path:
    home = os.environ.get("CHORUS_HOME")
    return (Path(home) if home else Path.home() / ".cache/chorus") / "benchmark-peers"


if __name__ == "__main__":
    sys.exit(main())
