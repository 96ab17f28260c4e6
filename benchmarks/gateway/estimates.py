"""What a kNN route adds to a request whose embedding is known: the look-up among the stored queries, on one core.

python -m benchmarks.gateway.estimates
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.knn_router import KnnRouter

__all__ = ["estimate_us"]

STORED = (600, 5_000, 50_000)
MODELS = tuple(f"m{i}" for i in range(10))
DIMENSIONS = 384
ASKED = 200


ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def estimate_us() -> dict[str, float]:
    """Stored queries → median microseconds of processor time of one estimate for ten models, embedding known. Measured
    in a process whose BLAS has one thread, as a worker's on its one core should."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway.estimates"],
        capture_output=True, check=True, env={**os.environ, **ONE_THREAD}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout)
    return told


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
        began = time.thread_time()
        router.estimate(Queries(["never asked before"], asked[i : i + 1]))
        took.append(time.thread_time() - began)
    return 1e6 * sorted(took)[ASKED // 2]


if __name__ == "__main__":
    sys.stdout.write(json.dumps({str(size): round(_one(size), 1) for size in STORED}))
