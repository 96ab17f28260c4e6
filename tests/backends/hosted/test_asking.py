"""What of a request reaches litellm: an allow-list."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from backends.hosted.asking import CHAT, EMBEDDING, chat_parameters, embedding_parameters, text_parameters
from backends.hosted.host import HostedModels
from backends.hosted.quiet import own_parameters
from protocol.errors import BadRequest, SettingsError, UpstreamRefused
from protocol.settings import HostedModel
from tests.backends.hosted import provider as shapes
from tests.backends.hosted.conftest import section, settings_for
from tests.backends.hosted.provider import Answer, Provider
from tests.backends.hosted.test_wire import BODY, Start, ask

pytestmark = pytest.mark.requires("hosted")

PLAIN = HostedModel(model="anthropic/c", api_key="k")  # type: ignore[arg-type]
LENIENT = PLAIN.model_copy(update={"drop_unsupported": True})
MESSAGES = [{"role": "user", "content": "Hi"}]
HOSTILE: dict[str, Any] = {
    "api_base": "http://evil.test", "base_url": "http://evil.test", "api_key": "sk-theirs", "api_version": "1",
    "extra_headers": {"x": "y"}, "headers": {"x": "y"}, "extra_body": {"x": 1}, "extra_query": {"x": 1},
    "custom_llm_provider": "openai", "mock_response": "pwned", "mock_timeout": True, "mock_delay": 9,
    "mock_tool_calls": [], "model_list": [{"model_name": "x"}], "fallbacks": ["openai/x"], "num_retries": 9,
    "max_retries": 9, "timeout": 0.001, "request_timeout": 1, "caching": True, "cache": {"ttl": 1}, "client": "x",
    "logger_fn": "x", "callbacks": ["x"], "success_callback": ["x"], "litellm_params": {"api_base": "x"},
    "litellm_metadata": {"x": 1}, "litellm_logging_obj": 1, "aws_bedrock_runtime_endpoint": "http://evil.test",
    "aws_access_key_id": "x", "aws_web_identity_token": "/etc/passwd", "aws_sts_endpoint": "http://evil.test",
    "vertex_credentials": "/etc/passwd", "azure_ad_token": "x", "tenant_id": "x", "organization": "x",
    "prompt_id": "x", "prompt_variables": {}, "guardrails": ["x"], "shared_session": 1, "ssl_verify": False,
    "drop_params": True, "additional_drop_params": ["x"], "input_cost_per_token": 0, "deployment_id": "x",
    "proxy_server_request": {}, "hf_model_name": "x", "user_continue_message": {}, "context_window_fallback_dict": {},
    "langfuse_host": "http://evil.test", "s3_bucket_name": "x", "turn_off_message_logging": False, "acompletion": True,
    "use_litellm_proxy": True, "mcp_servers": [], "enable_json_schema_validation": True, "no-log": False,
}  # fmt: skip


@pytest.mark.parametrize("field", HOSTILE)
def test_a_hostile_field_is_refused_by_name(field: str) -> None:
    """Addresses, keys, headers, canned answers and switches of litellm's are refused, whatever is asked."""
    for made, body in (
        (chat_parameters, {"model": "m", "messages": MESSAGES}),
        (text_parameters, {"model": "m", "prompt": "Hi"}),
        (embedding_parameters, {"model": "m", "input": "Hi"}),
    ):
        with pytest.raises(BadRequest) as caught:
            made({**body, field: HOSTILE[field]}, PLAIN)
        assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
        assert field not in made({**body, field: HOSTILE[field]}, LENIENT)


def test_nothing_of_litellms_own_is_allowed(litellm: Any) -> None:
    """No field that may pass is a parameter that litellm keeps for itself, but for those of a model."""
    of_models = {name for name in inspect.signature(litellm.acompletion).parameters if name in CHAT}
    own = own_parameters(litellm)
    assert (CHAT - of_models) & own == set()
    assert not {
        "api_base",
        "base_url",
        "api_key",
        "extra_headers",
        "custom_llm_provider",
        "mock_response",
    } & (CHAT | EMBEDDING)
    assert set(HOSTILE) & (CHAT | EMBEDDING) == set()


async def test_a_hostile_request_reaches_only_our_provider(start: Start, provider: Provider) -> None:
    """All of them at once to a lenient deployment: the provider is asked as ever, with our key and no more."""
    model = await start("anthropic", drop_unsupported=True)
    provider.answer = Answer(body=shapes.anthropic([{"type": "text", "text": "Hi"}]))
    heard = await ask(model, {**BODY, **HOSTILE}, False)
    assert heard.message["content"] == "Hi"
    sent = orjson.dumps([dict(provider.wire.headers), dict(provider.wire.body)]).decode()
    assert provider.wire.headers["x-api-key"] == "sk-canary-key"
    assert "evil" not in sent
    assert "sk-theirs" not in sent
    assert set(provider.wire.body) == {
        "model",
        "messages",
        "system",
        "temperature",
        "max_tokens",
        "stop_sequences",
    }


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": {"url": " https://example.test/cat.png"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "file", "file": {"file_id": "https://example.test/a.pdf"}},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "file", "file": {"file_data": "gs://bucket/a.pdf"}},
        {"type": "video_url", "video_url": {"url": "gs://bucket/a.mp4"}},
        {"type": "image", "source": {"type": "url", "url": "http://example.test"}},
        {"type": "input_audio", "input_audio": {"data": "x", "format": "http://example.test"}},
        {
            "type": "tool_result",
            "content": [{"type": "image_url", "image_url": {"url": "http://example.test"}}],
        },
    ],
)
def test_no_address_in_a_message_goes_on(part: dict[str, Any]) -> None:
    """LiteLLM would fetch it from where it runs: the caller is told to send the content itself."""
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    with pytest.raises(BadRequest, match="nothing is fetched") as caught:
        chat_parameters(body, LENIENT)
    assert (caught.value.param or "").startswith("messages[0].content[0]")


