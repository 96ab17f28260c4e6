"""How much more a router could learn about a table: from more queries, or from being told their task.

`python -m benchmarks.routers.headroom`

Cross-validation within the *training* part of a source, folds by hash of the text; the leaderboard's test queries are
not looked at. `stacking` learns from a quarter, a half and all of the other folds' queries: a curve that still climbs
says that more outcomes would help. It also learns from all of them with the name of its task before every query, and
so does the rule that takes the best model of each task: what both recover of the gap between the best single model
and the oracle is what knowing the task is worth, and what is left is within tasks.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.routers.__main__ import RESULTS
from benchmarks.routers.at_hand import at_hand
from outcomes.compare import Row, compare, complete
from outcomes.embedding_cache import embedded
from outcomes.table import OutcomeTable, hash_folds, read_table, split
from routers.stacking import Stacking

__all__ = ["FOLDS", "TASK_RULE", "summary", "told"]

SOURCES = ("llmrouter", "routerbench_subset")
FOLDS = 3
SHARES = (0.25, 0.5, 1.0)
TASK_RULE = "best of each task, chosen on train"


def main() -> int:
    """Exit status 2 without data or weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORUS_DATA"))
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--out", type=Path, default=RESULTS / "router-headroom.json")
    asked = parser.parse_args()
    if (have := at_hand(asked)) is None:
        return 2
    embedder, embeddings = have
    found: dict[str, Any] = {
        "about": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
            "command": "python -m benchmarks.routers.headroom",
            "folds": FOLDS,
        },
        "sources": {},
    }
    for source in asked.sources.split(","):
        table, _ = split(complete(embedded(read_table(asked.data / source), embedder, embeddings)))
        found["sources"][source] = {"queries": len(table), "rows": _rows(table)}
        asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _rows(table: OutcomeTable) -> dict[str, Any]:
    """Every way to learn, with the means over the folds and each fold's figures."""
    fold = hash_folds(table.queries.texts, FOLDS, "headroom fold")
    found: dict[str, list[Row]] = {}
    for i in range(FOLDS):
        rest, held = table.take(fold != i), table.take(fold == i)
        for share in SHARES:
            part = rest.take(np.random.default_rng(i).random(len(rest)) < share)
            (row,) = compare(part, held, {"stacking": Stacking}).routers
            found.setdefault(f"stacking, {share:.0%} of the queries", []).append(row)
        knowing = compare(told(rest), told(held), {"stacking": Stacking})
        found.setdefault("stacking, told the task", []).append(knowing.routers[0])
        rule = next(row for row in knowing.baselines if row.name == TASK_RULE)
        found.setdefault("the best model of each task", []).append(rule)
        print(i, {name: round(rows[-1].gap, 3) for name, rows in found.items()}, flush=True)
    return {name: summary(rows) for name, rows in found.items()}


def told(table: OutcomeTable) -> OutcomeTable:
    """The same queries, each with its category's name before it."""
    texts = [f"{name}: {text}" for name, text in zip(table.categories, table.queries.texts, strict=True)]
    return OutcomeTable.of_matrices(
        table.models,
        texts,
        table.score,
        table.cost_usd,
        embeddings=table.queries.embeddings,
        categories=table.categories,
    )


def summary(rows: list[Row]) -> dict[str, Any]:
    """Share of the gap closed, and cost at the best single model's score as a share of its cost (None: never)."""
    costs = [row.cost_at_best for row in rows]
    known = [cost for cost in costs if cost is not None]
    return {
        "gap": float(np.mean([row.gap for row in rows])),
        "gap_by_fold": [row.gap for row in rows],
        "cost_at_best": float(np.mean(known)) if len(known) == len(costs) else None,
        "cost_at_best_by_fold": costs,
    }


if __name__ == "__main__":
    sys.exit(main())
