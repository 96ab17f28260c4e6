"""Clients that people have, run as they are: litellm, LangChain, the Node SDK, curl; and Schemathesis."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.raw_upstream import SSE, RawUpstream, Recorded, Seen, chat_answer, chat_stream, recorded

CLIENTS = Path(__file__).parent / "clients"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


def answer(seen: Seen) -> Recorded:
    """Says hello, calls a tool where it has one, and breaks off for the model that is to break."""
    body = seen.body
    if body["model"] == "breaks":
        return recorded(chat_stream({"content": "Hel"})[:-60], content_type=SSE)
    if body.get("tools"):
        return recorded(chat_answer({"content": None, "tool_calls": [CALL]}, finish="tool_calls"))
    if body.get("stream"):
        words = [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo."}]
        return recorded(chat_stream(*words), content_type=SSE)
    return recorded(chat_answer({"content": "Hello."}))


@pytest.fixture
async def url(gateway: Any, upstream: RawUpstream) -> str:
    """A gateway whose upstream says hello."""
    upstream.answers["/v1/chat/completions"] = answer
    started: str = await gateway(models={"broken": {"model": "breaks"}})
    return started


async def run(*command: str) -> str:
    """The output of a command that must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(240):
        out, err = await process.communicate()
    assert process.returncode == 0, (err + out).decode()[-4000:]
    return out.decode()


@pytest.mark.requires("peer:litellm")
async def test_litellm(url: str) -> None:
    """Litellm as a client, as `openai/…` and as `anthropic/…`: text, stream, tools, usage, error class."""
    printed = await run(*peers.command("litellm"), str(CLIENTS / "litellm_client.py"), url)
    told = json.loads(printed.splitlines()[-1])  # litellm itself prints its advice about errors
    for surface in ("chat", "messages"):
        assert told[surface] == told[f"{surface} stream"] == "Hello."
        assert told[f"{surface} tool"] == ["weather", {"city": "Ulm"}]
        assert told[f"{surface} usage"] == 16
    assert told["unknown"] == "NotFoundError"


@pytest.mark.requires("peer:langchain")
async def test_langchain(url: str) -> None:
    """LangChain's ChatOpenAI: text, stream with usage, tools, and through Responses."""
    told = json.loads(await run(*peers.command("langchain"), str(CLIENTS / "langchain_client.py"), url))
    assert told == {
        "chat": "Hello.",
        "stream": "Hello.",
        "usage": 16,
        "tool": {"city": "Ulm"},
        "responses": "Hello.",
    }


@pytest.mark.requires("peer:openai-node")
async def test_openai_node(url: str) -> None:
    """The official Node SDK: chat and Responses, whole and streamed, tools, models, error classes."""
    folder = str(peers.home() / "openai-node")
    told = json.loads(
        await run(*peers.command("openai-node"), str(CLIENTS / "openai_client.mjs"), url, folder)
    )
    assert told == {
        "chat": "Hello.",
        "usage": 16,
        "stream": "Hello.",
        "tool": {"city": "Ulm"},
        "responses": "Hello.",
        "responses stream": "Hello.",
        "models": ["plain", "native", "broken"],
        "unknown": ["NotFoundError", 404, "model_not_found", "string"],
        "broken": True,
    }


@pytest.mark.requires("curl")
async def test_curl(url: str) -> None:
    """curl: a body, a stream as it comes, and a failure's status."""
    body = '{"model": "plain", "messages": [{"role": "user", "content": "x"}]'
    whole = await run("curl", "-sS", f"{url}/v1/chat/completions", "-d", body + "}")
    assert json.loads(whole)["choices"][0]["message"]["content"] == "Hello."
    stream = await run("curl", "-sSN", f"{url}/v1/chat/completions", "-d", body + ', "stream": true}')
    assert stream.startswith("data: {")
    assert stream.endswith("data: [DONE]\n\n")
    status = await run(
        "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/v1/chat/completions", "-d", "{"
    )
    assert status == "400"


@pytest.mark.requires("peer:schemathesis")
async def test_schemathesis(url: str, tmp_path: Path) -> None:
    """Schemathesis finds no route that answers against its own document."""
    config = tmp_path / "schemathesis.toml"
    config.write_text("[output]\nsanitization = {enabled = false}\n")
    await run(
        *(*peers.command("schemathesis"), "-m", "schemathesis.cli", "--config-file", str(config), "run"),
        *(
            f"{url}/openapi.json",
            "--max-examples",
            os.environ.get("CHORUS_FUZZ_EXAMPLES", "8"),
            "--seed",
            "7",
            "--no-color",
            "--workers",
            "1",
        ),
        *(
            "--checks",
            "all",
            "--phases",
            os.environ.get("CHORUS_FUZZ_PHASES", "fuzzing"),
            "--request-timeout",
            "10",
        ),
    )
