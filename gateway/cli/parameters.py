"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from protocol.errors import SettingsError

__all__ = ["CONFIG", "Config", "ConfigOption", "Key", "Options", "Outcomes", "Url", "options", "words"]

Config = Annotated[Path, typer.Argument(help="The YAML config file.", envvar="CHORUS_CONFIG")]
ConfigOption = Annotated[
    Path, typer.Option("--config", envvar="CHORUS_CONFIG", help="The gateway's YAML config file.")
]
CONFIG = Path("config/local.yaml")
Outcomes = Annotated[
    Path, typer.Option(help="Outcome table: parquet of `chorus collect`, or a folder of .jsonl.gz.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE of the method; may be repeated.")
]
Url = Annotated[str | None, typer.Option(help="A running gateway, e.g. http://127.0.0.1:8080.")]
Key = Annotated[
    str | None, typer.Option(envvar="CHORUS_API_KEY", help="The gateway's master key, when it has one.")
]


def words(value: str | None) -> list[str]:
    """`a,b` → ["a", "b"]; empty for None."""
    return [word.strip() for word in (value or "").split(",") if word.strip()]


def options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`["k=10", "weighted=true"]` → {"k": 10, "weighted": True}; values are read as YAML. Raises
    `SettingsError`."""
    parsed: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"--option {pair!r}: write NAME=VALUE.")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed[name] = value
    return parsed
