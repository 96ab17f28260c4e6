"""How providers fail, and what the gateway makes of it: the same classes as for any other backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest

from backends.hosted.host import HostedHost, HostedModels
from backends.model import Model
from backends.registry import make_models
from protocol.again import Again
from protocol.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from tests.backends.hosted import provider as shapes
from tests.backends.hosted.conftest import SECRETS, Start, section, settings_for
from tests.backends.hosted.provider import Answer, Provider
from tests.backends.hosted.test_wire import (
    AWS_STREAM,
    BODY,
    DIALECTS,
    TEXT,
    ask,
    each_dialect,
    streamed_or_not,
)

pytestmark = pytest.mark.requires("hosted")


def refusal(dialect: str, status: int, message: str, kind: str) -> Any:
    """An error as this provider words it."""
    if dialect == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message}}
    if dialect == "gemini":
        return {"error": {"code": status, "message": message, "status": kind.upper()}}
    if dialect == "bedrock":
        return {"message": message}
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


async def failed(start: Start, dialect: str, stream: bool, **changes: Any) -> UpstreamError:
    """The error that one call ends with."""
    with pytest.raises(UpstreamError) as caught:
        await ask(await start(dialect, **changes), BODY, stream)
    return caught.value


@each_dialect
@streamed_or_not
async def test_a_refused_key(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """401: the gateway's credentials are wrong, which is not the caller's fault; the key is told to nobody."""
    body = refusal(dialect, 401, f"invalid x-api-key {SECRETS[0]}", "authentication_error")
    provider.answer = Answer(status=401, body=body)
    error = await failed(start, dialect, stream)
    assert (type(error), error.code, error.again) == (UpstreamBroken, "upstream_credentials", Again.ELSEWHERE)
    assert not any(secret in error.message for secret in SECRETS)
    assert len(provider.seen) == 1


async def test_no_address_in_a_message(start: Start, provider: Provider) -> None:
    """A provider's address is blotted out of its own words, with its scheme and without."""
    model = await start("openai")
    provider.answer = DIALECTS["openai"].answer("text", False)
    await ask(model, BODY, False)
    host = provider.seen.pop().headers["host"]
    told = refusal("openai", 400, f"look at {host} or http://{host}/v1", "invalid")
    provider.answer = Answer(status=400, body=told)
    with pytest.raises(UpstreamRefused) as caught:
        await ask(model, BODY, False)
    assert caught.value.message == "look at [redacted] or [redacted]"


@each_dialect
@streamed_or_not
async def test_too_many_requests(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """429: tried again by others at once, and the provider's wait reaches breaker and caller. litellm tried once."""
    secret = SECRETS[2] if dialect == "bedrock" else SECRETS[0]
    body = refusal(dialect, 429, f"Slow down, {secret}.", "rate_limit_error")
    provider.answer = Answer(status=429, body=body, headers={"retry-after": "17"})
    error = await failed(start, dialect, stream)
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.again, error.asked_s, error.retry_after_s) == (429, Again.SAME, 17.0, 17.0)
    assert "Slow down" in error.message
    assert secret not in error.message
    assert len(provider.seen) == 1


@pytest.mark.parametrize(
    ("dialect", "message", "kind"),
    [
        ("anthropic", "prompt is too long: 210000 tokens > 200000 maximum", "invalid_request_error"),
        ("azure", "This model's maximum context length is 128000 tokens.", "context_length_exceeded"),
        ("openai", "This model's maximum context length is 128000 tokens.", "context_length_exceeded"),
        ("bedrock", "Input is too long for requested model.", "ValidationException"),
        ("gemini", "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
         "INVALID_ARGUMENT"),
    ],
)  # fmt: skip
@streamed_or_not
async def test_a_prompt_too_long(
    dialect: str, message: str, kind: str, stream: bool, start: Start, provider: Provider
) -> None:
    """400: the request's fault, in the provider's words; nobody is asked again."""
    provider.answer = Answer(status=400, body=refusal(dialect, 400, message, kind))
    error = await failed(start, dialect, stream)
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.code, error.again) == (400, "context_length_exceeded", Again.NEVER)
    assert error.message == message


