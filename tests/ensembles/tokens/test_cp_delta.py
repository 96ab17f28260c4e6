"""CP-Δ on small vocabularies, without an engine; on the real pair see tests/engines/."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ensembles.tokens.base import Ask, Step
from ensembles.tokens.cp_delta import METHOD, CPDelta
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import DIFFERENT, SHARED, SmallAlphabet, ask, decide, step

BOTH = (0.5, 0.5)


def _kl(q: Tensor, p: Tensor) -> float:
    return float((q * (q.log() - p.log())).nansum())


def _pair(seed: int) -> tuple[Step, Tensor, Tensor, Tensor]:
    full = step(SHARED, BOTH, seed)
    return full, decide(CPDelta(), full), full.logits[0].softmax(-1), full.logits[1].softmax(-1)


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_nearest_distribution_to_both(seed: int) -> None:
    """KL(q‖p_l) + KL(q‖p_s) = −2 log Σ √(p_l p_s), and every step away from q makes it larger."""
    _, q, large, small = _pair(seed)
    reached = _kl(q, large) + _kl(q, small)
    assert reached == pytest.approx(-2 * float((large * small).sqrt().sum().log()), abs=1e-5)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = (q.log() + 0.2 * torch.randn(4, generator=generator)).softmax(-1)
        assert _kl(other, large) + _kl(other, small) >= reached - 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_of_cp_delta(seed: int) -> None:
    """Neither divergence alone exceeds −2 log(1 − H²), H the Hellinger distance of the two models."""
    _, q, large, small = _pair(seed)
    bound = -2 * float((large * small).sqrt().sum().log())
    assert _kl(q, large) <= bound + 1e-6
    assert _kl(q, small) <= bound + 1e-6


def test_a_token_the_clean_model_excludes_is_excluded() -> None:
    """What one member finds impossible, the mixture finds impossible, however sure the other is."""
    logits = {0: torch.tensor([50.0, 0.0, 0.0, 0.0]), 1: torch.tensor([-torch.inf, 0.0, 0.0, 0.0])}
    assert decide(CPDelta(), Step(SHARED, BOTH, logits))[0] == 0


def test_only_weighted_members_are_asked() -> None:
    """α = 1 is the large model alone, and nobody waits for the other."""
    assert CPDelta().decide(Step(SHARED, (1.0, 0.0), {})) == Ask(frozenset({0}))
    full = step(DIFFERENT, (1.0, 0.0, 0.0))
    assert torch.allclose(decide(CPDelta(), full), DIFFERENT.project(0, full.logits[0]), atol=1e-6)


def test_constants_and_temperature() -> None:
    """A constant added to logits changes nothing; T divides the mixed log-probabilities."""
    full = step(SHARED, (0.7, 0.3))
    moved = Step(SHARED, full.weights, {0: full.logits[0] + 9, 1: full.logits[1] - 3})
    assert torch.allclose(decide(CPDelta(), full), decide(CPDelta(), moved), atol=1e-5)
    cold = (0.7 * full.logits[0].log_softmax(-1) + 0.3 * full.logits[1].log_softmax(-1)) / 0.5
    assert torch.allclose(decide(CPDelta(temperature=0.5), full), cold.softmax(-1), atol=1e-6)


def test_unmatched_symbols() -> None:
    """Worked by hand on {the, " cat", end} and {the, " c", end}: dropping leaves {the, end}; "begin" reads
    " cat" as the small model's " c"."""
    alphabet = SmallAlphabet(((0, 1, 3), (0, 2, 3)), 4, (b"the", b" cat", b" c", b""))
    logits = {0: torch.tensor([1.0, 2.0, 0.0]), 1: torch.tensor([0.0, 1.5, 0.5])}
    full = Step(alphabet, BOTH, logits)
    dropped = ask(CPDelta(), full)
    assert dropped.symbols is not None
    assert dropped.symbols.tolist() == [0, 3]
    assert torch.allclose(dropped.q, torch.tensor([0.5, 0.25]).softmax(-1))
    begun = ask(CPDelta(unmatched="begin"), full)
    assert begun.symbols is not None
    assert begun.symbols.tolist() == [0, 1, 3]
    assert torch.allclose(begun.q, torch.tensor([0.5, 1.75, 0.25]).softmax(-1))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"unmatched": "keep"}, {"large": -1}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        CPDelta(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("cp-delta", "fusion") is METHOD
