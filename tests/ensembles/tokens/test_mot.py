"""Mixture of Thoughts: who writes, who is asked when, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ensembles.networks.mixture import Mixture
from ensembles.tokens.base import Ask, Step
from ensembles.tokens.base import Mixture as Mixed
from ensembles.tokens.mot import Fitted, MoT, stacks
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from tests.contracts.fusion_checks import DIFFERENT, SmallOpening, SmallTables, step

THREE = (0.4, 0.35, 0.25)
TABLES = SmallTables(DIFFERENT)


def fitted(**changed: object) -> Fitted:
    """Of three members whose states are 4, 5 and 6 wide."""
    digests = tuple(TABLES.digest(m) for m in range(3))
    facts = {"depths": (6, 4, 8), "members": digests, "embedder": "an encoder", **changed}
    return Fitted(Mixture.new((4, 5, 6), 8, points=2, size=8), **facts)  # type: ignore[arg-type]


def opened(mot: MoT, weights: tuple[float, ...] = THREE) -> MoT:
    """As it is when a request begins."""
    return mot.open(SmallOpening(DIFFERENT, weights))


def test_others_are_heard_before_the_writer() -> None:
    """The writer computes with what the others thought; the word is its own, and it signs it."""
    full = step(DIFFERENT, THREE)
    mot = opened(MoT(fitted=fitted(), active=3, writer=1))
    assert mot.decide(Step(DIFFERENT, THREE, {})) == Ask(frozenset({0, 2}))
    assert mot.decide(Step(DIFFERENT, THREE, {m: full.logits[m] for m in (0, 2)})) == Ask(frozenset({1}))
    decision = mot.decide(full)
    assert isinstance(decision, Mixed)
    assert decision.author == 1
    assert torch.equal(decision.q, DIFFERENT.project(1, full.logits[1]))


def test_the_best_k_are_active() -> None:
    """K bounds who is read at all, the writer among them; a member without weight is neither."""
    assert opened(MoT(fitted=fitted(), active=1, writer=2)).chosen == (2, frozenset({2}))
    assert opened(MoT(fitted=fitted(), active=2, writer=2)).chosen == (2, frozenset({0, 2}))
    assert opened(MoT(fitted=fitted(), active=3, writer=2), (0.0, 0.5, 0.5)).chosen == (2, frozenset({1, 2}))


class Encoder:
    """An encoder that knows one text."""

    id = "an encoder"
    dimensions = 8

    def embed(self, texts: list[str]) -> object:
        return torch.eye(8)[: len(texts)].numpy() * (texts == ["ab"])


def test_the_router_chooses_the_writer() -> None:
    """The member with the best score for the prompt's common text writes."""
    some = fitted()
    some.mixture.weights["router.out"][2] = 5 * torch.nn.functional.silu(
        some.mixture.weights["router.in"][:, 0]
    )  # type: ignore[index]
    mot = MoT(fitted=some, encoder=Encoder())  # type: ignore[arg-type]
    assert mot.open(SmallOpening(DIFFERENT, THREE)).chosen == (2, frozenset({0, 2}))


def test_the_visitor_comes_where_stacks_end() -> None:
    """Every active member is visited behind each of its Q stacks, the last one at the end of the model."""
    assert stacks(30, 3) == (10, 20, 30)
    assert stacks(18, 4) == (4, 9, 13, 18)
    assert opened(MoT(fitted=fitted(), writer=1)).visitor().layers == {0: (3, 6), 1: (2, 4)}
    assert opened(MoT()).visitor().layers == {}


def test_it_comes_back_from_its_artefact(tmp_path: Path) -> None:
    """A saved mixture is what it was, and refuses other members."""
    fitted().save(tmp_path / "this", ("a", "b", "c"))
    again = MoT(writer=0).load("abc", {"mixture": tmp_path / "this"}).bind(TABLES)
    assert again.fitted is not None
    assert again.fitted.depths == (6, 4, 8)
    before = fitted().mixture.weights
    assert all(torch.equal(again.fitted.mixture.weights[name], value) for name, value in before.items())
    assert opened(again).chosen == (0, frozenset({0, 1}))
    fitted(members=("x", "y", "z")).save(tmp_path / "other", ("x", "y", "z"))
    with pytest.raises(ArtefactMismatch, match="Train anew"):
        MoT().load("xyz", {"mixture": tmp_path / "other"}).bind(TABLES)
    with pytest.raises(MethodError, match="No artefact"):
        MoT().load("abc", {"mixture": tmp_path})
    with pytest.raises(SettingsError, match="active"):
        MoT(active=0)
    with pytest.raises(SettingsError, match="not among"):
        MoT(writer=3).load("abc", {})
