"""Transformer Copilot: its laws, and what its network does with positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ensembles.networks.copilot import Copilot, pooled
from ensembles.tokens.base import Mixture, Step
from ensembles.tokens.transformer_copilot import Fitted, TransformerCopilot, corrected
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from tests.contracts.fusion_checks import SHARED, SmallAlphabet, SmallOpening, SmallTables, step

ONE = SmallAlphabet((SHARED.maps[0],), SHARED.size)
TABLES = SmallTables(ONE)


def ready(copilot: Copilot, strength: float) -> TransformerCopilot:
    """The fusion as it is when a request begins."""
    fusion = TransformerCopilot(strength, 0, Fitted(copilot, 3, 2, TABLES.digest(0)))
    return fusion.bind(TABLES).open(SmallOpening(ONE))


def at(seed: int, memory: object = None) -> Step:
    """A step of the Pilot alone, with states of its two layers."""
    states = torch.randn(2, TABLES.width, generator=torch.Generator().manual_seed(seed))
    return Step(ONE, (1.0,), step(ONE, (1.0,), seed).logits, False, {0: states}, memory)


def mixed(fusion: TransformerCopilot, step: Step) -> Mixture:
    """The decision, which is one."""
    decision = fusion.decide(step)
    assert isinstance(decision, Mixture)
    return decision


def learnt(width: int = TABLES.width) -> Copilot:
    """A Copilot that foresees something."""
    copilot = Copilot.new(width, size=16)
    out = torch.randn(width, 16, generator=torch.Generator().manual_seed(1))
    return Copilot({**copilot.weights, "out": out})


def test_the_true_error_gives_the_target() -> None:
    """With f = ℓ over all symbols and λ = 1, p̃ is the one-hot target: the algebra of the method."""
    p = torch.randn(11).softmax(0)
    for target in range(11):
        wanted = torch.nn.functional.one_hot(torch.tensor(target), 11).float()
        assert torch.allclose(corrected(p, torch.arange(11), wanted - p, 1.0), wanted, atol=1e-7)


def test_what_would_be_negative_is_cut_off() -> None:
    """A correction larger than a probability leaves a distribution."""
    q = corrected(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0, 2]), torch.tensor([-0.9, 0.1]), 1.0)
    assert torch.allclose(q, torch.tensor([0.0, 0.5, 0.5]))


def test_without_strength_it_is_the_pilot() -> None:
    """λ = 0 gives p̂ exactly, whatever was learnt; λ > 0 does not."""
    pilots = ONE.project(0, at(0).logits[0])
    assert torch.equal(mixed(ready(learnt(), 0.0), at(0)).q, pilots)
    assert not torch.allclose(mixed(ready(learnt(), 0.3), at(0)).q, pilots)


def test_an_untrained_copilot_corrects_nothing() -> None:
    """As it begins to learn, f = 0 and p̃ is the Pilot's, whatever λ."""
    assert torch.allclose(
        mixed(ready(Copilot.new(TABLES.width), 1.0), at(0)).q, ONE.project(0, at(0).logits[0])
    )


def test_positions_one_by_one_are_positions_at_once() -> None:
    """Fed one position after another, as in serving, the network says what it says of a whole answer, as in training;
    also beside a longer one, behind a padded prompt."""
    width, n = 12, 6
    copilot = learnt(width)
    chance = torch.Generator().manual_seed(2)
    prompt, before, states = (torch.randn(1, k, width, generator=chance) for k in (5, n, n))
    whole, _ = copilot.foresee(before, prompt, states)
    beside, _ = copilot.foresee(
        torch.cat([before, before.flip(1)]),
        torch.cat(
            [torch.cat([torch.ones(1, 3, width), prompt], 1), torch.randn(1, 8, width, generator=chance)]
        ),
        torch.cat([states, states.flip(1)]),
        starts=torch.tensor([3, 0]),
    )
    assert torch.allclose(beside[:1], whole, atol=1e-6)
    past = None
    for i in range(n):
        asked = prompt if past is None else prompt[:, :0]
        here, past = copilot.foresee(before[:, i : i + 1], asked, states[:, i : i + 1], past=past, first=i)
        assert torch.allclose(here[:, 0], whole[:, i], atol=1e-6)


def test_nothing_ahead_is_seen() -> None:
    """Other errors and states later on change nothing before them."""
    copilot = learnt(12)
    chance = torch.Generator().manual_seed(3)
    prompt, before, states = (torch.randn(1, 6, 12, generator=chance) for _ in range(3))
    one, _ = copilot.foresee(before, prompt, states)
    before[:, 4:], states[:, 4:] = 7.0, -3.0
    other, _ = copilot.foresee(before, prompt, states)
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_its_corrections_are_remembered() -> None:
    """The second decision depends on the first step's states, through the memory alone; the same memory gives the
    same decision again."""
    fusion = ready(learnt(), 1.0)
    decisions = []
    for seed in (0, 1):
        after = at(2, mixed(fusion, at(seed)).memory)
        decisions.append(mixed(fusion, after).q)
        assert torch.equal(decisions[-1], mixed(fusion, after).q)
    assert not torch.allclose(*decisions)


def test_layers_count_alike() -> None:
    """Pooling scales each layer first: a layer of large numbers is not all that is left."""
    small, large = torch.randn(4, 8), torch.randn(4, 8)
    assert torch.allclose(pooled([small, large]), pooled([small, 1000 * large]), atol=1e-4)


def test_it_comes_back_from_its_artefact(tmp_path: Path) -> None:
    """A saved Copilot says what it said, with the options of the config."""
    Fitted(learnt(), 3, 2, TABLES.digest(0)).save(tmp_path, ("small",))
    again = TransformerCopilot(0.5).load("a", {"copilot": tmp_path}).bind(TABLES).open(SmallOpening(ONE))
    assert torch.equal(mixed(again, at(0)).q, mixed(ready(learnt(), 0.5), at(0)).q)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A Copilot of another Pilot, a folder without one, numbers that are none, and options out of range."""
    Fitted(learnt(), 3, 2, "sha256:other").save(tmp_path / "other", ("small",))
    with pytest.raises(ArtefactMismatch, match="sha256:other"):
        TransformerCopilot().load("a", {"copilot": tmp_path / "other"}).bind(TABLES)
    with pytest.raises(MethodError, match="No artefact"):
        TransformerCopilot().load("a", {"copilot": tmp_path})
    Fitted(learnt(), 0, 2, "").save(tmp_path / "none", ("small",))
    with pytest.raises(MethodError, match="not an artefact"):
        TransformerCopilot().load("a", {"copilot": tmp_path / "none"})
    with pytest.raises(SettingsError, match="strength"):
        TransformerCopilot(strength=2.0)
    with pytest.raises(SettingsError, match="not among"):
        TransformerCopilot(pilot=3).bind(TABLES)
