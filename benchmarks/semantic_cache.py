"""What a semantic cache would confuse: different questions that lie close enough to be taken for one another.

    CHORUS_DATA=… python -m benchmarks.semantic_cache          # writes benchmarks/results/semantic_cache.{json,md}

Every query of a published table is another question. Each is asked in turn of a cache that holds all the others, so
every hit is a false one, unless both have the same known answer (counted apart, for it may be luck). That is the worst
case, and on purpose: benchmarks are full of near-copies with other numbers, names and options. It says nothing of how
many hits the repeats of real traffic would give; that is for one's own ledger to show (`x-chorus-cache`).

Thresholds are judged with the guard and without it, over asks as short as the cache compares them. An exact copy of a
text is left out: the exact cache has it. A second table shows what asks of any length would do.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gateway.caching.cached import MOST_BYTES
from gateway.caching.guard import conflicting
from gateway.local_weights import weights_folder
from outcomes.embedder import Embedder
from outcomes.table import normalised_text

THRESHOLDS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=600, help="of each source, drawn with a fixed seed")
    parser.add_argument("--sources", default="routellm,routerbench_subset,llmrouter,routerdc7,routerarena")
    asked = parser.parse_args()
    data = os.environ.get("CHORUS_DATA")
    if not data:
        print("CHORUS_DATA is not set: the folder with the published tables.", file=sys.stderr)
        return 2
    embedder = Embedder.load(weights_folder("all-minilm-l6-v2-int8"), max_batch=8)
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.semantic_cache --queries {asked.queries}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "embedder": embedder.id,
        "sources": {},
    }
    for source in asked.sources.split(","):
        texts, golds = _queries(Path(data) / source, asked.queries)
        vectors = embedder.embed(texts)
        short = [i for i, text in enumerate(texts) if len(text.encode()) <= MOST_BYTES]
        found["sources"][source] = {
            "short": _confused([texts[i] for i in short], [golds[i] for i in short], vectors[short]),
            "any length": _confused(texts, golds, vectors),
        }
        print(source, len(texts), orjson.dumps(found["sources"][source]).decode())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "semantic_cache.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    (RESULTS / "semantic_cache.md").write_text(_page(found))
    return 0


def _queries(folder: Path, most: int) -> tuple[list[str], list[str | None]]:
    """Distinct texts, and their known answers; of a long table a part that hangs together, since near-copies stand near
    each other."""
    known: dict[str, tuple[str, str | None]] = {}
    with gzip.open(folder / "queries.jsonl.gz") as lines:
        for line in lines:
            row = orjson.loads(line)
            gold = row.get("gold")
            known.setdefault(
                normalised_text(row["query"]),
                (row["query"], None if gold is None else str(gold).strip().lower()),
            )
    rows = list(known.values())
    blocks = [rows[i : i + 50] for i in range(0, len(rows), 50)]
    order = np.random.default_rng(0).permutation(len(blocks))
    chosen = [row for i in order for row in blocks[i]][:most]
    return [text for text, _ in chosen], [gold for _, gold in chosen]


def _confused(texts: list[str], golds: list[str | None], vectors: np.ndarray[Any, Any]) -> dict[str, Any]:
    """For each threshold the share of queries that would get another question's answer, guarded and not."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1.0)
    told = {"queries": len(texts), "thresholds": {}}
    for threshold in THRESHOLDS:
        row = {"false": 0, "false_guarded": 0, "same_answer_guarded": 0}
        for i in range(len(texts)):
            close = [int(j) for j in np.argsort(-similar[i])[:50] if similar[i, j] >= threshold]
            row["false"] += bool(close) and not _same(golds, i, close[0])
            let = next((j for j in close if not conflicting(texts[i], texts[j])), None)
            if let is not None:
                row["same_answer_guarded" if _same(golds, i, let) else "false_guarded"] += 1
        told["thresholds"][f"{threshold:.2f}"] = {  # type: ignore[index]
            name: round(count / len(texts), 4) for name, count in row.items()
        }
    return told


def _same(golds: list[str | None], i: int, j: int) -> bool:
    return golds[i] is not None and golds[i] == golds[j]


def _page(found: dict[str, Any]) -> str:
    lines = [
        "# What a semantic cache would confuse",
        "",
        f"`{found['command']}`, embedder {found['embedder']}. Share of queries that would be given the answer to",
        "another question: without the guard → with it. The worst case: no query here is a repeat.",
    ]
    for kind, title in (
        ("short", f"Asks of at most {MOST_BYTES} bytes, as the cache compares them"),
        ("any length", "Asks of any length, which it does not: the embedder reads their beginnings only"),
    ):
        told = {name: both[kind] for name, both in found["sources"].items()}
        heads = [f"{name} ({row['queries']})" for name, row in told.items()]
        lines += ["", f"## {title}", "", f"| threshold | {' | '.join(heads)} |", "|---|" + "---|" * len(told)]
        for threshold in (f"{value:.2f}" for value in THRESHOLDS):
            rows = [row["thresholds"][threshold] for row in told.values()]
            cells = [f"{row['false']:.1%} → {row['false_guarded']:.1%}" for row in rows]
            lines.append(f"| {threshold} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
