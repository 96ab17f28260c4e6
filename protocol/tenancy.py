"""Settings of keys, limits, money, shared state and the ledger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from protocol.frozen import Frozen as _Frozen

__all__ = [
    "CacheSettings",
    "KeySettings",
    "LedgerSettings",
    "LimitSettings",
    "LimitsSettings",
    "Period",
    "RedisSettings",
    "SemanticSettings",
    "StateSettings",
    "state_folder",
]

Period = Literal["day", "week", "month", "total"]
MAX_USD = 1_000_000.0
"""The largest budget: in nanodollars it is a whole number that every store and script holds exactly."""


class LimitSettings(_Frozen):
    """What one key, team or model, or all together, may use."""

    rpm: int | None = Field(None, ge=1, description="requests per minute")
    tpm: int | None = Field(None, ge=1, description="tokens per minute, read and written")
    concurrent: int | None = Field(None, ge=1, description="requests at once")
    budgets_usd: dict[Period, Annotated[float, Field(ge=0, le=MAX_USD)]] = Field(
        default_factory=dict,
        description="period (`day`, `week`, `month`: UTC; or `total`) → US dollars; never overshot",
    )

    @property
    def empty(self) -> bool:
        """Whether it limits nothing."""
        return self.rpm is self.tpm is self.concurrent is None and not self.budgets_usd


class LimitsSettings(_Frozen):
    """Limits beside those of a key itself. A request must fit all that concern it."""

    everyone: LimitSettings = Field(LimitSettings(), description="all requests together")
    models: dict[str, LimitSettings] = Field(
        default_factory=dict, description="model or strategy, as a request names it → its limits"
    )
    teams: dict[str, LimitSettings] = Field(
        default_factory=dict, description="team → its keys' limits together"
    )
    default_max_tokens: int = Field(
        4096,
        ge=1,
        description="under a budget, sent as max_tokens where neither the request nor the model says how long an "
        "answer may be",
    )
    patience_s: float = Field(
        5.0,
        ge=0,
        description="how long a request waits for money that calls under way have reserved and may not need",
    )
    without_store: Literal["local", "refuse"] = Field(
        "local",
        description="rpm, tpm and concurrency while the shared state is away: each worker counts for itself, or "
        "nothing is admitted; money is never spent then beyond what a worker already holds",
    )


class KeySettings(_Frozen):
    """Virtual keys."""

    required: bool = Field(
        False, description="every /v1 request needs a key; so it is with server.master_key"
    )
    pepper: SecretStr | None = Field(
        None,
        description="os.environ/NAME; secret that key digests are made with. Kept in state.folder when not set; "
        "gateways that share a Redis must all set the same",
    )
    admin: SecretStr | None = Field(
        None,
        description="os.environ/NAME; the admin API's own key. When not set, one is made at the first start and left "
        "in state.folder/admin.key",
    )


class StateSettings(_Frozen):
    """Where a machine keeps what outlives a request."""

    folder: Path | None = Field(
        None, description="keys, limits, ledger; default ${XDG_STATE_HOME:-~/.local/state}/chorus"
    )


class RedisSettings(_Frozen):
    """Shared state in Redis: gateways on several machines then have the same keys, limits and budgets."""

    url: SecretStr = Field(
        description="os.environ/NAME; redis://, rediss://, unix://, redis+cluster://HOST:PORT or "
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE; with rediss for TLS, "
        "and ?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE"
    )
    prefix: str = Field("chorus", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="begins every key's name")


class LedgerSettings(_Frozen):
    """One row for each request and each call of its tree. No prompt or answer text, but of keys that have it stored."""

    enabled: bool = True
    url: SecretStr | None = Field(
        None,
        description="os.environ/NAME; postgresql://…, as libpq reads it: one ledger for all gateways that name it "
        "(needs the extra `postgres`). Not set: SQLite in state.folder",
    )
    retention_days: int = Field(400, ge=1, description="older rows are removed")
    queue: int = Field(
        10_000, ge=1, description="requests that wait to be written; beyond, rows are dropped and counted"
    )

    max_text_days: int = Field(
        30,
        ge=0,
        description="for how long prompts and answers are stored at most, of keys that have that switched on "
        "(`text_days`); 0: no key may",
    )
    max_text_kib: int = Field(
        256,
        ge=1,
        le=16_384,
        description="of each prompt, and of each answer, that is stored; the rest is cut off",
    )

    @field_validator("url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("a ledger's url begins with postgresql://")
        return url


class SemanticSettings(_Frozen):
    """Answers to what was asked before in nearly the same words. Kept in each worker's memory."""

    embedder: str = Field(description="the embedding model that compares")
    threshold: float = Field(
        0.97,
        gt=0.5,
        le=1,
        description="least cosine of two asks; docs/caches.md shows what lower ones confuse",
    )
    max_asks: int = Field(10_000, ge=1, description="asks that are compared with, per worker")


class CacheSettings(_Frozen):
    """Answers kept for the next who asks the same: the same tenant, model, parameters, tools and messages."""

    ttl_s: float = Field(3600.0, gt=0, description="for how long, in seconds")
    store: Literal["memory", "redis"] = Field(
        "memory", description="each worker's own memory, or Redis (`redis.url`) for all of them together"
    )
    max_mib: int = Field(64, ge=1, description="memory for answers, per worker, in MiB")
    names: tuple[str, ...] = Field((), description="models and strategies whose answers are kept; none: all")
    semantic: SemanticSettings | None = Field(None, description="off unless set")


def state_folder(settings: StateSettings, environ: Mapping[str, str] = os.environ) -> Path:
    """Where state is kept."""
    if settings.folder is not None:
        return settings.folder
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "chorus"