@each_dialect
@streamed_or_not
async def test_a_server_that_fails(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """500: may be tried again, here and elsewhere; the provider's internals stay behind, and litellm tried once."""
    provider.answer = Answer(status=500, body=refusal(dialect, 500, "stack trace of theirs", "api_error"))
    error = await failed(start, dialect, stream)
    assert (type(error), error.status, error.again) == (UpstreamBroken, 502, Again.SAME)
    assert "stack trace" not in error.message
    assert len(provider.seen) == 1


@each_dialect
@streamed_or_not
async def test_overloaded(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """503: not available now."""
    provider.answer = Answer(status=503, body=refusal(dialect, 503, "Overloaded", "overloaded_error"))
    error = await failed(start, dialect, stream)
    assert (type(error), error.again) == (UpstreamUnavailable, Again.SAME)


@each_dialect
@streamed_or_not
async def test_nobody_there(dialect: str, stream: bool, start: Start) -> None:
    """A provider that cannot be reached did no work: others, or the same again."""
    error = await failed(start, dialect, stream, base_url="http://127.0.0.1:9")
    assert (type(error), error.again) == (UpstreamUnavailable, Again.SAME)
    assert "127.0.0.1" not in error.message


@each_dialect
@pytest.mark.parametrize("begun", [False, True], ids=["before words", "after words"])
async def test_a_stream_cut_half_way(dialect: str, begun: bool, start: Start, provider: Provider) -> None:
    """A stream that breaks off is an error, before the first words an invisible one; it never looks whole."""
    told = DIALECTS[dialect]
    frames = told.answer("text", True).frames
    words = next(i for i, frame in enumerate(frames) if b"It is" in frame)
    provider.answer = Answer(
        frames=frames,
        stream_type=told.stream_type,
        cut_after=words + 1 if begun else max(words, 1) if words else 0,
    )
    model = await start(dialect)
    events: list[bytes] = []
    with pytest.raises(UpstreamError) as caught:
        await hear(model, events)
    assert caught.value.again is Again.ELSEWHERE
    assert any(b"It is" in event for event in events) is begun
    assert not any(b'"stop"' in event for event in events)


async def hear(model: Model, events: list[bytes]) -> None:
    """A streamed call whose events go into `events` as they come."""
    async for event in await model.stream("/chat/completions", {**BODY, "stream": True}):
        events.append(event)  # noqa: PERF401 - what came before a failure is kept


@each_dialect
async def test_a_stream_that_just_ends(dialect: str, start: Start, provider: Provider) -> None:
    """A stream that ends properly on the wire, but in the middle of the answer, is an error too: litellm would make up
    a reason to finish."""
    told = DIALECTS[dialect]
    frames = told.answer("text", True).frames
    words = next(i for i, frame in enumerate(frames) if b"It is" in frame)
    provider.answer = Answer(frames=frames[: words + 1], stream_type=told.stream_type)
    model = await start(dialect)
    events: list[bytes] = []
    with pytest.raises(UpstreamBroken):
        await hear(model, events)
    assert not any(b'"stop"' in event for event in events)


async def test_an_error_event_of_anthropics(start: Start, provider: Provider) -> None:
    """An error that Anthropic sends within a stream ends it, without what the provider must not tell."""
    frames = list(DIALECTS["anthropic"].answer("text", True).frames[:4])
    told = {"type": "error", "error": {"type": "overloaded_error", "message": f"Overloaded {SECRETS[0]}"}}
    frames.append(b"event: error\ndata: %b\n\n" % orjson.dumps(told))
    provider.answer = Answer(frames=frames)
    model = await start("anthropic")
    with pytest.raises(UpstreamBroken) as caught:
        await hear(model, [])
    assert SECRETS[0] not in caught.value.message


async def test_an_exception_in_awss_stream(start: Start, provider: Provider) -> None:
    """An exception message among AWS's frames ends the answer."""
    frames = list(DIALECTS["bedrock"].answer("text", True).frames[:2])
    frames.append(shapes.aws_frame("modelStreamErrorException", {"message": "it broke"}, "exception"))
    provider.answer = Answer(frames=frames, stream_type=AWS_STREAM)
    model = await start("bedrock")
    with pytest.raises(UpstreamError):
        await hear(model, [])


@each_dialect
@streamed_or_not
async def test_garbage(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """An answer that is none: the provider may have done the work, so only others are asked."""
    provider.answer = (
        Answer(frames=[b'data: {"nonsense\n\n'], stream_type=DIALECTS[dialect].stream_type)
        if stream
        else Answer(body=b"<html>")
    )
    error = await failed(start, dialect, stream)
    assert error.again is Again.ELSEWHERE


@each_dialect
@streamed_or_not
async def test_who_leaves_ends_the_call(
    dialect: str,
    stream: bool,
    start: Start,
    provider: Provider,
    until: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    """A caller that leaves before the answer closes the connection to the provider."""
    told = DIALECTS[dialect].answer("text", stream)
    told.delay_s = 60.0
    provider.answer = told
    model = await start(dialect)
    task = asyncio.create_task(ask(model, BODY, stream))
    await until(lambda: bool(provider.seen))
    task.cancel()
    await until(lambda: provider.left == 1)


@streamed_or_not
async def test_the_clock_runs_out(stream: bool, start: Start, provider: Provider) -> None:
    """The attempt's clock bounds a hosted call as any other, and closes the connection to the provider."""
    told = DIALECTS["anthropic"].answer("text", stream)
    told.delay_s = 60.0
    provider.answer = told
    clock = {"first_token_timeout_s": 0.2} if stream else {"timeout_s": 0.2}
    error = await failed(start, "anthropic", stream, **clock)
    assert (type(error), error.again) == (UpstreamTimeout, Again.ELSEWHERE)


async def test_a_stream_that_fails_before_its_words_falls_over_unseen(litellm: Any) -> None:
    """Anthropic breaks off before the first words, and Bedrock answers: the caller sees one whole stream. The model has
    both as deployments, each asked once."""
    broken, sound = Provider(), Provider()
    broken.answer = Answer(frames=DIALECTS["anthropic"].answer("text", True).frames, cut_after=1)
    sound.answer = DIALECTS["bedrock"].answer("text", True)
    with TemporaryDirectory(prefix="chorus-") as folder:
        async with broken.serving() as first, sound.serving() as second:
            sections = [{**section("anthropic", first), "weight": 1e9}, section("bedrock", second)]
            settings = settings_for({"m": sections}, resilience={"retries": 1})
            settings = settings.model_copy(
                update={"models": {"m": settings.models["m"].model_copy(update={"balance": "weighted"})}}
            )
            socket = Path(folder) / "h.sock"
            async with HostedHost(HostedModels(litellm, settings)).serving(socket):
                model = make_models(settings, {"hosted": socket})["m"]
                heard = await ask(model, BODY, True)
                await model.close()
    assert heard.message["content"] == TEXT
    assert (len(broken.seen), len(sound.seen)) == (1, 1)


@each_dialect
@streamed_or_not
async def test_a_redirect_is_not_followed(
    dialect: str, stream: bool, start: Start, provider: Provider
) -> None:
    """Key and prompt go to the provider of the config only, wherever it points."""
    elsewhere = Provider()
    async with elsewhere.serving() as url:
        provider.answer = Answer(status=307, body={}, headers={"location": f"{url}/v1/messages"})
        error = await failed(start, dialect, stream)
    assert (type(error), error.again) == (UpstreamBroken, Again.ELSEWHERE)
    assert (len(provider.seen), len(elsewhere.seen)) == (1, 0)


@each_dialect
@streamed_or_not
async def test_a_lost_connection_is_not_asked_twice(
    dialect: str, stream: bool, start: Start, provider: Provider
) -> None:
    """A provider that got the request and then went away may have done the work: only others are asked."""
    provider.answer = Answer(lost=True)
    error = await failed(start, dialect, stream)
    assert error.again is Again.ELSEWHERE
    assert len(provider.seen) == 1
