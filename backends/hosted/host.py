"""The server in front of litellm: `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings` on a Unix socket.

A request's `model` names a deployment of the config (`deployment_id`). A caller that leaves cancels its call, and with
it the connection to the provider. A stream begins with its first piece, so that what fails before is an error with a
status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from backends.hosted.asking import chat_parameters, embedding_parameters, text_parameters
from backends.hosted.failing import Failure, failure_of
from backends.hosted.ids import deployment_id
from backends.hosted.quiet import own_parameters
from backends.hosted.stream_state import CutShort, told_usage, watch_finish
from backends.hosted.telling import completion_of, embeddings_of, head_of, part_of, text_of, usage_of
from protocol import sse
from protocol.errors import ChorusError, ModelNotFound, SettingsError
from protocol.settings import HostedModel, Settings
from protocol.usage import Usage

__all__ = ["HostedHost", "HostedModels"]

log = logging.getLogger("chorus.hosted")

MAX_BODY_BYTES = 1 << 30
"""The workers have checked how long a body is."""

Parameters = Callable[[Mapping[str, Any], HostedModel], dict[str, Any]]


class HostedDeployment:
    """One deployment: what litellm is told about it on every call, and nothing else."""

    def __init__(self, litellm: Any, section: HostedModel) -> None:
        import httpx

        self._litellm, self.section = litellm, section
        told: dict[str, Any] = {
            "model": section.model,
            "api_key": _secret(section.api_key),
            "api_base": section.base_url,
            "api_version": section.api_version,
            "aws_region_name": section.region if section.provider == "bedrock" else None,
            "aws_access_key_id": _secret(section.aws_access_key_id),
            "aws_secret_access_key": _secret(section.aws_secret_access_key),
            "aws_session_token": _secret(section.aws_session_token),
            "aws_bedrock_runtime_endpoint": section.base_url if section.provider == "bedrock" else None,
            "vertex_project": section.vertex_project,
            "vertex_location": section.region if section.provider.startswith("vertex_ai") else None,
            "vertex_credentials": _secret(section.vertex_credentials),
            "timeout": httpx.Timeout(section.timeout_s, connect=section.connect_timeout_s),
        }
        # Retries are the gateway's, which has a budget for them; with `no-log` litellm keeps no record of a call.
        switches = {
            "max_retries": 0,
            "num_retries": 0,
            "drop_params": section.drop_unsupported,
            "no-log": True,
        }
        self._told = {key: value for key, value in told.items() if value is not None} | switches
        base_url = section.base_url or ""
        keys = (
            "api_key",
            "aws_access_key_id",
            "aws_secret_access_key",
            "aws_session_token",
            "vertex_credentials",
        )
        self.secrets = (*(told[key] or "" for key in keys), base_url, urlsplit(base_url).netloc)
        """What no message may hold."""

    async def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A complete answer, as a `chat.completion`. Raises what litellm raises."""
        answer = await self._litellm.acompletion(**given, **self._told)
        body = completion_of(answer.model_dump())
        if body["model"] is None:
            body["model"] = self.section.model
        return body

    async def stream(self, given: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed answer, then, where the provider told it, one with usage. Raises what litellm
        raises, and `CutShort` when the provider's stream ended before its answer did."""
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._litellm.acompletion(**given, **self._told, **asked)
        finished = watch_finish(answer)
        head: dict[str, Any] = {}
        usage = Usage()
        try:
            async for piece in answer:
                chunk = piece.model_dump()
                head = head or head_of(chunk)
                usage = usage_of(chunk.get("usage"))
                part = part_of(chunk, head)
                if any(choice["finish_reason"] for choice in part["choices"]) and not finished():
                    raise CutShort
                if any(map(_says, part["choices"])):
                    yield part
        finally:
            await answer.aclose()
        if told_usage(answer):
            yield {**head, "choices": [], "usage": usage.wire()}

    async def embed(self, given: Mapping[str, Any], *, encoded: bool) -> dict[str, Any]:
        """Embeddings. Raises what litellm raises."""
        answer = await self._litellm.aembedding(**given, **self._told)
        return embeddings_of(answer.model_dump(), encoded=encoded)


class HostedModels:
    """Every hosted deployment of a config by `deployment_id`. Raises `SettingsError` for what litellm does not know."""

    def __init__(self, litellm: Any, settings: Settings) -> None:
        self.by_id: dict[str, HostedDeployment] = {}
        taken = own_parameters(litellm)
        for name, model in settings.models.items():
            for i, section in enumerate(model.hosted or ()):
                where = f"models.{name}.hosted"
                if clash := sorted(section.pass_fields & taken):
                    raise SettingsError(f"{where}.pass_fields: {clash[0]!r} is a parameter of litellm's own.")
                if section.provider not in {str(getattr(p, "value", p)) for p in litellm.provider_list}:
                    raise SettingsError(f"{where}.model: litellm knows no provider {section.provider!r}.")
                self.by_id[deployment_id(name, i)] = HostedDeployment(litellm, section)


class HostedHost:
    """The server over `models`. Serve it with `serving`."""

    def __init__(self, models: HostedModels) -> None:
        self._models = models.by_id
        self.application = web.Application(client_max_size=MAX_BODY_BYTES)
        self.application.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.post("/v1/embeddings", self._embeddings),
                web.get("/health", self._health),
            ]
        )

    @asynccontextmanager
    async def serving(self, uds: Path) -> AsyncIterator[None]:
        """Serve on the Unix socket `uds`."""
        runner = web.AppRunner(
            self.application, handler_cancellation=True, access_log=None, shutdown_timeout=5.0
        )
        await runner.setup()
        try:
            await web.UnixSite(runner, str(uds)).start()
            yield
        finally:
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat_parameters, lambda body: body)

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, text_parameters, text_of)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        deployment: HostedDeployment | None = None
        try:
            body, deployment = await self._read(request)
            given = embedding_parameters(body, deployment.section)
            encoded = body.get("encoding_format") == "base64"
            return _json(await deployment.embed(given, encoded=encoded))
        except Exception as error:  # noqa: BLE001 - every failure is translated, in one place
            return _failed(request, error, deployment)

    async def _answer(
        self, request: web.Request, parameters: Parameters, worded: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> web.StreamResponse:
        deployment: HostedDeployment | None = None
        try:
            body, deployment = await self._read(request)
            given = parameters(body, deployment.section)
            if body.get("stream"):
                return await self._stream(request, deployment, given, worded)
            return _json(worded(await deployment.complete(given)))
        except Exception as error:  # noqa: BLE001 - every failure is translated, in one place
            return _failed(request, error, deployment)

    async def _stream(
        self,
        request: web.Request,
        deployment: HostedDeployment,
        given: Mapping[str, Any],
        worded: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> web.StreamResponse:
        async with aclosing(deployment.stream(given)) as chunks:
            first = await anext(chunks, None)
            response = web.StreamResponse(headers={"content-type": sse.CONTENT_TYPE})
            await response.prepare(request)
            try:
                if first is not None:
                    await response.write(sse.event(worded(first)))
                async for chunk in chunks:
                    await response.write(sse.event(worded(chunk)))
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - what began is not an answer with a status any more
                failure = _failure(error, deployment)
                await response.write(
                    sse.event({"error": {"message": failure.message, "code": failure.status}})
                )
                return response
            await response.write(sse.DONE)
        return response

    async def _read(self, request: web.Request) -> tuple[dict[str, Any], HostedDeployment]:
        body = orjson.loads(await request.read())
        name = str(body.get("model"))
        if name not in self._models:
            raise ModelNotFound(name, self._models)
        return body, self._models[name]


def _failure(error: Exception, deployment: HostedDeployment | None) -> Failure:
    if isinstance(error, ChorusError):
        return Failure(error.status, error.body(), error.headers())
    if isinstance(error, CutShort):
        return Failure(lost=True)
    failure = failure_of(error, deployment.secrets if deployment else ())
    if not failure.body and not failure.lost:
        # Only the kind: the text may hold what was asked.
        log.error("a provider's answer could not be read: %s", type(error).__name__)
    return failure


def _failed(
    request: web.Request, error: Exception, deployment: HostedDeployment | None
) -> web.StreamResponse:
    """Answer a call that failed before its answer began."""
    failure = _failure(error, deployment)
    if failure.lost and request.transport is not None:
        request.transport.abort()
    return _json(failure.body, failure.status, failure.headers)


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def _says(choice: Mapping[str, Any]) -> bool:
    return bool(choice["delta"] or choice["finish_reason"] or choice["logprobs"])


def _secret(value: Any) -> str | None:
    return value.get_secret_value() if value is not None else None
