"""A cascade on live calls: ask a stage, judge its answer, return it or go on.

Every stage but the last must be complete to be judged, so it is asked without streaming and, when accepted,
returned in one piece; the last one is relayed, streaming when the caller streams.

What the caller asked for is asked of every stage, unchanged but for `logprobs`, which a scorer needs and
which is taken out again where the caller did not ask. With `n` > 1 an answer is as good as its worst
choice. A tool call is judged by its tokens' log-probabilities like any answer; where the backend sends none
for it (as OpenAI does) it cannot be judged, and the next stage is asked: a doubtful call is worse than a
dear one.

A stage that fails, or has no room for the prompt, or that the caller's budget or deadline rules out, is
passed over; when no later one answers, the answer in hand is returned. The trace says so.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cascades.artefact import load_cascade
from cascades.base import Rule, Scorer, Shown
from cascades.executor import Outcome, Step, execute, returned
from protocol.chat import ChatRequest, human_ask
from protocol.errors import (
    BudgetExceeded,
    ChorusError,
    ContextLengthExceeded,
    DeadlineExceeded,
    UpstreamBroken,
    UpstreamError,
)
from protocol.run import Answer, Event, Reply, Run
from protocol.settings import Cascade
from protocol.wire import reply_text, token_logprobs

__all__ = ["CascadeStrategy"]

PASSED_OVER = (UpstreamError, ContextLengthExceeded, BudgetExceeded, DeadlineExceeded)
"""Errors that another stage, or an answer in hand, can make good."""


class CascadeStrategy:
    """Stages asked in order until `rule` accepts the score that `scorer` gives. `method` is its id in the
    trace.

    Raises ValueError unless there is one stage more than thresholds.
    """

    def __init__(
        self,
        stages: Sequence[str],
        scorer: Scorer,
        rule: Rule,
        *,
        method: str = "",
        needs_logprobs: bool = True,
    ) -> None:
        if len(stages) != rule.n_stages:
            raise ValueError(
                f"{len(stages)} stages need {len(stages) - 1} thresholds; got {rule.n_stages - 1}"
            )
        self.stages = tuple(stages)
        self.scorer = scorer
        self.rule = rule
        self.method = method
        self.needs_logprobs = needs_logprobs

    @classmethod
    def from_settings(cls, settings: Cascade) -> CascadeStrategy:
        """The cascade of a config section, its thresholds read from the artefact.

        Raises `SettingsError` for an unknown method, `ArtefactMismatch` for an artefact made for other
        stages.
        """
        method, scorer, rule, _ = load_cascade(settings.artefact, settings.method, settings.stages)
        return cls(settings.stages, scorer, rule, method=method.id, needs_logprobs="logprobs" in method.needs)

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        """Yields one answer, or the last stage's events. Raises the last stage's error when no stage
        answered."""
        replies: dict[int, Reply] = {}
        errors: dict[int, ChorusError] = {}
        async with aclosing(self._last_stage(request, run)) as last_stage:
            first: Event | None = None
            walk = execute(self.rule)
            stage = next(walk)
            while True:
                outcome = Outcome(answered=False)
                try:
                    if stage < len(self.stages) - 1:
                        replies[stage] = await run.call(self.stages[stage], self._judged(request))
                        outcome = Outcome(answered=True, score=self._score(request, replies[stage]))
                    else:
                        # Whatever goes wrong before the first event can still be made good by an answer in
                        # hand.
                        first = await anext(last_stage)
                        outcome = Outcome(answered=True)
                except PASSED_OVER as error:
                    errors[stage] = error
                try:
                    stage = walk.send(outcome)
                except StopIteration as end:
                    steps: tuple[Step, ...] = end.value
                    break
            final = returned(steps)
            run.trace.note(**self._facts(steps, final, errors))
            if final is None:
                raise errors[len(self.stages) - 1]
            if first is None:
                yield Answer(_summed(_as_asked(replies[final], request), replies, final))
                return
            yield _paid_in_full(first, replies)
            async for event in last_stage:
                yield _paid_in_full(event, replies)

    async def _last_stage(self, request: ChatRequest, run: Run) -> AsyncGenerator[Event, None]:
        """The last stage's events, at least one. Raises `UpstreamBroken` for none."""
        name, silent = self.stages[-1], True
        events = run.relay(name, request)
        try:
            async for event in events:
                silent = False
                yield event
        finally:
            # A caller that leaves closes this generator: the call it relays ends now, not when it is
            # collected.
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        if silent:
            raise UpstreamBroken(f"{name!r} ended its answer before it began.")

    def _judged(self, request: ChatRequest) -> ChatRequest:
        """The request as asked of a stage that will be judged: complete, with what the scorer needs."""
        whole = request.changed(stream=None, stream_options=None)
        return whole.changed(logprobs=True) if self.needs_logprobs else whole

    def _score(self, request: ChatRequest, reply: Reply) -> float | None:
        """The answer's score: the lowest of its choices; None as soon as one cannot be judged."""
        query = human_ask(request)
        lowest = math.inf
        for i in range(len(reply.body["choices"])):
            shown = Shown(query, reply_text(reply.body, i), tuple(token_logprobs(reply.body, i)))
            score = self.scorer.score(shown)
            if score is None:
                return None
            lowest = min(lowest, score)
        return lowest

    def _facts(
        self, steps: Sequence[Step], final: int | None, errors: Mapping[int, ChorusError]
    ) -> dict[str, Any]:
        """What the trace tells of the decision."""
        rows = [step.wire(self.stages[step.stage]) for step in steps]
        for row, step in zip(rows, steps, strict=True):
            if step.stage in errors:
                row["error"] = errors[step.stage].code or errors[step.stage].type
        facts: dict[str, Any] = {"method": self.method, "stages": rows}
        if final is not None:
            facts |= {"accepted": self.stages[final], "members": [self.stages[final]]}
        return facts


def _as_asked(reply: Reply, request: ChatRequest) -> Reply:
    """`reply` without the log-probabilities that only the scorer wanted."""
    if request.body.get("logprobs"):
        return reply
    choices = [{**choice, "logprobs": None} for choice in reply.body["choices"]]
    return replace(reply, body={**reply.body, "choices": choices}, raw=None)


def _paid_in_full(event: Event, replies: Mapping[int, Reply]) -> Event:
    """The last stage's event; a complete answer with the cost of the earlier stages added."""
    return Answer(_summed(event.reply, replies, None)) if isinstance(event, Answer) else event


def _summed(reply: Reply, replies: Mapping[int, Reply], own: int | None) -> Reply:
    """`reply`, the one of stage `own`, with usage, cost and time of all other `replies` added."""
    return reply.paid_with([other for stage, other in replies.items() if stage != own])
