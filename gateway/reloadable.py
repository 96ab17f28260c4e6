"""What of a changed config can come into force without a restart.

Most can. What a process has opened when it started (ports, stores, the ledger), and what the engine host has loaded,
stays as it was when Chorus was started; `effective` keeps it and names what was asked for in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from protocol.errors import SettingsError
from protocol.settings import ModelSettings, Settings, check_names

__all__ = ["REPLACEABLE", "effective", "engine_models"]

FIXED = (
    *(("server", key) for key in ("host", "port", "workers", "admin_host", "admin_port")),
    *(("keys", key) for key in ("pepper", "admin")),
    ("limits", "without_store"),
    ("state",),
    ("redis",),
    ("ledger",),
    ("cache",),
    ("logging",),
    ("telemetry",),
)
"""Paths of settings that are read once, at the start."""


def engine_models(settings: Settings) -> dict[str, Any]:
    """What the engine host loads: its models and fusions by name."""
    models = {name: model.engine for name, model in settings.models.items() if model.engine}
    fusions = {name: strategy.fuse for name, strategy in settings.strategies.items() if strategy.fuse}
    return {**models, **fusions}


def embedder_models(settings: Settings) -> dict[str, Any]:
    """What the embedder process loads, by name."""
    return {name: model.embedder for name, model in settings.models.items() if model.embedder}


def hosted_models(settings: Settings) -> dict[str, Any]:
    """What the hosted process serves, by name."""
    return {name: model.hosted for name, model in settings.models.items() if model.hosted}


REPLACEABLE: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "embedder": embedder_models,
    "hosted": hosted_models,
}
"""Helper processes that keep nothing between requests, so that another one can take their place; and what each is made
for."""


def effective(boot: Settings, wanted: Settings) -> tuple[Settings, tuple[str, ...]]:
    """`wanted`, but what cannot change keeps its value of `boot`, the settings at the start; and the paths of what that
    concerns. Raises `SettingsError` where the rest makes no sense without it."""
    kept: list[str] = []
    settings = _engines_kept(boot, wanted, kept)
    if (boot.server.tls is None) != (wanted.server.tls is None):
        settings = _with(settings, ("server", "tls"), boot.server.tls)
        kept.append("server.tls")
    for path in FIXED:
        old, new = _at(boot, path), _at(settings, path)
        if old != new:
            settings = _with(settings, path, old)
            kept.append(".".join(path))
    try:
        check_names(settings)
    except ValueError as error:
        raise SettingsError(
            f"This needs a restart ({', '.join(kept)}), and the rest cannot be reloaded without it: {error}"
        ) from None
    return settings, tuple(sorted(kept))


def _engines_kept(boot: Settings, wanted: Settings, kept: list[str]) -> Settings:
    """`wanted` with engine models and fusions as the running engine host has them: one that is gone is not asked any
    more; one that is new, or changed, waits for the restart."""
    loaded = engine_models(boot)
    models: dict[str, ModelSettings] = {}
    for name, model in wanted.models.items():
        if model.engine is None or loaded.get(name) == model.engine:
            models[name] = model
            continue
        kept.append(f"models.{name}.engine")
        if name in loaded and name in boot.models:
            models[name] = model.model_copy(update={"engine": loaded[name]})
    strategies = {}
    for name, strategy in wanted.strategies.items():
        if strategy.fuse is None or loaded.get(name) == strategy.fuse:
            strategies[name] = strategy
            continue
        kept.append(f"strategies.{name}.fuse")
        if name in boot.strategies and boot.strategies[name].fuse:
            strategies[name] = boot.strategies[name]
    return wanted.model_copy(update={"models": models, "strategies": strategies}) if kept else wanted


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        settings = getattr(settings, key)
    return settings


def _with(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    """`settings` with `value` at `path`."""
    key, *rest = path
    if rest:
        value = _with(getattr(settings, key), tuple(rest), value)
    return settings.model_copy(update={key: value})
