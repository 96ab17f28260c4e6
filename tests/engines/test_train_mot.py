"""The latent mixture on the real pair: its training, and that serving computes what training did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engines.lessons import Answer
from engines.train_mot import Expert, next_logits, text_in, text_of
from engines.union import Union
from ensembles.networks.learner import Learner
from ensembles.networks.mixture import Mixture
from ensembles.tokens.mot import Fitted, MoT
from tests.engines.conftest import FOLDERS, PAIR, serving

pytestmark = pytest.mark.models

BOTH = frozenset({0, 1})
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def experts(weights: Callable[[str], Path]) -> list[Expert]:
    """The pair in transformers, frozen."""
    return [Expert.load(weights(FOLDERS[name])) for name in PAIR]


def blank(points: int = 2) -> Mixture:
    """A mixture for the pair that has learnt nothing."""
    return Mixture.new((576, 640), 384, points=points, size=32)


def random(scale: float) -> Mixture:
    """One that mixes noise in."""
    mixture, chance = blank(), torch.Generator().manual_seed(3)
    drawn = {
        name: torch.randn(value.shape, generator=chance) * scale
        for name, value in mixture.weights.items()
        if name.startswith("R.")
    }
    return Mixture({**mixture.weights, **drawn}, mixture.points)


def test_bytes_to_come_change_nothing(experts: list[Expert]) -> None:
    """Two answers that part after some words have the same logits up to there, in either writer, and what follows
    differs: nothing leaks, through two models of different tokens, padded beside each other. R = 0 is the model
    alone."""
    answers = [Answer(QUESTION, f"The capital is {rest}", 99) for rest in ("Paris, on the Seine", "Rome.")]
    for writer in (0, 1):
        texts = [text_of(experts, writer, answer) for answer in answers]
        with torch.no_grad():
            logits, labels, rows = next_logits(experts, random(0.02), texts, BOTH)
            nothing, _, _ = next_logits(experts, blank(), texts, BOTH)
            alone = (
                experts[writer].model(torch.tensor([texts[0].ids[writer]])).logits[0, texts[0].start - 1 : -1]
            )
        first, second = (logits[rows == row] for row in (0, 1))
        same = int((labels[rows == 0][: len(second)] != labels[rows == 1][: len(first)]).int().argmax()) + 1
        assert 3 < same < len(second)
        assert torch.allclose(first[:same], second[:same], atol=1e-3)
        assert not torch.allclose(first[same], second[same], atol=0.1)
        assert torch.allclose(nothing[rows == 0], alone, atol=1e-3)
        assert not torch.allclose(first, alone, atol=0.1)


def test_training_lowers_the_loss(experts: list[Expert]) -> None:
    """A few steps on one answer lower the writer's loss below that of R = 0, and no expert has a gradient."""
    text, mixture = text_of(experts, 0, Answer(QUESTION, "It was Lyon, in olden days.", 99)), blank()

    def loss() -> torch.Tensor:
        logits, labels, _ = next_logits(experts, mixture, [text], BOTH)
        return torch.nn.functional.cross_entropy(logits, labels)

    with torch.no_grad():
        before = float(loss())
    learner = Learner(mixture.weights, 3e-3, 6)
    for _ in range(6):
        learner.step(loss)
    assert learner.losses[0] == pytest.approx(before, abs=1e-4)
    assert learner.losses[-1] < 0.9 * before
    assert all(value.grad is None for expert in experts for value in expert.model.parameters())


def test_a_served_mixture(experts: list[Expert], weights: Callable[[str], Path], tmp_path: Path) -> None:
    """Served from an artefact by the engine host, streamed and beside plain requests: R = 0 gives each writer's own
    greedy text; with R ≠ 0 each token of a text that differs is the one that training's forward has likeliest there."""
    from engines.engine import EngineSpec
    from engines.host import FusionSpec

    specs = [EngineSpec(name, weights(FOLDERS[name]), "float32", 256, 0.25, 8, 16) for name in PAIR]
    fusions = []
    for kind, mixture in (("zero", blank()), ("mixed", random(0.02))):
        fitted = Fitted(mixture, (30, 18), tuple(e.digest for e in experts), "an encoder")
        fitted.save(tmp_path / kind, PAIR)
        fusions += [
            FusionSpec(
                f"{kind}-{w}",
                PAIR,
                (0.5, 0.5),
                MoT(writer=w).load(PAIR, {"mixture": tmp_path / kind}),
                main=w,
            )
            for w in (0, 1)
        ]
    with serving(specs, fusions) as ask:
        for w, name in enumerate(PAIR):
            names = (name, f"zero-{w}", f"mixed-{w}", f"mixed-{w}")
            plain, zero, mixed, again = ask.all(
                *((one, QUESTION) for one in names), max_tokens=10, top_logprobs=0
            )
            assert zero.text == plain.text
            assert len(mixed.pieces) > 1
            assert mixed.text == again.text != plain.text
            assert ask(name, QUESTION, max_tokens=10).text == plain.text  # no cache was spoilt
            own = [i for token in mixed.tokens for i in ask.host.vocabs[name].encode(token.token)]
            text = text_in(experts, w, ask.prompt_ids(f"mixed-{w}", QUESTION), own)
            with torch.no_grad():
                logits, labels, _ = next_logits(experts, random(0.02), [text], BOTH)
            union = Union.of([experts[w].vocab])
            logp = torch.stack([union.project(0, row) for row in logits]).log()
            assert union.maps[0][labels].tolist() == logp.argmax(-1).tolist()
            told = torch.tensor([token.logprob for token in mixed.tokens])
            assert torch.allclose(told, logp.max(-1).values, atol=1e-2)
