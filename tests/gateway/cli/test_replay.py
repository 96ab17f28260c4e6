"""`chorus replay`: policies valued on what a gateway logged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml

from gateway.ledger.sqlite_ledger import SqliteLedger
from outcomes.artefact import annotate
from outcomes.assignment import Knob
from outcomes.table import OutcomeTable
from routers.knn_router import KnnRouter
from tests.gateway.conftest import until
from tests.gateway.ledger.test_logged import decided, facts, write

Chorus = Callable[..., tuple[int, str, str]]
EACH = 60


@pytest.fixture
def route(tmp_path: Path) -> dict[str, Any]:
    """Short asks are worth the weak model, long ones the strong one; the scripted embedding is (length, 3, 4)."""
    vectors = np.array([[1, 3, 4], [40, 3, 4]], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score, cost = np.array([[0.8, 0.8], [0.1, 0.9]]), np.full((2, 2), [1e-6, 9e-6])
    table = OutcomeTable.of_matrices(("weak", "strong"), ["short", "long"], score, cost, embeddings=vectors)
    KnnRouter(1).fit(table).save(tmp_path / "router")
    annotate(tmp_path / "router", embedder="upstream-e", knob=Knob((0.5,), (1e4,)).wire())
    route = {"artefact": str(tmp_path / "router"), "embedder": "e", "default": "weak", "quality": 1.0}
    return {**route, "embed_deadline_ms": 60_000}  # on a busy machine, too, it is the estimates that decide


@pytest.fixture
def config(tmp_path: Path, route: dict[str, Any]) -> Path:
    """What the command reads: the same route and ledger as the gateway's."""
    model = {"openai": {"base_url": "http://x/v1", "model": "m"}}
    told = {
        "models": dict.fromkeys(("weak", "strong", "e"), model),
        "strategies": {"auto": {"route": route}},
        "state": {"folder": str(tmp_path / "state")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    return tmp_path / "config.yaml"


def logged(folder: Path) -> list[tuple[str, Mapping[str, Any], float]]:
    """The caller's id, the decision and the US dollars of each request in the ledger."""
    if not (folder / "state" / "ledger.db").exists():
        return []
    with closing(sqlite3.connect(folder / "state" / "ledger.db")) as connection:
        try:
            rows = connection.execute("SELECT request_id, decision, cost_nano FROM requests").fetchall()
        except sqlite3.OperationalError:  # the table is just being made
            return []
    return [(name, orjson.loads(decision), cost / 1e9) for name, decision, cost in rows]


async def test_what_a_gateway_logged(
    serve: Any, chorus: Chorus, route: dict[str, Any], config: Path, tmp_path: Path
) -> None:
    """A gateway explores; scored by its callers' ids, its own rule is worth 1, and always asking the weak model what
    the importance weights of its log say."""
    client = await serve(
        {"weak": {}, "strong": {}, "e": {}},
        configured={"auto": {"route": {**route, "explore": 0.5}}},
        state={"folder": str(tmp_path / "state")},
    )

    async def ask(name: str, text: str) -> None:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-request-id": name})
        assert answer.status_code == 200, answer.text

    await asyncio.gather(
        *(ask(f"s{i}", "ab") for i in range(EACH)), *(ask(f"l{i}", "ab" * 20) for i in range(EACH))
    )
    await client.post("/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": "ab"}]})
    await until(lambda: len(logged(tmp_path)) == 2 * EACH + 1)
    rows = [row for row in logged(tmp_path) if row[0][0] in "sl" and row[0][1:].isdigit()]
    assert len(rows) == 2 * EACH
    right = {name: float(name[0] == "s" or told["chosen"] == "strong") for name, told, _ in rows}
    scores = tmp_path / "scores.csv"
    scores.write_text(
        "request,score\nnobody,1\n" + "".join(f"{name},{score}\n" for name, score in right.items())
    )
    status, out, err = chorus(
        "replay", "--config", config, "--scores", scores, "--quality", "0,1", "--json", "-"
    )
    assert status == 0, err
    found = orjson.loads(out)
    weak, best = (one["values"] for one in found["policies"])
    assert (found["strategy"], found["decisions"]) == ("auto", 2 * EACH)
    assert best["score"]["snips"]["mean"] == 1
    assert best["score"]["covered"] == 1
    assert best["score"]["logged"]["mean"] == pytest.approx(np.mean(list(right.values())))
    agreeing = [(name, 1 / told["propensity"], cost) for name, told, cost in rows if told["chosen"] == "weak"]
    weights, costs = np.array([[weight, cost] for _, weight, cost in agreeing]).T
    won = np.array([right[name] for name, _, _ in agreeing])
    assert set(np.round(weights, 6)) == {round(1 / 0.75, 6), 4.0}
    assert weak["score"]["snips"]["mean"] == pytest.approx(weights @ won / weights.sum())
    assert weak["score"]["ips"]["mean"] == pytest.approx(weights @ won / (2 * EACH))
    assert weak["cost_usd"]["snips"]["mean"] == pytest.approx(weights @ costs / weights.sum())
    assert weak["score"]["dr"]["mean"] == pytest.approx(0.5, abs=0.2)
    assert any("1 of the scores" in note for note in found["notes"])
    assert "Nothing was explored" not in out


