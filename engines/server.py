"""The engine host as an OpenAI-compatible HTTP server on a loopback port or a Unix socket.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health   GET /stats   GET /metrics

Plain engine models and fusions are models alike. To a gateway worker this is one more backend.
"""

from __future__ import annotations

import logging
import math
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engines import preload
from engines.answer import Answer, Shape
from engines.byte_vocab import Kind
from engines.generation import Generation, Sampling
from engines.grammar import schema_of
from engines.host import Host
from engines.metrics import CONTENT_TYPE
from engines.sampler_options import sampler_options
from engines.templates import Prompting
from protocol.chat import ChatRequest, Options, check_model, check_sampling, message_text, parse_object
from protocol.errors import (
    BadRequest,
    ChorusError,
    ContextLengthExceeded,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    PayloadTooLarge,
    UpstreamUnavailable,
)
from protocol.features import TEXT_ONLY_CANNOT, refuse
from protocol.settings import Settings
from protocol.wire import DEADLINE_HEADER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn

__all__ = ["Service", "application", "run"]

log = logging.getLogger("chorus.engines")

LOWEST_TEMPERATURE = 1e-3
"""Below it a draw is the most likely token anyway, and dividing by it overflows."""
MAX_BODY_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as its members see it: the question in plain words, each member's prompt, the weights it wants them to
    have, the stop strings of their templates, and the bytes these may begin in; until when the caller waits."""

    question: str
    members: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None = None
    stops: tuple[bytes, ...] = ()
    before: bytes = b""
    deadline: float = math.inf


class Service:
    """Turns parsed requests into generations. It holds the host and how each engine is prompted."""

    def __init__(self, host: Host, prompts: Mapping[str, Prompting]) -> None:
        self.host = host
        self._prompts = prompts
        self.started = int(time.time())

    @property
    def names(self) -> list[str]:
        """Every model served: engines, then fusions."""
        return [*self.host.engine_specs, *self.host.fusion_specs]

    def chat(self, raw: bytes, request_id: str, deadline: float = math.inf) -> Answer:
        """A chat completion, for which the caller waits until `deadline` (`time.monotonic`). Raises `ChorusError`."""
        request = ChatRequest.parse(raw)
        members = self._members(request.model)
        refuse(request.body, TEXT_ONLY_CANNOT, who="models of the engine host")
        rendered = [self._prompts[member].render(request.messages) for member in members]
        stops = tuple(stop for one in rendered for stop in one.stops)
        before = next((one.before for one in rendered if one.before), b"")
        prompts = [
            self.host.vocabs[m].encode_prompt(one.text) for m, one in zip(members, rendered, strict=True)
        ]
        wants = bool(request.body.get("logprobs"))
        top = (request.body.get("top_logprobs") or 0) if wants else None
        weights = self._weights(request.model, request.options)
        spoken = [message_text(m) for m in request.messages if m["role"] not in ("system", "developer")]
        asked = _Asked(
            "\n\n".join(spoken), tuple(members), tuple(map(tuple, prompts)), weights, stops, before, deadline
        )
        return self._answer(request.body, asked, request.max_tokens, top, True, request_id)

    def complete(self, raw: bytes, request_id: str, deadline: float = math.inf) -> Answer:
        """A text completion of a raw prompt. Raises `ChorusError`."""
        body = parse_object(raw)
        options = Options.parse(body.pop("chorus", None))
        check_model(body)
        top = body.get("logprobs")
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20):
            raise BadRequest("'logprobs' must be an integer between 0 and 20.", param="logprobs")
        check_sampling(body)
        members = self._members(body["model"])
        refuse(body, TEXT_ONLY_CANNOT, who="models of the engine host")
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str) or not prompt:
            raise BadRequest("'prompt' is required and must be a non-empty string.", param="prompt")
        prompts = [self.host.vocabs[m].encode_prompt(prompt) for m in members]
        weights = self._weights(body["model"], options)
        asked = _Asked(prompt, tuple(members), tuple(map(tuple, prompts)), weights, deadline=deadline)
        return self._answer(body, asked, body.get("max_tokens") or 16, top, False, request_id)

    def _members(self, model: str) -> tuple[str, ...]:
        if model not in self.names:
            raise ModelNotFound(model, self.names)
        if not self.host.alive:
            raise UpstreamUnavailable("The engine host is loading or has stopped.")
        return self.host.members_of(model)

    def _weights(self, model: str, options: Options) -> tuple[float, ...] | None:
        """The members' weights that the request wants, in their order."""
        if (asked := options.weights) is None:
            return None
        if (reason := self.host.cannot(model).get("chorus.weights")) is not None:
            raise BadRequest(
                f"'chorus.weights' is not supported by {model!r}: {reason}.", param="chorus.weights"
            )
        members = self.host.members_of(model) if model in self.host.fusion_specs else ()
        if asked.keys() != set(members):
            raise BadRequest(
                f"'chorus.weights' must name the members of {model!r}: {', '.join(members) or 'it has none'}.",
                param="chorus.weights",
            )
        return tuple(asked[member] for member in members)

    def _answer(
        self,
        body: Mapping[str, Any],
        asked: _Asked,
        max_tokens: int | None,
        top_logprobs: int | None,
        chat: bool,
        request_id: str,
    ) -> Answer:
        model, members, prompts = body["model"], asked.members, asked.prompts
        fused = model in self.host.fusion_specs
        for member, prompt in zip(members, prompts, strict=True):
            limit = self.host.engine_specs[member].max_model_len
            if len(prompt) >= limit:
                raise ContextLengthExceeded(limit=limit, prompt_tokens=len(prompt))
        main = members[self.host.fusion_specs[model].main if fused else 0]
        kinds = self.host.vocabs[main].kind
        extra = sampler_options(body, len(kinds))
        wanted = schema_of(body.get("response_format"))
        asked_for = {*extra}
        asked_for |= {"logprobs"} if top_logprobs is not None else set()
        asked_for |= {"response_format"} if wanted is not None else set()
        for name, reason in self.host.cannot(model).items():
            if name in asked_for:
                raise BadRequest(f"'{name}' is not supported by {model!r}: {reason}.", param=name)
        mute = [i for i in extra.get("logit_bias", ()) if fused and kinds[i] is Kind.CONTROL]
        if mute:
            raise BadRequest(
                f"'logit_bias' names {mute[0]}, a control token, which a fusion never writes.",
                param="logit_bias",
            )
        grammar = None if wanted is None else self.host.grammar(model, wanted[0], strict=wanted[1])
        stop = body.get("stop") or ()
        stops = tuple(text.encode() for text in ([stop] if isinstance(stop, str) else stop) if text)
        seed = body.get("seed")
        temperature = body.get("temperature")
        if temperature is None:
            temperature = self.host.engine_specs[main].temperature
        if temperature < LOWEST_TEMPERATURE:
            temperature = 0.0

        def sampling(choice: int) -> Sampling:
            return Sampling(
                max_tokens=max_tokens,
                temperature=float(temperature),
                top_p=float(body["top_p"]) if body.get("top_p") is not None else 1.0,
                seed=None if seed is None else (seed + choice) % 2**63,
                stops=(*stops, *asked.stops),
                before=asked.before,
                top_logprobs=top_logprobs,
                extra=extra,
                grammar=grammar,
            )

        id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        n = body.get("n") or 1
        generations = [
            Generation(
                f"{id}-{choice}",
                model,
                prompts,
                sampling(choice),
                asked.weights,
                asked.question,
                asked.deadline,
            )
            for choice in range(n)
        ]
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        shape = Shape(
            id=id,
            model=model,
            chat=chat,
            fused=fused,
            usage_in_stream=usage,
            logprobs=top_logprobs is not None,
        )
        return Answer(self.host, generations, shape, stream=bool(body.get("stream")), request_id=request_id)

    def stats(self) -> dict[str, Any]:
        """Running and waiting requests, in all and per engine; a fused request counts once in each of its
        engines. Of fusions whose members draft, how many drafts were made, verified and accepted."""
        usage = self.host.kv_usage()
        engines = {
            name: {"running": running, "waiting": waiting, "kv_cache_usage": usage[name]}
            for name, (running, waiting) in self.host.counts().items()
        }
        total = {key: sum(engine[key] for engine in engines.values()) for key in ("running", "waiting")}
        tallies = {name: asdict(tally) for name, tally in self.host.tallies().items()}
        return {**total, "engines": engines, **({"drafts": tallies} if tallies else {})}


