"""LE-MCTS: a tree search over reasoning steps, each written by one of several models and valued by a process reward.

"Ensembling Large Language Models with Process Reward-Guided Tree Search for Better Complex Reasoning", Park et al.,
2024, arXiv 2412.15797.

    UCT(s) = v(s) + C √(ln N(parent) / N(s))
    v(s)   = reward of a leaf; of any other node the largest v of its children

A node is the question and the steps so far. An iteration goes from the root to the child with the largest UCT for as
long as the node is fully expanded, has a model drawn from the pool write one more step there, has the reward value it,
with no rollout, and carries the visit and the largest value back. A node counts as fully expanded once some child that
can still grow is worth its own reward less ε: what looks good is given more children. After n iterations the complete
chain with the best reward is the answer.

*Needs* members that write text, and a process reward. *Returns* the steps of one chain, each by one member, all at the
end.

*Differs from the paper.* A step ends with its line; steps that differ in white space only are one. Models are drawn by
the members' weights, equal ones being the paper's uniform draw. A node at which only known steps came, `patience` times
in a row, is exhausted; a tree that is ends the search. The search stops early where the caller's deadline or the tokens
that were reserved would be missed: half of the time is kept where no chain is complete. Where none is after all, the
best one is written on step by step, all members drafting. ε's rule, C and ε are recalled or rebuilt; n is 16 here and
up to 200 there, since small models on a CPU take about a second a step.

*Laws.* The largest reward of a leaf is v(root); the best leaf of a small tree is found; C = 0 follows the best child
and a large C visits all alike; more iterations never give a chain of a lower reward; a member alone is a search over
its own steps."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from ensembles.options import number, one_of, whole
from ensembles.rewards import Reward, load_panel, rewards
from ensembles.spans.base import Draft, Left, Span, Task, Work, Writing, commit, propose
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "LeMCTS", "Node", "Tree"]

Chain = Literal["last", "min", "product"]

_SMALL = "tests/ensembles/steps/test_le_mcts.py"
_HOST = "tests/engines/test_rewarded.py"

METHOD = Method(
    id="le-mcts",
    title="LE-MCTS: process-reward-guided tree search over models' steps",
    year=2024,
    paper="arXiv:2412.15797",
    taxonomy="b3",
    contract="step",
    implementation="LeMCTS",
    needs=frozenset({"text", "artefact"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the best leaf of a small tree is found, and v(root) is its reward after every iteration",
            f"{_SMALL}::test_the_best_leaf_is_found",
        ),
        Evidence(
            "invariant",
            "C = 0 follows the best child, a large C visits all alike",
            f"{_SMALL}::test_exploration_goes_from_greedy_to_uniform",
        ),
        Evidence(
            "invariant",
            "more iterations never give a chain of a lower reward",
            f"{_SMALL}::test_more_iterations_never_lower_the_reward",
        ),
        Evidence(
            "exact equivalence",
            "a member alone, greedy, gives its own greedy text, on tiny models",
            f"{_HOST}::test_a_greedy_search_of_one_is_the_model",
        ),
        Evidence(
            "invariant",
            "a search of real engines returns the best of the answers that an independent loop draws",
            f"{_HOST}::test_a_search_finds_what_a_plain_tree_has",
        ),
    ),
    unverified="There is no official code. C, ε and the number of iterations are recalled, and the rule of full "
    "expansion is rebuilt from a digest. The paper's accuracies were not reproduced.",
)


@dataclass(slots=True, eq=False)
class Node:
    """A chain of steps, the last of which is `span`; the root has none. `text` and `tokens` are the chain's."""

    span: Span | None = None
    parent: Node | None = None
    text: bytes = b""
    tokens: int = 0
    reward: float = 0.0
    over: bool = False
    """Whether it is a whole answer."""
    children: dict[tuple[bytes, bool], Node] = field(default_factory=dict)
    visits: int = 0
    value: float = 0.0
    stale: int = 0
    """How often in a row only known steps came here."""
    closed: bool = False
    """Whether nothing new can come of it."""

    def chain(self) -> list[Node]:
        """From the first step to itself."""
        return [] if self.parent is None else [*self.parent.chain(), self]

    def uct(self, c: float) -> float:
        """UCT(s); not of the root."""
        assert self.parent is not None
        return self.value + c * math.sqrt(math.log(self.parent.visits) / self.visits)


