"""The laws of `ensembles.answers.base`, one `check_*` a law; every registered aggregator passes all of them.

A check takes `make(members, samples)`, which builds an aggregator; it raises AssertionError naming
what broke.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from ensembles.answers.base import Aggregator, Candidate
from protocol.errors import BadRequest
from tests.scripted_run import ask

Make = Callable[[Sequence[str], int], Aggregator]

MEMBERS = ("a", "b", "c")
CLOSED = ask("What is 2 + 3?")
OPEN = ask("Tell me about rivers.")
RIVERS = (
    "A river is water that flows to the sea.",
    "A river is a stream of water that flows to the sea.",
    "Rivers carry water from hills to the sea.",
    "I like trains and stations.",
)


def said(*texts: str) -> list[Candidate]:
    """Candidates of the members in turn."""
    return [Candidate(MEMBERS[i % len(MEMBERS)], text) for i, text in enumerate(texts)]


def ballots(count: int = 200) -> list[list[str]]:
    """Random answers to a closed question, some of them without a number."""
    rng = random.Random(0)
    words = [
        "The answer is 3.",
        "The answer is 5.",
        "It is 7, so the answer is 7.",
        "The answer is 5.00",
        "I cannot tell.",
    ]
    return [[rng.choice(words) for _ in range(rng.randint(1, 7))] for _ in range(count)]


def check_slots_ask_every_member(make: Make) -> None:
    """There is a slot, and every member is asked equally often."""
    for samples in (1, 2, 5):
        asked = [slot.member for slot in make(MEMBERS, samples).slots(CLOSED)]
        assert {name: asked.count(name) for name in MEMBERS} == dict.fromkeys(MEMBERS, samples)


def check_slots_are_pure(make: Make) -> None:
    """Planning twice plans the same, and leaves the request alone."""
    request = ask(seed=7, stop=["x"])
    before = copy.deepcopy(request.body)
    aggregator = make(MEMBERS, 3)
    assert aggregator.slots(request) == aggregator.slots(request), "slots differ on the second call"
    assert request.body == before, "the request was changed"


def check_seeds_differ(make: Make) -> None:
    """A caller's seed makes every slot's own seed: the same each time, no two alike, all within 64 bits."""
    for seed in (0, 7, 2**63 - 1, -(2**63)):
        seeds = [slot.fields.get("seed") for slot in make(MEMBERS, 4).slots(ask(seed=seed))]
        assert len(set(seeds)) == len(seeds), f"slots share seeds: {seeds}"
        assert all(value is not None and -(2**63) <= value < 2**63 for value in seeds)


def check_caller_keeps_sampling(make: Make) -> None:
    """Temperature and top_p that the caller set are not overruled."""
    for slot in make(MEMBERS, 2).slots(ask(temperature=0.2, top_p=0.9)):
        assert slot.fields.get("temperature", 0.2) == 0.2
        assert slot.fields.get("top_p", 0.9) == 0.9


def check_several_choices_are_not_dropped(make: Make) -> None:
    """`n` > 1 is honoured in every slot's plan or refused by name."""
    refused, slots = None, []
    try:
        slots = list(make(MEMBERS, 2).slots(ask(n=3)))
    except BadRequest as error:
        refused = error.param
    assert refused == "n" or any("n" in slot.fields for slot in slots), "n = 3 was dropped in silence"


def check_one_candidate_wins(make: Make) -> None:
    """A single answer is returned, whatever it is."""
    for text in ("The answer is 5.", "", "I cannot tell.", *RIVERS):
        assert make(MEMBERS, 2).combine(CLOSED, said(text)).index == 0


def check_unanimity_wins(make: Make) -> None:
    """When all say the same, that is the answer, and none scores above another."""
    for text in ("The answer is 5.", "I cannot tell.", RIVERS[0]):
        combined = make(MEMBERS, 2).combine(OPEN, said(*[text] * 4))
        assert combined.index == 0, "a later one of equal answers was taken"
        assert len(set(combined.scores)) == 1, "equal answers score differently"


def check_permuting_permutes_scores(make: Make) -> None:
    """Scores go with the answers, whoever gave them and in whatever order; an undisputed winner stays."""
    for request, texts in [(OPEN, list(RIVERS)), *((CLOSED, ballot) for ballot in ballots(40))]:
        candidates = said(*texts)
        base = make(MEMBERS, 2).combine(request, candidates)
        top = [score for score in base.scores if score is not None]
        for order in itertools.islice(itertools.permutations(range(len(texts))), 0, 120, 7):
            combined = make(MEMBERS, 2).combine(request, [candidates[i] for i in order])
            assert combined.scores == tuple(base.scores[i] for i in order), "scores depend on the order"
            if top and top.count(max(top)) == 1:
                assert order[combined.index] == base.index, "the winner depends on the order"


def check_ties_take_the_first(make: Make) -> None:
    """Of equally good answers the first is taken."""
    for texts in ballots():
        combined = make(MEMBERS, 2).combine(CLOSED, said(*texts))
        known = [score for score in combined.scores if score is not None]
        if known:
            assert combined.index == combined.scores.index(max(known)), "not the first of the best"


def check_abstention_is_no_class(make: Make) -> None:
    """However many cannot tell, one answer outvotes them; and they have no votes."""
    candidates = said("It depends.", "It depends.", "Yes.", "Yes.", "Hard to say.")
    combined = make(MEMBERS, 2).combine(ask("Is 5 odd? Answer yes or no."), candidates)
    if any(key is not None for key in combined.keys):
        assert combined.index == 2, "abstentions won"
        assert sum(combined.votes.values()) == 2, "abstentions were counted"
        assert all(
            score is None for score, key in zip(combined.scores, combined.keys, strict=True) if key is None
        )


def check_result_fits(make: Make) -> None:
    """One score and key a candidate, an index among them, finite scores; the candidates are left alone."""
    for request, texts in [
        (OPEN, list(RIVERS)),
        (CLOSED, ["", ""]),
        *((CLOSED, ballot) for ballot in ballots(40)),
    ]:
        candidates = said(*texts)
        before = copy.deepcopy(candidates)
        combined = make(MEMBERS, 2).combine(request, candidates)
        assert len(combined.scores) == len(combined.keys) == len(candidates)
        assert 0 <= combined.index < len(candidates)
        assert all(score is None or abs(score) <= len(candidates) for score in combined.scores)
        assert candidates == before


def check_bounded(make: Make) -> None:
    """More slots than one request may make are refused when the aggregator is built."""
    with pytest.raises(ValueError, match=r"\d"):
        make(MEMBERS, 1000)
    with pytest.raises(ValueError, match=r"\d"):
        make((), 1)


CHECKS = [
    check_slots_ask_every_member,
    check_slots_are_pure,
    check_seeds_differ,
    check_caller_keeps_sampling,
    check_several_choices_are_not_dropped,
    check_one_candidate_wins,
    check_unanimity_wins,
    check_permuting_permutes_scores,
    check_ties_take_the_first,
    check_abstention_is_no_class,
    check_result_fits,
    check_bounded,
]
