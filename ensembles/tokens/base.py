"""The `Fusion` contract: several models, at one point of one text, and what comes next.

At a *sync point* every member has the same text before it, each in tokens of its own vocabulary. The host
hands over the logits it has; the fusion answers with a distribution over symbols of all vocabularies, or asks
for the members it still wants to hear. The host owns the rest: it samples the symbol, feeds its bytes to
every member, and keeps engines, caches, stop strings and streams. A member nobody asks costs nothing and
catches up, in one forward, when it is asked again.

Laws (`tests/contracts/fusion_checks.py`): decide() changes nothing and depends on nothing but its step; q ≥ 0
and Σq = 1; it never asks for a member it was given; given all members, it decides; one-hot weights, or
members that agree, give that member's distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Alphabet", "Ask", "Decision", "Fusion", "Mixture", "Step"]


class Alphabet(Protocol):
    """The symbols that the members' vocabularies have together: byte strings, and one end of the answer."""

    @property
    def size(self) -> int:
        """Number of symbols |U|, the end among them."""

    @property
    def eos(self) -> int:
        """The symbol that ends the answer."""

    def project(self, member: int, logits: Tensor) -> Tensor:
        """p_m A_m of shape (|U|,), float32, sum 1, for the member's `logits` of shape (|V_m|,), which stay
        unchanged."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sync point. `logits[m]` has shape (|V_m|,), raw, for the members heard so far; `weights` sum to
    1."""

    alphabet: Alphabet
    weights: tuple[float, ...]
    logits: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class Ask:
    """Decide again when these members, none of them heard yet, have spoken."""

    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The fused next-symbol distribution: `q` has shape (|U|,), sums to 1."""

    q: Tensor


Decision = Ask | Mixture


class Fusion(Protocol):
    """A method. It is called at every sync point, first with no logits at all, so that it says whom it
    needs."""

    def decide(self, step: Step) -> Decision:
        """Pure: the same step gives the same decision, and the step's tensors stay unchanged."""
