"""PackLLM on small vocabularies, without an engine; on the real pair see tests/engines/."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ensembles.tokens.base import Ask, Prompt, PromptRow, Step
from ensembles.tokens.packllm import METHOD, PackLLM, _optimal
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import DIFFERENT, SHARED, SmallAlphabet, decide, step

BOTH = (0.5, 0.5)


def _prompt(alphabet: SmallAlphabet, seed: int, sure: float = 0.0, members: int = 2) -> Prompt:
    """Ten one-byte tokens; the last member is `sure` of what comes."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[PromptRow, ...]] = []
    labels = torch.randint(0, 2, (10,), generator=generator).tolist()
    for m in range(members):
        row = []
        for i, u in enumerate(labels):
            logits = torch.randn(len(alphabet.maps[m]), generator=generator)
            logits[alphabet.maps[m].index(u)] += sure if m == members - 1 else 0.5
            row.append(PromptRow(i, 1, u, logits))
        rows.append(tuple(row))
    return Prompt(alphabet, (1 / members,) * members, tuple(rows))


def _nll(prompt: Prompt, weights: tuple[float, ...]) -> float:
    """Mean negative log-likelihood of the mixed logits, on one vocabulary, in plain numbers."""
    total = 0.0
    for together in zip(*prompt.rows, strict=True):
        z = sum(w * row.logits for w, row in zip(weights, together, strict=True))
        assert isinstance(z, torch.Tensor)
        total -= float(z.log_softmax(-1)[together[0].symbol])
    return total / len(prompt.rows[0])


def test_sim_weights_are_the_closed_form() -> None:
    """λ = softmax(−Loss/τ), the loss being each member's mean NLL."""
    prompt = _prompt(SHARED, 0)
    losses = [_nll(prompt, w) for w in ((1.0, 0.0), (0.0, 1.0))]
    for temperature in (1.0, 0.3):
        found = PackLLM("sim", temperature).prepare(prompt)
        raw = [math.exp(-loss / temperature) for loss in losses]
        assert found.weights == pytest.approx([r / sum(raw) for r in raw], rel=1e-5)
        assert found.reference == losses.index(min(losses))


def test_the_optimised_mixture_is_no_worse_than_the_best_member() -> None:
    """And no worse than any other point of the grid."""
    for seed in range(20):
        prompt = _prompt(SHARED, seed)
        weights = _optimal(prompt, 0)
        assert weights is not None
        assert sum(weights) == pytest.approx(1)
        best = _nll(prompt, weights)
        for i in range(21):
            assert best <= _nll(prompt, (i / 20, 1 - i / 20)) + 1e-5


def test_three_members_are_added_one_after_another() -> None:
    """With a third member the loss never rises either."""
    prompt = _prompt(SHARED, 3, members=3)
    weights = _optimal(prompt, 0)
    assert weights is not None
    assert sum(weights) == pytest.approx(1)
    singles = [_nll(prompt, tuple(float(m == o) for o in range(3))) for m in range(3)]
    assert _nll(prompt, weights) <= min(singles) + 1e-6


def test_who_knows_the_prompt_weighs_more() -> None:
    """The surer the second member is of what came, the larger its weight."""
    for mode in ("sim", "opt"):
        shares = []
        for sure in (0.0, 2.0, 6.0):
            weights = PackLLM(mode).prepare(_prompt(DIFFERENT, 1, sure)).weights  # type: ignore[arg-type]
            assert weights is not None
            shares.append(weights[1])
        assert all(a <= b for a, b in pairwise(shares)), shares
        assert shares[-1] > shares[0]


def test_copies_have_any_weights_and_one_text() -> None:
    """With two copies of a model every share is as good, and q is the model's."""
    prompt = _prompt(SHARED, 5)
    twice = Prompt(SHARED, BOTH, (prompt.rows[0], prompt.rows[0]))
    one = step(SHARED, (1.0,)).logits[0]
    q = decide(PackLLM().prepare(twice), Step(SHARED, BOTH, {0: one, 1: one}))
    assert torch.allclose(q, SHARED.project(0, one), atol=1e-6)


def test_a_token_the_helper_lacks_is_read_by_its_beginning() -> None:
    """Worked by hand: the reference writes " cat"; the helper's " c" stands for it."""
    alphabet = SmallAlphabet(((0, 1, 3), (0, 2, 3)), 4, (b"the", b" cat", b" c", b""))
    logits = {0: torch.tensor([1.0, 2.0, 0.0]), 1: torch.tensor([0.0, 1.5, 0.5])}
    q = decide(PackLLM(reference=0), Step(alphabet, (0.8, 0.2), logits))
    expected = torch.tensor([0.8, 1.9, 0.1]).softmax(-1)
    assert q.tolist() == pytest.approx([float(expected[0]), float(expected[1]), 0.0, float(expected[2])])


def test_a_prompt_without_common_text_changes_nothing() -> None:
    """Then the configured weights hold, and only members that have one are asked."""
    fusion = PackLLM().prepare(Prompt(SHARED, BOTH, ((), ())))
    assert fusion == PackLLM()
    assert fusion.decide(Step(SHARED, (0.0, 1.0), {})) == Ask(frozenset({1}))


@pytest.mark.parametrize("options", [{"mode": "best"}, {"temperature": 0}, {"reach": 0}, {"reference": -1}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        PackLLM(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("packllm", "fusion") is METHOD
