"""What a kNN route adds to a request whose embedding is known: the look-up among the stored queries, on one core."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.knn_router import KnnRouter

__all__ = ["estimate_us"]

STORED = (600, 5_000, 50_000)
MODELS = tuple(f"m{i}" for i in range(10))
DIMENSIONS = 384
ASKED = 200


def estimate_us(sizes: Sequence[int] = STORED) -> dict[int, float]:
    """Stored queries → median microseconds of one estimate for ten models; texts never seen before."""
    return {size: _one(size) for size in sizes}


def _one(size: int) -> float:
    rng = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        vectors = rng.standard_normal((rows, DIMENSIONS)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    texts = tuple(f"query {i}" for i in range(size))
    score, nothing = rng.random((size, len(MODELS))), np.full((size, len(MODELS)), None)
    known = Queries(texts, unit(size))
    table = OutcomeTable(
        *(MODELS, texts, ("",) * size, known, score, score * 1e-3, score, score, score, nothing, nothing)
    )
    router = KnnRouter(k=20).fit(table)
    asked = unit(ASKED)
    took = []
    for i in range(ASKED):
        began = time.perf_counter()
        router.estimate(Queries(["never asked before"], asked[i : i + 1]))
        took.append(time.perf_counter() - began)
    return 1e6 * sorted(took)[ASKED // 2]
