"""LiteLLM's YAML read as ours."""

from __future__ import annotations

import pytest

from protocol.errors import SettingsError
from protocol.litellm_config import OPENAI_COMPATIBLE
from protocol.settings import parse_settings

FILE = """
model_list:
  - model_name: fast
    litellm_params:
      {model: openai/gpt-small, api_base: "http://one/v1", api_key: os.environ/LL_KEY, timeout: 30}
    model_info: {input_cost_per_token: 1.0e-6, output_cost_per_token: 2.0e-6, max_input_tokens: 4096}
  - model_name: fast
    litellm_params: {model: hosted_vllm/org/name, api_base: "http://two/v1"}
  - model_name: groq
    litellm_params: {model: groq/llama}
general_settings: {master_key: os.environ/LL_KEY}
strategies: {vote: {aggregate: {members: [fast, groq]}}}
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LL_KEY", "sk-canary")
    monkeypatch.setenv("GROQ_API_KEY", "gsk-canary")


def test_model_list_becomes_models() -> None:
    """Entries of one name are deployments of one model; prices, context, keys and providers carry over."""
    settings = parse_settings(FILE)
    fast = settings.models["fast"]
    assert [(d.base_url, d.model, d.timeout_s) for d in fast.openai] == [
        ("http://one/v1", "gpt-small", 30.0),
        ("http://two/v1", "org/name", 600.0),
    ]
    assert (fast.price.input_usd_per_token, fast.context_length) == (1e-6, 4096)
    assert fast.openai[1].api_key is None
    groq = settings.models["groq"].openai[0]
    assert groq.base_url == OPENAI_COMPATIBLE["groq"][0]
    assert groq.api_key.get_secret_value() == "gsk-canary"
    assert settings.server.master_key.get_secret_value() == "sk-canary"
    assert settings.strategies["vote"].aggregate.members == ("fast", "groq")


def test_a_provider_key_is_not_sent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an api_base of one's own, the provider's environment key is not used."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    text = "model_list: [{model_name: a, litellm_params: {model: gpt, api_base: 'http://mine/v1'}}]"
    assert parse_settings(text).models["a"].openai[0].api_key is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model_list: []", "model_list"),
        ("model_list: [{model_name: a}]", "required"),
        ("model_list: [{model_name: a, litellm_params: {model: bedrock/x}}]", "bedrock needs a region"),
        (
            "model_list: [{model_name: a, litellm_params: {model: anthropic/x, mock_response: y}}]",
            "mock_response",
        ),
        ("model_list: [{model_name: a, litellm_params: {model: cohere/x}}]", "COHERE_API_KEY is not set"),
        ("model_list: [{model_name: a, litellm_params: {model: hosted_vllm/x}}]", "api_base"),
        (
            "model_list: [{model_name: a, litellm_params: {model: gpt, rpmm: 5}}]",
            r"model_list\[0\].litellm_params.rpmm",
        ),
        ("model_list: [{model_name: a, litellm_params: {model: gpt}, tpm: 5}]", "tpm"),
        (FILE.replace("general_settings: {", "general_settings: {database_url: x, "), "database_url"),
        (FILE + "router_settings: {enable_pre_call_checks: true}", "enable_pre_call_checks"),
        (FILE + "router_settings: {fallbacks: [{nope: [fast]}]}", "nope"),
    ],
)
def test_what_would_have_no_effect_is_refused(text: str, told: str) -> None:
    """A key whose effect we do not have is an error, so that nobody believes in a limit that is not there."""
    with pytest.raises(SettingsError, match=told):
        parse_settings(text)


def test_every_fault_is_told_at_once() -> None:
    """Who brings a file of LiteLLM's is told all that must change, and what there is instead."""
    text = """
model_list:
  - {model_name: "*", litellm_params: {model: "openai/*"}}
  - {model_name: a, litellm_params: {model: gpt, api_basse: x}}
litellm_settings: {success_callback: [langfuse]}
general_settings: {database_url: x}
router_settings: {routing_strategy: usage-based-routing}
"""
    with pytest.raises(SettingsError) as caught:
        parse_settings(text)
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()] == [
        "config has 5 fault(s)",
        "litellm_settings.success_callback",
        "general_settings.database_url",
        "router_settings.routing_strategy",
        "model_list[0].model_name",
        "model_list[1].litellm_params.api_basse",
    ]
    for told in ("did you mean 'api_base'?", "`state.folder`", "least-busy", "`telemetry`"):
        assert told in caught.value.message


