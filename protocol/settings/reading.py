"""A file, or its text, as settings: secrets from the environment, paths made absolute, prices looked up."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from protocol.errors import SettingsError
from protocol.litellm_config import is_litellm, translate
from protocol.price_table import price_table, priced_name
from protocol.redaction import Redaction
from protocol.settings.document import Document
from protocol.settings.faults import faults
from protocol.settings.models import HostedModel
from protocol.settings.prices import PriceSettings
from protocol.settings.whole import Settings

__all__ = ["load_settings", "parse_settings"]


def load_settings(path: Path, base: Path | None = None) -> Settings:
    """Read and check the YAML file at `path`; paths in it are relative to `base`, by default its folder. Raises
    `SettingsError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        hint = "" if path.exists() else " Name yours: as an argument, with --config, or in CHORUS_CONFIG."
        raise SettingsError(f"Cannot read the config file {path}: {reason}.{hint}") from None
    return parse_settings(text, base=path.parent if base is None else base, source=str(path))


def parse_settings(text: str, *, base: Path = Path(), source: str = "config") -> Settings:
    """Check YAML `text`, resolving relative paths against `base`. Raises `SettingsError` listing every fault found."""
    try:
        document = Document(text, source)
    except yaml.YAMLError as error:
        raise SettingsError(f"{source} is not valid YAML: {Redaction().text(str(error))}") from None
    if document.twice:
        raise _faulty(source, document.twice)
    raw = document.value
    if not isinstance(raw, dict):
        raise SettingsError(f"{source} must be a mapping with a 'models' section.")
    # A section whose keys are all commented out is as good as none.
    raw = {key: section for key, section in raw.items() if section is not None}
    foreign = is_litellm(raw)
    if foreign:
        unknown: list[str] = []
        raw = translate(raw, [name for name in Settings.model_fields if name != "models"], unknown)
        if unknown:
            raise _faulty(source, unknown)
    missing: list[str] = []
    raw = _resolve_secrets(raw, (), missing)
    if missing:
        raise _faulty(source, missing)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise _faulty(source, faults(error, raw, None if foreign else document)) from None
    return _find_prices(_resolve_paths(settings, base))


def _faulty(source: str, faults: Sequence[str]) -> SettingsError:
    lines = "\n".join(f"  {line}" for line in faults)
    return SettingsError(f"{source} has {len(faults)} fault(s):\n{lines}")


_SECRET = re.compile(r"^(?:os\.environ/|\$\{)([A-Za-z_][A-Za-z0-9_]*)\}?$")


def _resolve_secrets(value: Any, path: tuple[str | int, ...], missing: list[str]) -> Any:
    """Replace every `os.environ/NAME` and `${NAME}` by the variable's value; add to `missing` what is not set."""
    if isinstance(value, dict):
        return {key: _resolve_secrets(item, (*path, key), missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_secrets(item, (*path, i), missing) for i, item in enumerate(value)]
    if isinstance(value, str) and (match := _SECRET.match(value)):
        name = match.group(1)
        if name in os.environ:
            return os.environ[name]
        where = ".".join(map(str, path))
        missing.append(f"{where}: the environment variable {name} is not set; export it or remove the line")
    return value


_FILES = frozenset({"artefact", "artefacts", "certificate", "key", "ca_file", "folder"})


def _resolve_paths(settings: Settings, base: Path) -> Settings:
    """Make the paths of files and folders absolute."""
    return cast(Settings, _resolved(settings, base))


def _absolute(path: Path) -> Path:
    """Symbolic links stay: what they point to is what changes when files are renewed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow them


def _resolved(value: Any, base: Path) -> Any:
    """`value` with every path of `_FILES` in it made absolute; itself where there is none."""
    if isinstance(value, BaseModel):
        changed = {}
        for name in type(value).model_fields:
            old = getattr(value, name)
            is_file = name in _FILES and isinstance(old, Path)
            if name in _FILES and isinstance(old, dict):
                new: Any = {part: _absolute(base / path.expanduser()) for part, path in old.items()}
            else:
                new = _absolute(base / old.expanduser()) if is_file else _resolved(old, base)
            if new is not old:
                changed[name] = new
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, dict):
        resolved = {key: _resolved(item, base) for key, item in value.items()}
        return resolved if any(resolved[key] is not item for key, item in value.items()) else value
    if isinstance(value, tuple):
        items = tuple(_resolved(item, base) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _find_prices(settings: Settings) -> Settings:
    """Give the models that have no price the table's: of several deployments the dearest, so that budgets hold."""
    models = dict(settings.models)
    for name, model in settings.models.items():
        if model.price is not None or not model.deployments:
            continue
        names = (
            deployment.model
            if isinstance(deployment, HostedModel)
            else priced_name(deployment.base_url, deployment.model)
            for deployment in model.deployments
        )
        found = [entry for name in names if name and (entry := price_table().find(name))]
        if found:
            told, price = max(
                found, key=lambda entry: (entry[1].dearest_output_usd, entry[1].dearest_input_usd)
            )
            priced = PriceSettings.of(price, f"{price_table().source}: {told}")
            models[name] = model.model_copy(update={"price": priced})
    return settings.model_copy(update={"models": models})
