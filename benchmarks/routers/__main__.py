"""The command: train every router on each source, judge it on held-out queries, print and write the leaderboard."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.routers import png
from benchmarks.routers.at_hand import at_hand
from benchmarks.routers.cells import Absent, Cells
from benchmarks.routers.page import page
from benchmarks.routers.report import markdown
from engines.weights import Home
from outcomes.assignment import utility_choice
from outcomes.compare import Fitted, compare, complete
from outcomes.embedding_cache import cached_embeddings
from outcomes.table import OutcomeTable, read_table, split
from protocol.methods import Method, find_method, load_method, methods

RESULTS = Path(__file__).parents[1] / "results"
SOURCES = (
    "routerarena", "bfcl_tools", "gsm8k_multi", "routerbench_subset", "llmrouter", "routellm", "routerdc7",
)  # fmt: skip
"""The smallest first. Any folder of the data set may be named."""
NOT_MODELS = {"bfcl_tools": ("gpt-4o-2024-08-06",)}
"""Left out: it fails by its output format, which a router learns too easily (the data set's own caveat)."""
SLOW = ("encoder", "language-model")
"""Methods that need one of these train for minutes: they are measured with --methods all, or by name, in a table of
their own, which learns from --most queries and is judged on --tests."""
BESIDE = ("knn-router", "forc", "avengers", "stacking")
"""Methods that train in seconds, measured on as few queries for comparison."""


def main() -> int:
    """Exit status 2 without data or weights, saying which."""
    asked = _arguments()
    if asked.render:
        _render(asked.out)
        return 0
    if (have := at_hand(asked)) is None:
        return 2
    embedder, embeddings = have
    records = _records(asked.methods)
    quick = [record for record in records if not _slow(record)]
    slow = [record for record in records if _slow(record)]
    # What was measured before and is not asked for now keeps its figures.
    earlier = orjson.loads(asked.out.read_bytes()) if asked.out.is_file() else {"about": {}, "sources": {}}
    about: dict[str, Any] = earlier["about"]
    found: dict[str, Any] = earlier["sources"]
    started = time.monotonic()
    for source in asked.sources.split(","):
        print(f"== {source}", flush=True)
        table = _prepared(asked.data / source, source)
        vectors = cached_embeddings(table.queries.texts, embedder, embeddings, progress=_progress)
        train, test = split(complete(table.embedded(vectors)))
        kept = Home.from_environ().root / "benchmarks" / "routers"
        cells = Cells(kept, train, test, embedder.id, asked.limit)
        few = replace(cells, train=_sample(train, asked.most), test=_sample(test, asked.tests))
        result = found.get(source, {})
        if quick:
            result = _judged(cells, quick, asked, started) | {"few": result.get("few")}
        if slow:
            beside = [find_method(name, "router") for name in BESIDE]
            judged = _judged(few, [*beside, *slow], asked, started)
            result["few"] = judged | {"command": _command(asked, source)}
        found[source] = result
        _write(asked.out, found, about if not quick and about else _about(embedder.id, _command(asked)))
    print(markdown(orjson.loads(asked.out.read_bytes())))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routers", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("CHORUS_DATA"), help="default: $CHORUS_DATA"
    )
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--methods", default="", help="by default those that fine-tune nothing; or all")
    parser.add_argument("--again", default="", help="methods to measure anew, whatever is kept")
    parser.add_argument("--most", type=int, default=120, help="training queries of what fine-tunes")
    parser.add_argument("--tests", type=int, default=300, help="held-out queries of what fine-tunes")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one method on one source")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all that is not kept")
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--render", action="store_true", help="measure nothing: draw what --out holds anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "routers.json")
    return parser.parse_args()


def _records(names: str) -> list[Method]:
    if names and names != "all":
        return [find_method(name, "router") for name in names.split(",")]
    return [method for method in methods("router") if names or not _slow(method)]


def _slow(method: Method) -> bool:
    return bool(method.needs.intersection(SLOW))


def _sample(table: OutcomeTable, most: int) -> OutcomeTable:
    """At most so many of its queries, drawn by a fixed seed."""
    if len(table) <= most:
        return table
    return table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:most]))


def _prepared(folder: Path, source: str) -> OutcomeTable:
    table = read_table(folder)
    left_out = NOT_MODELS.get(source, ())
    return table.only([name for name in table.models if name not in left_out]) if left_out else table


def _judged(
    cells: Cells, records: Sequence[Method], asked: argparse.Namespace, started: float
) -> dict[str, Any]:
    """The comparison of these methods, and who is missing from it and why."""
    again = set(asked.again.split(","))
    fitted: dict[str, Fitted] = {}
    absent: dict[str, str] = {}
    for record in records:
        anew = record.id in again
        if time.monotonic() - started > asked.budget and (anew or not cells.has(record)):
            absent[record.id] = "not reached in the time given"
            continue
        try:
            fitted[record.id] = cells.find(record, again=anew)
        except Absent as reason:
            absent[record.id] = str(reason)
        print(f"   {record.id}: {absent.get(record.id, 'done')}", flush=True)
    return _measured(cells.train, cells.test, fitted) | {"absent": absent}


def _measured(train: OutcomeTable, test: OutcomeTable, fitted: dict[str, Fitted]) -> dict[str, Any]:
    makers = {name: load_method(find_method(name, "router")) for name in fitted}
    comparison = compare(train, test, makers, through=lambda name, _: fitted[name])
    best = int(np.argmax(train.score.mean(axis=0)))
    to_best = {name: utility_choice(one.estimate, 0.0) == best for name, one in fitted.items()}
    alike = [
        {"pair": [a, b], "share": share, "best_single": [float(to_best[a].mean()), float(to_best[b].mean())]}
        for a, b, share in comparison.alike()
    ]
    return comparison.wire() | {"alike": alike, "best_single": train.models[best]}


def _command(asked: argparse.Namespace, source: str = "") -> str:
    """The command again, without paths of this machine."""
    words = ["python -m benchmarks.routers"]
    words += [f"--sources {source}"] if source else []
    words += [f"--methods {asked.methods} --most {asked.most} --tests {asked.tests}"] if asked.methods else []
    return " ".join([*words, f"--limit {asked.limit:g}"])


def _about(embedder: str, command: str) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "embedder": embedder,
        "command": command,
        "split": "30 % of the queries held out by a hash of their text; default parameters; nothing tuned on them",
    }


def _write(path: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "sources": _rounded(found)}
    path.write_bytes(orjson.dumps(content) + b"\n")
    _render(path)


def _render(path: Path) -> None:
    """The report, the page and the pictures beside the figures."""
    read = orjson.loads(path.read_bytes())
    path.with_suffix(".md").write_text(markdown(read))
    path.with_suffix(".html").write_text(page(read))
    png.write(read, path.parent)


def _rounded(value: Any) -> Any:
    """Numbers with five digits, which is more than any interval here deserves."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return (
        [_rounded(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )


def _progress(done: int) -> None:
    print(f"   {done} embedded", end="\r", flush=True)


if __name__ == "__main__":
    sys.exit(main())
