"""What estimating one query takes over many stored ones, and what the index loses.

`python -m benchmarks.routers.latency`, behind `make bench-routers`.

50,000 stored queries × 10 models on one thread held to one core, the embedding excluded; the least of several medians,
because the machine is shared. The embeddings are those of the published tables' queries; what lacks to 50,000 are
copies moved to a cosine of 0.94. Scores are made, because no table has so many: how good a model is, is a smooth
function of the embedding (random Fourier features), and a score is that with noise ("graded") or a coin thrown with
that chance ("right or wrong"). What the index loses on real scores is measured on the two largest tables. Methods
that store no queries learn from 3,000 of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

import numpy as np
import orjson

from benchmarks.routers.__main__ import RESULTS, SOURCES
from benchmarks.routers.at_hand import at_hand
from outcomes.assignment import utility_choice
from outcomes.compare import complete
from outcomes.embedder import Embedder
from outcomes.embedding_cache import cached_embeddings, embedded
from outcomes.index import NeighbourIndex
from outcomes.metrics import chosen
from outcomes.neighbours import TIE
from outcomes.networks import sigmoid
from outcomes.table import OutcomeTable, normalised_text, read_table, split
from protocol.methods import find_method, load_method
from protocol.routing import Queries
from routers.eagle import Eagle
from routers.knn_router import KnnRouter

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED, MODELS, ASKED, FEW = 50_000, 10, 300, 3_000
REPEATS = 5
REAL = ("routerdc7", "routellm")
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
    if (have := at_hand(asked)) is None:
        return 2
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    embedder, cache = have
    stored, coins, queries = _tables(asked.data, embedder, cache)
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
        "index": _index(stored, coins, queries),
        "real": {source: _real(asked.data / source, embedder, cache) for source in REAL},
        "methods": {},
    }
    print(f"load average {found['about']['load']:.1f}")
    for name in asked.methods.split(","):
        table = stored if name in KEEPS else stored.take(slice(0, FEW))
        options = {"k": 20} if name == "knn-router" else {}
        router = load_method(find_method(name, "router"))(**options).fit(table)
        found["methods"][name] = taken = {"stored": len(table)} | _least(router.estimate, queries)
        print(
            f"{name:14s} p50 {taken['p50_ms']:.3f} ms, processor p50 {taken['cpu_p50_ms']:.3f} ms", flush=True
        )
    asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _tables(data: Path, embedder: Embedder, cache: Path) -> tuple[OutcomeTable, OutcomeTable, Queries]:
    """Stored queries with graded scores, the same with scores of 0 and 1, and those that are asked."""
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
    waves = held @ rng.normal(size=(held.shape[1], 64)) * 3 + rng.uniform(0, 2 * np.pi, 64)
    liking = np.cos(waves) @ rng.normal(size=(64, MODELS)) / np.sqrt(32)
    ability = sigmoid(0.4 + rng.normal(size=MODELS) / 2 + liking)
    graded = np.clip(ability + 0.2 * rng.normal(size=ability.shape), 0, 1)
    coins = (rng.random(ability.shape) < ability).astype(float)
    cost = np.tile(np.geomspace(1e-5, 1e-3, MODELS), (len(held), 1))
    names = [f"m{j}" for j in range(MODELS)]
    tables = [
        OutcomeTable.of_matrices(names, named[:STORED], score, cost, embeddings=held)
        for score in (graded, coins)
    ]
    return *tables, Queries([texts[i] for i in asked], vectors[asked])


def _index(stored: OutcomeTable, coins: OutcomeTable, queries: Queries) -> list[dict[str, float]]:
    """Recall of the true neighbours, and how often kNN chooses as it does exactly, for several k."""
    vectors, asked = stored.queries.embeddings, queries.embeddings
    assert vectors is not None
    assert asked is not None
    index = NeighbourIndex(vectors)
    exact = asked @ vectors.T
    rows = []
    for k in KS:
        recall = []
        for vector, cosine in zip(asked, exact, strict=True):
            # Copies are as near as each other: whichever is found counts.
            least = np.partition(cosine, len(cosine) - k)[len(cosine) - k]
            recall.append(min(k, int((index.near(vector, k)[1] >= least - TIE).sum())) / k)
        rows.append(
            {
                "k": k,
                "recall": float(np.mean(recall)),
                "same_choice": _same(KnnRouter(k).fit(stored), queries)[0],
                "same_choice_right_or_wrong": _same(KnnRouter(k).fit(coins), queries)[0],
                "p50_ms": _least(lambda one, k=k: index.near(one.embeddings[0], k), queries)["p50_ms"],
            }
        )
        print(rows[-1], flush=True)
    return rows


def _same(router: KnnRouter | Eagle, queries: Queries) -> tuple[float, NDArray[np.intp], NDArray[np.intp]]:
    """How often it chooses as it does by comparing all; and both choices."""
    index = router.index_
    if index.exact:
        router.index_ = NeighbourIndex(index.vectors, exact=0)
    found = utility_choice(router.estimate(queries), 0.0)
    router.index_ = NeighbourIndex(index.vectors, exact=len(index.vectors))
    exact = utility_choice(router.estimate(queries), 0.0)
    router.index_ = index
    return float((found == exact).mean()), found, exact


def _real(folder: Path, embedder: Embedder, cache: Path) -> dict[str, Any]:
    """The same on a published table: its held-out queries, asked of the others."""
    train, test = split(complete(embedded(read_table(folder), embedder, cache)))
    rows: dict[str, Any] = {"stored": len(train), "asked": len(test)}
    for name, router in (("knn-router", KnnRouter(20)), ("eagle", Eagle())):
        same, found, exact = _same(router.fit(train), test.queries)
        rows[name] = {
            "same_choice": same,
            "score": float(chosen(test.score, found).mean()),
            "score_exact": float(chosen(test.score, exact).mean()),
        }
    print(folder.name, rows, flush=True)
    return rows


def _least(estimate: Callable[[Queries], object], queries: Queries) -> dict[str, float]:
    """Of `REPEATS` rounds over the queries, one at a time, the one of the least median."""
    assert queries.embeddings is not None
    rounds = []
    for _ in range(REPEATS):
        wall, processor = [], []
        for i in range(len(queries)):
            one = Queries([queries.texts[i]], queries.embeddings[i : i + 1])
            start, used = time.perf_counter(), time.process_time()
            estimate(one)
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - used)
        low, half, high = 1000 * np.quantile(wall, (0.1, 0.5, 0.95))
        rounds.append((float(half), float(low), float(high), 1000 * float(np.median(processor))))
    half, low, high, used_ms = min(rounds)
    return {"p10_ms": low, "p50_ms": half, "p95_ms": high, "cpu_p50_ms": used_ms}


if __name__ == "__main__":
    sys.exit(main())
