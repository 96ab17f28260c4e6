"""What a stream of litellm's does not tell by itself, read off its state: the one place that looks inside litellm.

litellm makes every stream look whole. When a provider's stream ends in the middle of an answer it makes up a reason to
finish, and where the provider tells no usage it counts tokens for itself. A gateway must know the difference. That
this works rests on the exact version that is pinned, and tests/backends/hosted shows it for every protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["CutShort", "told_usage", "watch_finish"]


class CutShort(Exception):
    """The provider's stream ended without saying why."""


def watch_finish(stream: Any) -> Callable[[], bool]:
    """Watch `stream`, of which nothing was read yet; what is returned says whether the provider has told why its answer
    ended."""
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import ModelResponseIterator

    geminis: list[bool] = []

    def attach(iterator: Any) -> Any:
        # For Gemini litellm puts a reason to finish on every piece that has none.
        if isinstance(iterator, ModelResponseIterator):
            parse = iterator.chunk_parser

            def spy(chunk: Mapping[str, Any]) -> Any:
                blocked = (chunk.get("promptFeedback") or {}).get("blockReason")
                candidates = chunk.get("candidates") or ()
                geminis.append(
                    bool(blocked or any(candidate.get("finishReason") for candidate in candidates))
                )
                return parse(chunk)

            iterator.chunk_parser = spy
        return iterator

    make = stream.make_call
    if stream.completion_stream is not None:
        attach(stream.completion_stream)
    elif make is not None:

        async def watched(*args: Any, **kwargs: Any) -> Any:
            return attach(await make(*args, **kwargs))

        stream.make_call = watched

    def finished() -> bool:
        return (
            any(geminis)
            if geminis
            else bool(stream.received_finish_reason or stream.intermittent_finish_reason)
        )

    return finished


def told_usage(stream: Any) -> bool:
    """Whether the provider told usage. Where it did not, litellm guesses, with a tokenizer that need not be the
    model's; the gateway estimates for itself then, and says so."""
    return any(getattr(chunk, "usage", None) is not None for chunk in stream.chunks)
