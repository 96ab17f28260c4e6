"""What fine-tuning buys routers that are language models: trained against their own untrained start.

    CHORUS_DATA=... OPENBLAS_NUM_THREADS=1 python -m benchmarks.lm_routers routellm-causal routoo

Each method has one preset: a published table, a pool, and settings that train in minutes (router-r1: a quarter of an
hour) on one core from SmolLM2-135M-Instruct. Queries are split by hash of their text; the test part trains nothing.
Intervals are 95 % percentile bootstraps over test queries, paired where they are of a difference. The loss curve, the
digest of the base and the version of the trained artefact (a digest of all it learnt) are kept in
benchmarks/results/lm-METHOD.json.

`llmrank` is not fine-tuned: it is trained with and without the language model that tries every prompt first.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

from benchmarks.encoder_routers import bounds, compared, interval
from outcomes.artefact import read_manifest
from outcomes.assignment import utility_choice
from outcomes.fine_tuning import progress_line
from outcomes.metrics import best_single, chosen, oracle
from outcomes.table import OutcomeTable, read_table, split
from protocol.methods import find_method, load_method
from protocol.routing import Router
from routers.disrouter import local_reward, refusal_reward

SOLVER = "smollm2-135m-instruct"
Figures = Callable[[Router, Router, OutcomeTable, OutcomeTable], dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """`table`: of CHORUS_DATA, or a path of this repository. `figures`: of (trained, untrained, train, test)."""

    table: str
    figures: Figures
    models: tuple[str, ...] = ()
    category: str = ""
    train: int = 0
    test: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", choices=[*PRESETS, "llmrank"])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder to write to"
    )
    asked = parser.parse_args(argv)
    for name in asked.methods:
        found = measure(name, PRESETS[name]) if name in PRESETS else proxy_solver()
        asked.out.mkdir(parents=True, exist_ok=True)
        path = asked.out / f"lm-{name}.json"
        path.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")


def measure(name: str, preset: Preset) -> dict[str, Any]:
    """Train a method by its preset and judge it."""
    table = _table(preset)
    train, test = split(table)
    train = _sample(train, preset.train, 0)
    test = _sample(test, preset.test, 1)
    kind = load_method(find_method(name, "router"))
    options = dict(preset.options)
    started = time.perf_counter()
    trained = kind(report=progress_line, **options).fit(train)
    seconds = time.perf_counter() - started
    untrained = kind(**options | {"epochs": 0}).fit(train)
    started = time.perf_counter()
    trained.estimate(test.take(slice(0, 20)).queries)
    per_query = (time.perf_counter() - started) / min(20, len(test))
    with TemporaryDirectory() as folder:
        trained.save(Path(folder))
        manifest = read_manifest(Path(folder))
        size = (Path(folder) / "tensors.safetensors").stat().st_size
    lms = [trained.trained_] if hasattr(trained, "trained_") else list(trained.agents_)
    row = {
        "command": f"OPENBLAS_NUM_THREADS=1 python -m benchmarks.lm_routers {name}",
        "machine": f"{platform.machine()}, {os.cpu_count()} shared cores, Python {platform.python_version()}",
        "table": preset.table + (f", {preset.category}" if preset.category else ""),
        "train_queries": len(train),
        "test_queries": len(test),
        "models": list(table.models),
        "base": manifest.parameters["base"],
        "artefact_version": manifest.version,
        "artefact_bytes": size,
        "recipe": trained.recipe(),
        "train_seconds": round(seconds, 1),
        "milliseconds_a_query": round(1e3 * per_query, 1),
        "best_single": interval(test.score[:, best_single(train.score)]),
        "oracle": interval(oracle(test.score)),
        "losses": [_curve(lm.losses) for lm in lms],
        **preset.figures(trained, untrained, train, test),
    }
    print(name, {key: value for key, value in row.items() if key not in ("losses", "recipe")})
    return row


def proxy_solver(train: int = 120, test: int = 80) -> dict[str, Any]:
    """What the signals of a language model that tries every prompt first add to `llmrank` on `llmrouter`."""
    preset = Preset("llmrouter", choices)
    parts = split(_table(preset))
    learnt, held = (
        _sample(part, most, seed) for seed, (part, most) in enumerate(zip(parts, (train, test), strict=True))
    )
    kind = load_method(find_method("llmrank", "router"))
    picked, milliseconds = {}, {}
    for name, solver in (("without", ""), ("with", SOLVER)):
        router = kind(solver=solver).fit(learnt)
        started = time.perf_counter()
        estimate = router.estimate(held.queries)
        milliseconds[name] = round(1e3 * (time.perf_counter() - started) / len(held), 2)
        picked[name] = chosen(held.score, utility_choice(estimate, 0.0))
    best = held.score[:, best_single(learnt.score)]
    row = {
        "command": "OPENBLAS_NUM_THREADS=1 python -m benchmarks.lm_routers llmrank",
        "machine": f"{platform.machine()}, {os.cpu_count()} shared cores, Python {platform.python_version()}",
        "table": preset.table,
        "train_queries": len(learnt),
        "test_queries": len(held),
        "models": list(held.models),
        "solver": SOLVER,
        "milliseconds_a_query": milliseconds,
        "best_single": interval(best),
        "oracle": interval(oracle(held.score)),
        "score": interval(picked["with"]),
        "score_without": interval(picked["without"]),
        "gain": interval(picked["with"] - picked["without"]),
        "gain_over_best_single": interval(picked["with"] - best),
    }
    print("llmrank", row)
    return row


def choices(trained: Router, untrained: Router, train: OutcomeTable, test: OutcomeTable) -> dict[str, Any]:
    """APGR of two models; of more, the mean score of the choices."""
    return compared(trained.estimate(test.queries), untrained, test, best_single(train.score))


def log_loss(trained: Router, untrained: Router, train: OutcomeTable, test: OutcomeTable) -> dict[str, Any]:
    """Cross entropy of the estimates, against the query-independent predictor that the start is; and the choices."""
    estimates = [found.estimate(test.queries) for found in (trained, untrained)]
    after, before = (_cross_entropy(estimate.quality, test.score) for estimate in estimates)
    picked, start = (chosen(test.score, utility_choice(estimate, 0.0)) for estimate in estimates)
    return {
        "log_loss": interval(after),
        "log_loss_untrained": interval(before),
        "log_loss_gain": interval(before - after),
        "score": interval(picked),
        "score_untrained": interval(start),
        "gain": interval(picked - start),
        "gain_over_best_single": interval(picked - test.score[:, best_single(train.score)]),
        "gain_over_best_single_with_hindsight": interval(picked - test.score[:, best_single(test.score)]),
    }


def asking(trained: Router, untrained: Router, train: OutcomeTable, test: OutcomeTable) -> dict[str, Any]:
    """Mean score of asking by the policy itself (its expectation), and of asking the model it prefers."""
    by_policy = {}
    for name, found in (("policy", trained), ("policy_untrained", untrained)):
        estimate = found.estimate(test.queries)
        by_policy[name] = (estimate.quality * test.score).sum(axis=1)
        by_policy[f"{name}_preferred"] = test.score[np.arange(len(test)), estimate.quality.argmax(axis=1)]
        by_policy[f"{name}_share"] = estimate.quality.mean(axis=0)
    return {
        **{
            name: [round(float(share), 4) for share in values] if name.endswith("share") else interval(values)
            for name, values in by_policy.items()
        },
        "policy_gain": interval(by_policy["policy"] - by_policy["policy_untrained"]),
        "uniform": interval(test.score.mean(axis=1)),
        "sampled_rewards": [round(value, 3) for value in trained.rewards_],
    }


def self_knowledge(
    trained: Router, untrained: Router, train: OutcomeTable, test: OutcomeTable
) -> dict[str, Any]:
    """The first agent's expected local reward, against its untrained start and against always refusing; AUC of its
    acceptance for being right."""
    first = int(trained.order_[0])
    p, worth = test.score[:, first], refusal_reward(trained.alpha, trained.gamma)
    accepted = {
        name: np.array([router.acceptance(text)[0] for text in test.queries.texts])
        for name, router in (("trained", trained), ("untrained", untrained))
    }
    reward = {name: local_reward(1 - value, p, worth) for name, value in accepted.items()}
    right = p >= 0.5

    def auc(value: np.ndarray, rows: np.ndarray) -> float:
        good, bad = value[rows][right[rows]], value[rows][~right[rows]]
        return float((good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean())

    draws = np.random.default_rng(0).integers(0, len(p), (1000, len(p)))
    return {
        "agent": trained.models_[first],
        "right": interval(p),
        "local_reward": interval(reward["trained"]),
        "local_reward_untrained": interval(reward["untrained"]),
        "local_reward_gain": interval(reward["trained"] - reward["untrained"]),
        "local_reward_of_always_refusing": worth,
        "gain_over_always_refusing": interval(reward["trained"] - worth),
        "accepted": interval(accepted["trained"]),
        "accepted_untrained": interval(accepted["untrained"]),
        "auc": bounds(
            auc(accepted["trained"], np.arange(len(p))),
            np.array([auc(accepted["trained"], d) for d in draws]),
        ),
        "auc_untrained": bounds(
            auc(accepted["untrained"], np.arange(len(p))),
            np.array([auc(accepted["untrained"], d) for d in draws]),
        ),
    }


def _cross_entropy(quality: np.ndarray, score: np.ndarray) -> np.ndarray:
    p = np.clip(quality, 1e-6, 1 - 1e-6)
    return -(score * np.log(p) + (1 - score) * np.log(1 - p)).mean(axis=1)


def _table(preset: Preset) -> OutcomeTable:
    here = Path(__file__).parent.parent / preset.table
    table = read_table(here if here.exists() else Path(os.environ["CHORUS_DATA"]) / preset.table)
    if preset.category:
        table = table.take([name == preset.category for name in table.categories])
    table = table.only(preset.models) if preset.models else table
    return table.take(~np.isnan(table.score).any(axis=1))


def _sample(table: OutcomeTable, most: int, seed: int) -> OutcomeTable:
    if not most or len(table) <= most:
        return table
    return table.take(np.sort(np.random.default_rng(seed).permutation(len(table))[:most]))


def _curve(losses: np.ndarray) -> list[float]:
    """At most forty points, each a mean over a stretch of steps."""
    return [round(float(part.mean()), 4) for part in np.array_split(losses, min(40, len(losses)))]


PRESETS = {
    "routellm-causal": Preset(
        "routellm",
        choices,
        ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        category="mmlu",
        train=700,
        test=160,
        options={"epochs": 1},
    ),
    "router-r1": Preset(
        "llmrouter",
        asking,
        (
            "gemma-2-9b-it",
            "llama-3.1-nemotron-51b-instruct",
            "mistral-7b-instruct-v0.3",
            "qwen2.5-7b-instruct",
        ),
        train=240,
        test=160,
        options={
            "epochs": 3,
            "rate": 2e-3,
            "rounds": 120,
            "group": 8,
            "kl": 0.0,
            "max_tokens": 40,
            "policy_rate": 1e-3,
        },
    ),
    "disrouter": Preset(
        "config/queries/everyday.outcomes.parquet",
        self_knowledge,
        ("smollm2-135m", "gemma3-270m"),
        train=220,
        test=120,
        options={"alpha": 0.5, "max_tokens": 64},
    ),
    "routoo": Preset("llmrouter", log_loss, train=280, test=120, options={"epochs": 1}),
}

if __name__ == "__main__":
    main(sys.argv[1:])
