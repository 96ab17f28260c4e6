"""LiteLLM's YAML (`model_list`, `litellm_settings`, `router_settings`, `general_settings`) read as Chorus settings.

What has the same meaning here is translated; a key that would be silently without effect is an error, so that nobody
believes in a limit that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

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
_RESILIENCE: Mapping[str, str] = {
    "num_retries": "retries",
    "allowed_fails": "breaker_failures",
    "cooldown_time": "cooldown_s",
}
"""Key of `router_settings` or `litellm_settings` → key of `resilience`."""

_CLOCKS: Mapping[str, str] = {
    "timeout": "timeout_s",
    "request_timeout": "timeout_s",
    "stream_timeout": "first_token_timeout_s",
}
"""Key of `router_settings` or `litellm_settings` → key of every deployment that says nothing of its own."""

_BALANCE: Mapping[str, str] = {
    "simple-shuffle": "weighted",
    "least-busy": "least-busy",
    "latency-based-routing": "fastest",
}
"""`routing_strategy` → `balance` of every model."""

_ROUTER = {*_RESILIENCE, *_CLOCKS, "fallbacks", "routing_strategy", "redis_url"}
_LITELLM = {*_RESILIENCE, *_CLOCKS, "fallbacks", "drop_params", "json_logs"}
_GENERAL = {"master_key"}

_INSTEAD: Mapping[str, str] = {
    "database_url": "keys and spending are kept in `state.folder`, or in `redis.url` and `ledger.url`",
    "cache": "write a `cache` section",
    "cache_params": "write a `cache` section",
    "callbacks": "see `telemetry`, `ledger` and /metrics",
    "success_callback": "see `telemetry`, `ledger` and /metrics",
    "failure_callback": "see `telemetry`, `ledger` and /metrics",
    "redis_host": "write `redis_url`",
    "redis_port": "write `redis_url`",
    "redis_password": "write `redis_url`",
    "context_window_fallbacks": "a router leaves out the models whose `context_length` is too short",
    "set_verbose": "write `logging: {level: debug}`",
    "max_budget": "write `limits: {everyone: {budgets_usd: …}}`",
}
"""What has no counterpart of the same meaning → what there is in its place."""

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
_INFO = {*_PRICES, "id", "mode", "max_input_tokens", "max_output_tokens", "base_model"}
_SECTIONS = {"model_list", "litellm_settings", "router_settings", "general_settings", "environment_variables"}


def is_litellm(raw: Mapping[str, Any]) -> bool:
    """Whether the file is written LiteLLM's way."""
    return "model_list" in raw


def translate(raw: Mapping[str, Any], own: Iterable[str], faults: list[str]) -> dict[str, Any]:
    """LiteLLM's sections as Chorus sections; those of Chorus called `own` may stand beside. Adds to `faults` what it
    does not understand, a line each."""
    _refuse_unknown(raw, {*_SECTIONS, *own}, "", faults)
    sections = {
        name: _section(raw, name, known, faults)
        for name, known in (
            ("router_settings", _ROUTER),
            ("litellm_settings", _LITELLM),
            ("general_settings", _GENERAL),
        )
    }
    # The router's own settings go before those of all of LiteLLM, as there.
    usual = {**sections["litellm_settings"], **sections["router_settings"]}
    models = _models(raw["model_list"], usual, faults)
    for name, section in sections.items():
        _fall_back(section.get("fallbacks"), models, f"{name}.fallbacks", faults)
    settings: dict[str, Any] = {name: raw[name] for name in own if name in raw}
    told = {
        "resilience": {ours: usual[theirs] for theirs, ours in _RESILIENCE.items() if theirs in usual},
        "server": sections["general_settings"],
        "redis": {"url": usual["redis_url"]} if "redis_url" in usual else {},
        "logging": {"format": "json"} if usual.get("json_logs") else {},
    }
    for name, section in told.items():
        if section:
            settings[name] = {**(settings.get(name) or {}), **section}
    given = raw.get("environment_variables")
    variables = given if isinstance(given, Mapping) else {}
    filled: dict[str, Any] = _filled({**settings, "models": models}, variables)
    return filled


