"""RLAE: GaC under weights that a policy changes from span to span."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engines.host import FusionSpec
from ensembles.tokens.base import Decision, Step
from ensembles.tokens.gac import GaC
from ensembles.tokens.rlae import RLAE
from ensembles.tokens.spec_ensemble import SpecEnsemble
from outcomes.weight_policy import Weigher, WeightPolicy
from protocol.errors import ArtefactMismatch, SettingsError
from tests.engines.table_engine import LETTERS, PAIRS, answers, host_of

MEMBERS = {"x": (LETTERS, 1), "y": (PAIRS, 2)}
PROMPTS = [(1 + i % 3, 1 + i // 3) for i in range(9)]


@dataclass
class Always:
    """Stands where a loaded policy stands: the same logits, whatever is read, and what that was."""

    z: tuple[float, ...]
    seen: list[tuple[str, str]] = field(default_factory=list)

    def logits(self, prompt: str, text: str) -> list[float]:
        self.seen.append((prompt, text))
        return list(self.z)


class ByLength(Always):
    """Turns from one member to the other with every span."""

    def logits(self, prompt: str, text: str) -> list[float]:
        super().logits(prompt, text)
        return list(self.z if len(self.seen) % 2 else self.z[::-1])


@dataclass
class Watched:
    """RLAE, and the weights of each step it was asked about with logits."""

    rlae: RLAE
    weights: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def span(self) -> int:
        return self.rlae.span

    def weigh(self, prompt: str, text: str, weights: tuple[float, ...]) -> tuple[float, ...]:
        return self.rlae.weigh(prompt, text, weights)

    def decide(self, step: Step) -> Decision:
        if len(step.logits) == sum(w > 0 for w in step.weights):
            self.weights.append(step.weights)
        return self.rlae.decide(step)


def _rlae(z: tuple[float, ...], span: int = 3, kind: type[Always] = Always) -> tuple[RLAE, Always]:
    weigher = kind(z)
    return RLAE(span=span, weigher=weigher), weigher  # type: ignore[arg-type]


def test_a_constant_policy_is_gac(tmp_path: Path) -> None:
    """One that always gives the same weights writes what GaC writes with them, sampled too."""
    fusions = [
        FusionSpec("gac", ("x", "y"), (0.5, 0.5), GaC()),
        FusionSpec("uniform", ("x", "y"), (0.9, 0.1), _rlae((0.0, 0.0))[0]),
        FusionSpec("unlearnt", ("x", "y"), (0.5, 0.5), RLAE()),
    ]
    host, _ = host_of(tmp_path, MEMBERS, fusions)
    for temperature in (0.0, 1.0):
        wanted = answers(host, "gac", PROMPTS, temperature=temperature)
        assert answers(host, "uniform", PROMPTS, temperature=temperature) == wanted
        assert answers(host, "unlearnt", PROMPTS, temperature=temperature) == wanted
    host.stop()


@pytest.mark.parametrize("member", [0, 1])
def test_a_one_hot_policy_is_that_member(tmp_path: Path, member: int) -> None:
    """All weight on one member gives its text, and the other one is never run."""
    hot = tuple(50.0 if m == member else -50.0 for m in range(2))
    name = "xy"[member]
    fusions = [
        FusionSpec("hot", ("x", "y"), (0.5, 0.5), _rlae(hot)[0], main=member),
        FusionSpec("alone", (name,), (1.0,), GaC()),
    ]
    host, engines = host_of(tmp_path, MEMBERS, fusions)
    assert answers(host, "hot", PROMPTS) == answers(host, "alone", PROMPTS)
    host.stop()
    assert engines["xy"[1 - member]].forwards == 0


@pytest.mark.parametrize("span", [1, 2, 5])
def test_weights_change_between_spans_only(tmp_path: Path, span: int) -> None:
    """A policy that changes its mind is asked once a span, shown the text so far, and heard until the next."""
    rlae, weigher = _rlae((1.0, 0.0), span, ByLength)
    watched = Watched(rlae)
    host, _ = host_of(tmp_path, MEMBERS, [FusionSpec("rlae", ("x", "y"), (0.5, 0.5), watched)])
    (text,) = answers(host, "rlae", PROMPTS[:1], extra={"logit_bias": {0: -100.0}}, max_tokens=16)
    host.stop()
    symbols = len(watched.weights)
    assert symbols > 2 * span
    assert len(weigher.seen) == symbols // span + 1
    for i, weights in enumerate(watched.weights):
        assert weights[0] == pytest.approx(0.731 if i // span % 2 == 0 else 0.269, abs=1e-3)
    assert all(text.startswith(seen) for _, seen in weigher.seen)
    assert weigher.seen[0] == ("ab"[:1] + "a", "")
    assert [len(seen) for _, seen in weigher.seen] == sorted({len(seen) for _, seen in weigher.seen})


def test_little_weights_are_none() -> None:
    """A member that would hardly be heard is not run; the rest share all weight."""
    weights = _rlae((0.0, -9.0, 0.0))[0].weigh("p", "t", (1 / 3,) * 3)
    assert weights == (0.5, 0.0, 0.5)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    """A policy needs its encoder, other artefacts are none of its, and drafting needs weights that stay."""
    with pytest.raises(SettingsError, match=r"options\.embedder"):
        RLAE().load(("a", "b"), {"policy": tmp_path})
    with pytest.raises(SettingsError, match="no reward"):
        RLAE().load(("a", "b"), {"reward": tmp_path})
    with pytest.raises(SettingsError, match="changes its weights"):
        SpecEnsemble("rlae")


def test_an_artefact_is_of_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learnt for other members, or the same in another order, is refused."""
    shapes = ((1, 4, 2), (1, 2), (1, 2, 3), (1, 3))
    policy = WeightPolicy(*(np.zeros(shape, dtype=np.float32) for shape in shapes))
    loaded = Weigher(policy, lambda prompt, text: np.zeros(4, dtype=np.float32), ("a", "b", "c"), 7)
    monkeypatch.setattr(Weigher, "load", classmethod(lambda cls, folder, embedder: loaded))
    rlae = RLAE("e").load(("a", "b", "c"), {"policy": tmp_path})
    assert (rlae.span, rlae.weigh("p", "", (1.0, 0.0, 0.0))) == (7, pytest.approx((1 / 3,) * 3))
    with pytest.raises(ArtefactMismatch, match="a, b, c"):
        RLAE("e").load(("b", "a", "c"), {"policy": tmp_path})
