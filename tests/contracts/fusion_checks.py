"""The laws of `ensembles.tokens.base.Fusion`, one function each; every registered fusion passes them all.

A check gets `make`, which builds a fresh fusion, and raises AssertionError. `SmallAlphabet` stands in for the
engine host's union of vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ensembles.tokens.base import Ask, Binds, Decision, Fusion, Looks, Mixture, Opens, Step

Make = Callable[[], Fusion]


@dataclass(frozen=True)
class SmallAlphabet:
    """Symbols 0..size-1, the last one the end; `maps[m][id]` is the symbol of member m's id.

    Symbol u emits the letter "a" + u unless `texts` says otherwise. A member begins a symbol it lacks with
    the longest of its own that the symbol's bytes begin with."""

    maps: tuple[tuple[int, ...], ...]
    size: int
    texts: tuple[bytes, ...] = ()

    @property
    def symbols(self) -> tuple[bytes, ...]:
        return self.texts or (*(bytes([97 + u]) for u in range(self.size - 1)), b"")

    @property
    def eos(self) -> int:
        return self.size - 1

    def project(self, member: int, logits: Tensor) -> Tensor:
        q = torch.zeros(self.size)
        return q.index_add(0, torch.tensor(self.maps[member]), logits.float().softmax(-1))

    def _all(self, member: int, logits: Tensor) -> Tensor:
        z = torch.full((self.size,), -torch.inf)
        for u in set(self.maps[member]):
            z[u] = logits[[i for i, v in enumerate(self.maps[member]) if v == u]].float().logsumexp(-1)
        return z

    def top(self, member: int, logits: Tensor, k: int) -> tuple[Tensor, float]:
        order = sorted(range(len(self.maps[member])), key=lambda i: -float(logits[i]))
        named = list(dict.fromkeys(self.maps[member][i] for i in order[:k]))
        rest = self._all(member, logits)
        rest[named] = -torch.inf
        return torch.tensor(named), float(rest.max())

    def log_mass(self, member: int, logits: Tensor) -> float:
        return float(logits.float().logsumexp(-1))

    def read(self, member: int, logits: Tensor, symbols: Tensor) -> Tensor:
        return self._all(member, logits)[symbols].masked_fill(symbols < 0, -torch.inf)

    def begin(self, member: int, symbols: Tensor) -> Tensor:
        own = set(self.maps[member])

        def first(u: int) -> int:
            starts = [v for v in own if v != self.eos and self.symbols[u].startswith(self.symbols[v])]
            return u if u in own else max(starts, key=lambda v: len(self.symbols[v]), default=-1)

        return torch.tensor([first(u) for u in symbols.tolist()], dtype=torch.int64)

    def shared(self, members: frozenset[int]) -> Tensor:
        return torch.tensor(sorted(set.intersection(*(set(self.maps[m]) for m in members))))


SHARED = SmallAlphabet(((0, 1, 2, 3),) * 3, 4)
"""Three members of one vocabulary."""
DIFFERENT = SmallAlphabet(((0, 1, 2, 6), (1, 0, 3, 4, 2, 6), (5, 5, 2, 1, 6)), 7)
"""Three members that share some symbols; two ids of the third are one symbol."""

MANY = SmallAlphabet(
    (tuple(range(302)), (*range(300, -1, -1), 301), (*range(0, 301, 2), *range(1, 301, 2), 301)),
    302,
    (*(f"{u:03}".encode() for u in range(301)), b""),
)
"""Three members with more symbols than bfloat16 can count."""


@dataclass(frozen=True)
class SmallTables:
    """Embeddings for a `SmallAlphabet`: each symbol has one random vector, which every member sees turned its
    own way, so that all members' cosines are the same."""

    alphabet: SmallAlphabet
    width: int = 6

    @property
    def members(self) -> int:
        return len(self.alphabet.maps)

    def digest(self, member: int) -> str:
        return f"weights {member}"

    def embeddings(self, member: int, symbols: Tensor, side: Literal["input", "output"]) -> Tensor:
        vectors = torch.randn(self.alphabet.size, self.width, generator=torch.Generator().manual_seed(5))
        turn = torch.randn(self.width, self.width, generator=torch.Generator().manual_seed(member))
        if self.alphabet.maps[member] == self.alphabet.maps[0]:
            return vectors[symbols]
        return vectors[symbols] @ torch.linalg.qr(turn).Q


@dataclass(frozen=True)
class SmallOpening:
    """Every member's prompt is its first two symbols."""

    alphabet: SmallAlphabet
    weights: tuple[float, ...] = (1.0,)
    text: bytes = b"ab"

    @property
    def prompts(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(own[:2]) for own in self.alphabet.maps)


