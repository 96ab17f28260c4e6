"""ABE's search on alphabets small enough to enumerate every text; in the host's loop see
tests/engines/test_search_decode.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ensembles.tokens.abe import ABE, METHOD
from ensembles.tokens.base import Hypothesis, Search, SearchStep, SymbolOrder
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import SmallAlphabet

TEXTS = (b"a", b"b", b"ab", b"bb", b"")
UNEVEN = SmallAlphabet(((0, 1, 4), (0, 1, 2, 3, 4)), 5, TEXTS)
"""Single letters, and letters with pairs of them."""
LETTERS = SmallAlphabet(((0, 1, 2), (0, 1, 2)), 3, (b"a", b"b", b""))
LONGEST = 3


def _row(alphabet: SmallAlphabet, member: int, written: tuple[int, ...], seed: int) -> Tensor:
    """Random logits after what the member wrote; nothing but the end where LONGEST letters stand."""
    map_ = alphabet.maps[member]
    generator = torch.Generator().manual_seed(hash((seed, member, *written)) % 2**31)
    row = torch.randn(len(map_), generator=generator)
    room = LONGEST - sum(len(alphabet.symbols[u]) for u in written)
    for i, u in enumerate(map_):
        if len(alphabet.symbols[u]) > room:
            row[i] = -torch.inf
    return row


def _play(
    abe: ABE, alphabet: SmallAlphabet, weights: tuple[float, ...], seed: int
) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Search to the very end: the finished hypotheses, and all that were met."""
    members = range(len(weights))
    none = Hypothesis(
        (b"",) * len(weights), ((),) * len(weights), (0.0,) * len(weights), (False,) * len(weights)
    )
    beam, finished, met = [none], [], [none]
    order, feedable = SymbolOrder(alphabet.symbols), torch.ones(alphabet.size, dtype=torch.bool)
    while beam:
        rows = tuple(
            {m: _row(alphabet, m, h.written[m], seed) for m in members if m in abe.writers(h)} for h in beam
        )
        assert all(rows)
        found = abe.extend(SearchStep(alphabet, weights, tuple(beam), rows, order, feedable))
        met += found
        finished += [h for h in found if all(h.ended)]
        beam = [h for h in found if not all(h.ended)]
    return finished, met


def _best_of_all(alphabet: SmallAlphabet, weights: tuple[float, ...], seed: int) -> tuple[float, bytes]:
    """The best score over every text and every way the members could write it."""
    segmentations: list[dict[bytes, float]] = []
    for m in range(len(weights)):
        best: dict[bytes, float] = {}
        own = [u for u in alphabet.maps[m] if u != alphabet.eos]
        for n in range(LONGEST + 1):
            for written in itertools.product(own, repeat=n):
                total = 0.0
                for i, u in enumerate((*written, alphabet.eos)):
                    logp = _row(alphabet, m, written[:i], seed).log_softmax(-1)
                    total += float(logp[alphabet.maps[m].index(u)])
                text = b"".join(alphabet.symbols[u] for u in written)
                best[text] = max(best.get(text, -1e9), total / (n + 1))
        segmentations.append(best)
    common = set.intersection(*(set(best) for best in segmentations))
    return max((sum(w * best[t] for w, best in zip(weights, segmentations, strict=True)), t) for t in common)


@pytest.mark.parametrize("seed", range(8))
def test_a_large_beam_finds_the_best_of_all(seed: int) -> None:
    """16 beams are more than there are texts: the best score and text equal those of full enumeration."""
    abe, weights = ABE(beams=16), (0.6, 0.4)
    finished, _ = _play(abe, UNEVEN, weights, seed)
    best = max(finished, key=lambda h: abe.score(h, weights))
    score, text = _best_of_all(UNEVEN, weights, seed)
    assert best.texts == (text, text)
    assert abe.score(best, weights) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_strings_agree(beams: int) -> None:
    """At every moment all strings are prefixes of the longest; at the end they are equal."""
    for seed in range(10):
        finished, met = _play(ABE(beams=beams), UNEVEN, (0.5, 0.5), seed)
        for h in met:
            longest = max(h.texts, key=len)
            assert all(longest.startswith(text) for text in h.texts)
            assert all(text == longest for text, end in zip(h.texts, h.ended, strict=True) if end)
        assert finished
        assert all(len(set(h.texts)) == 1 for h in finished)


