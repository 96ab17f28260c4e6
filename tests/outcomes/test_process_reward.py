"""Labels by rollouts, and the process reward that learns them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.collect import Prompt
from outcomes.process_labels import (
    Begun,
    LabelledStep,
    beginnings,
    graded,
    label,
    read_steps,
    write_steps,
)
from outcomes.process_reward import ProcessReward, RewardTraining, auc, card, shown, train_reward
from outcomes.table import OutcomeTable, Row
from protocol.errors import ArtefactMismatch, MethodError
from tests.encoders import QUICK, tiny_encoder

SUM = Prompt("sum-1", "sums", "What is 2 + 3?", "number", ("5",), 24)


def test_steps_are_labelled_by_their_outcome() -> None:
    """A whole answer by its grade, a beginning by the share of its ends that are right; the same answer is one."""
    asked: list[Begun] = []
    answers = iter(["2 and 3 are\n5", "it is 4", "it is 4"])
    ends = iter(["5", "6", "5", "5"])

    def write(model: str, begun: Sequence[Begun]) -> list[str]:
        asked.extend(begun)
        return [next(ends if each.answer else answers) for each in begun]

    found = label([SUM], ["m"], write, answers=3, rollouts=4)
    assert [(step.answer, step.ended, step.label, step.rollouts) for step in found] == [
        ("2 and 3 are\n5", True, 0.0, 0),  # the first line's last number counts
        ("it is 4", True, 0.0, 0),
        ("2 and 3 are\n", False, 0.0, 4),
    ]
    assert asked == [Begun(SUM.prompt, "", 24)] * 3 + [Begun(SUM.prompt, "2 and 3 are\n", 24)] * 4
    answers, ends = iter(["Let me see.\nIt is 5"]), iter(["It is 5", "It is 6", "5", "no"])
    whole, begun = label([SUM], ["m"], write, answers=1, rollouts=4)
    assert (whole.label, begun.answer, begun.label) == (1.0, "Let me see.\n", 0.5)


def test_graded_answers_are_whole_answers() -> None:
    """What an outcome table has of answers and grades is taken; what it does not know is left out."""
    rows = [
        Row("1", "Why?", "why", "m", 1.0, response="Because."),
        Row("1", "Why?", "why", "n", response="Who knows?"),
        Row("2", "How?", "how", "m", 0.0),
    ]
    assert graded(OutcomeTable.of(rows)) == [LabelledStep("Why?", "why", "m", "Because.", True, 1.0)]


def test_beginnings_end_with_a_line() -> None:
    """After every line that says something, but for the last."""
    assert beginnings("one\n\ntwo\nthree") == ["one\n", "one\n\ntwo\n"]
    assert beginnings("one\n") == []
    assert beginnings("") == []


def test_steps_are_kept(tmp_path: Path) -> None:
    """They come back as they were, from the same bytes each time; what is no such file is refused."""
    steps = [LabelledStep("Why?", "why", "m", "Because\n", False, 0.25, 4)]
    for name in ("a", "b"):
        write_steps(tmp_path / name, steps)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_steps(tmp_path / "a") == steps
    (tmp_path / "c").write_bytes(b"no")
    with pytest.raises(MethodError, match="holds no labelled steps"):
        read_steps(tmp_path / "c")


def test_what_the_encoder_reads() -> None:
    """Steps stand apart, and a whole line ends with a mark that a whole answer lacks."""
    assert shown("Why? ", "") == "Why? [SEP] "
    assert shown("Why?", "one\n\ntwo\n") == "Why? [SEP] one [SEP] two [SEP] "
    assert shown("Why?", "one\ntwo") == "Why? [SEP] one [SEP] two"


def _steps(n: int) -> list[LabelledStep]:
    """Answers that say "stone" are right, those that say "river" are not; of every question there are both."""
    return [
        LabelledStep(f"what is the number {i // 2}", "test", "m", word, True, float(word == "stone"))
        for i in range(n)
        for word in [("stone", "river")[i % 2]]
    ]


@pytest.mark.requires("torch")
@pytest.mark.parametrize("layers", [0, 1])
def test_a_reward_learns_which_answers_are_right(tmp_path: Path, layers: int) -> None:
    """On questions it has not seen it tells right answers from wrong ones, and so it does loaded anew; the artefact has
    no more than training changed."""
    start = tiny_encoder(tmp_path / "encoder")
    options = {**QUICK, "start": str(start), "layers": layers, "max_tokens": 16, "batch": 8}
    manifest = train_reward(_steps(120), tmp_path / "reward", options=options)
    assert manifest.metrics["auc"][0] > 0.95
    assert manifest.metrics["auc_within_a_question"][0] > 0.95
    assert manifest.metrics["auc_of_the_question_alone"][0] == pytest.approx(0.5)
    assert manifest.metrics["trained_on"] + manifest.metrics["steps"] == 120
    reward = ProcessReward.load(_at(tmp_path / "reward", start))
    right, wrong = reward("what is the number 7", ["stone", "river"])
    assert 0 < wrong < 0.5 < right < 1
    size = (tmp_path / "reward" / "tensors.safetensors").stat().st_size
    assert size < (start / "model.safetensors").stat().st_size / (1 if layers else 4)


def _at(folder: Path, start: Path) -> Path:
    """The artefact, its encoder looked for at `start`: it names its encoder, and no path of a machine."""
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["parameters"]["start"] == start.name
    manifest["parameters"]["start"] = str(start)
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder


@pytest.mark.requires("torch")
def test_another_encoder_is_refused(tmp_path: Path) -> None:
    """A head does not go with an encoder it was not trained on."""
    start = tiny_encoder(tmp_path / "encoder")
    options = {"start": str(start), "max_tokens": 16, "epochs": 1}
    train_reward(_steps(40), tmp_path / "reward", options=options)
    other = tiny_encoder(tmp_path / "other" / "encoder", seed=1)
    with pytest.raises(ArtefactMismatch, match="another"):
        ProcessReward.load(_at(tmp_path / "reward", other))
    with pytest.raises(MethodError, match="no option 'colour'"):
        train_reward(_steps(40), tmp_path / "reward", options={"colour": 1})
    with pytest.raises(MethodError, match="too few"):
        train_reward(_steps(1), tmp_path / "reward")


@pytest.mark.requires("torch")
def test_hard_labels_count_any_right_end(tmp_path: Path) -> None:
    """With `hard` a step from which one of four ends was right is as good as any."""
    start = tiny_encoder(tmp_path / "encoder")
    steps = [
        LabelledStep(f"what is {i}", "test", "m", word, False, 0.25 * (word == "stone"), 4)
        for i in range(30)
        for word in ("stone", "river")
    ]
    made = {
        hard: RewardTraining(**QUICK, start=str(start), hard=hard, max_tokens=16, batch=8).fit(steps)[0]
        for hard in (False, True)
    }
    soft, hard = (made[h]("what is 3", ["stone"])[0] for h in (False, True))
    assert soft < 0.5 < hard


def test_auc_by_hand() -> None:
    """Pairs that stand right over all pairs, equal values counting half."""
    good = np.array([True, True, False, False])
    assert auc(good, np.array([0.9, 0.4, 0.4, 0.1])) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(np.array([True]), np.array([0.5])))


def test_a_card_says_what_the_question_gives_away() -> None:
    """A reward that knows easy questions from hard ones, and nothing of answers, does well over all and not within."""
    steps = [
        LabelledStep(
            f"easy {i}" if i % 2 else f"hard {i}", "c", "m", f"answer {k}", True, float((i % 2) ^ (k == 0))
        )
        for i in range(40)
        for k in range(4)
    ]

    def reward(question: str, answers: Sequence[str]) -> list[float]:
        return [0.9 if "easy" in question else 0.1] * len(answers)

    told = card(reward, steps, resamples=200)  # type: ignore[arg-type]
    value, low, high = told["auc"]
    assert low <= value <= high
    assert value == pytest.approx(0.75) == told["auc_of_the_question_alone"][0]
    assert told["auc_within_a_question"] == [0.5, 0.5, 0.5]
    assert told["questions"] == 40
