"""The embedder process: `/v1/embeddings` on a Unix socket, for all workers of a gateway.

    python -m gateway.embedder_host CONFIG --uds PATH

One process holds the model once, and texts of all workers share its batches.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from gateway import helper
from gateway.embedding_batches import EmbeddingBatches, Vector
from gateway.exchange import ClientLeft, Exchange, Receive, Scope, Send
from gateway.ids import Ids
from gateway.local_weights import weights_folder
from gateway.surfaces import parse_embedding
from protocol.errors import (
    BadRequest,
    ChorusError,
    InternalError,
    MethodError,
    ModelNotFound,
    NotFound,
    SettingsError,
)
from protocol.log_pipe import start_logging
from protocol.settings import Settings

__all__ = ["EmbedderHost", "main"]

log = logging.getLogger("chorus.embedder")

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_CHARS = 32_768
"""Of a longer text only the beginning is looked at: the models read a few hundred tokens."""


class EmbedderHost:
    """An ASGI application over one `EmbeddingBatches` for each public model name."""

    def __init__(self, models: Mapping[str, EmbeddingBatches]) -> None:
        self._models, self._ids = models, Ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._ids.fresh())
        try:
            if (scope["method"], scope["path"]) == ("GET", "/health"):
                answer: dict[str, Any] = {"status": "ok"}
            elif (scope["method"], scope["path"]) == ("POST", "/v1/embeddings"):
                answer = await self._embeddings(await exchange.body(MAX_BODY_BYTES))
            else:
                raise NotFound(f"There is no route {scope['path']}.")
            await exchange.send_bytes(orjson.dumps(answer), headers={})
        except ClientLeft:
            log.info("a caller left")
        except ChorusError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("a bug of ours")
            await exchange.fail(InternalError("The embedder failed; its log says why."))

    async def _embeddings(self, raw: bytes) -> dict[str, Any]:
        request = parse_embedding(raw)
        model = self._models.get(request.model)
        if model is None:
            raise ModelNotFound(request.model, self._models)
        vectors = await model.embed_all(_texts(request.body["input"]))
        _check_dimensions(request.body.get("dimensions"), len(vectors[0][0]))
        encode = _base64 if request.body.get("encoding_format") == "base64" else _floats
        tokens = sum(count for _, count in vectors)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": encode(vector)}
                for i, vector in enumerate(vectors)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _texts(given: Any) -> Sequence[str]:
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("'input' must be text: this model takes no token ids.", param="input")
    if not all(texts):
        raise BadRequest("'input' must not hold an empty text.", param="input")
    return [text[:MAX_CHARS] for text in texts]


def _check_dimensions(asked: Any, dimensions: int) -> None:
    if asked is not None and asked != dimensions:
        raise BadRequest(f"This model's embeddings have {dimensions} dimensions.", param="dimensions")


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector[0].astype("<f4").tobytes()).decode("ascii")


def _floats(vector: Vector) -> list[float]:
    floats: list[float] = vector[0].tolist()
    return floats


def load(settings: Settings) -> dict[str, EmbeddingBatches]:
    """The config's embedding models, loaded. Raises `SettingsError`."""
    from outcomes.embedder import load_embedder

    models = {}
    for name, model in settings.models.items():
        if (section := model.embedder) is None:
            continue
        try:
            embedder = load_embedder(
                weights_folder(section.weights), threads=section.threads, max_batch=section.max_batch
            )
        except MethodError as error:
            raise SettingsError(
                f"models.{name}.embedder.weights: {error} Get it: `chorus models pull {section.weights}`."
            ) from error
        models[name] = EmbeddingBatches(embedder.embed_counted, max_batch=section.max_batch)
    return models


async def serve(models: Mapping[str, EmbeddingBatches], uds: Path) -> None:
    """Serve on the Unix socket `uds` until SIGTERM."""
    config = uvicorn.Config(
        EmbedderHost(models),
        uds=str(uds),
        access_log=False,
        log_config=None,
        lifespan="off",
        timeout_keep_alive=65,
        timeout_graceful_shutdown=5,
    )
    batching = [asyncio.create_task(model.run()) for model in models.values()]
    try:
        await uvicorn.Server(config).serve()
    finally:
        for task in batching:
            task.cancel()


def _prepare(settings: Settings) -> helper.Serve:
    start_logging(settings, "embedder")
    return partial(serve, load(settings))


def main() -> int:
    """The process's entry point; returns its exit status."""
    return helper.run("embedder_host", _prepare)


if __name__ == "__main__":
    sys.exit(main())
