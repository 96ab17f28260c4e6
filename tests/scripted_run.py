"""A `Run` that answers from a script: methods are run on it without sockets, clocks or mocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol.chat import ChatRequest
from protocol.errors import ChorusError, UpstreamBroken
from protocol.run import Answer, Call, Chunk, Event, Reply, Trace
from protocol.usage import Usage

__all__ = ["ScriptedRun", "ask", "events_of", "reply"]


SPENT = Usage(10, 2)


def ask(text: str = "What is 2 + 3?", **fields: Any) -> ChatRequest:
    """A request with one user message."""
    return ChatRequest({"model": "strategy", "messages": [{"role": "user", "content": text}], **fields})


def reply(
    text: str = "5",
    *,
    model: str = "backend-model",
    logprobs: Sequence[float] | None = None,
    finish_reason: str = "stop",
    usage: Usage = SPENT,
    cost_usd: float = 1e-6,
    tool_calls: list[dict[str, Any]] | None = None,
    choices: int = 1,
) -> Reply:
    """A backend's complete answer; `logprobs` are of tokens that spell its text."""
    message: dict[str, Any] = {"role": "assistant", "content": None if tool_calls else text}
    if tool_calls:
        message["tool_calls"] = tool_calls
    content = None
    if logprobs is not None:
        pieces = [
            text[i * len(text) // len(logprobs) : (i + 1) * len(text) // len(logprobs)]
            for i in range(len(logprobs))
        ]
        content = {"content": [{"token": p, "logprob": v} for p, v in zip(pieces, logprobs, strict=True)]}
    choice = {"message": message, "logprobs": content, "finish_reason": finish_reason}
    body = {
        "id": f"chatcmpl-{model}",
        "object": "chat.completion",
        "created": 1700000000,
        "model": model,
        "choices": [{"index": i, **choice} for i in range(choices)],
        "usage": usage.wire(),
        "vendor_field": 1,
    }
    return Reply(body, (model,), raw=b"{}", cost_usd=cost_usd, latency_s=0.5)


@dataclass
class ScriptedRun:
    """`script`: per name, the replies or errors it gives, in turn (the last one for ever).

    For a streaming caller the relayed name gives its reply's text as one chunk a character;
    `break_after` cuts it after so many. `asked` records every call.
    """

    script: Mapping[str, Sequence[Reply | ChorusError]]
    trace: Trace = field(default_factory=Trace)
    asked: list[tuple[str, ChatRequest]] = field(default_factory=list)
    remaining_s: float = 60.0
    remaining_usd: float = float("inf")
    relays_closed: int = 0
    break_after: int | None = None

    def lacks(self, names: Sequence[str], request: ChatRequest) -> list[str | None]:
        return [None] * len(names)

    async def call(self, name: str, request: ChatRequest) -> Reply:
        turn = sum(asked == name for asked, _ in self.asked)
        self.asked.append((name, request))
        said = self.script[name][min(turn, len(self.script[name]) - 1)]
        if isinstance(said, ChorusError):
            raise said
        self.trace.calls.append(Call(name, said.usage, said.cost_usd, said.latency_s))
        return said

    async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
        try:
            said = await self.call(name, request)
            if not request.stream:
                yield Answer(said)
                return
            for i, character in enumerate(said.text):
                if i == self.break_after:
                    raise UpstreamBroken("cut")
                yield Chunk(character.encode(), said.members)
        finally:
            self.relays_closed += 1

    async def gather(self, calls: Sequence[tuple[str, ChatRequest]]) -> list[Reply | ChorusError]:
        results: list[Reply | ChorusError] = []
        for name, request in calls:
            try:
                results.append(await self.call(name, request))
            except ChorusError as error:
                results.append(error)
        return results

    async def embed(self, name: str, texts: Sequence[str]) -> Any:
        raise AssertionError(f"{name} was not expected to be asked for embeddings")


async def events_of(strategy: Any, request: ChatRequest, run: ScriptedRun) -> list[Event]:
    """Everything the strategy yields."""
    return [event async for event in strategy.answer(request, run)]
