"""The command: load everybody, measure, print the tables, write figures, page and chart."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.asking import Asker
from benchmarks.engines.alone import against_vllm
from benchmarks.engines.load import QUESTIONS, Bench
from benchmarks.engines.report import tables, write
from benchmarks.engines.watch import WatchedHost
from benchmarks.lineup import Lineup, lineup
from benchmarks.machine import machine
from engines import preload
from engines.engine import prepare_environment
from protocol.methods import load_method

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
CHART = ROOT / "docs/fusion-speed.svg"
TARGETED = ("gac", "unite")
"""Fusions with a target for their step, and a plain transformers loop beside them."""
EXPECTED = {"load": 90, "alone": 80, "plain": 60, "busy": 40, "soak": 110}
"""Seconds each part takes on two quiet cores, apart from the rows, which have what is left."""


def main() -> int:
    """Exit status 1 when a request failed, memory grew without bound, or a plain stream starved."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="8 tokens an answer instead of 24, and a short soak"
    )
    parser.add_argument(
        "--concurrent", default="1,8,4,16", help="requests at once, in the order of measuring"
    )
    parser.add_argument("--fusions", default="", help="of benchmarks/fusions.yaml; all by default")
    parser.add_argument("--without", default="", help="of these, leave out")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="rows that would begin later are left out"
    )
    parser.add_argument(
        "--soak", type=int, help="short requests; 1000 by default, 50 with --quick, 0 for none"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave the transformers loop out")
    parser.add_argument("--no-alone", action="store_true", help="leave the comparison with vLLM alone out")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.json", help="and .md beside it")
    parser.add_argument("--chart", type=Path, help="an SVG; docs/fusion-speed.svg with the usual --out")
    asked = parser.parse_args()
    preload.ensure()
    begun, console = time.monotonic(), Console(width=None if sys.stdout.isatty() else 170)
    prepare_environment()
    team = lineup(asked.dtype)
    names = asked.fusions.split(",") if asked.fusions else list(team.entries)
    team = team.only([name for name in names if name not in asked.without.split(",")])
    loads = [int(n) for n in asked.concurrent.split(",")]
    soak = asked.soak if asked.soak is not None else 50 if asked.quick else 1000
    tokens = 8 if asked.quick else 24
    later = (not asked.no_plain) * EXPECTED["plain"] + EXPECTED["busy"] + soak * EXPECTED["soak"] / 1000
    _tell_plan(console, asked, team, loads, soak, asked.minutes * 60)
    result: dict[str, Any] = {
        "machine": machine(), "dtype": asked.dtype, "tokens": tokens, "rows": [], "left_out": [], "complete": False,
        "methods": {n: e.method.id for n, e in team.entries.items()},
    }  # fmt: skip
    usual = asked.out == RESULTS / "engines.json"

    def keep() -> list[str]:
        """Write what there is, so that a run that is ended has not been for nothing."""
        result["seconds"] = time.monotonic() - begun
        return write(result, asked.out, asked.chart or (CHART if usual else None))

    if not asked.no_alone:
        first = next(iter(team.engines.values()))
        console.print(f"[dim]{first.name} against vLLM alone …[/]")
        result["alone"] = against_vllm(
            first, team.prompts[first.name], QUESTIONS, (1, 8), 2 * tokens, 2 if asked.quick else 5
        )
        gc.collect()
    host = WatchedHost(list(team.engines.values()), [entry.spec for entry in team.entries.values()])
    host.start()
    try:
        bench = Bench(host, Asker(host, team.prompts), tokens, result["rows"])
        everybody = [*team.engines, *team.entries]
        for name in everybody:
            bench.ask.send(name, QUESTIONS[0], max_tokens=4).wait()  # kernels picked, tables looked up
        for n in loads:
            for name in everybody:
                if time.monotonic() - begun > asked.minutes * 60 - later:
                    result["left_out"].append(f"{name} at {n}")
                    continue
                console.print(f"[dim]{name}, {n} at once …[/]")
                bench.row(name, n)
                keep()
        fused = next((name for name in TARGETED if name in team.entries), next(iter(team.entries)))
        console.print(f"[dim]{fused} and its members at once …[/]")
        result["both_busy"] = bench.both_busy(fused)
        keep()
        if soak:
            console.print(f"[dim]{soak} short requests …[/]")
            result["soak"] = bench.soak(fused, soak)
        result["drafts"] = {
            name: {
                "accepted": t.accepted / max(1, t.verified),
                "forwards_per_symbol": t.forwards / max(1, t.written),
                "rule_alone": team.rules_alone().get(name),
            }
            for name, t in host.tallies().items()
        }
        keep()
    finally:
        host.stop()
    del host, bench
    gc.collect()
    if not asked.no_plain:
        console.print("[dim]plain transformers loops …[/]")
        result["plain"] = plain(team, asked.dtype, tokens)
    result["machine"]["load_average_after"] = machine()["load_average"]
    result["complete"] = True
    faults = keep()
    for table in tables(result):
        console.print(table)
    for fault in faults:
        console.print(fault, highlight=False, markup=False)
    return int(any(fault.startswith("FAILED") for fault in faults))


def plain(team: Lineup, dtype: str, tokens: int) -> list[dict[str, Any]]:
    """Tokens/s of the transformers loop: of one request after another, and of a static batch of 8."""
    from benchmarks.engines.plain import PlainLoop

    wanted = [team.entries[name] for name in TARGETED if name in team.entries]
    if not wanted:
        return []
    members = wanted[0].spec.members
    folders = [team.engines[m].folder for m in members]
    loop = PlainLoop(folders, dtype)
    prompts = [loop.prompts([team.prompts[m] for m in members], question) for question in QUESTIONS[:8]]
    found = []
    for entry in wanted:
        fusion = load_method(entry.method)(**entry.settings.options)
        loop.write(fusion, prompts[:1], 2)
        rates = {}
        for n in (1, 8):
            begun = time.perf_counter()
            written = loop.write(fusion, prompts[:n], tokens)
            rates[n] = written / (time.perf_counter() - begun)
        found.append({"fusion": entry.spec.name, "one_by_one": rates[1], "batch_of_8": rates[8]})
    return found


def _tell_plan(
    console: Console, asked: argparse.Namespace, team: Lineup, loads: list[int], soak: int, limit_s: float
) -> None:
    parts = {
        "loading": EXPECTED["load"],
        "against vLLM alone": (not asked.no_alone) * EXPECTED["alone"],
        "both busy": EXPECTED["busy"],
        f"{soak} short requests": soak * EXPECTED["soak"] / 1000,
        "transformers loops": (not asked.no_plain) * EXPECTED["plain"],
    }
    rest = limit_s - sum(parts.values())
    count = len(loads) * (len(team.engines) + len(team.entries))
    parts[f"{count} rows: {len(team.engines)} models and {len(team.entries)} fusions"] = rest
    told = ", ".join(f"{what} {seconds / 60:.1f}" for what, seconds in parts.items() if seconds)
    console.print(f"[dim]plan, in minutes on two quiet cores: {told}[/]")
    for name, reason in team.absent.items():
        console.print(f"[dim]{name} does not take part: {reason}[/]")


if __name__ == "__main__":
    sys.exit(main())
