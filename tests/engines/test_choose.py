"""Choosing a symbol from a distribution."""

from __future__ import annotations

import torch

from engines.choose import Chooser

Q = torch.tensor([0.1, 0.4, 0.3, 0.2])
ALL = torch.ones(4, dtype=torch.bool)


def _shares(chooser: Chooser, q: torch.Tensor = Q, allowed: torch.Tensor = ALL) -> list[float]:
    drawn = torch.bincount(torch.tensor([chooser.choose(q, allowed) for _ in range(4000)]), minlength=4)
    return (drawn / 4000).tolist()


def test_temperature_zero_takes_the_first_of_the_best() -> None:
    """Greedy: the most likely allowed symbol, the first of equals."""
    greedy = Chooser(0, 1.0, None)
    assert greedy.choose(Q, ALL) == 1
    assert greedy.choose(Q, torch.tensor([True, False, True, True])) == 2
    assert greedy.choose(torch.tensor([0.2, 0.4, 0.4, 0.0]), ALL) == 1


def test_draws_follow_q() -> None:
    """At temperature 1 the shares are q; at ½ they are q² normalised; what is not allowed is never drawn."""
    close = 0.04
    assert all(abs(a - b) < close for a, b in zip(_shares(Chooser(1, 1.0, 5)), Q.tolist(), strict=True))
    sharp = (Q**2 / (Q**2).sum()).tolist()
    assert all(abs(a - b) < close for a, b in zip(_shares(Chooser(0.5, 1.0, 5)), sharp, strict=True))
    assert _shares(Chooser(1, 1.0, 5), Q, torch.tensor([True, False, True, True]))[1] == 0


def test_the_nucleus() -> None:
    """top_p keeps the fewest most likely symbols that reach it."""
    shares = _shares(Chooser(1, 0.6, 5))
    assert shares[0] == shares[3] == 0
    assert abs(shares[1] - 4 / 7) < 0.04
    wide = torch.full((6000,), 1 / 6000)
    assert Chooser(1, 0.99, 5).choose(wide, torch.ones(6000, dtype=torch.bool)) < 6000


def test_a_seed_repeats() -> None:
    """The same seed gives the same draws, q stays unchanged."""
    before = Q.clone()
    draws = [
        [chooser.choose(Q, ALL) for _ in range(20)] for chooser in (Chooser(1, 1.0, -3), Chooser(1, 1.0, -3))
    ]
    assert draws[0] == draws[1]
    assert torch.equal(Q, before)


def test_few_candidates() -> None:
    """top_k keeps so many, min_p what has its share of the largest; together, what both keep."""
    assert _shares(Chooser(1, 1.0, 5, top_k=2))[0::3] == [0, 0]
    assert _shares(Chooser(1, 1.0, 5, min_p=0.45))[0] == 0
    assert _shares(Chooser(1, 1.0, 5, top_k=3, min_p=0.6))[0::3] == [0, 0]
    kept = Chooser(1, 1.0, 5, top_k=2).distribution(Q, ALL)
    assert torch.allclose(kept, torch.tensor([0, 4 / 7, 3 / 7, 0]))
