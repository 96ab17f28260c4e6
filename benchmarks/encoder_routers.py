"""What fine-tuning buys encoder routers: trained against their own untrained start, on held-out queries.

    python -m benchmarks.encoder_routers --table $CHORUS_DATA/routellm --category gsm8k \
        --models gpt-4-1106-preview,mistralai/Mixtral-8x7B-Instruct-v0.1 \
        --methods routellm-bert,hybrid-llm --out benchmarks/results/encoders-routellm-gsm8k.json

Queries are split by hash of their text; the test part trains nothing. Two models: APGR (a random router's is 0.5);
more: mean score of the choices at quality 1, beside the best single model (chosen on the training part) and the
oracle. Intervals are 95 % percentile bootstraps over test queries, paired where they are of a difference. The loss
curve and the digest of the trained artefact are kept.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

from outcomes.artefact import read_manifest
from outcomes.assignment import utility_choice
from outcomes.fine_tuning import progress_line
from outcomes.metrics import best_single, chosen, deferral_curve, oracle
from outcomes.table import OutcomeTable, read_table, split
from protocol.methods import find_method, load_method
from protocol.routing import Estimate, Router

RESAMPLES = 1000


def main(argv: list[str] | None = None) -> None:
    asked = _arguments(argv)
    table = read_table(asked.table)
    if asked.category:
        table = table.take([name == asked.category for name in table.categories])
    if asked.models:
        table = table.only(asked.models.split(","))
    table = table.take(~np.isnan(table.score).any(axis=1))
    train, test = split(table)
    if asked.queries and len(train) > asked.queries:
        train = train.take(np.random.default_rng(0).permutation(len(train))[: asked.queries])
    if asked.test_queries and len(test) > asked.test_queries:
        test = test.take(np.random.default_rng(1).permutation(len(test))[: asked.test_queries])
    options = {name: _value(text) for name, _, text in (pair.partition("=") for pair in asked.option)}
    found: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.encoder_routers", *_public(asked)]),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "train_queries": len(train),
        "test_queries": len(test),
        "models": list(table.models),
        "best_single": interval(test.score[:, best_single(train.score)]),
        "oracle": interval(oracle(test.score)),
        "methods": {},
    }
    print(f"{len(train)} training, {len(test)} test queries; best single {found['best_single']}")
    for name in asked.methods.split(","):
        found["methods"][name] = _measure(name, train, test, options)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


def _measure(name: str, train: OutcomeTable, test: OutcomeTable, options: dict[str, Any]) -> dict[str, Any]:
    kind = load_method(find_method(name, "router"))
    started = time.perf_counter()
    trained = kind(report=progress_line, **options).fit(train)
    seconds = time.perf_counter() - started
    untrained = kind(**options | {"epochs": 0}).fit(train)
    started = time.perf_counter()
    estimate = trained.estimate(test.queries)
    per_query = (time.perf_counter() - started) / len(test)
    with TemporaryDirectory() as folder:
        trained.save(Path(folder))
        version = read_manifest(Path(folder)).version
    losses = trained.encoder_.losses
    row = {
        "train_seconds": round(seconds, 1),
        "milliseconds_a_query": round(1e3 * per_query, 1),
        "artefact_version": version,
        "recipe": trained.recipe(),
        "losses": [round(float(part.mean()), 4) for part in np.array_split(losses, min(40, len(losses)))],
        **compared(estimate, untrained, test, best_single(train.score)),
    }
    print(name, {key: value for key, value in row.items() if key not in ("losses", "recipe")})
    return row


def compared(estimate: Estimate, untrained: Router, test: OutcomeTable, best: int) -> dict[str, Any]:
    """What the choices of a trained router are worth on `test`, beside those of its untrained start. `best`: the column
    of the strong model, or of the best single one."""
    before = untrained.estimate(test.queries)
    score = test.score
    if len(test.models) == 2:
        strong = best
        rows = np.random.default_rng(0).integers(0, len(test), (RESAMPLES, len(test)))
        whole = np.arange(len(test))

        def apgr(found: Estimate, rows: np.ndarray) -> float:
            lead = found.quality[rows, strong] - found.quality[rows, 1 - strong]
            return deferral_curve(lead, score[rows, 1 - strong], score[rows, strong]).apgr()

        both = np.array([[apgr(estimate, draw), apgr(before, draw)] for draw in rows])
        return {
            "apgr": bounds(apgr(estimate, whole), both[:, 0]),
            "apgr_untrained": bounds(apgr(before, whole), both[:, 1]),
            "gain": bounds(apgr(estimate, whole) - apgr(before, whole), both[:, 0] - both[:, 1]),
        }
    after, start = (chosen(score, utility_choice(found, 0.0)) for found in (estimate, before))
    return {
        "score": interval(after),
        "score_untrained": interval(start),
        "gain": interval(after - start),
        "gain_over_best_single": interval(after - score[:, best]),
    }


def interval(values: np.ndarray) -> list[float]:
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return bounds(float(values.mean()), values[draws].mean(axis=1))


def bounds(value: float, draws: np.ndarray) -> list[float]:
    """[value, low, high]."""
    return [round(float(number), 4) for number in (value, *np.quantile(draws, (0.025, 0.975)))]


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _public(asked: argparse.Namespace) -> list[str]:
    """The command again, without paths of this machine."""
    words = [
        "--table",
        f"$CHORUS_DATA/{asked.table.name}",
        "--methods",
        asked.methods,
        "--out",
        asked.out.name,
    ]
    for name in ("category", "models", "queries", "test-queries"):
        value = getattr(asked, name.replace("-", "_"))
        words += [f"--{name}", str(value)] if value else []
    return [*words, *(word for pair in asked.option for word in ("--option", pair))]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="outcome table: a folder or a parquet file")
    parser.add_argument("--methods", required=True, help="comma-separated encoder routers")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write, after every method")
    parser.add_argument("--category", default="", help="only queries of this category")
    parser.add_argument("--models", default="", help="comma-separated; default: all with every score known")
    parser.add_argument("--queries", type=int, default=0, help="train on at most so many")
    parser.add_argument("--test-queries", type=int, default=0, help="measure on at most so many")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the methods")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
