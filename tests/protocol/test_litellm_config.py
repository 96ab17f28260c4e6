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
        ("model_list: [{model_name: a, litellm_params: {model: bedrock/x}}]", "bedrock"),
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
