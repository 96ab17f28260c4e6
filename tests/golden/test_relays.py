"""Endpoints that only backends have, passed on with the official OpenAI SDK and on the wire."""

from __future__ import annotations

import io
from typing import Any

import httpx
import openai
import pytest

from tests.raw_upstream import RawUpstream

FORM = (
    b'--xyz\r\ncontent-disposition: form-data; name="model"\r\n\r\nnative\r\n'
    b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="model"\r\ncontent-type: audio/wav\r\n\r\n'
    b"\x00\xff--xy\r\n--z\r\n"
    b"--xyz--\r\n"
)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK says so of parts of it
async def test_images(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Images are made, edited and varied by a backend that can."""
    made: Any = {"created": 1, "data": [{"b64_json": "AA"}], "usage": {"input_tokens": 3, "output_tokens": 2}}
    for path in ("generations", "edits", "variations"):
        upstream.answer(f"/v1/images/{path}", made)
    told = await openai_sdk.images.generate(model="native", prompt="a fog", extra_body={"novel": 1})
    assert told.data is not None
    assert told.data[0].b64_json == "AA"
    assert upstream.seen[0].body == {"model": "theirs", "prompt": "a fog", "novel": 1}
    await openai_sdk.images.edit(model="native", image=("a.png", b"PNG", "image/png"), prompt="x")
    assert b'name="model"\r\n\r\ntheirs\r\n' in upstream.seen[1].raw
    await openai_sdk.images.create_variation(image=("a.png", b"PNG", "image/png"))
    assert len(upstream.seen) == 3


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK says so of parts of it
async def test_audio(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Speech comes back as the bytes it is; recordings go out as they are."""
    sound = bytes(range(256)) * 300
    upstream.answer("/v1/audio/speech", sound[:1000], sound[1000:], content_type="audio/mpeg")
    told = await openai_sdk.audio.speech.create(model="native", voice="alloy", input="fog")
    assert told.content == sound
    assert told.response.headers["content-type"] == "audio/mpeg"
    upstream.answer("/v1/audio/transcriptions", {"text": "fog"})
    upstream.answer("/v1/audio/translations", {"text": "fog"})
    recording = ("a.wav", sound, "audio/wav")
    assert (await openai_sdk.audio.transcriptions.create(model="native", file=recording)).text == "fog"
    assert (await openai_sdk.audio.translations.create(model="native", file=recording)).text == "fog"
    assert all(sound in seen.raw for seen in upstream.seen[1:])


async def test_moderations(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Without a model's name the first backend that moderates is asked, and none is made up."""
    upstream.answer("/v1/moderations", {"id": "m", "model": "x", "results": []})
    await openai_sdk.moderations.create(input="x")
    await openai_sdk.moderations.create(input="x", model="native")
    assert [seen.body for seen in upstream.seen] == [{"input": "x"}, {"input": "x", "model": "theirs"}]


async def test_files_and_batches(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Files and batches live at the backend: every call of the SDK goes there, ids and query included."""
    file = {
        "id": "file-1",
        "object": "file",
        "bytes": 1,
        "created_at": 1,
        "filename": "a",
        "purpose": "batch",
    }
    batch = {"id": "batch_1", "object": "batch", "status": "validating", "endpoint": "/v1/chat/completions"}
    for path in ("files", "files/file-1", "batches", "batches/batch_1", "batches/batch_1/cancel"):
        upstream.answer(f"/v1/{path}", batch if "batch" in path else file)
    upstream.answer("/v1/files/file-1/content", b"line\n" * 3, content_type="application/octet-stream")
    assert (await openai_sdk.files.create(file=io.BytesIO(b"{}"), purpose="batch")).id == "file-1"
    await openai_sdk.files.list(limit=2, purpose="batch")
    await openai_sdk.files.retrieve("file-1")
    assert (await openai_sdk.files.content("file-1")).content == b"line\n" * 3
    await openai_sdk.files.delete("file-1")
    await openai_sdk.batches.create(
        input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
    )
    await openai_sdk.batches.retrieve("batch_1")
    await openai_sdk.batches.cancel("batch_1")
    await openai_sdk.batches.list(after="batch_0")
    assert [(seen.method, seen.path.removeprefix("/v1")) for seen in upstream.seen] == [
        ("POST", "/files"),
        ("GET", "/files?limit=2&purpose=batch"),
        ("GET", "/files/file-1"),
        ("GET", "/files/file-1/content"),
        ("DELETE", "/files/file-1"),
        ("POST", "/batches"),
        ("GET", "/batches/batch_1"),
        ("POST", "/batches/batch_1/cancel"),
        ("GET", "/batches?after=batch_0"),
    ]


async def test_form_bytes(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Of a form only the model's name is changed; the file keeps every byte, whatever it looks like."""
    upstream.answer("/v1/audio/transcriptions", b'{ "text":"fog" }')
    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    response = await client.post("/v1/audio/transcriptions", content=FORM, headers=headers)
    assert response.content == b'{ "text":"fog" }'
    assert upstream.seen[0].raw == FORM.replace(b"\r\n\r\nnative\r\n", b"\r\n\r\ntheirs\r\n")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/moderations"),
        ("GET", "/v1/files"),
        ("GET", "/v1/batches/b"),
        ("GET", "/v1/responses/r"),
    ],
)
async def test_no_backend(gateway: Any, upstream: RawUpstream, method: str, path: str) -> None:
    """Without a backend that has it, an endpoint is a 404 in OpenAI's shape."""
    url = await gateway()
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        body = {"model": "plain"} if method == "POST" else None
        path = f"{path}?model=plain" if body is None else path
        response = await client.request(method, path, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert not upstream.seen


async def test_no_backend_for_a_surface(gateway: Any, upstream: RawUpstream) -> None:
    """A model whose deployment does not list an endpoint has no such route, chat included."""
    url = await gateway(models={"speaker": {"endpoints": ["audio"]}})
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        for path, body in (
            ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("completions", {"prompt": "x"}),
            ("embeddings", {"input": "x"}),
            ("responses", {"input": "x"}),
            ("messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}),
        ):
            response = await client.post(f"/v1/{path}", json={"model": "speaker", **body})
            assert response.status_code == 404, path
    assert not upstream.seen


async def test_wrong_method(client: httpx.AsyncClient) -> None:
    """A relayed route with another method says which it has."""
    response = await client.put("/v1/files/f")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, DELETE"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..",
        "/v1/files/%2e%2e/content",
        "/v1/files/a%2f..%2fb",
        "/v1/files/a%0d%0ab",
        "/v1/files/a%23b",
        "/v1/files/a%3fb=c",
    ],
)
async def test_ids_lead_nowhere_else(client: httpx.AsyncClient, upstream: RawUpstream, path: str) -> None:
    """An id that could lead elsewhere at the backend is no route here."""
    request = client.build_request("GET", str(client.base_url))
    request.url = httpx.URL(str(client.base_url).rstrip("/")).copy_with(raw_path=path.encode())
    response = await client.send(request)
    assert response.status_code == 404
    assert not upstream.seen


async def test_query_is_an_allow_list(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Only known fields of a query go on, encoded anew."""
    upstream.answer("/v1/files", {"data": []})
    await client.get("/v1/files", params={"limit": "1\r\nx: y", "api_base": "http://evil", "model": "native"})
    assert upstream.seen[0].path == "/v1/files?limit=1%0D%0Ax%3A+y"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", FORM),
        ("multipart/form-data; boundary=", FORM),
        ("multipart/form-data; boundary=" + "x" * 71, FORM),
        ("multipart/form-data; boundary=xyz; a=b", FORM),
        ("multipart/form-data; boundary=abc", FORM),
        ("multipart/form-data; boundary=xyz", FORM[:-20]),
        ("multipart/form-data; boundary=xyz", FORM.replace(b"native", b"\xff")),
        ("multipart/form-data; boundary=xyz", FORM[: FORM.index(b"--xyz", 5)] + FORM),
        ("multipart/form-data; boundary=xyz", b"--xyz\r\n\r\n" * 300 + b"--xyz--"),
        ("multipart/form-data; boundary=xyz", b"--xyzzz"),
    ],
)
async def test_malformed_forms(
    client: httpx.AsyncClient, upstream: RawUpstream, content_type: str, body: bytes
) -> None:
    """A form that is none is a 400."""
    response = await client.post(
        "/v1/audio/translations", content=body, headers={"content-type": content_type}
    )
    assert response.status_code == 400
    assert not upstream.seen


async def test_size_cap(gateway: Any, upstream: RawUpstream) -> None:
    """Forms are bounded like every body."""
    url = await gateway(server={"max_body_bytes": 2000})
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        response = await client.post("/v1/files", files={"file": b"x" * 5000})
    assert response.status_code == 413
    assert not upstream.seen


async def test_refusals_and_broken_answers(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """A backend's refusal keeps its status; what calls itself JSON and is none is a 502."""
    upstream.answer("/v1/moderations", {"error": {"message": "no", "code": "x"}}, status=422)
    refused = await client.post("/v1/moderations", json={"input": "x"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (422, "no")
    upstream.answer("/v1/moderations", b"[1")
    assert (await client.post("/v1/moderations", json={"input": "x"})).status_code == 502
