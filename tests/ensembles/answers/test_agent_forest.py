"""Agent-Forest: the faithful checks of its card."""

from __future__ import annotations

import gzip
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensembles.answers.agent_forest import AgentForest
from ensembles.answers.base import Candidate
from ensembles.answers.vote import plurality
from protocol.errors import BadRequest
from tests.scripted_run import ask

VOTE = AgentForest(["m"], answer="number")


def combine(texts: list[str], forest: AgentForest = VOTE, **fields):
    return forest.combine(ask(**fields), [Candidate("m", text) for text in texts])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(["1", "2", "3.0", "3", "none"]), min_size=1, max_size=40))
def test_equality_is_plurality(ballot: list[str]) -> None:
    """With sim = equality the winner is the plurality vote's, abstentions not being a class."""
    combined = combine([f"The answer is {vote}." for vote in ballot])
    keys = [None if vote == "none" else vote.removesuffix(".0") for vote in ballot]
    assert list(combined.keys) == keys
    assert combined.index == (plurality(keys) or 0)
    if combined.votes:
        assert combined.votes == Counter(key for key in keys if key is not None)
        assert [s for s in combined.scores if s is not None] == [
            combined.votes[k] - 1 for k in keys if k is not None
        ]


@pytest.mark.requires("data")
@pytest.mark.parametrize(
    ("benchmark", "model"),
    [("aime2024", "Qwen3-4B"), ("gpqa_diamond", "Phi-4-reasoning"), ("aime2025", "gpt-oss-20b")],
)
def test_accuracy_climbs_with_samples(benchmark: str, model: str) -> None:
    """On recorded samples accuracy climbs with N, from the recorded single-sample accuracy towards the full
    vote's (of the queries that are in the table; the card's figures are of all)."""
    rows = _recorded(benchmark, model)
    single = float(np.mean([row["score"] for row in rows]))
    full = float(np.mean([row["majority_score"] for row in rows]))
    curve = {n: float(np.mean([_vote_accuracy(row, n) for row in rows])) for n in (1, 3, 5, 10, 20, 40)}
    assert curve[1] == pytest.approx(single, abs=0.03)
    assert full - single > 0.02, "the recorded vote gains"
    for fewer, more in ((1, 5), (3, 10), (5, 20), (10, 40)):
        assert curve[more] >= curve[fewer] - 0.01, f"accuracy fell: {curve}"
    assert curve[40] >= single + 0.6 * (full - single), f"{curve} does not approach {full}"
    whole = [_wins(row, range(len(row["sample_answer_index"]))) for row in rows]
    assert float(np.mean(whole)) == pytest.approx(full, abs=1.5 / len(rows))


def _recorded(benchmark: str, model: str) -> list[dict]:
    path = Path(os.environ["CHORUS_DATA"]) / "boinf_samples" / "outcomes.jsonl.gz"
    with gzip.open(path) as lines:
        rows = [orjson.loads(line) for line in lines]
    return [row for row in rows if row["model"] == model and row["query_id"].startswith(benchmark + "/")]


def _vote_accuracy(row: dict, n: int, trials: int = 30) -> float:
    """Share of random N-sample votes that are right."""
    rng = random.Random(f"{row['query_id']}{n}")
    samples = range(len(row["sample_answer_index"]))
    return float(np.mean([_wins(row, rng.sample(samples, n)) for _ in range(trials)]))


def _wins(row: dict, samples) -> float:
    """Whether Agent-Forest's choice among some samples is right. Answers are compared as the table compares
    them, by their index, written as numbers."""
    said = [row["sample_answer_index"][i] for i in samples]
    combined = combine([str(index) for index in said])
    return float(row["answer_correct"][said[combined.index]])


def test_open_text_takes_the_most_similar() -> None:
    """Without keys the text most like the others wins, by directed BLEU as in the paper."""
    texts = ["A cat sat on the mat.", "The cat sat on the mat.", "The cat sat on a mat.", "Dogs bark."]
    combined = combine(texts, AgentForest(["m"], answer="free"))
    assert (combined.by, combined.keys, combined.votes) == ("bleu", (None,) * 4, {})
    assert combined.index == 1
    assert combined.scores[3] == min(combined.scores)


def test_all_abstaining_falls_back_to_similarity() -> None:
    """When no answer has a key, similarity decides."""
    combined = combine(["no idea at all", "no idea", "no idea at all"])
    assert combined.by == "bleu"
    assert combined.index == 0


def test_token_f1_can_be_chosen() -> None:
    """The similarity is a parameter."""
    assert combine(["a b", "b a"], AgentForest(["m"], answer="free", similarity="token-f1")).by == "token-f1"


def test_tool_calls_are_compared_by_what_they_call() -> None:
    """Equal calls are one vote; not calling is a decision of its own."""
    call, other = '[["function","f",{"x":1}]]', '[["function","g",{}]]'
    combined = VOTE.combine(
        ask(),
        [
            Candidate("m", "", other),
            Candidate("m", "", call),
            Candidate("m", "text"),
            Candidate("m", "", call),
        ],
    )
    assert combined.index == 1
    assert combined.by == "equal tool calls"
    assert combined.votes == {other: 1.0, call: 2.0, "(no tool call)": 1.0}


def test_code_keys_keep_their_case() -> None:
    """Code is compared letter for letter."""
    combined = combine(["```\nX = 1\n```", "```\nx = 1\n```"], AgentForest(["m"], answer="code"))
    assert len(combined.votes) == 2


def test_samples_at_temperature_one() -> None:
    """Samples are drawn at temperature 1 and top_p 1, members in turn, unless the caller says otherwise."""
    slots = AgentForest(["a", "b"], 2).slots(ask())
    assert [slot.member for slot in slots] == ["a", "b", "a", "b"]
    assert all(slot.fields == {"temperature": 1, "top_p": 1} for slot in slots)
    assert [slot.fields for slot in AgentForest(["a"], 2).slots(ask(temperature=0.5, seed=4))] == [
        {"top_p": 1, "seed": 4},
        {"top_p": 1, "seed": 5},
    ]


def test_several_choices_are_refused() -> None:
    """The merged answer is one, so n > 1 is a bad request that names n."""
    with pytest.raises(BadRequest) as caught:
        AgentForest(["a"]).slots(ask(n=2))
    assert caught.value.param == "n"


@pytest.mark.parametrize("parameters", [{"answer": "guess"}, {"similarity": "luck"}, {"samples": 65}])
def test_refuses_bad_parameters(parameters: dict) -> None:
    """Unknown profiles and similarities, and more samples than a request may make, are refused."""
    with pytest.raises(ValueError, match=r"answer|similarity|samples"):
        AgentForest(["m"], **parameters)
