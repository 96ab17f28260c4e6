"""What a client reads of answers that are not as configured, over HTTP, with engines that cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from engines.server import Service, application
from tests.engines.test_host import _host

SCRIPTS = {"letters": "ab" * 10, "pairs": "c" * 20}


async def _post(tmp_path: Path, body: dict[str, Any], **hosting: Any) -> httpx.Response:
    host, engines = _host(tmp_path, SCRIPTS, **{"keep": (1,), **hosting})
    engines["letters"].faults = [6]
    transport = httpx.ASGITransport(application(Service(host, {})))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            asked = {"model": "duet", "prompt": "a", "temperature": 0, "max_tokens": 8, **body}
            return await client.post("/v1/completions", json=asked)
    finally:
        host.stop()


@pytest.mark.parametrize("stream", [True, False])
async def test_who_was_left_out_for_load(tmp_path: Path, stream: bool) -> None:
    """A header says so before the first word, the body or the usage event with the reason."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    reply = await _post(tmp_path, {"stream": stream, "n": 2, **options}, shed_above=0)
    assert reply.status_code == 200
    assert reply.headers["x-chorus-left-out"] == "letters"
    last = reply.text.split("data: ")[-2] if stream else reply.text
    told = orjson.loads(last)["chorus"]
    assert told["left_out"] == [{"index": i, "model": "letters", "why": "load", "at": 0} for i in range(2)]
    assert [member["completion_tokens"] for member in told["members"]] == [0, 16]
    if not stream:
        assert [choice["text"] for choice in reply.json()["choices"]] == ["c" * 8] * 2


async def test_who_failed_in_the_middle(tmp_path: Path) -> None:
    """The text goes on; the body says from which byte on it is the others'."""
    reply = await _post(tmp_path, {}, drop=True)
    assert "x-chorus-left-out" not in reply.headers
    (out,) = reply.json()["chorus"]["left_out"]
    assert (out["model"], out["why"]) == ("letters", "failed")
    text = reply.json()["choices"][0]["text"]
    assert 0 < out["at"] < len(text)
    assert text[: out["at"]] == SCRIPTS["letters"][: out["at"]]
    assert text[out["at"] :] == SCRIPTS["pairs"][: len(text) - out["at"]]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_host(tmp_path: Path, stream: bool) -> None:
    """429 with the time to wait, streaming or not."""
    reply = await _post(tmp_path, {"stream": stream}, places=(1, -1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("chorus", "message"),
    [
        ({"weights": {"letters": 1}}, "must name the members"),
        ({"weights": {"letters": 1, "pairs": 1, "others": 0}}, "must name the members"),
        ({"weights": {"letters": 0, "pairs": 0}}, "above 0"),
    ],
)
async def test_weights_that_fit_no_member(tmp_path: Path, chorus: dict[str, Any], message: str) -> None:
    """Weights name every member and nobody else, and somebody has one."""
    reply = await _post(tmp_path, {"chorus": chorus})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "chorus.weights")
    assert message in reply.json()["error"]["message"]


async def test_weights_that_fit(tmp_path: Path) -> None:
    """They decide who is heard."""
    reply = await _post(tmp_path, {"chorus": {"weights": {"letters": 0, "pairs": 2}}})
    assert reply.json()["choices"][0]["text"] == "c" * 8
