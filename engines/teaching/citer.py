"""CITER's router: labels from right answers, two rounds, in the second of which the router of the first takes part."""

from __future__ import annotations

import queue
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.byte_vocab import Unencodable
from engines.generation import Event, Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from engines.teaching import Learnt, Pupil, Tell
from engines.teaching.lessons import Answer, Lesson
from engines.teaching.reader import Reader
from engines.teaching.share import area, share
from ensembles.tokens.base import Decision, Step
from ensembles.tokens.citer import CITER, Point, TokenRouter, fit, label
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["teach"]

ROUTED = 0.95
"""τ of the rollouts after the first round."""
FUSION = "rollouts"


@dataclass(frozen=True, slots=True)
class Place:
    """A point of a lesson's answer: the text before it, and the small model's state."""

    lesson: int
    point: Point
    before: bytes
    state: Tensor

    @property
    def open(self) -> bool:
        """Whether only a rollout can label it."""
        return self.point.small != self.point.target[0] and self.point.large != self.point.target[1]


def teach(
    pupils: Sequence[Pupil],
    lessons: Sequence[Lesson],
    *,
    tell: Tell,
    rounds: int = 2,
    rollouts: int = 400,
    rate: float = 1e-4,
    epochs: int = 1000,
    seed: int = 0,
) -> Learnt:
    """A router for the first pupil, small, and the second, large. At most `rollouts` places are rolled out in each of
    `rounds`, drawn with `seed`; the other open ones are left out."""
    if len(pupils) != 2:
        raise SettingsError(f"citer is taught with two members, small and large, not {len(pupils)}.")
    places = read(pupils, lessons, tell)
    learn = [place for place in places if not lessons[place.lesson].held_out]
    drawn = random.Random(seed)
    waiting = [place for place in learn if place.open]
    waiting = drawn.sample(waiting, min(rollouts, len(waiting)))
    sure = [place for place in learn if not place.open]
    tell(f"{len(sure)} places labelled at once, {sum(p.open for p in learn)} open, {len(waiting)} rolled out")
    states, labels = _stacked(sure), [label(place.point, lambda: False) for place in sure]
    apprentice, rolled = _Apprentice(), [0.0] * rounds
    losses: list[list[float]] = [[]] * rounds
    router: TokenRouter | None = None
    host = Host(
        [pupil.spec for pupil in pupils],
        [FusionSpec(FUSION, tuple(p.spec.name for p in pupils), (0.5, 0.5), apprentice)],
    )
    host.start()
    try:
        for n in range(rounds):
            right = _roll_out(host, pupils, lessons, waiting)
            rolled[n] = sum(right) / max(1, len(right))
            router, losses[n] = _fitted(states, labels, waiting, right, rate, epochs, seed)
            tell(f"round {n + 1}: {rolled[n]:.1%} of rollouts right, loss {min(losses[n]):.4f}")
            apprentice.now = CITER(tau=ROUTED, router=router)
    finally:
        host.stop()
    assert router is not None
    held_out = [place for place in places if lessons[place.lesson].held_out]
    metrics = {
        "rounds": rounds, "rate": rate, "seed": seed, "labelled_at_once": len(sure), "rolled_out": len(waiting),
        "label_share": round(sum(labels) / len(labels), 4), "rollouts_right": [round(x, 4) for x in rolled],
        "epochs": [len(curve) for curve in losses], "held_out_loss": [round(min(curve), 4) for curve in losses],
        **judged(router, held_out),
    }  # fmt: skip
    return Learnt(CITER(router=router), metrics)


def read(pupils: Sequence[Pupil], lessons: Sequence[Lesson], tell: Tell) -> list[Place]:
    """Every place of every right answer, at the boundaries of the small model's tokens. The large model reads these
    tokens as it would when the small one had written them."""
    small, large = (Reader(pupil.spec.folder, pupil.prompting, pupil.spec.dtype) for pupil in pupils)
    places: list[Place] = []
    for number, lesson in enumerate(lessons):
        for answer in lesson.right:
            try:
                places += _places(small, large, number, lesson.question, answer)
            except Unencodable:  # a text that one of them cannot write teaches nothing
                continue
        if number % 100 == 99:
            tell(f"read {number + 1} of {len(lessons)} lessons")
    return places


