"""`chorus serve config/local.yaml` with the real small models, as its users and its operator see it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai import OpenAI

from tests.smoke import Smoke

pytestmark = pytest.mark.models

ROOT = Path(__file__).parents[1]
LOADED_S = 300
"""How long loading two models may take on a machine that is busy with other things."""
ASK = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True, slots=True)
class Served:
    """A running `chorus serve`."""

    process: subprocess.Popen[bytes]
    base: str
    admin: str
    client: OpenAI

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the admin side's `/readyz`."""
        answer = httpx.get(f"{self.admin}/readyz")
        return answer.status_code, answer.json()

    def engine_host(self) -> dict[str, Any]:
        """What `/readyz` says of the engine host."""
        component: dict[str, Any] = self.readiness()[1]["components"]["engines"]
        return component

    def running(self) -> int:
        """Requests that the engine host is working on, by its own count."""
        arguments = Path(f"/proc/{self.engine_host()['pid']}/cmdline").read_bytes().split(b"\0")
        socket_path = arguments[arguments.index(b"--uds") + 1].decode()
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket_path), base_url="http://host") as host:
            count: int = host.get("/stats").json()["running"]
            return count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: Callable[[], object], limit_s: float = 30.0) -> None:
    """Poll until `what` is true."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped config on free ports, ready; stopped by SIGTERM afterwards."""
    port, admin_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-c", "from gateway.cli import main; main()", "serve", "config/local.yaml"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--admin-port", str(admin_port)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(lambda: b"Chorus is ready" in log.read_bytes() or process.poll() is not None, LOADED_S)
        assert process.poll() is None, log.read_text()
        base = f"http://127.0.0.1:{port}"
        with OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            yield Served(process, base, f"http://127.0.0.1:{admin_port}", client)
    finally:
        process.terminate()
        process.wait(60)