def test_a_member_that_is_ahead_waits() -> None:
    """Only the members that lag write next; after an end of one, all that have not ended."""
    abe = ABE()
    assert abe.writers(Hypothesis((b"a", b"ab"), ((0,), (2,)), (-1.0, -1.0), (False, False))) == {0}
    assert abe.writers(Hypothesis((b"a", b"a"), ((0,), (0,)), (-1.0, -1.0), (False, False))) == {0, 1}
    assert abe.writers(Hypothesis((b"a", b"a"), ((0,), (0,)), (-1.0, -1.0), (True, False))) == {1}


@pytest.mark.parametrize("seed", range(5))
def test_prefix_free_tokens_are_log_linear(seed: int) -> None:
    """With the same single-byte tokens in both members, the first step ranks symbols by the weighted mean of
    log-probabilities."""
    weights = (0.7, 0.3)
    none = Hypothesis((b"", b""), ((), ()), (0.0, 0.0), (False, False))
    rows = {m: _row(LETTERS, m, (), seed) for m in (0, 1)}
    order, feedable = SymbolOrder(LETTERS.symbols), torch.ones(3, dtype=torch.bool)
    step = SearchStep(LETTERS, weights, (none,), (rows,), order, feedable)
    found = [h for h in ABE(beams=2).extend(step) if h.texts[0]]
    joint = 0.7 * rows[0].log_softmax(-1) + 0.3 * rows[1].log_softmax(-1)
    assert [h.texts[0] for h in found] == [LETTERS.symbols[u] for u in joint[:2].argsort(descending=True)]
    for h in found:
        assert ABE().score(h, weights) == pytest.approx(float(joint[h.written[0][0]]), abs=1e-5)


def test_members_in_another_order() -> None:
    """The same texts with the same scores, whoever stands first."""
    turned = SmallAlphabet(UNEVEN.maps[::-1], UNEVEN.size, TEXTS)
    none = Hypothesis((b"", b""), ((), ()), (0.0, 0.0), (False, False))
    rows = {m: _row(UNEVEN, m, (), 3) for m in (0, 1)}
    order, feedable = SymbolOrder(TEXTS), torch.ones(5, dtype=torch.bool)
    one = ABE().extend(SearchStep(UNEVEN, (0.6, 0.4), (none,), (rows,), order, feedable))
    other = ABE().extend(
        SearchStep(turned, (0.4, 0.6), (none,), ({0: rows[1], 1: rows[0]},), order, feedable)
    )
    assert {(h.texts, h.ended) for h in one} == {(h.texts[::-1], h.ended[::-1]) for h in other}


def test_many_symbols_in_bfloat16() -> None:
    """A lagging member finds the symbol it lacks among more than bfloat16, in which engines compute, can count."""
    texts = (*(f"{u:03}".encode() for u in range(999)), b"")
    alphabet = SmallAlphabet((tuple(range(1000)),) * 2, 1000, texts)
    lagging = Hypothesis((b"", b"777"), ((), (777,)), (0.0, -1.0), (False, False))
    rows = ({0: torch.zeros(1000, dtype=torch.bfloat16)},)
    order, feedable = SymbolOrder(texts), torch.ones(1000, dtype=torch.bool)
    (found,) = ABE().extend(SearchStep(alphabet, (0.5, 0.5), (lagging,), rows, order, feedable))
    assert found.texts == (b"777", b"777")


def test_fitting_symbols() -> None:
    """A lagging member may write what its missing bytes begin with, or what begins with them."""
    order = SymbolOrder((b"a", b"ab", b"abc", b"b", b"ac", b""))
    assert sorted(order.fitting(b"ab")) == [0, 1, 2]
    assert sorted(order.fitting(b"a")) == [0, 1, 2, 4]
    assert order.fitting(b"x") == []


@pytest.mark.parametrize("options", [{"beams": 0}, {"beams": 17}, {"candidates": 0}, {"beams": True}])
def test_bad_options_stop_the_start(options: dict[str, int]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        ABE(**options)


def test_it_is_registered() -> None:
    """The registry finds the method by its id, as a search."""
    assert find_method("abe", "search") is METHOD
    assert isinstance(ABE(), Search)
