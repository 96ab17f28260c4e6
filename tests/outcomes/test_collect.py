"""Collecting: every row once, none lost, failures bounded and reported."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from outcomes.collect import Progress, Prompt, collect, read_prompts
from outcomes.grading import Judge
from outcomes.table import read_table
from protocol.chat import ChatRequest
from protocol.errors import SettingsError, UpstreamBroken, UpstreamRefused, UpstreamUnavailable
from protocol.run import Reply
from protocol.usage import Usage
from protocol.wire import completion

MODELS = ("good", "bad")
PROMPTS = [Prompt(f"sum-{i}", "sums", f"What is {i} + 1?", "number", (str(i + 1),), 8) for i in range(12)]


def _reply(model: str, text: str, *, logprobs: bool = False) -> Reply:
    body = completion(id="x", created=0, model=model, text=text, finish_reason="stop", usage=Usage(7, 2))
    if logprobs:
        body["choices"][0]["logprobs"] = {"content": [{"token": "t", "logprob": lp} for lp in (-0.5, -1.5)]}
    return Reply(body, (model,), cost_usd=1e-6, latency_s=0.01)


class Upstream:
    """Two models, one of which can add; raises what `faults` holds for a model first. Counts calls and
    concurrency."""

    def __init__(self, **faults: list[Exception]) -> None:
        self.faults, self.calls, self.requests = faults, Counter(), []
        self.running = self.peak = 0

    async def ask(self, model: str, request: ChatRequest) -> Reply:
        self.calls[model] += 1
        self.requests.append(request)
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.faults.get(model):
            raise self.faults[model].pop(0)
        number = int(request.messages[0]["content"].split()[2])
        text = str(number + 1) if model == "good" else "no idea"
        return _reply(model, text, logprobs=bool(request.body.get("logprobs")))


async def _no_pause(seconds: float) -> None:
    pauses.append(seconds)


pauses: list[float] = []


async def test_every_model_answers_every_prompt_graded(tmp_path: Path) -> None:
    """The table has each model's score, cost, tokens, latency, answer and mean token log-probability."""
    upstream, seen = Upstream(), []
    done = await collect(
        PROMPTS, MODELS, upstream.ask, tmp_path / "t.parquet", concurrency=4, progress=seen.append
    )
    table = read_table(tmp_path / "t.parquet")
    assert table.models == MODELS
    assert table.score.mean(axis=0).tolist() == [1, 0]
    assert np.allclose(table.cost_usd, 1e-6)
    assert np.allclose(table.mean_logprob, -1.0)
    assert (table.completion_tokens == 2).all()
    assert table.response[3, 0] == "4"
    assert table.categories[0] == "sums"
    assert upstream.peak <= 4
    assert seen[-1] == Progress(24, 24, 0, 0, pytest.approx(24e-6))
    assert not done.failures
    assert {request.body["temperature"] for request in upstream.requests} == {0.0}


async def test_an_interrupted_collection_resumes_without_asking_again(tmp_path: Path) -> None:
    """A cancelled run keeps the rows it paid for; the next asks only for the rest."""
    upstream, out = Upstream(), tmp_path / "t.parquet"

    def stop(progress: Progress) -> None:
        if progress.done == 10:
            task.cancel()

    task = asyncio.create_task(collect(PROMPTS, MODELS, upstream.ask, out, concurrency=1, progress=stop))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not out.exists()
    again = Upstream()
    done = await collect(PROMPTS, MODELS, again.ask, out, concurrency=3)
    assert done.resumed == 10
    assert sum(again.calls.values()) == 14
    assert len(done.table) == 12
    assert not np.isnan(done.table.score).any()


