"""LiteLLM's YAML (`model_list`, `router_settings`, `general_settings`) read as Chorus settings.

What has the same meaning here is translated; a key that would be silently without effect is an error, so that nobody
believes in a limit that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import SettingsError

__all__ = ["HOSTED_KEYS", "OPENAI_COMPATIBLE", "is_litellm", "translate"]

OPENAI_COMPATIBLE: Mapping[str, tuple[str | None, str | None]] = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "hosted_vllm": (None, None),
    "openai_like": (None, None),
    "ollama_chat": ("http://127.0.0.1:11434/v1", None),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together_ai": ("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
}
"""LiteLLM provider prefix → (base URL, environment variable of its key) for those that speak OpenAI's protocol."""

_COPIED: Mapping[str, str] = {
    "timeout": "timeout_s",
    "stream_timeout": "first_token_timeout_s",
    "weight": "weight",
    "rpm": "rpm",
    "tpm": "tpm",
    "max_parallel_requests": "max_concurrent",
}
"""Key of `litellm_params` → key of a deployment here."""

_HOSTED: Mapping[str, str] = {
    **_COPIED,
    "api_base": "base_url",
    "api_key": "api_key",
    "api_version": "api_version",
    "aws_region_name": "region",
    "aws_access_key_id": "aws_access_key_id",
    "aws_secret_access_key": "aws_secret_access_key",
    "aws_session_token": "aws_session_token",
    "vertex_project": "vertex_project",
    "vertex_location": "region",
    "vertex_credentials": "vertex_credentials",
    "drop_params": "drop_unsupported",
}
"""The same, of a provider with a protocol of its own."""

HOSTED_KEYS: Mapping[str, str] = {"cohere_chat": "COHERE_API_KEY", "azure_ai": "AZURE_AI_API_KEY"}
"""Environment variables of keys that are not called after their provider."""

_PARAMS = {"model", "api_base", "api_key", *_COPIED}
_ROUTER: Mapping[str, str] = {
    "num_retries": "retries",
    "allowed_fails": "breaker_failures",
    "cooldown_time": "cooldown_s",
}
"""Key of `router_settings` → key of `resilience`."""

_PRICES: Mapping[str, str] = {
    "input_cost_per_token": "input_usd_per_token",
    "output_cost_per_token": "output_usd_per_token",
    "cache_read_input_token_cost": "cached_input_usd_per_token",
    "cache_creation_input_token_cost": "cache_write_usd_per_token",
    "output_cost_per_reasoning_token": "reasoning_usd_per_token",
    "input_cost_per_audio_token": "audio_input_usd_per_token",
    "output_cost_per_audio_token": "audio_output_usd_per_token",
}
"""Key of `model_info` → key of `price`."""
_INFO = {*_PRICES, "id", "mode", "max_input_tokens", "base_model"}
_TOP = {"model_list", "general_settings", "router_settings", "server", "strategies", "resilience"}


def is_litellm(raw: Mapping[str, Any]) -> bool:
    """Whether the file is written LiteLLM's way."""
    return "model_list" in raw


def translate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's sections as Chorus sections; `strategies` and `server` may stand beside. Raises `SettingsError`."""
    _refuse_unknown(raw, _TOP, "")
    models: dict[str, Any] = {}
    for i, entry in enumerate(_list(raw["model_list"], "model_list")):
        where = f"model_list[{i}]"
        _refuse_unknown(entry, {"model_name", "litellm_params", "model_info"}, where)
        try:
            name, params = str(entry["model_name"]), dict(entry["litellm_params"])
        except (KeyError, TypeError, ValueError):
            raise SettingsError(f"{where}: 'model_name' and 'litellm_params' are required.") from None
        info = dict(entry.get("model_info") or {})
        _refuse_unknown(info, _INFO, f"{where}.model_info")
        model = models.setdefault(name, {})
        provider, slash, _ = str(params.get("model") or "").partition("/")
        if slash and provider not in OPENAI_COMPATIBLE:
            model.setdefault("hosted", []).append(_hosted(params, where))
        else:
            model.setdefault("openai", []).append(_deployment(params, where))
        if "input_cost_per_token" in info:
            prices = {ours: info[theirs] for theirs, ours in _PRICES.items() if theirs in info}
            model["price"] = {"output_usd_per_token": 0, **prices}
        elif "base_model" in info:
            model["price"] = info["base_model"]
        if "max_input_tokens" in info:
            model["context_length"] = info["max_input_tokens"]
    settings: dict[str, Any] = {"models": models}
    if "strategies" in raw:
        settings["strategies"] = raw["strategies"]
    router = dict(raw.get("router_settings") or {})
    _refuse_unknown(router, {*_ROUTER, "fallbacks"}, "router_settings")
    for i, entry in enumerate(router.pop("fallbacks", None) or ()):
        for name, others in entry.items():
            if name not in models:
                raise SettingsError(f"router_settings.fallbacks[{i}]: no model {name!r} in model_list.")
            models[name]["fallbacks"] = others
    resilience = {**(raw.get("resilience") or {}), **{_ROUTER[key]: router[key] for key in router}}
    if resilience:
        settings["resilience"] = resilience
    server = dict(raw.get("server") or {})
    general = dict(raw.get("general_settings") or {})
    _refuse_unknown(general, {"master_key"}, "general_settings")
    if "master_key" in general:
        server["master_key"] = general["master_key"]
    if server:
        settings["server"] = server
    return settings


def _deployment(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(params, _PARAMS, f"{where}.litellm_params")
    full = str(params.get("model") or "")
    provider, _, model = full.partition("/") if "/" in full else ("openai", "", full)
    base_url, key_variable = OPENAI_COMPATIBLE[provider]
    base_url = params.get("api_base") or base_url
    if not base_url:
        raise SettingsError(f"{where}.litellm_params: 'api_base' is required for {provider!r}.")
    copied = {ours: params[theirs] for theirs, ours in _COPIED.items() if theirs in params}
    deployment: dict[str, Any] = {"base_url": base_url, "model": model, **copied}
    if params.get("api_key"):
        deployment["api_key"] = params["api_key"]
    elif key_variable and not params.get("api_base"):
        deployment["api_key"] = f"os.environ/{key_variable}"
    return deployment


def _hosted(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A deployment of a provider with a protocol of its own; keys that are not given are in the environment."""
    _refuse_unknown(params, {"model", *_HOSTED}, f"{where}.litellm_params")
    deployment = {ours: params[theirs] for theirs, ours in _HOSTED.items() if theirs in params}
    deployment["model"] = params["model"]
    provider = str(params["model"]).partition("/")[0]
    if provider == "bedrock" or provider.startswith("vertex_ai"):
        if not {"api_key", "aws_access_key_id", "vertex_credentials"} & deployment.keys():
            deployment["credentials"] = "environment"
    elif not params.get("api_key"):
        deployment["api_key"] = f"os.environ/{HOSTED_KEYS.get(provider, f'{provider.upper()}_API_KEY')}"
    return deployment


def _refuse_unknown(section: Any, known: set[str], where: str) -> None:
    if not isinstance(section, Mapping):
        raise SettingsError(f"{where or 'config'}: must be a mapping.")
    for key in section:
        if key not in known:
            prefix = f"{where}." if where else ""
            raise SettingsError(f"{prefix}{key}: not supported; known keys: {', '.join(sorted(known))}.")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SettingsError(f"{where}: must be a non-empty list.")
    return value
