"""The embedder process."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.embedder_host import EmbedderHost, load
from gateway.embedding_batches import EmbeddingBatches
from protocol.errors import SettingsError
from protocol.settings import parse_settings
from tests.encoders import tiny_encoder


@pytest.fixture
async def host() -> AsyncIterator[httpx.AsyncClient]:
    """The application over a model `e` that embeds a text as (its length, 1)."""

    def embed(texts: Any) -> Any:
        lengths = np.array([len(text) for text in texts])
        return np.stack([lengths, np.ones_like(lengths)], axis=1).astype(np.float32), lengths

    batches = EmbeddingBatches(embed, max_batch=4)
    task = asyncio.create_task(batches.run())
    transport = httpx.ASGITransport(EmbedderHost({"e": batches}))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client
    task.cancel()


async def post(host: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await host.post("/v1/embeddings", json={"model": "e", **fields})


async def test_one_text(host: httpx.AsyncClient) -> None:
    """One text gives one embedding, with the tokens read."""
    body = (await post(host, input="abc")).json()
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": [3.0, 1.0]}]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (body["object"], body["model"]) == ("list", "e")


async def test_base64(host: httpx.AsyncClient) -> None:
    """Base64 holds little-endian float32."""
    body = (await post(host, input=["ab", "c"], encoding_format="base64")).json()
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() for row in body["data"]]
    assert decoded == [[2.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": [1, 2]}, 400, "input"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["a", ""]}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["a"] * 2049}, 400, "input"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 7}, 400, "dimensions"),
        ({"input": "a", "model": "nope"}, 404, "model"),
    ],
)
async def test_refusals(host: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str) -> None:
    """What cannot be embedded is refused, naming the field."""
    response = await post(host, **fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_health_and_routes(host: httpx.AsyncClient) -> None:
    """Health is cheap; other routes do not exist."""
    assert (await host.get("/health")).status_code == 200
    assert (await host.get("/nope")).json()["error"]["code"] == "not_found"


def test_missing_weights(tmp_path: Path) -> None:
    """Weights that are not there stop the start with the model's path in the config and the remedy."""
    settings = parse_settings(f"models: {{e: {{embedder: {{weights: {tmp_path}}}}}}}")
    with pytest.raises(SettingsError, match=r"models\.e\.embedder\.weights.*chorus models pull"):
        load(settings)


async def test_a_static_embedder_is_served_as_an_encoder_is(tmp_path: Path) -> None:
    """A folder that `chorus models distil` wrote is loaded by what its `weights.json` says."""
    tiny_encoder(tmp_path / "encoder")
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tmp_path / "encoder" / "tokenizer.json").read_bytes())
    table = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float16)
    save_file({"table": table, "offset": np.ones(8, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "weights.json").write_text('{"embedder_id": "static-e@1", "format": "static"}')
    settings = parse_settings(
        f"models: {{e: {{embedder: {{weights: {folder}}}}}, a: {{openai: {{base_url: 'http://x/v1', model: m}}}}}}"
    )
    batches = load(settings)["e"]
    running = asyncio.create_task(batches.run())
    [(first, tokens), (second, _)] = await batches.embed_all(["river stone", "french word"])
    running.cancel()
    assert tokens == 2
    assert np.allclose([np.linalg.norm(first), np.linalg.norm(second)], 1, atol=1e-6)
    assert not np.allclose(first, second)
