"""LE-MCTS on trees small enough to know."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from ensembles.spans.base import Aside, Commit, Left, Propose, Score, Span, Task
from ensembles.steps.le_mcts import LeMCTS, Node, Tree
from protocol.errors import SettingsError

MEMBERS, DEPTH = 3, 3


def _value(question: str, answers: Sequence[str]) -> list[float]:
    """A reward drawn from a hash: of a beginning as of a whole answer."""
    return [zlib.crc32(text.encode()) % 1000 / 1000 if text else 0.5 for text in answers]


@dataclass
class Game:
    """Members that each write one line of their own, three of which are an answer; carries out a search."""

    members: int = MEMBERS
    depth: int = DEPTH
    drafts: int = 0
    committed: list[Span] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None

    def step(self, member: int, after: bytes) -> Span:
        self.drafts += 1
        last = len(self.committed) + after.count(b"\n") + 1 == self.depth
        text = b"%d%s" % (member, b"" if last else b"\n")
        return Span(member, text, last, Score((-1.0,) * (2 - last), (1.0,) * (2 - last), len(text)))

    def play(self, work: Any) -> Any:
        """To the method's end, or that of the answer; what the generator returned."""
        result = None
        while True:
            try:
                asked = work.send(result)
            except StopIteration as end:
                return end.value
            result = None
            if isinstance(asked, Propose):
                result = tuple(self.step(draft.member, draft.after) for draft in asked.drafts)
            elif isinstance(asked, Aside):
                result = asked.call()
                self.watch()
            else:
                assert isinstance(asked, Commit)
                self.committed.append(asked.span)
                if asked.span.ended:
                    return None


def _task(members: int = MEMBERS, **more: Any) -> Task:
    return Task((1 / members,) * members, lambda head, tail: True, question="?", **more)


def _search(method: LeMCTS, game: Game | None = None, **more: Any) -> Tree:
    game = game or Game()
    tree = game.play(method.search(_task(game.members, **more)))
    assert isinstance(tree, Tree)
    return tree


def _all() -> list[str]:
    return ["\n".join(steps) for steps in product("012", repeat=DEPTH)]


def test_the_best_leaf_is_found() -> None:
    """Given time, the whole answer with the largest reward is told, step by step; and after every number of iterations
    v(root) is the largest reward of a leaf, v(s) the largest of the children, N the visits that went through."""
    method = LeMCTS(iterations=600, c=1.4, epsilon=-1.0, patience=30, reward=_value)
    game = Game()
    game.play(method.write(_task()))
    best = max(_all(), key=lambda text: _value("", [text])[0])
    assert b"".join(span.text for span in game.committed).decode() == best
    assert game.committed[-1].ended
    for iterations in (1, 2, 3, 5, 8, 20, 50):
        tree = _search(LeMCTS(iterations=iterations, reward=_value))
        leaves = list(tree.leaves())
        assert tree.root.value == max(leaf.reward for leaf in leaves)
        assert tree.root.visits == iterations
        _check(tree.root)


def _check(node: Node) -> None:
    below = list(node.children.values())
    if below:
        assert node.value == max(child.value for child in below)
        assert node.visits >= sum(child.visits for child in below)
    for child in below:
        assert child.text == node.text + (child.span.text if child.span else b"")
        _check(child)


def _fan(c: float, iterations: int) -> list[int]:
    """Visits of three children, of rewards 0.9, 0.6 and 0.3, that never end."""
    tree, span = Tree(c, 2.0, 1), Score((-1.0,), (1.0,), 2)
    for name, reward in ((b"a", 0.9), (b"b", 0.6), (b"c", 0.3)):
        tree.back(tree.add(tree.root, Span(0, name + b"\n", False, span), reward, 1e9))
    for i in range(iterations):
        node = tree.select()
        reward = node.reward  # every further step is worth what the first was
        tree.back(tree.add(node, Span(0, b"%d\n" % i, False, span), reward, 1e9))
    return [child.visits for child in tree.root.children.values()]


def test_exploration_goes_from_greedy_to_uniform() -> None:
    """C = 0 goes with the best child only; a huge C visits all alike; one in between prefers the better."""
    assert _fan(0.0, 60) == [61, 1, 1]
    uniform = _fan(1e6, 60)
    assert max(uniform) - min(uniform) <= 1
    best, middle, worst = _fan(0.5, 60)
    assert best > middle > worst > 1


def test_uct_by_hand() -> None:
    """UCT is v + C √(ln N / n)."""
    tree, score = Tree(0.5, 0.05, 4), Score((-1.0,), (1.0,), 1)
    child = tree.add(tree.root, Span(0, b"a", False, score), 0.4, 9)
    for _ in range(3):
        tree.back(child)
    tree.back(tree.root)
    assert (tree.root.visits, child.visits) == (4, 3)
    assert child.uct(0.5) == pytest.approx(0.4 + 0.5 * (1.3862943611198906 / 3) ** 0.5)