class Tree:
    """The nodes of one search. `c` and `epsilon` as in the method; `patience` as above."""

    def __init__(self, c: float, epsilon: float, patience: int) -> None:
        self.root = Node()
        self._c, self._epsilon, self._patience = c, epsilon, patience

    def select(self) -> Node:
        """Where to expand; the root is not closed."""
        node = self.root
        while True:
            growing = [child for child in node.children.values() if not child.closed]
            promising = any(child.value >= node.reward - self._epsilon for child in growing)
            if not growing or (node.stale < self._patience and not promising):
                return node
            node = max(growing, key=lambda child: child.uct(self._c))

    def known(self, node: Node, span: Span) -> Node | None:
        """The child that is this step already."""
        return node.children.get(_key(span))

    def add(self, node: Node, span: Span, reward: float, most: float) -> Node:
        """A new child; `most` tokens make an answer whole."""
        tokens = node.tokens + len(span.score.logprobs)
        child = Node(span, node, node.text + span.text, tokens, reward, span.ended or tokens >= most)
        child.value = reward
        node.children[_key(span)] = child
        return child

    def back(self, node: Node) -> None:
        """Carry a visit of `node`, and the largest values, to the root."""
        at: Node | None = node
        while at is not None:
            at.visits += 1
            below = at.children.values()
            if below:
                at.value = max(child.value for child in below)
            at.closed = at.over or (at.stale >= self._patience and all(child.closed for child in below))
            at = at.parent

    def leaves(self) -> Iterator[Node]:
        """Nodes without children, those that came first first."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop(0)
            if node.children:
                waiting += node.children.values()
            else:
                yield node

    def best(self) -> Node:
        """The whole answer with the best reward; where there is none, the leaf with the best."""
        return max(self.leaves(), key=lambda node: (node.over, node.reward))


@dataclass(frozen=True, slots=True)
class LeMCTS:
    """`iterations` are n, `c` and `epsilon` C and ε, on rewards in [0, 1]; `tokens` bound a step; `chain` says what a
    chain is worth: its last reward, the least or the product of all; `patience` as above; `temperature` and `top_p` of
    the drafts, None for the request's."""

    iterations: int = 16
    c: float = 0.5
    epsilon: float = 0.05
    tokens: int = 128
    chain: Chain = "last"
    patience: int = 4
    temperature: float | None = 0.8
    top_p: float | None = None
    reward: Reward | None = None

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, 1000, iterations=self.iterations)
        whole(METHOD.id, 1, 2048, tokens=self.tokens)
        whole(METHOD.id, 1, patience=self.patience)
        number(METHOD.id, 0, c=self.c)
        number(METHOD.id, -1, 1, epsilon=self.epsilon)
        one_of(METHOD.id, Chain, chain=self.chain)

    @property
    def spends(self) -> int:
        """An iteration writes no more than an answer; what is written on at last is drafted by all."""
        return self.iterations + 8

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """With its reward."""
        return replace(self, reward=load_panel(METHOD.id, {"reward": 1.0}, artefacts))

    def write(self, task: Task) -> Writing:
        """Search, then tell the best chain; write it on where it is not whole."""
        tree = yield from self.search(task)
        best = tree.best()
        for node in best.chain():
            assert node.span is not None
            yield from commit(node.span)
        text = best.text
        while not best.over:
            spans = yield from propose(*(self._draft(m, b"", self.tokens) for m in range(len(task.weights))))
            values = yield from rewards(self.reward, task.question, [text + span.text for span in spans])
            span = spans[values.index(max(values))]
            yield from commit(span)
            text += span.text

    def search(self, task: Task) -> Generator[Work, Any, Tree]:
        """The tree after n iterations, or as many as there is time for."""
        tree, chance = Tree(self.c, self.epsilon, self.patience), random.Random(task.seed)
        members, most = range(len(task.weights)), math.inf if task.most is None else task.most
        (tree.root.reward,) = yield from rewards(self.reward, task.question, [b""])
        whole_left = left = task.left()
        slowest = 0.0
        for _ in range(self.iterations):
            if tree.root.closed or self._late(tree, left, whole_left, slowest, most):
                break
            node = tree.select()
            (m,) = chance.choices(members, task.weights)
            yield from self._expand(tree, node, m, task.question, most)
            before, left = left, task.left()
            if math.isfinite(left.seconds):
                slowest = max(slowest, before.seconds - left.seconds)
        return tree

    def _expand(
        self, tree: Tree, node: Node, m: int, question: str, most: float
    ) -> Generator[Work, Any, None]:
        """One more step behind `node`, by member m."""
        spans = yield from propose(self._draft(m, node.text, int(min(self.tokens, most - node.tokens))))
        if not spans:  # some member's context is full
            node.over = True
            tree.back(node)
            return
        (span,) = spans
        child = tree.known(node, span)
        if child is None:
            (value,) = yield from rewards(self.reward, question, [node.text + span.text])
            child, node.stale = tree.add(node, span, self._worth(node, value), most), 0
        else:
            node.stale += 1
        tree.back(child)

    def _draft(self, m: int, after: bytes, tokens: int) -> Draft:
        return Draft(m, _step, tokens, self.temperature, self.top_p, after, stops=True)

    def _worth(self, node: Node, value: float) -> float:
        """What a chain is worth whose last reward is `value`, behind `node`."""
        if self.chain == "last" or node.parent is None:
            return value
        return min(node.reward, value) if self.chain == "min" else node.reward * value

    def _late(self, tree: Tree, left: Left, at_first: Left, slowest: float, most: float) -> bool:
        """Whether another iteration could be one too many."""
        if left.tokens < min(self.tokens, most) or left.seconds < 2 * slowest:
            return True
        return left.seconds < at_first.seconds / 2 and not tree.best().over


_STEP = re.compile(rb"\s*\S[^\n]*\n+")


def _step(text: bytes, *, final: bool) -> int | None:
    """A line with something in it, and all ends of lines that came with its end: they are one token, as a rule."""
    if found := _STEP.match(text):
        return found.end()
    return len(text) if final else None


def _key(span: Span) -> tuple[bytes, bool]:
    """What makes a step the same as another."""
    return b" ".join(span.text.split()), span.ended
