"""`chorus collect`, `calibrate`, `evaluate`, `train` end to end on small data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from outcomes.artefact import read_manifest
from outcomes.table import read_table

CONFIG = """
models:
  small: {openai: {base_url: "http://x/v1", model: m}}
  large: {openai: {base_url: "http://x/v1", model: m}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A config and a query set of sums."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    lines = [
        {
            "id": f"q{i}",
            "category": "sums",
            "prompt": f"{i} + 1 =",
            "grader": "number",
            "answers": [str(i + 1)],
            "max_tokens": 8,
        }
        for i in range(80)
    ]
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return tmp_path


def sums(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """The small model is right, and sure, on even sums; the large one always, at ten times the price."""
    number = int(body["messages"][-1]["content"].split()[0])
    small = body["model"] == "small"
    right = not small or number % 2 == 0
    text = str(number + 1 if right else number + 7)
    content = [{"token": text, "logprob": -0.1 - number / 1000 if right else -2.0 - number / 1000}]
    answer = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {
                "index": 0, "message": {"role": "assistant", "content": text},
                "logprobs": {"content": content}, "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }  # fmt: skip
    cost = "0.000001" if small else "0.00001"
    return 200, {"x-chorus-model": body["model"], "x-chorus-cost-usd": cost}, orjson.dumps(answer)


def collect(chorus, gateway, files: Path, *more: object) -> tuple[int, str, str]:
    return chorus(
        "collect",
        files / "c.yaml",
        "--queries",
        files / "q.jsonl",
        "--out",
        files / "o.parquet",
        "--url",
        gateway.url,
        *more,
    )


def test_from_questions_to_a_calibrated_cascade(chorus, gateway, files: Path) -> None:
    """Collect writes the table; calibrate fits a cascade on it that is as good as the large model for less;
    evaluate prints its card again."""
    gateway.answer = sums
    status, out, _ = collect(chorus, gateway, files)
    assert status == 0
    assert "160 rows" in out
    table = read_table(files / "o.parquet")
    assert table.models == ("small", "large")
    assert table.score.mean(axis=0).tolist() == [0.5, 1.0]
    assert table.cost_usd[0].tolist() == [1e-6, 1e-5]

    arguments = [
        "token-uncertainty",
        "--stages",
        "small,large",
        "--outcomes",
        files / "o.parquet",
        "--out",
        files / "a",
    ]
    status, out, _ = chorus("calibrate", *arguments, "--worth-usd", 0.001)
    assert status == 0
    assert "area under the deferral curve" in out
    manifest = read_manifest(files / "a")
    rows = {row["name"]: row for row in manifest.metrics["rows"]}
    assert rows["cascade"]["score"] == rows["large"]["score"] == 1.0
    assert rows["cascade"]["cost_usd"] < rows["large"]["cost_usd"]
    assert manifest.parameters == {"scorer": {"variant": "chow-average", "alpha": 0.0}}

    status, out, _ = chorus("evaluate", files / "a", "--outcomes", files / "o.parquet", "--json", "-")
    assert status == 0
    again = orjson.loads(out)
    assert again["rows"] == manifest.metrics["rows"]
    assert (
        orjson.loads(
            chorus("evaluate", files / "a", "--outcomes", files / "o.parquet", "--json", "-", "--whole")[1]
        )["queries"]
        == 80
    )


def test_collect_goes_on_where_it_stopped(chorus, gateway, files: Path) -> None:
    """A run with failures says what is missing and fails; the next one asks only that."""

    def moody(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if body["messages"][-1]["content"].startswith("7 "):
            return 400, {}, b'{"error": {"message": "odd number", "type": "invalid_request_error"}}'
        return sums(body)

    gateway.answer = moody
    status, out, err = collect(chorus, gateway, files, "--models", "small")
    assert status == 1
    assert "odd number" in out
    assert "only these" in err
    gateway.asked.clear()
    gateway.answer = sums
    status, out, _ = collect(chorus, gateway, files, "--models", "small")
    assert status == 0
    assert len(gateway.asked) == 1
    assert "79 from earlier runs" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--models", "smal"], "large, small"),
        (["--judge", "nobody"], "nobody"),
        (["--queries", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_collect_refuses_what_is_not_there(
    chorus, gateway, files: Path, arguments: list[str], told: str
) -> None:
    """Unknown models and missing files stop it before any call."""
    status, _, err = collect(chorus, gateway, files, *arguments)
    assert status == 2
    assert told in err
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["token-uncertainty", "--stages", "small"], "at least two"),
        (["token-uncertainty", "--stages", "small,large"], "exactly one"),
        (
            ["token-uncertainty", "--stages", "small,large", "--option", "variant=x", "--share", 0.5],
            "chow-average",
        ),
        (["token-uncertainy", "--stages", "small,large", "--share", 0.5], "token-uncertainty"),
    ],
)
def test_calibrate_says_what_is_wrong(
    chorus, gateway, files: Path, arguments: list[object], told: str
) -> None:
    """One stage, no aim, bad options or an unknown scorer are named."""
    gateway.answer = sums
    collect(chorus, gateway, files)
    status, _, err = chorus("calibrate", *arguments, "--outcomes", files / "o.parquet", "--out", files / "a")
    assert status != 0
    assert told in err
    assert not (files / "a").exists()


def test_train_says_what_is_missing(chorus, gateway, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that needs an embedder, or an embedder that was not pulled, is an error with the remedy."""
    gateway.answer = sums
    collect(chorus, gateway, files)
    arguments = ["train", "knn-router", "--outcomes", files / "o.parquet", "--out", files / "r"]
    status, _, err = chorus(*arguments)
    assert status == 1
    assert "embedder" in err
    monkeypatch.setenv("CHORUS_HOME", str(files))
    status, _, err = chorus(*arguments, "--embedder", "all-minilm-l6-v2-int8")
    assert status == 2
    assert "chorus models pull all-minilm-l6-v2-int8" in err


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not JSON"), ('["a"]', "names and texts"), ('{"a": 1}', "texts")]
)
def test_descriptions_are_names_and_texts(chorus, tmp_path: Path, text: str, told: str) -> None:
    """Anything else is refused before training, with the file's name."""
    (tmp_path / "about.json").write_text(text)
    (tmp_path / "o.parquet").write_text("")
    status, _, err = chorus(
        "train", "rtr", "--outcomes", tmp_path / "o.parquet", "--out", tmp_path / "r", "--descriptions",
        tmp_path / "about.json",
    )  # fmt: skip
    assert status == 2
    assert told in err
    assert "about.json" in err


def test_methods_side_by_side(chorus, tmp_path: Path) -> None:
    """With --train alone, methods that need no embedder are trained and judged on held-out queries; --test names
    another table; what does not fit together is refused."""
    from outcomes.table import split, write_table
    from tests.contracts.router_checks import outcomes

    table = outcomes(400)
    write_table(table, tmp_path / "o.parquet")
    common = ("evaluate", "--train", tmp_path / "o.parquet", "--methods", "multiple-minds,blending,pickllm")
    status, out, err = chorus(*common, "--json", tmp_path / "card.json")
    assert status == 0
    assert "best single, chosen on train" in out
    assert "training pickllm" in err
    card = orjson.loads((tmp_path / "card.json").read_bytes())
    assert [row["name"] for row in card["routers"]] == ["multiple-minds", "blending", "pickllm"]
    assert card["train_queries"] + card["test_queries"] <= 400

    for name, part in zip(("a", "b"), split(table), strict=True):
        write_table(part, tmp_path / f"{name}.parquet")
    pair = (
        "evaluate",
        "--train",
        tmp_path / "a.parquet",
        "--test",
        tmp_path / "b.parquet",
        "--methods",
        "blending",
    )
    status, out, _ = chorus(*pair, "--json", "-")
    assert status == 0
    assert orjson.loads(out)["test_queries"] == card["test_queries"]

    for arguments, told in (
        (("evaluate",), "--train"),
        (("evaluate", tmp_path), "--outcomes"),
        ((*common[:3], "--methods", "knn"), "--embedder"),
        ((*common, "--test", tmp_path / "o.parquet"), "in the training table"),
    ):
        status, _, err = chorus(*arguments)
        assert status != 0
        assert told in err


def test_thresholds_for_shares(chorus, tmp_path: Path) -> None:
    """Every wanted share has its alpha, and a route with that alpha asks the strong model as often as was told."""
    from outcomes.artefact import load_router
    from outcomes.evaluate import thresholds
    from outcomes.table import split, write_table
    from outcomes.train import train
    from routers.policy import Threshold
    from tests.contracts.router_checks import outcomes

    table = outcomes(400)
    write_table(table, tmp_path / "o.parquet")
    train("multiple-minds", table, tmp_path / "router")
    strong, weak, *_ = table.models
    shares = (0.0, 0.3, 1.0)
    rows = thresholds(tmp_path / "router", table, strong, weak, shares)
    _, held_out = split(table, 0.3)
    estimate = load_router(tmp_path / "router")[1].estimate(held_out.queries)
    for row in rows:
        # As routers.strategy serves it: the policy compares the lead, twice the chance of winning less one.
        chosen = Threshold(strong, weak, 2 * row.alpha - 1).choose(estimate)
        assert (chosen == estimate.models.index(strong)).mean() == row.sent
        assert row.sent >= row.share - 0.01
    assert [row.alpha for row in rows] == sorted((row.alpha for row in rows), reverse=True)
    assert rows[-1].sent == 1
    assert rows[-1].score == pytest.approx(np.nanmean(held_out.score[:, table.models.index(strong)]))

    pair = (tmp_path / "router", "--outcomes", tmp_path / "o.parquet", "--strong", strong)
    status, out, _ = chorus("threshold", *pair, "--weak", weak, "--share", "0.3")
    assert status == 0
    assert f"{rows[1].alpha:.4f}" in out
    status, _, err = chorus("threshold", *pair, "--weak", "nobody")
    assert status != 0
    assert "nobody" in err
