"""What each name is known to lack, so that routers do not choose it for what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backends.pricing import estimated_tokens
from protocol.features import TEXT_ONLY_CANNOT, first_lacking
from protocol.settings import ModelSettings, Settings, StrategySettings

__all__ = ["Lacks", "make_lacks"]

Lacks = Callable[[str, Mapping[str, Any]], str | None]
"""(name, body of a chat request) → the first thing the request needs that the name lacks; None: nothing is known."""


def make_lacks(settings: Settings) -> Lacks:
    """What the settings tell of their models, and of strategies by those whom they ask. Of a route nothing is lacking:
    it looks for itself."""

    def lacks(name: str, body: Mapping[str, Any]) -> str | None:
        strategy = settings.strategies.get(name)
        if strategy is not None:
            found = (lacks(asked, body) for asked in _asked(strategy))
        else:
            model = settings.models.get(name)
            found = (_model_lacks(each, body) for each in ([model] if model else []))
        return next((lacking for lacking in found if lacking is not None), None)

    return lacks


def _asked(strategy: StrategySettings) -> tuple[str, ...]:
    """All that have to be able, for the strategy to be."""
    if strategy.cascade:
        return strategy.cascade.stages
    if strategy.aggregate:
        return strategy.aggregate.members
    if strategy.talk:
        return tuple(strategy.talk.members)
    return tuple(strategy.fuse.members) if strategy.fuse else ()


def _model_lacks(model: ModelSettings, body: Mapping[str, Any]) -> str | None:
    found = first_lacking(body, TEXT_ONLY_CANNOT if model.engine else sorted(model.lacks))
    if found is not None:
        return found[0]
    context = model.engine.max_model_len if model.engine else model.context_length
    if context is None or "messages" not in body:
        return None
    answer = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return "enough context" if estimated_tokens(body) + answer > context else None
