"""What each name is known to lack, so that routers do not choose it for what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from backends.pricing import estimated_tokens
from protocol.features import FEATURES, TEXT_ONLY_CANNOT, Feature
from protocol.methods import FUSIONS, find_method
from protocol.settings import ModelSettings, Settings, StrategySettings

__all__ = ["Lacks", "make_lacks"]

Lacks = Callable[[Sequence[str], Mapping[str, Any]], list[str | None]]
"""(names, body of a chat request) → of each name the first thing it lacks that the request needs; None: nothing is
known."""

Limits = tuple[tuple[Feature, ...], int | None]
"""The features that somebody who has to be asked does not have, and the smallest context of them all, in tokens."""


def make_lacks(settings: Settings) -> Lacks:
    """What the settings tell of their models, and of strategies by those whom they ask. Of a route nothing is lacking:
    it looks for itself."""
    limits = {name: _limits(name, settings) for name in (*settings.models, *settings.strategies)}

    @lru_cache(maxsize=1024)
    def known(names: Sequence[str]) -> tuple[list[Limits], set[Feature], bool]:
        of_each = [limits.get(name, ((), None)) for name in names]
        missed = {feature for features, _ in of_each for feature in features}
        return of_each, missed, any(context is not None for _, context in of_each)

    def lacks(names: Sequence[str], body: Mapping[str, Any]) -> list[str | None]:
        of_each, missed, bounded = known(tuple(names))
        asked = {feature for feature in missed if FEATURES[feature](body) is not None}
        needed = _tokens(body) if bounded else 0
        if not asked and not needed:
            return [None] * len(of_each)
        return [_first(each, asked, needed) for each in of_each]

    return lacks


def _limits(name: str, settings: Settings) -> Limits:
    strategy = settings.strategies.get(name)
    if strategy is None:
        return _of_model(settings.models[name])
    parts = [_limits(part, settings) for part in _asked(strategy)]
    if strategy.fuse and find_method(strategy.fuse.method, *FUSIONS).contract != "fusion":
        parts.append((("structured output",), None))  # whose texts are not chosen symbol by symbol
    contexts = [context for _, context in parts if context is not None]
    features = dict.fromkeys(feature for features, _ in parts for feature in features)
    return tuple(features), min(contexts, default=None)


def _of_model(model: ModelSettings) -> Limits:
    if model.engine:
        return tuple(TEXT_ONLY_CANNOT), model.engine.max_model_len
    return tuple(sorted(model.lacks)), model.context_length


def _asked(strategy: StrategySettings) -> tuple[str, ...]:
    """All that have to be able, for the strategy to be."""
    if strategy.cascade:
        return strategy.cascade.stages
    if strategy.aggregate:
        return strategy.aggregate.members
    if strategy.talk:
        return tuple(strategy.talk.members)
    return tuple(strategy.fuse.members) if strategy.fuse else ()


def _tokens(body: Mapping[str, Any]) -> int:
    """About what a request needs of a context: its prompt, and the answer it allows."""
    if "messages" not in body:
        return 0
    return estimated_tokens(body) + int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)


def _first(limits: Limits, asked: set[Feature], needed: int) -> str | None:
    features, context = limits
    for feature in features:
        if feature in asked:
            return feature
    return "enough context" if context is not None and needed > context else None
