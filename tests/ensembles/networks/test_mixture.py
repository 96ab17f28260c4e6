"""The latent mixture: what is seen of whom, and that it begins as nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ensembles.networks.attention import AHEAD
from ensembles.networks.mixture import Latents, Mixture

WIDTHS = (12, 20)


def learnt(points: int = 1) -> Mixture:
    """One that mixes something in."""
    mixture = Mixture.new(WIDTHS, 8, points=points, size=16)
    chance = torch.Generator().manual_seed(1)
    drawn = {n: torch.randn(x.shape, generator=chance) for n, x in mixture.weights.items() if n[:2] == "R."}
    return Mixture({**mixture.weights, **drawn}, points)


def text(seed: int = 0) -> dict[int, tuple[Tensor, Tensor]]:
    """States, and ends in bytes, of six tokens of the first model and nine of the second."""
    chance = torch.Generator().manual_seed(seed)
    ends = ((-4, -1, 0, 3, 5, 9), (-5, -3, 0, 1, 2, 4, 5, 8, 9))
    return {
        m: (torch.randn(1, len(at), WIDTHS[m], generator=chance), torch.tensor([at]))
        for m, at in enumerate(ends)
    }


def change(mixture: Mixture, states: dict[int, tuple[Tensor, Tensor]], active: frozenset[int]) -> Tensor:
    """What the first model's states are changed by."""
    latents = Latents(mixture, 0, active)
    for m in sorted(active, reverse=True):
        found = latents.visit(m, 0, 0, *states[m])
    assert found is not None
    return found


def test_at_first_nothing_is_mixed_in() -> None:
    """R = 0: the writer's states stay as they are."""
    found = change(Mixture.new(WIDTHS, 8, points=1, size=16), text(), frozenset({0, 1}))
    assert torch.equal(found, torch.zeros(1, 6, 12))


def test_nothing_ahead_is_seen() -> None:
    """Other bytes after the fifth, in the text of either model, change nothing at tokens that end there or before;
    what is no later than a token reaches it."""
    mixture, both = learnt(), frozenset({0, 1})
    before = change(mixture, text(), both)
    for m, behind in ((0, 5), (1, 7)):
        states = text()
        states[m][0][:, behind:] += 3.0
        after = change(mixture, states, both)
        assert torch.allclose(after[:, :5], before[:, :5], atol=1e-6)
        assert not torch.allclose(after[:, 5:], before[:, 5:])
    states = text()
    states[1][0][:, 6] += 3.0  # ends at byte 5, as the writer's fifth token does
    assert not torch.allclose(change(mixture, states, both)[:, 4], before[:, 4])


def test_alone_it_sees_itself_only() -> None:
    """With one active model, what the other thinks is nothing to it."""
    mixture, other = learnt(), text()
    other[1] = text(9)[1]
    assert torch.equal(change(mixture, text(), frozenset({0})), change(mixture, other, frozenset({0})))
    assert not torch.allclose(
        change(mixture, text(), frozenset({0, 1})), change(mixture, other, frozenset({0, 1}))
    )


def test_token_by_token_is_the_whole_text() -> None:
    """As the text grows, the other model first, each token is changed as it would be in the whole text; also where
    some tokens are computed once more."""
    mixture, states = learnt(), text()
    whole = change(mixture, states, frozenset({0, 1}))
    latents = Latents(mixture, 0, frozenset({0, 1}))
    steps = ((0, 3, 0, 3), (3, 6, 3, 4), (6, 7, 4, 5), (5, 9, 5, 6), (9, 9, 4, 6))
    for first, last, own, end in steps:
        latents.visit(1, 0, first, *(x[:, first:last] for x in states[1]))
        found = latents.visit(0, 0, own, *(x[:, own:end] for x in states[0]))
        assert found is not None
        assert torch.allclose(found, whole[:, own:end], atol=1e-6)


def test_padding_changes_nothing() -> None:
    """Beside a longer text, padded on the right, a text is changed as it is alone."""
    mixture, states = learnt(), text()
    padded = {}
    for m, (x, at) in states.items():
        more = torch.ones(1, 4, WIDTHS[m])
        longer = torch.cat([x.flip(1), more], 1), torch.cat([at, at[:, -1:] + torch.arange(1, 5)], 1)
        short = torch.cat([x, 9 * more], 1), torch.cat([at, torch.full((1, 4), AHEAD)], 1)
        padded[m] = (torch.cat([short[0], longer[0]]), torch.cat([short[1], longer[1]]))
    both = frozenset({0, 1})
    assert torch.allclose(change(mixture, padded, both)[:1, :6], change(mixture, states, both), atol=1e-6)


def test_the_change_is_of_the_states_own_size() -> None:
    """States twice as large are changed by twice as much: R learns no model's scale."""
    states = text()
    twice = {0: (2 * states[0][0], states[0][1]), 1: states[1]}
    both = frozenset({0, 1})
    assert torch.allclose(
        change(learnt(), twice, both), 2 * change(learnt(), states, both), rtol=1e-4, atol=1e-5
    )


def test_scores_are_a_distribution() -> None:
    """The router's scores are log-probabilities, even ones before it learnt."""
    scores = learnt().scores(torch.randn(3, 8))
    assert torch.allclose(scores.exp(), torch.full((3, 2), 0.5))