def test_certain_decisions_are_warned_about(chorus: Chorus, config: Path, tmp_path: Path) -> None:
    """Where nothing was explored IPS has only what both choose, and that is said; DR has the estimates. A rule of the
    config's form is replayed by its name."""
    store = SqliteLedger(tmp_path / "state" / "ledger.db")
    strong = {
        "estimates": {
            "weak": {"quality": 0.2, "cost_usd": 1e-6},
            "strong": {"quality": 0.9, "cost_usd": 9e-6},
        }
    }
    write(store, *(decided(i, f"r{i}", facts() if i % 2 else facts(**strong)) for i in range(20)))
    scores = tmp_path / "scores.jsonl"
    scores.write_text("".join(f'{{"request": "id-{i:03}", "score": {i % 2}}}\n' for i in range(20)))
    status, out, err = chorus(
        "replay", "auto", "--config", config, "--scores", scores, "--policy", "margin: 0.3"
    )
    assert status == 0, err
    assert "Nothing was explored" in out
    assert "10 effective decisions" in out
    row = next(line for line in out.splitlines() if line.startswith("the cheapest within 0.3"))
    assert "0.950 [" in row  # half the decisions agree and are worth 1, the others 0.9 as estimated
    assert "1.000 [1.000, 1.000]" in row
    status, out, _ = chorus("replay", "--config", config, "--policy", "budget: {usd_per_request: 2.0e-6}")
    assert status == 0
    assert "2e-06 USD a request on average" in out
    status, out, _ = chorus("replay", "--config", config)
    assert status == 0
    assert [f"quality {level}" in out for level in (0, 0.25, 0.5, 0.75, 1)] == [True] * 5


def test_ratings_of_some_answers_are_noticed(chorus: Chorus, config: Path, tmp_path: Path) -> None:
    """Models were drawn at random, but mostly the strong one's answers were rated: the weights of what was rated betray
    it, and those of the cost, which every request has, do not."""
    drawn = [facts(chosen="strong" if i % 2 else "weak", propensity=0.5) for i in range(200)]
    write(
        SqliteLedger(tmp_path / "state" / "ledger.db"),
        *(decided(i, f"r{i}", one) for i, one in enumerate(drawn)),
    )
    scores = tmp_path / "scores.csv"
    rated = [i for i in range(200) if i % 2 or i % 5 == 0]
    scores.write_text("request,score\n" + "".join(f"r{i},1\n" for i in rated))
    arguments = ("replay", "--config", config, "--quality", "1")
    status, out, err = chorus(*arguments, "--scores", scores)
    assert status == 0, err
    assert "the mean weight of its score is 1.67" in out
    assert "mean weight" not in chorus(*arguments)[1]


def test_what_cannot_be_replayed(chorus: Chorus, config: Path, tmp_path: Path) -> None:
    """Unknown strategies, rules and files are refused with what there is; so is an empty ledger."""
    for arguments, status, told in (
        (["other"], 2, "it is"),
        (["--policy", "margin: two"], 2, "--policy"),
        (["--policy", "[1"], 2, "--policy"),
        (["--quality", "high"], 2, "--quality"),
        (["--quality", "0.5,7"], 2, "--quality 7"),
        (["--since", "3y"], 2, "--since"),
        ([], 1, "no decision of 'auto'"),
    ):
        found, _, err = chorus("replay", "--config", config, *arguments)
        assert (found, told in err or "'other' is no strategy" in err) == (status, True), err
    write(SqliteLedger(tmp_path / "state" / "ledger.db"), decided(1, "r", facts()))
    (tmp_path / "bad.csv").write_text("request,score\nr,7\n")
    status, _, err = chorus("replay", "--config", config, "--scores", tmp_path / "bad.csv")
    assert status == 1
    assert "line 2" in err
    assert "[0, 1]" in err
