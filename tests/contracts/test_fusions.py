"""Every registered fusion keeps the contract, and the checks catch fusions that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ensembles.networks.copilot import Copilot
from ensembles.networks.mixture import Mixture as Thinking
from ensembles.tokens.base import Mixture, Step
from ensembles.tokens.citer import CITER
from ensembles.tokens.etr import ETR
from ensembles.tokens.mot import Fitted as Thoughts
from ensembles.tokens.mot import MoT
from ensembles.tokens.rlae import RLAE
from ensembles.tokens.transformer_copilot import Fitted as Pilots
from ensembles.tokens.transformer_copilot import TransformerCopilot
from outcomes.weight_policy import Weigher, WeightPolicy
from protocol.methods import Method, load_method, methods
from tests.contracts import fusion_checks
from tests.contracts.fusion_checks import BROKEN, CHECKS, WIDTH, Make
from tests.ensembles.tokens.learnt import token_router

FUSIONS = tuple(methods("fusion"))


def _weigher() -> Weigher:
    draw = np.random.default_rng(3)
    shapes = ((1, 4, 2), (1, 2), (1, 2, 3), (1, 3))
    policy = WeightPolicy(*(draw.normal(size=shape).astype(np.float32) for shape in shapes))
    return Weigher(policy, lambda prompt, text: np.ones(4, dtype=np.float32), ("a", "b", "c"), 4)


DIGESTS = tuple(f"weights {m}" for m in range(3))
"""Of `SmallTables`."""

LEARNT: dict[str, Make] = {
    "citer": lambda: CITER(tau=0.5, router=token_router(WIDTH)),
    "etr": lambda: ETR(experts=torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)) * 2),
    "mot": lambda: MoT(fitted=Thoughts(Thinking.new((WIDTH,) * 3, 8, size=8), (3, 3, 3), DIGESTS, "")),
    "rlae": lambda: RLAE(weigher=_weigher()),
    "transformer-copilot": lambda: TransformerCopilot(
        fitted=Pilots(Copilot.new(WIDTH, size=16), 4, 3, DIGESTS[0])
    ),
}
"""What training would have to make first, by method: drawn at random, or (mot, transformer-copilot) as it is before it
learns, since what they have learnt is under no law."""

EXCEPTIONS = {
    ("citer", "check_order_of_members_is_nothing"): "the first member proposes, the others may correct",
    ("etr", "check_order_of_members_is_nothing"): "the first member is the one that hands over",
    ("deepen", "check_order_of_members_is_nothing"): "its main member's logits are the ones that are moved",
    ("mot", "check_order_of_members_is_nothing"): "one member writes; without a router's word, the first",
    ("eva", "check_order_of_members_is_nothing"): "the pivot's tokens are the ones that are written",
}
"""(method, check) → why the law is not the method's. Strict: one that starts to hold must go."""


@pytest.fixture
def _exceptions(request: pytest.FixtureRequest) -> None:
    method, check = request.getfixturevalue("method"), request.getfixturevalue("check")
    if reason := EXCEPTIONS.get((method.id, check.__name__)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", FUSIONS, ids=lambda method: method.id)
@pytest.mark.usefixtures("_exceptions")
def test_fusion(method: Method, check: Callable[[Make], None]) -> None:
    """A fusion with its default options keeps the law."""
    check(LEARNT.get(method.id) or load_method(method))


@pytest.mark.parametrize("method", [m for m in FUSIONS if m.optional_members], ids=lambda method: method.id)
def test_members_without_weight_have_no_part(method: Method) -> None:
    """Of a method that says so: it decides without them, as it would had the team never had them."""
    full = fusion_checks.step(fusion_checks.SHARED, (0.6, 0.4, 0.0))
    rest = {m: row for m, row in full.logits.items() if m != 2}
    without = replace(full, logits=rest)
    two = fusion_checks.SmallAlphabet(fusion_checks.SHARED.maps[:2], fusion_checks.SHARED.size)
    fusion = fusion_checks.bound(load_method(method)(), fusion_checks.SHARED)
    decided = fusion.decide(without)
    assert isinstance(decided, Mixture)
    pair = fusion_checks.bound(load_method(method)(), two).decide(Step(two, (0.6, 0.4), rest))
    assert isinstance(pair, Mixture)
    assert torch.equal(decided.q, pair.q)


@pytest.mark.parametrize(("broken", "check"), BROKEN, ids=lambda thing: thing.__name__)
def test_checks_bite(broken: Make, check: Callable[[Make], None]) -> None:
    """A fusion broken on purpose is caught by the check meant for it."""
    with pytest.raises(AssertionError):
        check(broken)


def test_what_must_be_learnt_is_made_here() -> None:
    """Only what needs an artefact has one drawn for the checks."""
    assert LEARNT.keys() <= {method.id for method in FUSIONS if "artefact" in method.needs}


def test_every_check_is_listed() -> None:
    """No check of the module is forgotten in CHECKS."""
    written = {name for name in vars(fusion_checks) if name.startswith("check_")}
    assert written == {check.__name__ for check in CHECKS}
