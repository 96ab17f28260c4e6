"""The caches that settings describe."""

from __future__ import annotations

import time

from gateway.caching.cached import AnswerStore, Caches, Semantic
from gateway.caching.memory import MemoryStore
from protocol.settings import Settings

__all__ = ["make_caches", "make_semantic"]

MIB = 1 << 20


def make_caches(settings: Settings) -> Caches | None:
    """None where the settings have none."""
    wanted = settings.cache
    if wanted is None:
        return None
    return Caches(
        _store(settings),
        wanted.ttl_s,
        time.time,
        names=frozenset(wanted.names) or None,
        semantic=make_semantic(settings),
    )


def _store(settings: Settings) -> AnswerStore:
    assert settings.cache is not None
    if settings.cache.store == "memory" or settings.redis is None:
        return MemoryStore(settings.cache.max_mib * MIB, time.monotonic)
    from gateway.caching.shared import SharedStore
    from gateway.state.redis_client import RedisClient

    redis = settings.redis
    return SharedStore(RedisClient(redis.url.get_secret_value()), redis.prefix)


def make_semantic(settings: Settings) -> Semantic | None:
    """Without any asks yet; None where the settings compare none."""
    wanted = settings.cache.semantic if settings.cache else None
    if wanted is None:
        return None
    from gateway.caching.semantic import SemanticIndex  # numpy, which a gateway without it need not load

    return Semantic(SemanticIndex(wanted.threshold, wanted.max_asks), wanted.embedder)
