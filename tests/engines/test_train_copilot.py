"""The Copilot's training: what is logged, that errors can be learnt, and that a trained one is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engines import train_copilot
from engines.lessons import Lesson, Reading
from engines.mistake_log import Mistakes, mistakes
from engines.train_copilot import CopilotTraining, Plan, evaluate
from ensembles.networks.copilot import Copilot
from tests.contracts.fusion_checks import SmallAlphabet, SmallTables

SYMBOLS = SmallAlphabet((tuple(range(12)),), 12)
TABLES = SmallTables(SYMBOLS, 16)


def test_the_log_holds_what_came() -> None:
    """ℓ is one-hot of the token that came minus the model's distribution over the likeliest symbols, of which what
    came is always one; controls of the prompt are left out."""
    from engines.byte_vocab import ByteVocab
    from engines.union import Union
    from tests.engines.test_byte_vocab import _tokenizer

    tokens = {token: i for i, token in enumerate(["<eos>", "<pad>", "a", "b", "c", "d"])}
    union = Union.of([ByteVocab.parse(_tokenizer(tokens, "bytes", ("<eos>", "<pad>")))])
    logits = torch.tensor([[0.0, 9.0, 3.0, 2.0, 1.0, -5.0], [4.0, 0.0, 1.0, 1.5, 0.0, 0.0]])
    lesson = Lesson((1, 2, 3), (5, 0))
    reading = Reading([lesson], logits, torch.tensor(lesson.answer), (torch.ones(2, 4), torch.ones(2, 4)))
    (log,) = mistakes(reading, union, 2)
    assert [union.symbols[u] for u in log.prompt] == [b"a", b"b"]
    named = [[union.symbols[u] for u in row] for row in log.symbols]
    assert named == [[b"a", b"b", b"d"], [b"", b"b", b"a"]]
    assert log.came.tolist() == [2, 0]
    p = union.project(0, logits[0])
    assert torch.allclose(log.expected[0], p[log.symbols[0]])
    assert torch.allclose(log.errors[0], torch.tensor([0.0, 0.0, 1.0]) - log.expected[0])


def answer(chance: torch.Generator) -> Mistakes:
    """A model that holds two symbols equally likely where one comes, as its state tells."""
    n = 8
    came = torch.randint(4, (n,), generator=chance)
    symbols = torch.stack(
        [torch.arange(4).roll(int(torch.randint(4, (1,), generator=chance))) for _ in range(n)]
    )
    states = torch.nn.functional.one_hot(came, 16).float() * 4
    expected = torch.full((n, 4), 0.25)
    return Mistakes(
        torch.tensor([5, 6]), states.half(), symbols, expected, (symbols == came[:, None]).int().argmax(-1)
    )


def test_it_beats_the_mean_error() -> None:
    """Trained on a log, it foresees the errors of answers held out better than each symbol's mean error does, and
    corrects the model's choice."""
    chance = torch.Generator().manual_seed(0)
    log, held = ([answer(chance) for _ in range(n)] for n in (60, 20))
    plan = Plan(rounds=60, drills=2, rates=(0.0, 1e-2), size=16)
    training = CopilotTraining(Copilot.new(16, size=16), TABLES, plan)  # type: ignore[arg-type]
    for _ in range(plan.rounds * plan.drills):
        training.drill(log)
    card = evaluate(training.copilot, TABLES, log, held)  # type: ignore[arg-type]
    assert card.rmse_foreseen < 0.5 * card.rmse_mean
    assert card.rmse_told < 0.5 * card.rmse_mean
    assert card.right_pilot < 0.5
    assert card.right["1.0"] > 0.9
    assert card.gain[1] > 0


@pytest.mark.models
def test_a_served_copilot(weights: Callable[[str], Path], tmp_path: Path) -> None:
    """Two rounds of joint training leave a tuned Pilot and an artefact; served, λ = 0 gives the Pilot's text, byte for
    byte, streamed; λ = 1 goes through the network."""
    from engines.engine import EngineSpec
    from engines.host import FusionSpec
    from ensembles.tokens.transformer_copilot import TransformerCopilot
    from tests.engines.conftest import serving

    source = weights("smollm2-135m-instruct")
    plan = Plan(rounds=2, drills=2, tuned=1, kept=64)
    card = train_copilot.train(
        source, tmp_path / "copilot", tmp_path / "pilot", train_copilot.lessons.ANSWERS, plan, most=8
    )
    assert card.answers == 8
    spec = EngineSpec("pilot", tmp_path / "pilot", "float32", 256, 0.1, 4)
    fusions = [
        FusionSpec(
            name,
            ("pilot",),
            (1.0,),
            TransformerCopilot(s).load(("pilot",), {"copilot": tmp_path / "copilot"}),
        )
        for name, s in (("alone", 0.0), ("corrected", 1.0))
    ]
    with serving([spec], fusions) as ask:
        for question in ("What is the capital of France?", "Name three colours."):
            plain, alone, corrected = ask.all(*((m, question) for m in ("pilot", "alone", "corrected")))
            assert alone.text == plain.text
            assert len(alone.pieces) > 1
            assert corrected.failure is None
            assert corrected.text
