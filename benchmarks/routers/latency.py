"""What estimating one query takes over many stored ones, and what the index loses.

`python -m benchmarks.routers.latency`, behind `make bench-routers`.

50,000 stored queries × 10 models on one thread, the embedding excluded. The embeddings are those of the published
tables' queries; what lacks to 50,000 are copies moved to a cosine of 0.94. Scores are drawn, each model being better in
some clusters: they do not change what is computed. Methods that store no queries learn from 3,000 of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

import numpy as np
import orjson

from benchmarks.routers.__main__ import RESULTS, SOURCES
from engines.weights import Home
from outcomes.assignment import utility_choice
from outcomes.embedder import Embedder
from outcomes.embedding_cache import cached_embeddings
from outcomes.index import NeighbourIndex
from outcomes.neighbours import TIE
from outcomes.table import OutcomeTable, normalised_text, read_table
from protocol.methods import find_method, load_method
from protocol.routing import Queries
from routers.knn_router import KnnRouter

STORED, MODELS, ASKED, FEW = 50_000, 10, 300, 3_000
KEEPS = {"knn-router", "eagle"}
METHODS = ("knn-router", "eagle", "homorouter", "to-router", "routellm-mf", "forc", "avengers", "stacking")
KS = (10, 20, 100, 200)


def main() -> int:
    """Exit status 2 without data or weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORUS_DATA"))
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "router-latency.json")
    asked = parser.parse_args()
    home = Home.from_environ()
    folder = home.weights / asked.embedder
    if asked.data is None or not folder.is_dir():
        print("Set CHORUS_DATA to the published outcome tables." if asked.data is None else f"No {folder}.")
        return 2
    stored, queries = _tables(asked.data, Embedder.load(folder, max_batch=8), home.root / "embeddings")
    found: dict[str, Any] = {
        "about": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; one thread",
            "load": os.getloadavg()[0],
            "command": "python -m benchmarks.routers.latency",
            "stored": len(stored),
            "models": len(stored.models),
            "asked": len(queries),
        },
        "index": _index(stored, queries),
        "methods": {},
    }
    print(f"load average {found['about']['load']:.1f}")
    for name in asked.methods.split(","):
        table = stored if name in KEEPS else stored.take(slice(0, FEW))
        options = {"k": 20} if name == "knn-router" else {}
        router = load_method(find_method(name, "router"))(**options).fit(table)
        found["methods"][name] = taken = {"stored": len(table)} | _times(router, queries)
        print(
            f"{name:14s} p50 {taken['p50_ms']:.3f} ms, processor p50 {taken['cpu_p50_ms']:.3f} ms", flush=True
        )
    asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _tables(data: Path, embedder: Embedder, cache: Path) -> tuple[OutcomeTable, Queries]:
    texts: list[str] = []
    parts = []
    for source in SOURCES:
        table = read_table(data / source)
        parts.append(cached_embeddings(table.queries.texts, embedder, cache))
        texts += table.queries.texts
    vectors = np.concatenate(parts)
    first = {normalised_text(text): i for i, text in reversed(list(enumerate(texts)))}
    rng = np.random.default_rng(0)
    order = rng.permutation(sorted(first.values()))
    asked, rest = order[:ASKED], order[ASKED:]
    more = rng.choice(rest, max(STORED - len(rest), 0))
    moved = vectors[more] + rng.normal(size=(len(more), vectors.shape[1])) * 0.35 / np.sqrt(vectors.shape[1])
    held = np.concatenate([vectors[rest], moved])[:STORED]
    held = (held / np.linalg.norm(held, axis=1, keepdims=True)).astype(np.float32)
    named = [texts[i] for i in rest] + [f"{texts[i]} ({n})" for n, i in enumerate(more)]
    cluster = (held @ rng.normal(size=(held.shape[1], 24))).argmax(axis=1)
    ability = rng.uniform(0.2, 0.9, size=(24, MODELS))
    score = (rng.random((len(held), MODELS)) < ability[cluster]).astype(float)
    cost = np.tile(np.geomspace(1e-5, 1e-3, MODELS), (len(held), 1))
    names = [f"m{j}" for j in range(MODELS)]
    table = OutcomeTable.of_matrices(names, named[:STORED], score, cost, embeddings=held)
    return table, Queries([texts[i] for i in asked], vectors[asked])


def _index(stored: OutcomeTable, queries: Queries) -> list[dict[str, float]]:
    """Recall of the true neighbours, and how often kNN chooses as it does exactly, for several k."""
    vectors, asked = stored.queries.embeddings, queries.embeddings
    assert vectors is not None
    assert asked is not None
    index = NeighbourIndex(vectors)
    exact = asked @ vectors.T
    rows = []
    for k in KS:
        recall, compared = [], []
        for vector, cosine in zip(asked, exact, strict=True):
            # Copies are as near as each other: whichever is found counts.
            least = np.partition(cosine, len(cosine) - k)[len(cosine) - k]
            near, close = index.near(vector, k)
            recall.append(min(k, int((close >= least - TIE).sum())) / k)
            compared.append(len(near))
        router = KnnRouter(k).fit(stored)
        chosen = utility_choice(router.estimate(queries), 0.0)
        router.index_ = NeighbourIndex(vectors, exact=len(vectors))
        same = float((chosen == utility_choice(router.estimate(queries), 0.0)).mean())
        rows.append(
            {
                "k": k,
                "recall": float(np.mean(recall)),
                "same_choice": same,
                "compared": float(np.mean(compared)),
            }
        )
        print(
            f"k {k}: recall {rows[-1]['recall']:.4f}, same choice {same:.3f}, compared {np.mean(compared):.0f}",
            flush=True,
        )
    return rows


def _times(router: Any, queries: Queries) -> dict[str, float]:
    assert queries.embeddings is not None
    wall, processor = [], []
    for i in range(len(queries)):
        one = Queries([queries.texts[i]], queries.embeddings[i : i + 1])
        start, used = time.perf_counter(), time.process_time()
        router.estimate(one)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    low, half, high = 1000 * np.quantile(wall, (0.1, 0.5, 0.95))
    return {
        "p10_ms": float(low), "p50_ms": float(half), "p95_ms": float(high),
        "cpu_p50_ms": 1000 * float(np.median(processor)),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
