"""Whether the names in the settings mean something: the checks that no section can make by itself."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from protocol.settings.strategies import StrategySettings

if TYPE_CHECKING:
    from protocol.settings.whole import Settings

__all__ = ["check_names"]


def check_names(settings: Settings) -> None:
    """Every name in `settings` means something, and one thing. Raises ValueError naming the path."""
    clash = sorted(set(settings.models) & set(settings.strategies))
    if clash:
        raise ValueError(f"{clash[0]!r} is both a model and a strategy; rename one")
    answering = {name for name, model in settings.models.items() if model.embedder is None}
    for name, model in settings.models.items():
        _require(f"models.{name}.fallbacks", model.fallbacks, answering - {name}, "other models that answer")
    for name, strategy in settings.strategies.items():
        _check_members(name, strategy, settings, answering | (set(settings.strategies) - {name}))
    _check_no_circle(settings.strategies)
    if settings.cache is not None:
        everyone = {*answering, *settings.strategies}
        _require("cache.names", settings.cache.names, everyone, "models and strategies that answer")
        if settings.cache.semantic is not None:
            _require("cache.semantic.embedder", [settings.cache.semantic.embedder], set(settings.models))
        if settings.cache.store == "redis" and settings.redis is None:
            raise ValueError("cache.store: redis needs redis.url")
    _require(
        "limits.models",
        settings.limits.models,
        {*settings.models, *settings.strategies},
        "models and strategies",
    )


def _check_members(name: str, strategy: StrategySettings, settings: Settings, answering: set[str]) -> None:
    """Raises ValueError when a strategy names something that cannot take part in it."""
    if strategy.route:
        embedder = strategy.route.embedder
        if embedder is not None and embedder not in settings.models:
            raise ValueError(f"strategies.{name}.route.embedder: no model {embedder!r}")
        _require(f"strategies.{name}.route.default", [strategy.route.default], answering)
        _require(f"strategies.{name}.route.models", strategy.route.models, answering)
    if strategy.cascade:
        _require(f"strategies.{name}.cascade.stages", strategy.cascade.stages, answering)
    if strategy.aggregate:
        _require(f"strategies.{name}.aggregate.members", strategy.aggregate.members, answering)
    if strategy.talk:
        _require(f"strategies.{name}.talk.members", strategy.talk.members, answering)
        if strategy.talk.router is not None:
            _require(f"strategies.{name}.talk.router", [strategy.talk.router], answering)
    if strategy.fuse:
        engines = {model for model, value in settings.models.items() if value.engine}
        members = list(strategy.fuse.members)
        _require(f"strategies.{name}.fuse.members", members, engines, "engine models")
        if strategy.fuse.main is not None:
            _require(f"strategies.{name}.fuse.main", [strategy.fuse.main], set(members), "its members")
        if not sum(strategy.fuse.members.values()) > 0:
            raise ValueError(f"strategies.{name}.fuse.members: at least one weight must be above 0")


def _check_no_circle(strategies: Mapping[str, StrategySettings]) -> None:
    """Raises ValueError when strategies ask each other in a circle: no request through it could end."""

    def follow(path: tuple[str, ...]) -> None:
        strategy = strategies[path[-1]]
        asked: tuple[str, ...] = ()
        if strategy.cascade:
            asked = strategy.cascade.stages
        elif strategy.aggregate:
            asked = strategy.aggregate.members
        elif strategy.talk:
            asked = (*strategy.talk.members, *([strategy.talk.router] if strategy.talk.router else []))
        elif strategy.route:
            asked = (strategy.route.default,)
        for name in asked:
            if name in path:
                raise ValueError(
                    f"strategies.{name}: asks itself: {' → '.join((*path[path.index(name) :], name))}"
                )
            if name in strategies:
                follow((*path, name))

    for name in strategies:
        follow((name,))


def _require(
    where: str, names: Any, known: set[str], what: str = "models and strategies that answer"
) -> None:
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; {what}: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: no {name!r}{hint}")