def _places(small: Reader, large: Reader, number: int, question: str, answer: Answer) -> list[Place]:
    text = answer.text.encode()
    own = small.vocab.encode(text)
    pieces = [small.vocab.emits[i] for i in own]
    seen = small.read(small.prompt(question), [[i] for i in own], ended=answer.ended)
    other = large.read(large.prompt(question), [large.vocab.encode(x) for x in pieces], ended=answer.ended)
    places, at = [], 0
    for n, piece in enumerate([*pieces, b""] if answer.ended else pieces):
        rest = large.vocab.encode(text[at:])
        target = (piece, large.vocab.emits[rest[0]] if rest else b"")
        places.append(Place(number, Point(target, seen.best[n], other.best[n]), text[:at], seen.states[n]))
        at += len(piece)
    return places


class _Apprentice:
    """CITER as far as it has learnt: at first the small model alone, which is what τ = 0 gives."""

    def __init__(self) -> None:
        self.now = CITER(tau=0.0)

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        return self.now.layers

    def decide(self, step: Step) -> Decision:
        return self.now.decide(step)


def _roll_out(
    host: Host, pupils: Sequence[Pupil], lessons: Sequence[Lesson], places: Sequence[Place]
) -> list[bool]:
    """For each place, whether the answer comes out right that goes on from the small model's token."""
    vocabs = [host.vocabs[pupil.spec.name] for pupil in pupils]
    answers = [(place.before + place.point.small).decode(errors="ignore") for place in places]
    waiting: dict[int, queue.SimpleQueue[Event]] = {}
    for n, place in enumerate(places):
        if not place.point.small:
            continue  # the small model ends the answer here
        lesson, begun = lessons[place.lesson], place.before + place.point.small
        rendered = [
            pupil.prompting.render([{"role": "user", "content": lesson.question}]) for pupil in pupils
        ]
        try:
            prompts = tuple(
                (*vocab.encode_prompt(one.text), *vocab.encode(begun))
                for vocab, one in zip(vocabs, rendered, strict=True)
            )
        except Unencodable:
            continue
        left = lesson.max_tokens - len(vocabs[0].encode(begun))
        if left > 0:
            stops = tuple(stop for one in rendered for stop in one.stops)
            sampling = Sampling(max_tokens=left, temperature=0.0, stops=stops)
            waiting[n] = queue.SimpleQueue()
            host.submit(Generation(f"{FUSION}-{n}", FUSION, prompts, sampling), waiting[n].put)
    for n, events in waiting.items():
        while isinstance(event := events.get(), Piece):
            answers[n] += event.text
        if isinstance(event, Failure):
            raise event.error
    return [lessons[place.lesson].judge(text) for place, text in zip(places, answers, strict=True)]


def _fitted(
    states: Tensor,
    labels: Sequence[bool],
    waiting: Sequence[Place],
    right: Sequence[bool],
    rate: float,
    epochs: int,
    seed: int,
) -> tuple[TokenRouter, list[float]]:
    import torch

    rolled = [states, _stacked(waiting)] if waiting else [states]
    wanted = torch.tensor([*labels, *right])
    return fit(torch.cat(rolled), wanted, rate=rate, epochs=epochs, seed=seed)


def _stacked(places: Sequence[Place]) -> Tensor:
    import torch

    return torch.stack([place.state.clone() for place in places])


def judged(router: TokenRouter, places: Sequence[Place]) -> dict[str, Any]:
    """What the router is worth on places it has not seen: the area under its ROC curve where the label needs no
    rollout, and, by τ, the share of calls and the share of tokens that are the text's, beside a router that calls at
    random as often: [mean, low, high]."""
    sure = np.array([not place.open for place in places])
    small = np.array([place.point.small == place.point.target[0] for place in places], dtype=np.float64)
    large = np.array([place.point.large == place.point.target[1] for place in places], dtype=np.float64)
    lesson = np.array([place.lesson for place in places])
    score = router.logit(_stacked(places)).sigmoid().double().numpy()
    curve = []
    for calls in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        tau = float(np.quantile(score, calls))
        called = score < tau
        hits = np.where(called, large, small)
        chance = called.mean() * large + (1 - called.mean()) * small
        curve.append(
            {
                "tau": round(tau, 4), "calls": round(float(called.mean()), 4), "accuracy": share(hits, lesson),
                "at_random": share(chance, lesson), "gain": share(hits - chance, lesson),
            }
        )  # fmt: skip
    return {
        "held_out_tokens": len(places), "held_out_answers": len(set(lesson.tolist())),
        "auc": round(area(score[sure], small[sure] == 1), 4), "small_alone": share(small, lesson),
        "large_alone": share(large, lesson), "oracle": share(np.maximum(small, large), lesson), "by_tau": curve,
    }  # fmt: skip
