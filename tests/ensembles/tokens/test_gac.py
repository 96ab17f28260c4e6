"""GaC on small vocabularies, without an engine; on the real pair see tests/engines/test_fused_decode.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ensembles.tokens import gac
from ensembles.tokens.base import Ask, Mixture, Step
from ensembles.tokens.gac import METHOD, GaC
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import DIFFERENT, SHARED, SmallAlphabet, decide, step


def test_shared_vocabulary_is_plain_averaging() -> None:
    """On one vocabulary q is the weighted mean of the members' softmaxes."""
    weights = (0.5, 0.3, 0.2)
    full = step(SHARED, weights)
    plain = sum(w * full.logits[m].softmax(-1) for m, w in enumerate(weights))
    assert isinstance(plain, torch.Tensor)
    assert torch.allclose(decide(GaC(), full), plain, atol=1e-7)


def test_golden_numbers() -> None:
    """Worked by hand: p₁ = (½, ½) on {a, b}, p₂ = (¼, ¾) on {b, c}, weights ½: q = (¼, ⅜, ⅜)."""
    alphabet = SmallAlphabet(((0, 1), (1, 2)), 3)
    logits = {0: torch.tensor([0.0, 0.0]), 1: torch.tensor([1.0, 3.0]).log()}
    q = decide(GaC(), Step(alphabet, (0.5, 0.5), logits))
    assert q.tolist() == pytest.approx([0.25, 0.375, 0.375])


def test_the_sure_primary_speaks_alone() -> None:
    """Above τ the primary's own distribution is the answer, without asking the others."""
    full = step(DIFFERENT, (0.2, 0.4, 0.4))
    full.logits[1][2] = 20.0
    decision = GaC(threshold=0.9, primary=1).decide(Step(DIFFERENT, full.weights, {1: full.logits[1]}))
    assert isinstance(decision, Mixture)
    assert torch.allclose(decision.q, DIFFERENT.project(1, full.logits[1]))


def test_the_unsure_primary_asks_the_others() -> None:
    """At or below τ all members are heard and q is that of every step."""
    full = step(DIFFERENT, (0.2, 0.4, 0.4))
    full.logits[1].zero_()
    gated = GaC(threshold=0.9, primary=1)
    assert gated.decide(Step(DIFFERENT, full.weights, {})) == Ask(frozenset({1}))
    assert gated.decide(Step(DIFFERENT, full.weights, {1: full.logits[1]})) == Ask(frozenset({0, 2}))
    assert torch.equal(decide(gated, full), decide(GaC(), full))


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": "high"}, {"primary": -1}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        GaC(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("gac", "fusion") is METHOD


def test_importing_it_loads_no_torch() -> None:
    """Listing methods must not load torch."""
    code = "import sys, ensembles.tokens.gac; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_short_cut_has_the_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two candidates a member out of twelve, the short cut either knows the argmax or says it does
    not."""
    monkeypatch.setattr(gac, "CANDIDATES", 2)
    alphabet = SmallAlphabet((tuple(range(12)), tuple(reversed(range(2, 14)))), 15)
    known = agreed = 0
    for seed in range(200):
        full = step(alphabet, (0.6, 0.4), seed)
        found = gac._likeliest(full)
        whole = gac._mix(full)
        if found is not None:
            known += 1
            assert found.symbols is not None
            assert int(found.symbols[found.q.argmax()]) == int(whole.argmax())
            if found.q.shape[0] == 1:  # all members like it best, and nobody's mass was asked for
                agreed += 1
                own = [int(alphabet.project(m, full.logits[m]).argmax()) for m in full.logits]
                assert own == [int(found.symbols)] * len(own)
            else:
                assert torch.allclose(found.q, whole[found.symbols], atol=1e-6)
    assert 20 < known < 200
    assert 5 < agreed < known


def test_unanimous_needs_a_lead() -> None:
    """All members like one candidate better than the others, and better than any symbol that is no candidate could
    be."""
    assert gac._unanimous([[1.0, 3.0], [0.0, 2.0]], [2.0, 1.0]) == 1
    assert gac._unanimous([[1.0, 3.0], [2.0, 0.0]], [0.0, -1.0]) is None  # they differ
    assert gac._unanimous([[1.0, 3.0], [2.0, 2.0]], [0.0, -1.0]) is None  # one cannot choose
    assert gac._unanimous([[1.0, 3.0], [0.0, 2.0]], [2.0, 2.0]) is None  # something else may be as large


def test_the_gate_of_a_greedy_step_is_that_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two candidates of twelve the primary's best symbol and its probability are those of its whole
    distribution."""
    monkeypatch.setattr(gac, "CANDIDATES", 2)
    alphabet = SmallAlphabet((tuple(range(12)), tuple(reversed(range(2, 14)))), 15)
    short = 0
    for seed in range(50):
        full = step(alphabet, (0.6, 0.4), seed)
        own = gac._own(Step(alphabet, full.weights, full.logits, True), 1)
        whole = gac._own(full, 1).q
        short += own.symbols is not None
        best = int(own.q.argmax())
        assert (best if own.symbols is None else int(own.symbols[best])) == int(whole.argmax())
        assert float(own.q.max()) == pytest.approx(float(whole.max()))
    assert short