def test_litellm_settings_carry_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once for all deployments holds for those that say nothing of their own, and the router's settings
    go before; `environment_variables` are as good as the environment's."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    settings = parse_settings(
        FILE.replace(
            "general_settings:",
            """  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5}
    model_info: {max_output_tokens: 99}
litellm_settings:
  {num_retries: 1, request_timeout: 60, drop_params: true, json_logs: true, fallbacks: [{claude: [fast]}]}
router_settings: {num_retries: 3, routing_strategy: least-busy, stream_timeout: 7, redis_url: "redis://r"}
environment_variables: {ANTHROPIC_API_KEY: sk-here}
general_settings:""",
        )
    )
    fast, claude = settings.models["fast"], settings.models["claude"]
    assert [each.timeout_s for each in (*fast.openai, *claude.hosted)] == [30.0, 60.0, 60.0]
    assert (fast.openai[1].first_token_timeout_s, fast.balance) == (7.0, "least-busy")
    assert claude.hosted[0].drop_unsupported
    assert claude.hosted[0].api_key.get_secret_value() == "sk-here"
    assert (claude.fallbacks, claude.max_output_tokens) == (("fast",), 99)
    assert (settings.resilience.retries, settings.logging.format) == (3, "json")
    assert settings.redis.url.get_secret_value() == "redis://r"


def test_sections_of_our_own_stand_beside() -> None:
    """A file of LiteLLM's may have keys, limits and all else that Chorus has."""
    settings = parse_settings(
        FILE + "keys: {required: true}\nlimits: {everyone: {rpm: 3}}\ncache: {ttl_s: 5}\n"
    )
    assert (settings.keys.required, settings.limits.everyone.rpm, settings.cache.ttl_s) == (True, 3, 5)


def test_router_settings_carry_over() -> None:
    """Retries, cooldown, fallbacks and the limits of deployments mean here what they mean there."""
    text = FILE.replace(
        "timeout: 30", "timeout: 30, stream_timeout: 9, weight: 2, rpm: 5, tpm: 6, max_parallel_requests: 7"
    )
    settings = parse_settings(
        text
        + "router_settings: {num_retries: 3, allowed_fails: 4, cooldown_time: 8, fallbacks: [{fast: [groq]}]}"
    )
    first = settings.models["fast"].openai[0]
    assert (first.first_token_timeout_s, first.weight) == (9.0, 2.0)
    assert (first.rpm, first.tpm, first.max_concurrent) == (5, 6, 7)
    resilience = settings.resilience
    assert (resilience.retries, resilience.breaker_failures, resilience.cooldown_s) == (3, 4, 8.0)
    assert settings.models["fast"].fallbacks == ("groq",)


HOSTED = """
model_list:
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5, rpm: 5, drop_params: true}
  - model_name: claude
    litellm_params: {model: bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0, aws_region_name: us-east-1}
  - model_name: gpt
    litellm_params: {model: openai/gpt-4o, api_key: sk-one}
  - model_name: gpt
    litellm_params: {model: azure/mine, api_base: "https://mine.test", api_key: sk-two, api_version: "2024-10-21"}
    model_info: {base_model: azure/gpt-4o}
  - model_name: priced
    litellm_params: {model: gemini/gemini-2.5-flash, api_key: g}
    model_info: {input_cost_per_token: 1.0e-6, output_cost_per_token: 2.0e-6, cache_creation_input_token_cost: 3.0e-6}
"""


def test_other_providers_are_hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider with a protocol of its own becomes a hosted deployment, beside OpenAI-compatible ones of its group;
    keys that are not given are the provider's own variable, or the machine's role."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    models = parse_settings(HOSTED).models
    own, bedrock = models["claude"].hosted
    assert own.api_key.get_secret_value() == "sk-canary"
    assert (own.model, own.rpm, own.drop_unsupported) == ("anthropic/claude-sonnet-4-5", 5, True)
    assert (bedrock.region, bedrock.credentials, bedrock.api_key) == ("us-east-1", "environment", None)
    gpt = models["gpt"]
    assert [type(deployment).__name__ for deployment in gpt.deployments] == ["OpenAIModel", "HostedModel"]
    azure = gpt.hosted[0]
    assert (azure.base_url, azure.api_version) == ("https://mine.test", "2024-10-21")


def test_prices_carry_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """`base_model` names the price; a price that is written goes before the table's."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    models = parse_settings(HOSTED).models
    assert models["gpt"].price.source.endswith(": azure/gpt-4o")
    priced = models["priced"].price
    assert (priced.source, priced.cache_write_usd_per_token) == ("settings", 3e-6)
