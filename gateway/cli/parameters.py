"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from protocol.errors import SettingsError

__all__ = [
    "CONFIG",
    "Config",
    "ConfigOption",
    "EmbedderKey",
    "EmbedderName",
    "EmbedderUrl",
    "JsonFile",
    "Key",
    "Options",
    "Outcomes",
    "Since",
    "Url",
    "existing",
    "gateway_url",
    "options",
    "seconds",
    "words",
    "write_json",
]

UNITS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}

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
Url = Annotated[
    str | None, typer.Option(help="A running gateway, e.g. http://127.0.0.1:8080; with or without /v1.")
]
Key = Annotated[
    str | None, typer.Option(envvar="CHORUS_API_KEY", help="The gateway's master key, when it has one.")
]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="Embedder weights: an id of `chorus models list`, or a folder; with --embedder-url, a model there.",
    ),
]
EmbedderUrl = Annotated[
    str | None,
    typer.Option(
        help="Take embeddings from this API instead, e.g. https://api.openai.com/v1 (POST …/embeddings)."
    ),
]
EmbedderKey = Annotated[
    str | None, typer.Option(envvar="CHORUS_EMBEDDER_KEY", help="The key of --embedder-url.")
]
Since = Annotated[str, typer.Option(help="How far back: 24h, 7d, 4w.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write everything as JSON to this file; - prints it instead."),
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


def seconds(since: str) -> float:
    """`7d` → 604800.0. Raises `SettingsError`."""
    match = re.fullmatch(r"(\d+)([hdw])", since)
    if match is None:
        raise SettingsError(f"--since {since!r}: write a number and h, d or w, e.g. 7d.")
    return int(match[1]) * UNITS[match[2]]


def gateway_url(url: str) -> str:
    """The address of a gateway, which may have been given as SDKs are given it, up to and including /v1. Raises
    `SettingsError`."""
    if not re.match(r"https?://[^/]", url):
        raise SettingsError(f"--url {url!r}: write http://HOST:PORT or https://HOST:PORT.")
    return url.rstrip("/").removesuffix("/v1")


def existing(path: Path) -> Path:
    """The path of what is there. Raises `SettingsError`."""
    if not path.exists():
        raise SettingsError(f"There is no file or folder {path}.")
    return path


def write_json(found: Mapping[str, Any], path: Path) -> None:
    """Into the file, or printed for `-`."""
    import orjson

    text = orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode()
    if str(path) == "-":
        typer.echo(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