def test_what_looks_good_is_given_more_children() -> None:
    """A node is left for its child once that is worth the node's reward less ε, and not before."""
    score = Score((-1.0,), (1.0,), 1)
    for reward, wider in ((0.44, True), (0.46, False)):
        tree = Tree(0.5, 0.05, 4)
        tree.root.reward = 0.5
        child = tree.add(tree.root, Span(0, b"a", False, score), reward, 9)
        tree.back(child)
        assert (tree.select() is tree.root) == wider


def test_more_iterations_never_lower_the_reward() -> None:
    """Of every further iteration the reward of the answer is the same or better; with few there may be no whole one."""
    for seed in range(5):
        found = [
            tree.best()
            for n in range(1, 40)
            for tree in [_search(LeMCTS(iterations=n, reward=_value, epsilon=0.2), seed=seed)]
        ]
        whole = [node.reward for node in found if node.over]
        assert whole == sorted(whole)
        assert [node.over for node in found] == sorted(node.over for node in found)
        assert whole


def test_steps_that_are_the_same_are_one() -> None:
    """A step that differs in white space only is no new child, and costs no reward; a node that brings nothing new is
    closed, and so is a tree: it is not searched for ever."""
    game, asked = Game(members=1), []

    def reward(question: str, answers: Sequence[str]) -> list[float]:
        asked.extend(answers)
        return [0.5] * len(answers)

    tree = _search(LeMCTS(iterations=1000, reward=reward), game)
    assert asked == ["", "0\n", "0\n0\n", "0\n0\n0"]
    assert tree.root.closed
    assert game.drafts < 50
    spaced = Span(0, b" 0  \n", False, Score((-1.0,), (1.0,), 4))
    assert tree.known(tree.root, spaced) is tree.root.children[b"0", False]


@pytest.mark.parametrize(("chain", "worth"), [("last", 0.8), ("min", 0.4), ("product", 0.16)])
def test_what_a_chain_is_worth(chain: Any, worth: float) -> None:
    """The last reward, the least, or the product."""
    values = {"": 0.1, "0\n": 0.5, "0\n0\n": 0.4, "0\n0\n0": 0.8}
    method = LeMCTS(iterations=20, reward=lambda q, a: [values[text] for text in a], chain=chain)
    assert _search(method, Game(members=1)).best().reward == pytest.approx(worth)


def test_time_and_tokens_end_a_search() -> None:
    """It stops while there is time to tell what it found; without a whole answer half of the time is kept, and the best
    chain is written on, by all, best step first."""
    now = [100.0]

    def left() -> Left:
        return Left(seconds=now[0])

    def tick() -> None:
        now[0] -= 1.0

    tree = _search(LeMCTS(iterations=1000, reward=_value, epsilon=1.0), Game(watch=tick, depth=6), left=left)
    assert tree.best().over
    assert 1 <= now[0] <= 3
    now[0] = 10.0
    game = Game(watch=tick, depth=40)
    game.play(LeMCTS(iterations=1000, reward=_value, epsilon=1.0).write(_task(left=left)))
    assert game.committed[-1].ended
    assert len(game.committed) == 40
    few = Game()
    tree = _search(LeMCTS(iterations=1000, reward=_value, tokens=50), few, left=lambda: Left(tokens=49))
    assert (few.drafts, tree.best()) == (0, tree.root)


def test_the_answers_length_ends_a_chain() -> None:
    """A chain with as many tokens as the answer may have is whole, and no step is drafted beyond."""
    game = Game(depth=100)
    tree = _search(LeMCTS(iterations=30, reward=_value, epsilon=1.0), game, most=6)
    assert tree.best().over
    assert tree.best().text.count(b"\n") == 3


def test_a_context_that_is_full_ends_a_chain() -> None:
    """Where no span comes back, the node is as far as its answer goes."""
    method, game = LeMCTS(iterations=30, reward=_value, epsilon=1.0), Game(members=1)
    work, result, tree = method.search(_task(1)), None, None
    while tree is None:
        try:
            asked = work.send(result)
        except StopIteration as end:
            tree = end.value
            break
        result = asked.call() if isinstance(asked, Aside) else ()
        if isinstance(asked, Propose) and not asked.drafts[0].after:
            result = (game.step(0, b""),)
    assert tree.best().text == b"0\n"
    assert tree.best().over


def test_what_it_may_spend() -> None:
    """An answer's tokens for every iteration, and some for the end: what a budget reserves."""
    assert LeMCTS(iterations=24).spends == 32


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"c": -1}, {"epsilon": 2}, {"chain": "mean"}, {"tokens": 0}, {"patience": 0}],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    """A wrong option names the method; so does a reward that is not there."""
    with pytest.raises(SettingsError, match="le-mcts"):
        LeMCTS(**options)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="needs artefacts"):
        LeMCTS().load(["a"], {})