def step(alphabet: SmallAlphabet, weights: tuple[float, ...], seed: int = 0) -> Step:
    """A sync point with random logits of every member."""
    generator = torch.Generator().manual_seed(seed)
    logits = {m: torch.randn(len(alphabet.maps[m]), generator=generator) * 3 for m in range(len(weights))}
    return Step(alphabet, weights, logits)


WIDTH = 6
"""Of the hidden states that a fusion is shown."""


def states(fusion: Fusion, heard: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Of the members heard that the fusion looks into: drawn anew for every logits row, the same for the same."""
    layers = fusion.layers if isinstance(fusion, Looks) else {}
    seeds = {m: int(heard[m].double().sum() * 1e6) % 2**31 for m in heard.keys() & layers.keys()}
    return {
        m: torch.randn(len(layers[m]), WIDTH, generator=torch.Generator().manual_seed(seed))
        for m, seed in seeds.items()
    }


def bound(fusion: Fusion, alphabet: SmallAlphabet) -> Fusion:
    """The fusion as the host would have it when a request begins."""
    if isinstance(fusion, Binds):
        fusion = fusion.bind(SmallTables(alphabet))
    return fusion.open(SmallOpening(alphabet)) if isinstance(fusion, Opens) else fusion


def ask(fusion: Fusion, full: Step) -> Mixture:
    """Play the host: start with nothing, give what is asked for, return the decision."""
    assert isinstance(full.alphabet, SmallAlphabet)
    fusion = bound(fusion, full.alphabet)
    heard: dict[int, Tensor] = {}
    for _ in range(len(full.weights) + 1):
        decision = fusion.decide(Step(full.alphabet, full.weights, heard, full.greedy, states(fusion, heard)))
        if isinstance(decision, Mixture):
            return decision
        assert decision.members, "asked for nobody"
        assert not decision.members & heard.keys(), "asked for a member it was given"
        heard |= {m: full.logits[m] for m in decision.members}
    raise AssertionError("never decided")


def decide(fusion: Fusion, full: Step) -> Tensor:
    """The decision's q over all symbols."""
    decision = ask(fusion, full)
    if decision.symbols is None:
        return decision.q
    assert len(set(decision.symbols.tolist())) == decision.symbols.shape[0], "a symbol stands there twice"
    return torch.zeros(full.alphabet.size).index_add(0, decision.symbols, decision.q.float())


def check_asks_first(make: Make) -> None:
    """With no logits it asks for some member, since there is nothing to decide on."""
    decision = bound(make(), DIFFERENT).decide(Step(DIFFERENT, (0.5, 0.25, 0.25), {}))
    assert isinstance(decision, Ask)
    assert decision.members


def check_decides_when_all_are_heard(make: Make) -> None:
    """Given every member it decides."""
    fusion, full = bound(make(), DIFFERENT), step(DIFFERENT, (0.5, 0.25, 0.25))
    full = replace(full, states=states(fusion, full.logits))
    assert isinstance(fusion.decide(full), Mixture)


def check_mass_is_one(make: Make) -> None:
    """Q is a distribution over all symbols: Σq = 1, q ≥ 0."""
    for seed in range(20):
        q = decide(make(), step(DIFFERENT, (0.5, 0.25, 0.25), seed))
        assert q.shape == (DIFFERENT.size,)
        assert bool((q >= 0).all())
        assert abs(float(q.sum()) - 1) < 1e-5


def check_pure(make: Make) -> None:
    """The same step gives the same decision, and its tensors are as they were."""
    full = step(DIFFERENT, (0.5, 0.25, 0.25))
    before = {m: row.clone() for m, row in full.logits.items()}
    fusion = make()
    assert torch.equal(decide(fusion, full), decide(fusion, full))
    assert all(torch.equal(before[m], row) for m, row in full.logits.items())


def check_one_hot_weights_give_that_member(make: Make) -> None:
    """With all weight on the first member, q is its own distribution."""
    full = step(DIFFERENT, (1.0, 0.0, 0.0))
    assert torch.allclose(decide(make(), full), DIFFERENT.project(0, full.logits[0]), atol=1e-6)


def check_unanimity(make: Make) -> None:
    """Members with one vocabulary and the same logits give their common distribution."""
    one = step(SHARED, (1.0,)).logits[0]
    full = Step(SHARED, (0.5, 0.25, 0.25), dict.fromkeys(range(3), one))
    assert torch.allclose(decide(make(), full), SHARED.project(0, one), atol=1e-6)


def check_order_of_members_is_nothing(make: Make) -> None:
    """Equal members in another order give the same q."""
    full = step(DIFFERENT, (1 / 3,) * 3)
    turned = SmallAlphabet(DIFFERENT.maps[1:] + DIFFERENT.maps[:1], DIFFERENT.size)
    logits: Mapping[int, Tensor] = {(m - 1) % 3: row for m, row in full.logits.items()}
    assert torch.allclose(decide(make(), full), decide(make(), Step(turned, full.weights, logits)), atol=1e-6)


def check_a_greedy_step_has_the_same_best_symbol(make: Make) -> None:
    """What is saved where only the most likely symbol is wanted never changes which one it is."""
    for alphabet in (SHARED, DIFFERENT):
        for seed in range(20):
            full = step(alphabet, (0.5, 0.3, 0.2), seed)
            short = Step(alphabet, full.weights, full.logits, greedy=True)
            assert int(decide(make(), short).argmax()) == int(decide(make(), full).argmax())


def check_rows_in_bfloat16(make: Make) -> None:
    """Rows as engines compute them give what the same numbers give in float32."""
    for seed in range(3):
        full = step(MANY, (0.5, 0.3, 0.2), seed)
        rows = {m: row.bfloat16() for m, row in full.logits.items()}
        exact = {m: row.float() for m, row in rows.items()}
        for greedy in (False, True):
            q = decide(make(), Step(MANY, full.weights, rows, greedy))
            same = decide(make(), Step(MANY, full.weights, exact, greedy))
            assert torch.allclose(q, same, atol=1e-5)


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_asks_first,
    check_decides_when_all_are_heard,
    check_mass_is_one,
    check_pure,
    check_one_hot_weights_give_that_member,
    check_unanimity,
    check_order_of_members_is_nothing,
    check_a_greedy_step_has_the_same_best_symbol,
    check_rows_in_bfloat16,
)