def test_words_about_addresses_are_words() -> None:
    """Text, arguments and citations may hold addresses, and pictures come as data."""
    call = {"id": "c", "type": "function", "function": {"name": "get", "arguments": "http://example.test"}}
    cited = {"type": "url_citation", "url_citation": {"url": "https://example.test", "title": "x"}}
    messages = [
        {"role": "user", "content": "http://example.test"},
        {"role": "user", "content": [
            {"type": "text", "text": "https://example.test says"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [call], "annotations": [cited]},
        {"role": "tool", "tool_call_id": "c", "content": "http://example.test"},
    ]  # fmt: skip
    assert chat_parameters({"model": "m", "messages": messages}, PLAIN)["messages"] == messages


def test_only_functions_are_tools() -> None:
    """A tool with an address of its own (an MCP server's) would be called from where litellm runs."""
    tool = {"type": "mcp", "server_url": "http://example.test", "server_label": "x"}
    with pytest.raises(BadRequest, match=r"tools\[0\]"):
        chat_parameters({"model": "m", "messages": MESSAGES, "tools": [tool]}, LENIENT)


def test_what_openai_keeps_for_itself_is_left_out() -> None:
    """`metadata` and `store` change no answer; nulls are not passed either."""
    body = {
        "model": "m",
        "messages": MESSAGES,
        "metadata": {"a": "b"},
        "store": True,
        "seed": None,
        "top_p": 0.5,
    }
    assert chat_parameters(body, PLAIN) == {"messages": MESSAGES, "top_p": 0.5}


async def test_pass_fields(start: Start, provider: Provider) -> None:
    """A field the operator names reaches the provider."""
    provider.answer = Answer(body=shapes.anthropic([{"type": "text", "text": "Hi"}]))
    await ask(await start("anthropic", pass_fields=["top_k"]), {**BODY, "top_k": 5}, False)
    assert provider.wire.body["top_k"] == 5


def test_pass_fields_cannot_name_litellms_own(litellm: Any) -> None:
    """Not even the operator opens the door to a caller's address or key."""
    for field in ("api_base", "api_key", "mock_response", "extra_headers", "custom_llm_provider", "client"):
        settings = settings_for({"m": section("anthropic", "http://x", pass_fields=[field])})
        with pytest.raises(SettingsError, match=field):
            HostedModels(litellm, settings)


def test_an_unknown_provider_stops_the_start(litellm: Any) -> None:
    """A provider that litellm does not know is a fault of the config."""
    settings = settings_for({"m": section("anthropic", "http://x", model="antropic/claude")})
    with pytest.raises(SettingsError, match="antropic"):
        HostedModels(litellm, settings)


async def test_what_a_provider_cannot_is_refused_or_dropped(
    start: Callable[..., Awaitable[Any]], provider: Provider
) -> None:
    """A parameter without a counterpart is a 400 naming it, and is dropped only where the operator says so."""
    provider.answer = Answer(body=shapes.anthropic([{"type": "text", "text": "Hi"}]))
    body = {**BODY, "seed": 1}
    with pytest.raises(UpstreamRefused, match="seed") as caught:
        await ask(await start("anthropic"), body, False)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert provider.seen == []


async def test_dropped_where_the_operator_says_so(start: Start, provider: Provider) -> None:
    """With `drop_unsupported` the same request is answered."""
    provider.answer = Answer(body=shapes.anthropic([{"type": "text", "text": "Hi"}]))
    heard = await ask(await start("anthropic", drop_unsupported=True), {**BODY, "seed": 1}, False)
    assert heard.message["content"] == "Hi"
    assert "seed" not in provider.wire.body


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1]], 5, [], None])
def test_one_text_at_a_time(prompt: Any) -> None:
    """A text completion has one text as its prompt."""
    with pytest.raises(BadRequest, match="prompt"):
        text_parameters({"model": "m", "prompt": prompt}, PLAIN)


@pytest.mark.parametrize("texts", [[1, 2], [[1]], [], "", ["a", ""], None])
def test_embeddings_are_of_texts(texts: Any) -> None:
    """Token ids and empty texts are refused."""
    with pytest.raises(BadRequest, match="input"):
        embedding_parameters({"model": "m", "input": texts}, PLAIN)
