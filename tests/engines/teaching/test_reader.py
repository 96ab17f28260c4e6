"""Reading, sharing and owning: what teaching rests on, without a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.engine import EngineSpec
from engines.teaching import Pupil, teach
from engines.teaching.etr import experts_by_subject
from engines.teaching.lessons import Answer, Lesson
from engines.teaching.reader import Reader
from engines.teaching.share import area, share
from engines.templates import Transcript
from protocol.errors import SettingsError
from tests.language_models import tiny_lm

pytestmark = pytest.mark.requires("engines")


def _lesson(question: str, subject: str, scores: dict[str, float], *, held_out: bool = False) -> Lesson:
    return Lesson(question, subject, (Answer("yes", True),), scores, bool, 8, held_out)


def test_a_reader_sees_what_the_model_sees(tmp_path: Path) -> None:
    """States, masses and logits at the places between pieces are those of one plain forward over everything."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_lm(tmp_path / "lm")
    reader = Reader(folder, Transcript(), "float32")
    prompt, pieces = [9, 12, 30], [[7], [8, 11], [40]]
    read = reader.read(prompt, pieces, ended=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.tensor([[9, 12, 30, 7, 8, 11, 40]]), output_hidden_states=True)
    logits = out.logits[0].clone()
    muted = [i for i, text in enumerate(reader.vocab.emits) if not text and i not in reader.vocab.eos]
    logits[:, muted] = -torch.inf
    at = [2, 3, 5, 6]
    assert torch.allclose(read.states, out.hidden_states[-1][0, at], atol=1e-5)
    assert torch.allclose(read.mass, logits[at].logsumexp(-1), atol=1e-4)
    assert torch.allclose(read.top, logits[at].amax(-1), atol=1e-5)
    assert torch.allclose(read.came, logits[at, [7, 8, 40, min(reader.vocab.eos)]], atol=1e-5)
    assert read.best == tuple(reader.vocab.emits[i] for i in logits[at].argmax(-1).tolist())
    assert len(reader.read(prompt, pieces, ended=False).best) == 3


def test_etr_is_taught_from_end_to_end(tmp_path: Path) -> None:
    """A tiny meta model learns to call its expert for questions about one thing and not about the other, and the
    report is about questions it has not seen."""
    folder = tiny_lm(tmp_path / "lm", words=("alpha", "beta", "yes"))
    spec = EngineSpec("meta", folder, "float32")
    pupils = [Pupil(spec, Transcript()), Pupil(EngineSpec("expert", folder, "float32"), Transcript())]
    lessons = [
        _lesson(f"{word} " * (1 + n % 7), word, {"meta": float(word == "beta"), "expert": float(word == "alpha")},
                held_out=n % 4 == 0)
        for n in range(80)
        for word in ("alpha", "beta")
    ]  # fmt: skip
    learnt = teach(
        "etr", pupils, lessons, {"rate": 0.05, "decay": 0.0, "epochs": 40, "batch": 16}, lambda line: None
    )
    found = learnt.metrics
    assert found["subjects"] == {"alpha": "expert", "beta": "meta"}
    assert found["held_out_questions"] == 40
    assert found["majority"][0] == 0.5
    assert found["routing_accuracy"][0] > 0.9
    assert found["score_routed"][0] == found["routing_accuracy"][0]
    assert found["loss"][1] < found["loss"][0]
    learnt.fusion.save(tmp_path / "artefact", ("meta", "expert"), metrics=found)
    assert (tmp_path / "artefact" / "manifest.json").is_file()


def test_methods_that_learn_nothing_say_so() -> None:
    """A method without a teacher, wrong options, and a member too few are settings' errors."""
    with pytest.raises(SettingsError, match="nothing that `chorus teach` could train"):
        teach("gac", [], [], {}, lambda line: None)
    with pytest.raises(SettingsError, match="etr"):
        teach("etr", [], [], {"no_such": 1}, lambda line: None)
    with pytest.raises(SettingsError, match="two members"):
        teach("citer", [], [], {}, lambda line: None)
    with pytest.raises(SettingsError, match="two members"):
        teach("etr", [], [], {}, lambda line: None)


def test_a_subject_is_its_best_models() -> None:
    """By mean score over what is learnt from; of equal ones the first; held-out lessons say nothing."""
    lessons = [
        _lesson("1", "a", {"x": 0, "y": 1}),
        _lesson("2", "a", {"x": 1, "y": 1}),
        _lesson("3", "b", {"x": 1, "y": 1}),
        _lesson("4", "b", {"x": 0, "y": 1}, held_out=True),
        _lesson("5", "c", {"x": 0, "y": 1}, held_out=True),
    ]
    assert experts_by_subject(("x", "y"), lessons) == {"a": 1, "b": 0, "c": 0}


def test_intervals_draw_lessons() -> None:
    """The interval holds the mean, and is wider where hits come in lessons that are all right or all wrong."""
    rng = np.random.default_rng(0)
    lessons = np.repeat(np.arange(50), 20)
    together = np.repeat(rng.integers(0, 2, 50), 20).astype(float)
    mean, low, high = share(together, lessons)
    assert low < mean < high
    _, near, far = share(together)
    assert far - near < (high - low) / 2


def test_the_area_is_that_of_all_pairs() -> None:
    """Against every pair of a true and a false one, counted one by one, with ties."""
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 6, 60) / 6, rng.integers(0, 2, 60) > 0
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert area(scores, labels) == pytest.approx(np.mean(pairs))
