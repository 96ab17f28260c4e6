"""Deciding accept or defer, stage by stage: the one piece of code that online and offline cascades share.

It is a generator without I/O. It yields the stage to ask, is sent what came of it, and returns the steps
taken:

    walk = execute(rule)
    stage = next(walk)
    while True:
        try:
            stage = walk.send(outcome_of(stage))
        except StopIteration as end:
            return end.value

A failed stage is passed over; so is one whose answer cannot be judged. The last stage that answered is the
one returned, so that when the last model fails an answer in hand is still an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from cascades.base import Rule

__all__ = ["Outcome", "Step", "drive", "execute", "returned"]

Verdict = Literal["accepted", "deferred", "unjudged", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of asking a stage: whether it answered, and the answer's score (None: nothing to judge
    by)."""

    answered: bool
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One stage that ran. `threshold` is None at the last stage, which is not judged."""

    stage: int
    score: float | None
    threshold: float | None
    verdict: Verdict

    def wire(self, model: str) -> dict[str, Any]:
        """The step as a row of the explanation."""
        return {"model": model, "score": self.score, "threshold": self.threshold, "verdict": self.verdict}


def execute(rule: Rule) -> Generator[int, Outcome, tuple[Step, ...]]:
    """Walk the stages until one is accepted. Yields a stage's index, takes its `Outcome`, returns the steps
    in order."""
    steps = []
    for stage in range(rule.n_stages):
        threshold = rule.thresholds[stage] if stage < rule.n_stages - 1 else None
        outcome = yield stage
        step = Step(stage, outcome.score, threshold, _verdict(outcome, threshold))
        steps.append(step)
        if step.verdict == "accepted":
            break
    return tuple(steps)


def drive(rule: Rule, ask: Callable[[int], Outcome]) -> tuple[Step, ...]:
    """Run `execute` with a plain function answering for the stages."""
    walk = execute(rule)
    stage = next(walk)
    while True:
        try:
            stage = walk.send(ask(stage))
        except StopIteration as end:
            steps: tuple[Step, ...] = end.value
            return steps


def returned(steps: tuple[Step, ...]) -> int | None:
    """Index of the stage whose answer is returned: the last that answered; None when every stage failed."""
    return next((step.stage for step in reversed(steps) if step.verdict != "failed"), None)


def _verdict(outcome: Outcome, threshold: float | None) -> Verdict:
    if not outcome.answered:
        return "failed"
    if threshold is None:
        return "accepted"
    if outcome.score is None:
        return "unjudged"
    return "accepted" if outcome.score >= threshold else "deferred"
