"""`chorus assign`: a batch under one budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.evaluate import estimate_texts
from outcomes.train import train
from tests.contracts.router_checks import outcomes

Chorus = Callable[..., tuple[int, str, str]]


@pytest.fixture
def batch(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A router that reads text, and a batch of queries for it."""
    table = outcomes(300)
    train("multiple-minds", table, tmp_path / "router")
    texts = list(table.queries.texts[:60])
    lines = [{"custom_id": f"c{i}", "prompt" if i % 2 else "query": text} for i, text in enumerate(texts)]
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return tmp_path / "router", tmp_path / "q.jsonl", texts


def test_the_best_of_all_assignments(
    chorus: Chorus, batch: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    """The batch stays within its budget, and no random assignment that does is better; greedy, the default, is hardly
    worse than exact; what a line held besides is kept."""
    router, queries, texts = batch
    estimate = estimate_texts(router, texts)
    rows, rng = np.arange(len(texts)), np.random.default_rng(0)
    cheapest, dearest = (float(of(estimate.cost_usd, axis=1).sum()) for of in (np.min, np.max))
    budget = cheapest + 0.3 * (dearest - cheapest)
    totals = []
    for exact in (["--exact"], []):
        arguments = ("--queries", queries, "--budget-usd", budget, "--out", tmp_path / "out.jsonl", *exact)
        status, out, err = chorus("assign", router, *arguments)
        assert status == 0, err
        assert "60 queries" in out
        lines = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
        assert [line["custom_id"] for line in lines] == [f"c{i}" for i in range(60)]
        choice = [estimate.models.index(line["model"]) for line in lines]
        assert [line["quality"] for line in lines] == pytest.approx(estimate.quality[rows, choice])
        assert sum(line["cost_usd"] for line in lines) <= budget * (1 + 1e-6)
        totals.append(sum(line["quality"] for line in lines))
    assert totals[0] >= totals[1] > totals[0] - np.ptp(estimate.quality)
    for _ in range(300):
        some = rng.integers(0, len(estimate.models), len(texts))
        if estimate.cost_usd[rows, some].sum() <= budget:
            assert estimate.quality[rows, some].sum() <= totals[0] + 1e-9


def test_what_cannot_be_assigned(chorus: Chorus, batch: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    """A budget below the cheapest assignment, lines without text, an empty file: refused, nothing written."""
    router, queries, _ = batch
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}')
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "empty.jsonl").write_text("")
    for file, usd, status, told in (
        (queries, 0, 1, "cheapest assignment"),
        (tmp_path / "bad.jsonl", 1, 2, "bad.jsonl:2"),
        (tmp_path / "broken.jsonl", 1, 2, "not JSON"),
        (tmp_path / "empty.jsonl", 1, 2, "no queries"),
    ):
        arguments = ("--queries", file, "--budget-usd", usd, "--out", tmp_path / "none.jsonl")
        found, _, err = chorus("assign", router, *arguments)
        assert (found, told in err) == (status, True), err
    assert not (tmp_path / "none.jsonl").exists()
