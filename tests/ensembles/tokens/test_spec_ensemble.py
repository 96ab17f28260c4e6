"""Spec-ensemble's own part: its rule, its turns, its options. What the host makes of them is in
tests/engines/test_spec_decode.py."""

from __future__ import annotations

import pytest
import torch

from ensembles.tokens.base import Ask, Drafts, Step
from ensembles.tokens.cp_delta import CPDelta
from ensembles.tokens.deepen import DeePEn
from ensembles.tokens.spec_ensemble import METHOD, SpecEnsemble
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import DIFFERENT, SmallTables, bound, decide, step


@pytest.mark.parametrize("seed", range(5))
def test_it_decides_what_its_rule_decides(seed: int) -> None:
    """Q is the rule's, with the rule's options; rules that bind to the models are bound."""
    full = step(DIFFERENT, (0.5, 0.3, 0.2), seed)
    cold = SpecEnsemble("cp-delta", rule_options={"temperature": 0.5})
    assert torch.equal(decide(cold, full), decide(CPDelta(temperature=0.5), full))
    assert torch.equal(decide(SpecEnsemble("deepen"), full), decide(DeePEn(), full))


def test_the_longest_drafter_begins() -> None:
    """Members take turns by γ, the largest first, equal ones in the order of the config."""
    assert isinstance(SpecEnsemble(), Drafts)
    assert SpecEnsemble().turns(3) == ((0, 1), (1, 1), (2, 1))
    assert SpecEnsemble(drafts=[1, 5, 2]).turns(3) == ((1, 5), (2, 2), (0, 1))


def test_a_rule_may_ask() -> None:
    """Given nothing it asks for whom the rule wants."""
    gated = SpecEnsemble("gac", rule_options={"threshold": 0.5, "primary": 1})
    assert gated.decide(Step(DIFFERENT, (0.5, 0.25, 0.25), {})) == Ask(frozenset({1}))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"drafts": 0}, "drafts"),
        ({"drafts": [2, 17]}, "drafts"),
        ({"drafts": []}, "drafts"),
        ({"rule": "spec-ensemble"}, "another"),
        ({"rule": "nonesuch"}, "nonesuch"),
        ({"rule": "packllm"}, "packllm"),
        ({"rule_options": {"nonesuch": 1}}, "rule_options"),
    ],
)
def test_bad_options_stop_the_start(options: dict[str, object], named: str) -> None:
    """Options out of range, and rules that cannot be drafted, are refused by name."""
    with pytest.raises(SettingsError, match=named):
        SpecEnsemble(**options)  # type: ignore[arg-type]


def test_drafts_are_named_for_every_member() -> None:
    """A list of drafts that does not fit the team stops the start."""
    with pytest.raises(SettingsError, match="2 members of 3"):
        bound(SpecEnsemble(drafts=[1, 2]), DIFFERENT)
    assert SmallTables(DIFFERENT).members == 3


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("spec-ensemble", "fusion") is METHOD
