"""An answer ensemble on live calls: fan out, wait for all, merge.

Every sample is asked what the caller asked: tools, response_format, logprobs, stop and unknown fields
included; the winner's whole choice is returned, with its own finish reason, tool calls and
log-probabilities. A streaming caller gets the winner in one piece, since no sample can be chosen before all
are read.

A failed slot is dropped and traced; the answers that came decide. When none came the first error that is
the caller's fault, else the first one, is raised.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from ensembles.answers.base import Aggregator, Candidate, Combined, Slot
from protocol.chat import ChatRequest
from protocol.errors import CallerError, ChorusError, SettingsError
from protocol.methods import find_method, load_method
from protocol.run import Answer, Event, Reply, Run
from protocol.settings import Aggregate
from protocol.usage import Usage

__all__ = ["AnswerEnsemble"]

SHOWN_CHARACTERS = 400
"""How much of each sample the explanation shows."""


class AnswerEnsemble:
    """Merges the answers of `aggregator`'s slots under the strategy's public `name`. `method` is its id in
    the trace."""

    def __init__(self, name: str, aggregator: Aggregator, *, method: str = "") -> None:
        self.name = name
        self.aggregator = aggregator
        self.method = method

    @classmethod
    def from_settings(cls, name: str, settings: Aggregate) -> AnswerEnsemble:
        """The ensemble of a config section. Raises `SettingsError` for an unknown method or option."""
        method = find_method(settings.method, "aggregator")
        implementation = load_method(method)
        where = f"strategies.{name}.aggregate"
        known = [
            p.name for p in inspect.signature(implementation).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        for option in settings.options:
            if option not in known:
                raise SettingsError(
                    f"{where}.options.{option}: unknown; {method.id} has {', '.join(known) or 'none'}."
                )
        try:
            aggregator = implementation(settings.members, settings.samples, **settings.options)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}.") from None
        return cls(name, aggregator, method=method.id)

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        """Yields one answer. Raises `ChorusError` when every slot failed."""
        whole = request.changed(stream=None, stream_options=None)
        slots = self.aggregator.slots(request)
        results = await run.gather([(slot.member, whole.changed(**slot.fields)) for slot in slots])
        replies = [result for result in results if isinstance(result, Reply)]
        failures = [(slot, r) for slot, r in zip(slots, results, strict=True) if isinstance(r, ChorusError)]
        if not replies:
            errors = [error for _, error in failures]
            raise next((error for error in errors if isinstance(error, CallerError)), errors[0])
        answered = [slot.member for slot, r in zip(slots, results, strict=True) if isinstance(r, Reply)]
        candidates = [_candidate(member, reply) for member, reply in zip(answered, replies, strict=True)]
        # In a thread: comparing many long answers must not hold up the worker's other requests.
        combined = await asyncio.to_thread(self.aggregator.combine, request, candidates)
        run.trace.note(**self._facts(combined, candidates, replies, failures))
        yield Answer(self._merged(combined.index, replies))

    def _merged(self, chosen: int, replies: Sequence[Reply]) -> Reply:
        """The winner's choice as the strategy's own completion; usage and cost are all samples' together."""
        winner = replies[chosen]
        return Reply(
            {
                **winner.body,
                "model": self.name,
                "choices": [{**winner.body["choices"][0], "index": 0}],
                "usage": sum((reply.usage for reply in replies), Usage()).wire(),
            },
            tuple(dict.fromkeys(member for reply in replies for member in reply.members)),
            cost_usd=sum(reply.cost_usd for reply in replies),
            latency_s=max(reply.latency_s for reply in replies),
        )

    def _facts(
        self,
        combined: Combined,
        candidates: Sequence[Candidate],
        replies: Sequence[Reply],
        failures: Sequence[tuple[Slot, ChorusError]],
    ) -> dict[str, Any]:
        """What the trace tells of the decision: every sample with its key and score, the vote table, who
        failed."""
        samples = [
            {
                "model": candidate.member,
                "text": candidate.text[:SHOWN_CHARACTERS],
                "key": key,
                "score": score,
                "finish_reason": reply.body["choices"][0].get("finish_reason"),
            }
            for candidate, key, score, reply in zip(
                candidates, combined.keys, combined.scores, replies, strict=True
            )
        ]
        return {
            "method": self.method,
            "members": list(dict.fromkeys(candidate.member for candidate in candidates)),
            "by": combined.by,
            "votes": dict(combined.votes),
            "chosen": combined.index,
            "samples": samples,
            "failures": [
                {"model": slot.member, "error": error.code or error.type} for slot, error in failures
            ],
        }


def _candidate(member: str, reply: Reply) -> Candidate:
    return Candidate(
        member, reply.text, _canonical_calls(reply.body["choices"][0]["message"].get("tool_calls"))
    )


def _canonical_calls(calls: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Tool calls as JSON that is equal for equal calls: names and parsed arguments, without their ids."""
    if not calls:
        return None
    return orjson.dumps([_call(call) for call in calls], option=orjson.OPT_SORT_KEYS).decode()


def _call(call: Mapping[str, Any]) -> Any:
    kind = call.get("type", "function")
    named = call.get(kind) or {}
    arguments = named.get("arguments", named.get("input"))
    # A model may write arguments that are not JSON; they are then equal only letter for letter.
    with suppress(orjson.JSONDecodeError):
        arguments = orjson.loads(arguments or "")
    return [kind, named.get("name"), arguments]