@dataclass
class Unnormalised:
    """Broken on purpose: the weights are forgotten."""

    def decide(self, step: Step) -> Decision:
        if missing := set(range(len(step.weights))) - step.logits.keys():
            return Ask(frozenset(missing))
        return Mixture(torch.stack([step.alphabet.project(m, row) for m, row in step.logits.items()]).sum(0))


@dataclass
class Unweighted:
    """Broken on purpose: every member counts the same."""

    def decide(self, step: Step) -> Decision:
        if missing := set(range(len(step.weights))) - step.logits.keys():
            return Ask(frozenset(missing))
        return Mixture(torch.stack([step.alphabet.project(m, row) for m, row in step.logits.items()]).mean(0))


@dataclass
class FirstOnly:
    """Broken on purpose: listens to the first member, whoever stands there."""

    def decide(self, step: Step) -> Decision:
        if 0 not in step.logits:
            return Ask(frozenset({0}))
        return Mixture(step.alphabet.project(0, step.logits[0]))


@dataclass
class Forgetful:
    """Broken on purpose: asks for members it has been given."""

    def decide(self, step: Step) -> Decision:
        return Ask(frozenset({0}))


@dataclass
class Scribbler:
    """Broken on purpose: writes into the logits it was shown."""

    def decide(self, step: Step) -> Decision:
        if missing := set(range(len(step.weights))) - step.logits.keys():
            return Ask(frozenset(missing))
        q = sum(w * step.alphabet.project(m, step.logits[m]) for m, w in enumerate(step.weights))
        step.logits[0].mul_(0.5)
        assert isinstance(q, Tensor)
        return Mixture(q)


@dataclass
class Rash:
    """Broken on purpose: decides before anybody has spoken."""

    def decide(self, step: Step) -> Decision:
        return Mixture(torch.full((step.alphabet.size,), 1 / step.alphabet.size))


@dataclass
class Hasty:
    """Broken on purpose: saves work in greedy steps by listening to the first member only."""

    def decide(self, step: Step) -> Decision:
        if missing := set(range(len(step.weights))) - step.logits.keys():
            return Ask(frozenset(missing))
        if step.greedy:
            return Mixture(step.alphabet.project(0, step.logits[0]))
        q = sum(w * step.alphabet.project(m, step.logits[m]) for m, w in enumerate(step.weights))
        assert isinstance(q, Tensor)
        return Mixture(q)


@dataclass
class Rounding:
    """Broken on purpose: keeps the numbers of symbols in the rows' type."""

    def decide(self, step: Step) -> Decision:
        if missing := set(range(len(step.weights))) - step.logits.keys():
            return Ask(frozenset(missing))
        row = step.logits[0]
        last = int(row.new_tensor([step.alphabet.size - 1])) % step.alphabet.size
        return Mixture(step.alphabet.project(0, row).roll(last))


BROKEN: tuple[tuple[Callable[[], Fusion], Callable[[Make], None]], ...] = (
    (Unnormalised, check_mass_is_one),
    (Unweighted, check_one_hot_weights_give_that_member),
    (FirstOnly, check_order_of_members_is_nothing),
    (Forgetful, check_decides_when_all_are_heard),
    (Scribbler, check_pure),
    (Rash, check_asks_first),
    (Rash, check_unanimity),
    (Hasty, check_a_greedy_step_has_the_same_best_symbol),
    (Rounding, check_rows_in_bfloat16),
)
