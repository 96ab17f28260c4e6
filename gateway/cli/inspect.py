"""`chorus check` and `chorus schema`: what a config file says, and may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["SCHEMA_ID", "check", "schema", "schema_json", "settings_markdown"]

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"


def check(file: Annotated[Path, typer.Argument(help="The YAML config file.")]) -> None:
    """Check a config file and print the effective config, defaults filled in and secrets redacted.

    Exits with status 2 and every fault it has, with path, what was found and what is accepted.

    Example:
        chorus check config/local.yaml
    """
    import yaml

    from gateway.strategies import check_methods
    from protocol.settings import load_settings

    settings = load_settings(file)
    check_methods(settings)
    typer.echo(yaml.safe_dump(settings.redacted(), sort_keys=False, allow_unicode=True), nl=False)


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/settings.md, for people.")] = False,
) -> None:
    """Print the JSON Schema of the config file, for editors and CI; config/settings.schema.json is this.

    Example:
        chorus schema > config/settings.schema.json
    """
    typer.echo(settings_markdown() if markdown else schema_json(), nl=False)


def schema_json() -> str:
    """The JSON Schema of the settings, as committed."""
    import orjson

    from protocol.settings import Settings

    body = {"$schema": SCHEMA_ID, **Settings.model_json_schema()}
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


_SETTINGS_HEAD = """\
# Settings

Generated from the settings' types by `make docs` (`chorus schema --markdown`); do not edit.

One YAML file. An unknown key stops the start with a did-you-mean, a wrong value with its line, its path and what is
accepted; `chorus check FILE` shows the effective settings with secrets redacted. Write secrets as
`os.environ/NAME` or `${NAME}`. Paths are relative to the file. Give editors
[config/settings.schema.json](../config/settings.schema.json).

A file of LiteLLM's is accepted: `model_list` in place of `models`, with its `router_settings`, `litellm_settings`,
`general_settings.master_key` and `environment_variables`; all other sections of this page may stand beside. A key of
it that would have no effect here is an error, which says what there is instead. Wildcards (`"*"`) are not accepted:
callers may ask only for what is configured.
"""

_SECTIONS = (
    ("(top level)", "Settings"),
    ("models.NAME", "ModelSettings"),
    ("models.NAME.engine", "EngineModel"),
    ("models.NAME.openai", "OpenAIModel"),
    ("models.NAME.openai.client_certificate", "ClientCertificate"),
    ("models.NAME.hosted", "HostedModel"),
    ("models.NAME.hedge", "Hedge"),
    ("models.NAME.embedder", "EmbedderModel"),
    ("models.NAME.price", "PriceSettings"),
    ("models.NAME.price.tiers", "TierSettings"),
    ("strategies.NAME", "StrategySettings"),
    ("strategies.NAME.route", "Routing"),
    ("strategies.NAME.route.policy", "RuleSettings"),
    ("strategies.NAME.route.policy.threshold", "ThresholdRule"),
    ("strategies.NAME.route.policy.budget", "BudgetRule"),
    ("strategies.NAME.cascade", "Cascade"),
    ("strategies.NAME.fuse", "Fusion"),
    ("strategies.NAME.fuse.shed", "Shedding"),
    ("strategies.NAME.aggregate", "Aggregate"),
    ("strategies.NAME.talk", "Talk"),
    ("server", "ServerSettings"),
    ("server.tls", "TlsSettings"),
    ("server.cors", "CorsSettings"),
    ("resilience", "Resilience"),
    ("outbound", "OutboundSettings"),
    ("keys", "KeySettings"),
    ("limits", "LimitsSettings"),
    ("limits.everyone, limits.models.NAME, limits.teams.NAME", "LimitSettings"),
    ("state", "StateSettings"),
    ("redis", "RedisSettings"),
    ("ledger", "LedgerSettings"),
    ("cache", "CacheSettings"),
    ("cache.semantic", "SemanticSettings"),
    ("logging", "LoggingSettings"),
    ("telemetry", "TelemetrySettings"),
)


def settings_markdown() -> str:
    """The whole of `docs/settings.md`: every key with its default and meaning, read off the JSON Schema."""
    from protocol.settings import Settings

    top = Settings.model_json_schema()
    parts = [_SETTINGS_HEAD]
    for path, name in _SECTIONS:
        section = top if name == "Settings" else top["$defs"][name]
        about = " ".join(section["description"].split())
        parts.append(f"## `{path}`\n\n{about}\n\n| key | default | meaning |\n|---|---|---|")
        required = section.get("required", ())
        # What must be given stands first; otherwise as the types have it.
        for key, field in sorted(section["properties"].items(), key=lambda entry: entry[0] not in required):
            default = "required" if key in required else _default(field)
            parts.append(f"| `{key}` | {default} | {field.get('description', '')}{_bounds(field)} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return (
        ""
        if value is None or isinstance(value, dict)
        else f"`{str(value).lower() if value in (True, False) else value}`"
    )


def _bounds(field: Mapping[str, Any]) -> str:
    """The accepted values, where the schema bounds them."""
    if "enum" in field:
        return f" ({', '.join(f'`{value}`' for value in field['enum'])})"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    told = [f"{sign} {field[key]:g}" for key, sign in words.items() if key in field]
    return f" ({', '.join(told)})" if told else ""
