"""UniTE on small vocabularies, without an engine; on the real pair see tests/engines/."""

from __future__ import annotations

import math

import pytest
import torch

from ensembles.tokens.base import Step
from ensembles.tokens.gac import GaC
from ensembles.tokens.unite import METHOD, UniTE
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import DIFFERENT, SHARED, SmallAlphabet, ask, decide, step

THREE = SmallAlphabet(((0, 1, 2, 5), (0, 3, 4, 5)), 6, (b"the", b" cat", b"a", b"therefore", b" ca", b""))
"""Two hand-made byte vocabularies: {the, " cat", a, end} and {the, therefore, " ca", end}."""


@pytest.mark.parametrize("alphabet", [SHARED, DIFFERENT, THREE], ids=["shared", "different", "prefixes"])
def test_all_tokens_are_gac(alphabet: SmallAlphabet) -> None:
    """With k ≥ |V| nothing is left out and every first token is an entry of its own: q is GaC's."""
    weights = (0.5, 0.3, 0.2)[: len(alphabet.maps)]
    weights = tuple(w / sum(weights) for w in weights)
    for seed in range(20):
        full = step(alphabet, weights, seed)
        assert torch.allclose(decide(UniTE(top_k=99), full), decide(GaC(), full), atol=1e-6)


@pytest.mark.parametrize(
    ("repeats", "borrowed"), [("drop", 0.0), ("zero", 1.0), ("keep", math.exp(3.0))], ids=str
)
def test_the_three_value_rules(repeats: str, borrowed: float) -> None:
    """Worked by hand with k = 1: U = (" cat", therefore). The first model has " cat" among its top and borrows
    "the" for "therefore" (rule 3); the second has "therefore" among its top and borrows " ca" for " cat"."""
    logits = {0: torch.tensor([3.0, 4.0, 0.0, -1.0]), 1: torch.tensor([3.0, 5.0, 2.0, 0.0])}
    decision = ask(UniTE(top_k=1, repeats=repeats), Step(THREE, (0.5, 0.5), logits))  # type: ignore[arg-type]
    assert decision.symbols is not None
    assert decision.symbols.tolist() == [1, 3]
    p0, p1 = torch.tensor([4.0, 3.0]).softmax(-1), torch.tensor([2.0, 5.0]).softmax(-1)
    assert decision.q.tolist() == pytest.approx(((p0 + p1) / 2).tolist())
    # k = 2 puts "the" into U: rule 2 gives it the first model's own logit, and "therefore" may not borrow it
    # again.
    almost = (1 - 1e-9, 1e-9)  # a member without any weight would not be heard
    decision = ask(UniTE(top_k=2, repeats=repeats), Step(THREE, almost, logits))  # type: ignore[arg-type]
    assert decision.symbols is not None
    assert decision.symbols.tolist() == [1, 0, 3]
    raw = torch.tensor([math.exp(4.0), math.exp(3.0), borrowed])
    assert decision.q.tolist() == pytest.approx((raw / raw.sum()).tolist(), abs=1e-6)


def test_a_symbol_nobody_else_can_write_has_no_probability() -> None:
    """Bytes that a model cannot even begin are impossible for it."""
    alphabet = SmallAlphabet(((0, 2), (1, 2)), 3)
    logits = {0: torch.tensor([1.0, 0.0]), 1: torch.tensor([1.0, 0.0])}
    q = decide(UniTE(top_k=2), Step(alphabet, (0.5, 0.5), logits))
    p = torch.tensor([1.0, 0.0]).softmax(-1)
    assert q.tolist() == pytest.approx([float(p[0]) / 2, float(p[0]) / 2, float(p[1])])


def test_equal_entries_fall_to_the_first_model() -> None:
    """Of equally likely symbols the one that entered first is taken."""
    alphabet = SmallAlphabet(((1, 2), (0, 2)), 3)
    logits = {m: torch.tensor([1.0, -9.0]) for m in range(2)}
    decision = ask(UniTE(top_k=1), Step(alphabet, (0.5, 0.5), logits))
    assert decision.symbols is not None
    assert int(decision.symbols[decision.q.argmax()]) == 1


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 2.5}, {"repeats": "sometimes"}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        UniTE(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("unite", "fusion") is METHOD
