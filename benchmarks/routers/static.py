"""What a static embedder loses and saves beside the encoder it was distilled from.

`chorus models distil all-minilm-l6-v2-int8 --out FOLDER`, then `python -m benchmarks.routers.static FOLDER`.

How near its embeddings are to the encoder's on queries of published tables, which it was not fitted to; what a query
takes on one thread; and how routers trained on either choose for held-out queries, as the leaderboard judges them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

import numpy as np
import orjson

from benchmarks.routers.__main__ import RESULTS
from benchmarks.routers.at_hand import at_hand
from outcomes.assignment import utility_choice
from outcomes.compare import complete
from outcomes.embedder import ServedEmbedder, load_embedder
from outcomes.embedding_cache import embedded
from outcomes.metrics import best_single, chosen, oracle, paired_bootstrap
from outcomes.table import OutcomeTable, read_table, split
from protocol.methods import find_method, load_method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

SOURCES, METHODS = ("llmrouter", "routellm"), ("knn-router", "stacking")
LOOKED_AT, TIMED, REPEATS, NEAREST = 1500, 200, 5, 10


def main() -> int:
    """Exit status 2 without data or weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("static", type=Path, help="the static embedder's folder")
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORUS_DATA"))
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--out", type=Path, default=RESULTS / "static-embedder.json")
    asked = parser.parse_args()
    if (have := at_hand(asked)) is None:
        return 2
    (encoder, embeddings), static = have, load_embedder(asked.static)
    found: dict[str, Any] = {
        "about": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; one thread",
            "load": os.getloadavg()[0],
            "command": "python -m benchmarks.routers.static FOLDER",
            "encoder": encoder.id,
            "static": static.id,
            "dimensions": static.dimensions,
            "bytes": sum(path.stat().st_size for path in asked.static.iterdir()),
        },
        "sources": {},
    }
    for source in SOURCES:
        whole = complete(embedded(read_table(asked.data / source), encoder, embeddings))
        small = whole.embedded(static.embed(whole.queries.texts))
        found["sources"][source] = {
            "agreement": _agreement(whole, small),
            "routing": {name: _routing(name, whole, small) for name in METHODS},
        }
        print(source, orjson.dumps(found["sources"][source], option=orjson.OPT_INDENT_2).decode(), flush=True)
        timed = whole.queries.texts[:TIMED]
    found["us_per_query"] = {"encoder": _microseconds(encoder, timed), "static": _microseconds(static, timed)}
    print(found["us_per_query"], f"load {os.getloadavg()[0]:.1f}")
    asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _agreement(whole: OutcomeTable, small: OutcomeTable) -> dict[str, float]:
    """Rank correlation of the similarities of random pairs, and the share of nearest queries that are the same."""
    rng = np.random.default_rng(0)
    some = rng.permutation(len(whole))[:LOOKED_AT]
    similar = []
    for table in (whole, small):
        assert table.queries.embeddings is not None
        vectors = table.queries.embeddings[some]
        similar.append(vectors @ vectors.T)
    pairs = np.triu_indices(len(some), 1)
    ranks = [np.argsort(np.argsort(matrix[pairs])) for matrix in similar]
    nearest = []
    for matrix in similar:
        np.fill_diagonal(matrix, -1)
        nearest.append(np.argpartition(-matrix, NEAREST, axis=1)[:, :NEAREST])
    shared = [len(np.intersect1d(a, b)) / NEAREST for a, b in zip(*nearest, strict=True)]
    return {
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
        "same_of_10_nearest": float(np.mean(shared)),
    }


def _routing(name: str, whole: OutcomeTable, small: OutcomeTable) -> dict[str, Any]:
    """Mean held-out score of a router trained on either, and what is lost, with 95 % intervals over the queries."""
    columns = []
    for table in (whole, small):
        train, test = split(table)
        router = load_method(find_method(name, "router"))().fit(train)
        columns.append(chosen(test.score, utility_choice(router.estimate(test.queries), 0.0)))
    best = chosen(test.score, np.full(len(test), best_single(train.score)))
    values = np.stack([*columns, columns[1] - columns[0], columns[0] - best, columns[1] - best], axis=1)
    names = ("encoder", "static", "static_minus_encoder", "encoder_gain", "static_gain")
    intervals = paired_bootstrap(values)
    return {key: [each.mean, each.low, each.high] for key, each in zip(names, intervals, strict=True)} | {
        "queries": len(test),
        "best_single": float(best.mean()),
        "oracle": float(oracle(test.score).mean()),
    }


def _microseconds(embedder: ServedEmbedder, texts: Sequence[str]) -> float:
    """Least median, over repetitions, of one text at a time."""
    medians = []
    embedder.embed(texts[:4])
    for _ in range(REPEATS):
        taken = []
        for text in texts:
            start = time.perf_counter()
            embedder.embed([text])
            taken.append(time.perf_counter() - start)
        medians.append(float(np.median(taken)))
    return 1e6 * min(medians)


if __name__ == "__main__":
    sys.exit(main())
