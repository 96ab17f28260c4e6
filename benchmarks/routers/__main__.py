"""The command: train every router on each source, judge it on held-out queries, print and write the leaderboard."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from benchmarks.routers.report import markdown
from engines.weights import Home
from outcomes.compare import compare, complete
from outcomes.embedder import Embedder
from outcomes.embedding_cache import cached_embeddings
from outcomes.table import OutcomeTable, read_table, split
from protocol.methods import find_method, load_method, methods
from protocol.routing import Router

RESULTS = Path(__file__).parents[1] / "results"
SOURCES = ("routerbench_subset", "llmrouter", "routellm")
"""By default. Any folder of the data set may be named."""
NOT_MODELS = {"bfcl_tools": ("gpt-4o-2024-08-06",)}
"""Left out: it fails by its output format, which a router learns too easily (the data set's own caveat)."""


def main() -> int:
    """Exit status 2 without data or weights, saying which."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routers", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("CHORUS_DATA"), help="default: $CHORUS_DATA"
    )
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--methods", default="", help="by default all that do not fine-tune an encoder")
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--out", type=Path, default=RESULTS / "routers.json")
    arguments = parser.parse_args()
    home = Home.from_environ()
    folder = home.weights / arguments.embedder
    if arguments.data is None or not folder.is_dir():
        print(
            "Set CHORUS_DATA to the published outcome tables." if arguments.data is None else f"No {folder}."
        )
        return 2
    embedder = Embedder.load(folder, max_batch=8)
    quick = [method.id for method in methods("router") if "encoder" not in method.needs]
    names = arguments.methods.split(",") if arguments.methods else quick
    makers = {find_method(name, "router").id: load_method(find_method(name, "router")) for name in names}
    # A source measured before and not asked for now keeps its figures.
    found: dict[str, Any] = (
        orjson.loads(arguments.out.read_bytes())["sources"] if arguments.out.is_file() else {}
    )
    for source in arguments.sources.split(","):
        print(f"== {source}", flush=True)
        table = _prepared(arguments.data / source, source)
        vectors = cached_embeddings(
            table.queries.texts, embedder, home.root / "embeddings", progress=_progress
        )
        found[source] = _measured(complete(table.embedded(vectors)), makers)
        _write(arguments.out, found, embedder.id)
    print(markdown(orjson.loads(arguments.out.read_bytes())))
    return 0


def _prepared(folder: Path, source: str) -> OutcomeTable:
    table = read_table(folder)
    left_out = NOT_MODELS.get(source, ())
    return table.only([name for name in table.models if name not in left_out]) if left_out else table


def _measured(table: OutcomeTable, makers: dict[str, Callable[[], Router]]) -> dict[str, Any]:
    train, test = split(table)
    result = compare(train, test, makers, progress=lambda name: print(f"   {name}", flush=True)).wire()
    result["alike"] = [
        [a["name"], b["name"], result["agreement"][i][j]]
        for i, a in enumerate(result["routers"])
        for j, b in enumerate(result["routers"])
        if i < j and result["agreement"][i][j] > 0.99
    ]
    return result


def _write(path: Path, found: dict[str, Any], embedder: str) -> None:
    about = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "embedder": embedder,
        "command": "python -m benchmarks.routers",
        "split": "30 % of the queries held out by a hash of their text; default parameters; nothing tuned on them",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "sources": found}
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    path.with_suffix(".md").write_text(markdown(orjson.loads(path.read_bytes())))


def _progress(done: int) -> None:
    print(f"   {done} embedded", end="\r", flush=True)


if __name__ == "__main__":
    sys.exit(main())