def _models(entries: Any, usual: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """`model_list` as `models`: entries of one name are deployments of one model."""
    models: dict[str, Any] = {}
    if not isinstance(entries, list) or not entries:
        faults.append("model_list: must be a non-empty list")
        return models
    balance = str(usual.get("routing_strategy", ""))
    if balance and balance not in _BALANCE:
        known = ", ".join(_BALANCE)
        faults.append(f"router_settings.routing_strategy: {balance!r} is not supported; known: {known}")
    for i, entry in enumerate(entries):
        where = f"model_list[{i}]"
        _refuse_unknown(entry, {"model_name", "litellm_params", "model_info"}, where, faults)
        params = entry.get("litellm_params") if isinstance(entry, Mapping) else None
        if not isinstance(params, Mapping) or not entry.get("model_name"):
            faults.append(f"{where}: 'model_name' and 'litellm_params' are required")
            continue
        name = str(entry["model_name"])
        if "*" in name:
            faults.append(
                f"{where}.model_name: {name!r} stands for many; name each model that may be asked for"
            )
            continue
        info = _section(entry, "model_info", _INFO, faults, where)
        provider, slash, _ = str(params.get("model") or "").partition("/")
        hosted = bool(slash) and provider not in OPENAI_COMPATIBLE
        deployment = (_hosted if hosted else _deployment)(params, f"{where}.litellm_params", faults)
        for theirs, ours in _CLOCKS.items():
            if theirs in usual:
                deployment.setdefault(ours, usual[theirs])
        if hosted and usual.get("drop_params"):
            deployment.setdefault("drop_unsupported", True)
        model = models.setdefault(name, {})
        model.setdefault("hosted" if hosted else "openai", []).append(deployment)
        if balance in _BALANCE:
            model["balance"] = _BALANCE[balance]
        if "input_cost_per_token" in info:
            prices = {ours: info[theirs] for theirs, ours in _PRICES.items() if theirs in info}
            model["price"] = {"output_usd_per_token": 0, **prices}
        elif "base_model" in info:
            model["price"] = info["base_model"]
        if "max_input_tokens" in info:
            model["context_length"] = info["max_input_tokens"]
        if "max_output_tokens" in info:
            model["max_output_tokens"] = info["max_output_tokens"]
    return models


def _fall_back(fallbacks: Any, models: dict[str, Any], where: str, faults: list[str]) -> None:
    for i, entry in enumerate(fallbacks if isinstance(fallbacks, list) else ()):
        for name, others in entry.items() if isinstance(entry, Mapping) else ():
            if name in models:
                models[name]["fallbacks"] = others
            else:
                faults.append(f"{where}[{i}]: no model {name!r} in model_list")


def _section(
    raw: Mapping[str, Any], name: str, known: Iterable[str], faults: list[str], within: str = ""
) -> dict[str, Any]:
    """What of a section is understood."""
    section = raw.get(name) or {}
    _refuse_unknown(section, known, f"{within}.{name}" if within else name, faults)
    return {key: section[key] for key in known if key in section} if isinstance(section, Mapping) else {}


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    """`value` with the names of `environment_variables` in it filled in."""
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    if isinstance(value, str) and value.startswith("os.environ/"):
        return variables.get(value.removeprefix("os.environ/"), value)
    return value


def _deployment(params: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    _refuse_unknown(params, _PARAMS, where, faults)
    full = str(params.get("model") or "")
    provider, _, model = full.partition("/") if "/" in full else ("openai", "", full)
    base_url, key_variable = OPENAI_COMPATIBLE[provider]
    base_url = params.get("api_base") or base_url
    if not base_url:
        faults.append(f"{where}: 'api_base' is required for {provider!r}")
    copied = {ours: params[theirs] for theirs, ours in _COPIED.items() if theirs in params}
    deployment: dict[str, Any] = {"base_url": base_url, "model": model, **copied}
    if params.get("api_key"):
        deployment["api_key"] = params["api_key"]
    elif key_variable and not params.get("api_base"):
        deployment["api_key"] = f"os.environ/{key_variable}"
    return deployment


def _hosted(params: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    """A deployment of a provider with a protocol of its own; keys that are not given are in the environment."""
    _refuse_unknown(params, {"model", *_HOSTED}, where, faults)
    deployment = {ours: params[theirs] for theirs, ours in _HOSTED.items() if theirs in params}
    deployment["model"] = params["model"]
    provider = str(params["model"]).partition("/")[0]
    if provider == "bedrock" or provider.startswith("vertex_ai"):
        if not {"api_key", "aws_access_key_id", "vertex_credentials"} & deployment.keys():
            deployment["credentials"] = "environment"
    elif not params.get("api_key"):
        deployment["api_key"] = f"os.environ/{HOSTED_KEYS.get(provider, f'{provider.upper()}_API_KEY')}"
    return deployment


def _refuse_unknown(section: Any, known: Iterable[str], where: str, faults: list[str]) -> None:
    if not isinstance(section, Mapping):
        faults.append(f"{where or 'config'}: must be a mapping of keys to values")
        return
    for key in map(str, section):
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            path = f"{where}.{key}" if where else key
            faults.append(f"{path}: not supported; {_INSTEAD.get(key, hint)}")