def application(service: Service) -> Starlette:
    """The routes over a service whose host runs already."""

    async def chat(request: Request) -> Any:
        # In a thread: the tokenizer may take a second over a very long prompt, and streams must go on.
        body, id = await _body(request), _request_id(request)
        return await run_in_threadpool(service.chat, body, id, _deadline(request))

    async def complete(request: Request) -> Any:
        body, id = await _body(request), _request_id(request)
        return await run_in_threadpool(service.complete, body, id, _deadline(request))

    async def models(request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": service.started, "owned_by": "chorus"}
            for name in service.names
        ]
        return JSONResponse({"object": "list", "data": data})

    async def health(request: Request) -> Response:
        alive = service.host.alive
        return JSONResponse({"status": "ok" if alive else "unavailable"}, 200 if alive else 503)

    async def stats(request: Request) -> Response:
        return JSONResponse(service.stats())

    async def metrics(request: Request) -> Response:
        return Response(service.host.metrics(), media_type=CONTENT_TYPE)

    async def chorus_error(request: Request, error: Exception) -> Response:
        shown = (
            error if isinstance(error, ChorusError) else InternalError("The engine host failed; see its log.")
        )
        headers = {**shown.headers(), "x-request-id": _request_id(request)}
        return JSONResponse(shown.body(), shown.status, headers)

    async def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        path = request.url.path[:200]
        known: ChorusError = NotFound(f"No route {path!r} here.")
        if status == 405:
            known = MethodNotAllowed(f"{request.method} is not allowed on {path!r}.")
        return await chorus_error(request, known if status in (404, 405) else BadRequest(str(error)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/stats", stats, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={ChorusError: chorus_error, HTTPException: http_error, Exception: chorus_error},
        lifespan=lifespan,
    )


def run(
    settings: Settings,
    *,
    uds: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    drain_s: int = 5,
) -> int:
    """Load the engines of `settings` and serve until a signal; then answers may go on for `drain_s` seconds.
    Returns the exit code: 0, or 1 when the step loop broke."""
    import uvicorn

    from engines.assemble import assemble

    server: uvicorn.Server | None = None
    crashed: list[BaseException] = []

    def on_crash(error: BaseException) -> None:
        crashed.append(error)
        if server is not None:
            server.should_exit = True

    _tell_preloaded()
    engines, prompts = assemble(settings, on_crash=on_crash)
    engines.start()
    app = application(Service(engines, prompts))
    if uds is not None:
        _reserve(uds)
    config = uvicorn.Config(
        app,
        uds=None if uds is None else str(uds),
        host=host,
        port=8090 if port is None else port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=drain_s,
        backlog=2048,
    )
    server = uvicorn.Server(config)
    if not crashed:
        log.info("engine host ready on %s", uds or f"{host}:{port}")
        server.run()
    if not crashed:
        engines.stop()
    return 1 if crashed else 0


def _tell_preloaded() -> None:
    """Say which libraries the process was started with, and how to get those that are missing."""
    has = preload.loaded()
    log.info("preloaded: %s", ", ".join(name for name, there in has.items() if there) or "nothing")
    for library in preload.libraries():
        if not has[library.name]:
            log.warning(
                "%s is not preloaded; vLLM on CPUs is made to run with it: %s", library.name, library.remedy
            )


def _reserve(uds: Path) -> None:
    """Leave a socket file that only its owner may open: there are no keys behind it, and uvicorn takes over
    the mode of the file it replaces."""
    uds.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(uds))
    uds.chmod(0o600)


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def _deadline(request: Request) -> float:
    """Until when the caller waits, by the header that a gateway of ours sends, on the clock `time.monotonic`; without
    one, or with one that is no number, for ever."""
    given = request.headers.get(DEADLINE_HEADER, "")
    return time.monotonic() + int(given) / 1000 if given.isdecimal() and len(given) < 12 else math.inf


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return (
        given
        if given.isascii() and given.isprintable() and 0 < len(given) <= 128
        else f"req-{secrets.token_hex(12)}"
    )