async def test_a_torn_line_is_dropped_and_asked_again(tmp_path: Path) -> None:
    """A journal cut in the middle of a line, as by a power cut, costs that one row."""
    out = tmp_path / "t.parquet"
    await collect(PROMPTS, MODELS, Upstream().ask, out)
    journal = out.with_suffix(".journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])
    again = Upstream()
    done = await collect(PROMPTS, MODELS, again.ask, out)
    assert sum(again.calls.values()) == 1
    assert not np.isnan(done.table.score).any()
    assert journal.read_bytes().endswith(b"\n")


async def test_passing_failures_are_retried_with_growing_pauses(tmp_path: Path) -> None:
    """A broken upstream is asked again; a `retry-after` is honoured."""
    pauses.clear()
    upstream = Upstream(good=[UpstreamBroken("cut"), UpstreamUnavailable("busy", retry_after_s=7)])
    done = await collect(
        PROMPTS[:1], MODELS, upstream.ask, tmp_path / "t.parquet", concurrency=1, pause=_no_pause
    )
    assert not done.failures
    assert pauses == [0.5, 7]


async def test_lasting_failures_are_left_missing_and_reported(tmp_path: Path) -> None:
    """After the retries the cell stays NaN, the rest is kept, and a later run tries again."""
    out = tmp_path / "t.parquet"
    upstream = Upstream(bad=[UpstreamBroken("cut")] * 100)
    done = await collect(PROMPTS, MODELS, upstream.ask, out, retries=1, pause=_no_pause)
    assert upstream.calls["bad"] == 24
    assert {failure.model for failure in done.failures} == {"bad"}
    assert done.failures[0].error == "cut"
    assert np.isnan(done.table.only(("bad",)).score).all()
    assert not np.isnan(done.table.only(("good",)).score).any()
    assert not (await collect(PROMPTS, MODELS, Upstream().ask, out)).failures


async def test_a_refusal_is_not_retried(tmp_path: Path) -> None:
    """A 401 stays a 401 however often one asks."""
    upstream = Upstream(bad=[UpstreamRefused("wrong key", status=401)] * 100)
    await collect(PROMPTS[:2], MODELS, upstream.ask, tmp_path / "t.parquet", pause=_no_pause)
    assert upstream.calls["bad"] == 2


async def test_a_model_that_refuses_logprobs_is_asked_without(tmp_path: Path) -> None:
    """One refusal teaches it: the answer is kept, and later calls do not ask for log-probabilities."""
    upstream = Upstream(bad=[UpstreamRefused("logprobs are not supported", status=400)])
    done = await collect(PROMPTS, MODELS, upstream.ask, tmp_path / "t.parquet", concurrency=1)
    assert not done.failures
    assert upstream.calls["bad"] == 13
    assert np.isnan(done.table.only(("bad",)).mean_logprob).all()
    assert not np.isnan(done.table.only(("good",)).mean_logprob).any()


async def test_rows_are_on_disk_as_soon_as_they_are_paid_for(tmp_path: Path) -> None:
    """When the next answer is awaited, the last one is already in the file."""
    out, lines = tmp_path / "t.parquet", []
    upstream = Upstream()

    async def ask(model: str, request: ChatRequest) -> Reply:
        lines.append(len(out.with_suffix(".journal.jsonl").read_bytes().splitlines()))
        return await upstream.ask(model, request)

    await collect(PROMPTS[:3], MODELS, ask, out, concurrency=1)
    assert lines == [0, 1, 2, 3, 4, 5]


async def test_judged_answers_survive_a_failing_judge(tmp_path: Path) -> None:
    """An answer is journalled before it is judged; when the judge comes back only the judge is asked."""
    out = tmp_path / "t.parquet"
    prompts = [Prompt("p", "open", "What is 1 + 1?", "judge", ("2",), 8)]
    upstream = Upstream()

    async def down(model: str, request: ChatRequest) -> Reply:
        raise UpstreamUnavailable("no judge")

    async def up(model: str, request: ChatRequest) -> Reply:
        return _reply(model, "CORRECT")

    first = await collect(prompts, MODELS, upstream.ask, out, judge=Judge(down, "j"), pause=_no_pause)
    assert len(first.failures) == 2
    assert np.isnan(first.table.score).all()
    second = await collect(prompts, MODELS, upstream.ask, out, judge=Judge(up, "j"))
    assert second.table.score.tolist() == [[1, 1]]
    assert sum(upstream.calls.values()) == 2
    with pytest.raises(SettingsError, match="judge"):
        await collect(prompts, MODELS, upstream.ask, out)


GOOD = {"id": "x", "category": "c", "prompt": "a", "answers": ["1"], "max_tokens": 4, "grader": "exact"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not a prompt"),
        ("[]", ":2: not a prompt: a line is an object"),
        ('{"id": "x"}', "it has no 'category', 'prompt', 'grader', 'answers', 'max_tokens'"),
        (json.dumps({**GOOD, "promt": "b"}), "nothing is called 'promt' here; known: answers"),
        (json.dumps({**GOOD, "prompt": "b", "grader": "vibes"}), "accepted: exact"),
        (json.dumps({**GOOD, "prompt": " a "}), "line 1"),
    ],
)
def test_wrong_query_sets_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    """A line that is no prompt, an unknown grader, or a repeated prompt stops the reading with its line
    number."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line)
    with pytest.raises(SettingsError, match=message):
        read_prompts(path)