def test_smoke(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Every name answers, streaming and not, and every decision shows what it promises: `make smoke`."""
    assert Smoke(served.client).run() == 0, capsys.readouterr().out


def test_usage_and_cost_sum_over_members(served: Served) -> None:
    """A fused answer's usage and cost are its members' together; the bound counts the visible text alone."""
    answer = served.client.chat.completions.create(
        model="duet", messages=ASK, max_tokens=6, extra_body={"chorus": {"explain": True}}
    )
    told = (answer.model_extra or {})["chorus"]
    assert answer.usage is not None
    assert {row["model"] for row in told["members"]} == {"smollm2-135m", "gemma3-270m"}
    assert answer.usage.completion_tokens == sum(row["completion_tokens"] for row in told["members"]) > 6
    assert told["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in told["members"]))
    assert answer.model == "duet"


def test_stream_ends_with_its_cost(served: Served) -> None:
    """Who asks for usage learns the cost from the last data event."""
    stream = served.client.chat.completions.create(
        model="smollm2-135m", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream
    assert last.usage is not None
    assert last.choices == []
    assert (last.model_extra or {})["chorus"]["cost_usd"] > 0


def test_base_model_invents_no_turns(served: Served) -> None:
    """The transcript prompt of the base model ends where the next speaker would begin."""
    for ask in ("Hello! Who are you?", "Tell me a story about a fox.", "Why is the sky blue?"):
        answer = served.client.chat.completions.create(
            model="gemma3-270m", messages=[{"role": "user", "content": ask}], max_tokens=80, temperature=0
        )
        assert "User:" not in (answer.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, None, "messages"),
        ({"messages": "hi"}, 400, None, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, None, "messages[0].role"),
        ({"max_tokens": 0}, 400, None, "max_tokens"),
        ({"max_tokens": -3}, 400, None, "max_tokens"),
        ({"temperature": 9}, 400, None, "temperature"),
        (
            {"messages": [{"role": "user", "content": "word " * 5000}]},
            400,
            "context_length_exceeded",
            "messages",
        ),
        ({"model": "duet", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, None, "tools"),
    ],
)
def test_bad_requests(
    served: Served, change: dict[str, Any], status: int, code: str | None, param: str
) -> None:
    """A bad request gets OpenAI's error shape, naming the field."""
    body = {"model": "smollm2-135m", "messages": ASK, "max_tokens": 4, **change}
    answer = httpx.post(f"{served.base}/v1/chat/completions", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}


def test_context_error_names_both_numbers(served: Served) -> None:
    """The caller learns the limit and what was asked for."""
    body = {"model": "gemma3-270m", "messages": [{"role": "user", "content": "word " * 5000}]}
    message = httpx.post(f"{served.base}/v1/chat/completions", json=body, timeout=60).json()["error"][
        "message"
    ]
    assert "2048" in message
    assert any(int(word) > 5000 for word in message.split() if word.isdigit())


@pytest.mark.parametrize("model", ["smollm2-135m", "duet", "vote"])
async def test_leaving_stops_generation(served: Served, model: str) -> None:
    """A client that leaves stops what was generated for it, whoever generates."""
    body = {
        "model": model,
        "messages": ASK,
        "max_tokens": 1500,
        "temperature": 1.5,
        "stream": model != "vote",
    }
    async with httpx.AsyncClient(base_url=served.base, timeout=60) as client:
        call = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while not await asyncio.to_thread(served.running):
            assert not call.done(), "it ended before anybody could leave"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await asyncio.to_thread(wait_for, lambda: served.running() == 0)


def test_the_example_leaves_a_stream(served: Served) -> None:
    """docs/examples/leave_duet.py: the OpenAI SDK closes a stream of both models after its first words, and the models
    stop; the next answer is whole."""
    path = ROOT / "docs/examples/leave_duet.py"
    spec = importlib.util.spec_from_file_location("leave_duet", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    text = example.opening(served.client, "Tell me a long story about a lighthouse.", 20)
    assert 20 <= len(text) < 200
    wait_for(lambda: served.running() == 0)
    answer = served.client.chat.completions.create(model="duet", messages=ASK, max_tokens=8, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in answer if chunk.choices][-1] in ("stop", "length")


def cut_stream(served: Served, model: str, begun: Barrier) -> str:
    """A long stream, to its end; `begun` is passed when its first words have come."""
    body = {"model": model, "messages": ASK, "max_tokens": 1500, "temperature": 1.5, "stream": True}
    told = ""
    with httpx.stream("POST", f"{served.base}/v1/chat/completions", json=body, timeout=60) as answer:
        for text in answer.iter_text():
            if not told:
                begun.wait(60)
            told += text
    return told


def test_killed_engine_host_returns(served: Served) -> None:
    """The engine host is killed while it streams: streams that had begun end with an error event and no `[DONE]`; the
    gateway says so, refuses with a time to come back, and serves again when the host has loaded its models."""
    host = served.engine_host()
    models = ("smollm2-135m", "duet")
    with ThreadPoolExecutor(len(models)) as threads:
        begun = Barrier(len(models) + 1)
        told = [threads.submit(cut_stream, served, model, begun) for model in models]
        begun.wait(60)
        os.kill(host["pid"], signal.SIGKILL)
        for stream in told:
            *_, last = stream.result(60).removesuffix("\n\n").split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] in (
                "upstream_broken",
                "upstream_unavailable",
            )
    wait_for(lambda: served.readiness()[0] == 503)
    status, told = served.readiness()
    assert (status, told["status"]) == (503, "not ready")
    with pytest.raises(openai.APIStatusError) as refused:
        served.client.chat.completions.create(model="smollm2-135m", messages=ASK, max_tokens=4)
    assert refused.value.status_code == 503
    assert float(refused.value.response.headers["retry-after"]) >= 1
    assert httpx.get(f"{served.base}/livez").status_code == 200
    wait_for(lambda: served.readiness()[0] == 200, LOADED_S)
    assert served.engine_host()["restarts"] == 1
    answer = served.client.chat.completions.create(model="duet", messages=ASK, max_tokens=4)
    assert answer.choices[0].message.content


@pytest.mark.parametrize("model", ["smollm2-135m", "auto", "cascade", "vote", "duet"])
def test_messages_and_responses(served: Served, model: str) -> None:
    """Every name answers on Anthropic's Messages and on Responses, whole and streamed, with the SDKs of both."""
    ask: Any = ASK
    with anthropic.Anthropic(base_url=served.base, api_key="unused", max_retries=0, timeout=120) as client:
        whole = client.messages.create(model=model, max_tokens=8, messages=ask)
        assert whole.content[0].type == "text"
        assert whole.content[0].text
        assert whole.usage.output_tokens > 0
        with client.messages.stream(model=model, max_tokens=8, messages=ask) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().usage.input_tokens > 0
    responses = served.client.responses
    told = responses.create(model=model, input="What is the capital of France?", max_output_tokens=8)
    assert told.output_text
    events = list(responses.create(model=model, input="Hello.", max_output_tokens=8, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_text_models_refuse_images(served: Served) -> None:
    """A picture for a model that only reads text is a 400 naming its place, not an answer about nothing."""
    picture: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    for model in ("gemma3-270m", "duet"):
        with pytest.raises(openai.BadRequestError) as caught:
            served.client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": picture}]
            )
        assert caught.value.param == "messages[0].content[0]"
