"""The command: run the targets, print the table, write figures, page and chart."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from benchmarks.gateway.endurance import Endurance, endure
from benchmarks.gateway.estimates import estimate_us
from benchmarks.gateway.load import Server
from benchmarks.gateway.measure import Plan, Row, measure, warm_up
from benchmarks.gateway.processes import Cores, Process, free_port, wait_for
from benchmarks.gateway.report import Report, console_table, write
from benchmarks.gateway.targets import (
    COMPARED,
    OURS,
    ROOT,
    TARGETS,
    Bench,
    Chorus,
    Target,
    Unavailable,
    started,
)
from benchmarks.gateway.workload import WORKLOADS

RESULTS = ROOT / "benchmarks/results"
CHART = ROOT / "docs/speed.svg"
FULL = Plan(connections=32, warm_s=0.7, closed_s=4.5, open_s=3.0)
QUICK = Plan(connections=32, warm_s=0.5, closed_s=2.0, open_s=2.0, rounds=2)
SOAK = (100_000, 10_000)
QUICK_SOAK = (5_000, 500)


def main() -> int:
    """Exit status 1 when a row of Chorus failed; a peer's failure is told and shown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 s per load instead of 6, and a short soak")
    parser.add_argument("--targets", default=",".join((*COMPARED, *OURS)), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--workloads", default="", help="how its name begins; all by default")
    parser.add_argument("--other", type=Path, help="another checkout of Chorus, measured too as 'other'")
    parser.add_argument("--no-soak", action="store_true", help="leave out memory over many requests")
    parser.add_argument("--cache", type=Path, default=_cache(), help="where peers are installed")
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway.json", help="and .md beside it")
    parser.add_argument("--chart", type=Path, help="an SVG; docs/speed.svg with the usual --out")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    targets, names = dict(TARGETS), arguments.targets.split(",")
    if arguments.other:
        targets["other"] = Chorus("other", root=arguments.other.resolve())
        names.append("other")
    console, cores = Console(width=None if sys.stdout.isatty() else 190), Cores()
    cores.pin_self()
    report = Report(_machine(cores), plan)
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        argv = [sys.executable, "-m", "benchmarks.gateway.upstream", "--port", str(port)]
        log, env = Path(scratch) / "upstream.log", {"PYTHONPATH": str(ROOT)}
        with Process(argv, cores=cores.load, log=log, env=env, cwd=ROOT) as upstream:
            wait_for(f"http://127.0.0.1:{port}/health", upstream, 15)
            bench = Bench(port, cores.gateway, cores.load, Path(scratch), arguments.cache)
            for name in names:
                try:
                    report.rows += _rows(targets[name], bench, plan, arguments.workloads, console)
                except Unavailable as error:
                    report.absent[name] = str(error)[-400:]
            if not arguments.no_soak:
                soak = QUICK_SOAK if arguments.quick else SOAK
                report.endurance = _endurance(bench, *soak, console)
                console.print("[dim]estimates of a kNN router …[/]")
                report.estimates = estimate_us()
    report.machine["load average after"] = _load_average()
    console.print(console_table(report))
    usual = arguments.out == RESULTS / "gateway.json"
    write(report, arguments.out, arguments.chart or (CHART if usual else None))
    for line in report.remarks():
        console.print(line, highlight=False, markup=False)
    return 0 if report.passed else 1


def _rows(target: Target, bench: Bench, plan: Plan, workloads: str, console: Console) -> list[Row]:
    """A target under those of the workloads that are asked for and concern it."""
    rows = []
    with started(target, bench) as running:
        warm_up(running.server, plan)
        for workload in WORKLOADS:
            concerned = target.name not in OURS or workload is WORKLOADS[0]
            if workload.name.startswith(workloads) and concerned:
                console.print(f"[dim]{target.name}: {workload.name} …[/]")
                rows.append(measure(target.name, running, workload, plan, Server(bench.upstream)))
    return rows


def _endurance(bench: Bench, requests: int, streams: int, console: Console) -> Endurance:
    console.print(f"[dim]memory over {requests:,} requests and {streams:,} streams …[/]")
    with started(Chorus("chorus-soak"), bench) as running:
        return endure(running, requests, streams)


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
        "load average before": _load_average(),
        "placement": cores.note,
    }


def _load_average() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _cache() -> Path:
    home = os.environ.get("CHORUS_HOME")
    return (Path(home) if home else Path.home() / ".cache/chorus") / "benchmark-peers"


if __name__ == "__main__":
    sys.exit(main())
