"""One HTTP exchange: bodies, request ids, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.exchange import request_id

ADMITTED = ["abc-123", "018f:a/b+c=", "x" * 128]
REFUSED = ["", "a b", "x" * 129, "a\tb", "é"]


@pytest.mark.parametrize("given", ADMITTED)
def test_request_id_echoed(given: str) -> None:
    """A sane request id is the caller's own."""
    assert request_id({b"x-request-id": given.encode()}, "fresh") == given


@pytest.mark.parametrize("given", REFUSED)
def test_request_id_replaced(given: str) -> None:
    """Any other is replaced, so that nothing can be smuggled into headers or logs."""
    assert request_id({b"x-request-id": given.encode()}, "fresh") == "req_fresh"


async def test_request_id_on_every_answer(serve: Any, chat: Any) -> None:
    """Every answer carries the request's id: hot routes, pages and errors."""
    client = await serve()
    headers = {"x-request-id": "mine-1"}
    told = [
        await chat(client, "one", headers=headers),
        await chat(client, "one", headers=headers, stream=True),
        await chat(client, "nope", headers=headers),
        await client.get("/v1/models", headers=headers),
        await client.get("/nope", headers=headers),
    ]
    assert [response.headers["x-request-id"] for response in told] == ["mine-1"] * 5


async def test_body_too_large(serve: Any) -> None:
    """A declared length above the limit is a 413, whose reader is let finish sending."""
    client = await serve(server={"max_body_bytes": 1024})
    response = await client.post("/v1/chat/completions", content=b"x" * 3_000_000)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


async def test_body_too_large_is_not_asked_for(serve: Any) -> None:
    """A sender that asks first is refused without having to send."""
    client = await serve(server={"max_body_bytes": 1024})
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n"
        b"expect: 100-continue\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


async def test_chunked_body_too_large(serve: Any) -> None:
    """A body of undeclared length is counted as it comes."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 50_000

    client = await serve(server={"max_body_bytes": 1024})
    response = await client.post("/v1/chat/completions", content=pieces())
    assert response.status_code == 413
    assert (await client.get("/livez")).status_code == 200


async def test_body_in_pieces(serve: Any, upstream: Any) -> None:
    """A body may come in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model": "one", "messages": [{"role": "user", '
        yield b'"content": "x"}]}'

    response = await (await serve()).post("/v1/chat/completions", content=pieces())
    assert response.status_code == 200
    assert upstream.seen[0].body["messages"][0]["content"] == "x"
