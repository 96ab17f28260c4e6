"""The whole file as a type: models, strategies, and how the gateway runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr, model_validator

from protocol.frozen import Frozen
from protocol.network import CorsSettings, Network, OutboundSettings, TlsSettings
from protocol.observing import LoggingSettings, TelemetrySettings
from protocol.redaction import Redaction, secrets_of
from protocol.settings.base import Name, Positive
from protocol.settings.models import ModelSettings
from protocol.settings.names import check_names
from protocol.settings.strategies import StrategySettings
from protocol.tenancy import (
    CacheSettings,
    KeySettings,
    LedgerSettings,
    LimitsSettings,
    RedisSettings,
    StateSettings,
)

__all__ = ["Resilience", "ServerSettings", "Settings"]


class ServerSettings(Frozen):
    """Where and how the gateway listens."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65535)
    workers: int = Field(1, ge=1, le=64)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(8081, ge=1, le=65535)
    master_key: SecretStr | None = Field(
        None, description="os.environ/NAME; when set, every /v1 request must carry it"
    )
    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    body_timeout_s: Positive = Field(60.0, description="for a request's body to arrive, in seconds; else 408")
    deadline_s: Positive = Field(600.0, description="whole call tree of one request, in seconds")
    max_calls: int = Field(64, ge=1, description="calls one request may make, all levels together")
    max_depth: int = Field(4, ge=1, description="how deep strategies may call strategies")
    tls: TlsSettings | None = Field(None, description="without it the public port speaks plain HTTP")
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        description="addresses and networks of proxies in front of the gateway, whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed; nobody else's are",
    )
    cors: CorsSettings | None = Field(None, description="without it no web page of another origin may call")
    unready_s: float = Field(
        0.0,
        ge=0,
        description="after SIGTERM, for how long requests are still accepted while /readyz already says 503, in "
        "seconds; for load balancers that learn late",
    )
    drain_s: int = Field(
        30, ge=0, description="how long answers may go on after that, in seconds; a second signal ends them"
    )
    watch_config: bool = Field(
        True,
        description="reload when this file, an artefact or a certificate changes; SIGHUP reloads in any case",
    )


class Resilience(Frozen):
    """What happens when a backend fails; for every model."""

    retries: int = Field(2, ge=0, le=10, description="attempts after the first, other deployments included")
    backoff_s: Positive = Field(
        0.25,
        description="wait before a retry, in seconds; doubles each time, jittered; Retry-After goes before",
    )
    retry_budget: float = Field(
        0.2,
        ge=0,
        le=1,
        description="retries as a share of calls, beyond ten in reserve: an outage is not amplified",
    )
    breaker_failures: int = Field(
        5, ge=1, description="failures in a row after which a deployment is left alone"
    )
    cooldown_s: Positive = Field(
        5.0, description="for how long, in seconds; doubles each time a probe fails, up to 30 s"
    )


class Settings(Frozen):
    """The whole file. `models` can answer; `strategies` are virtual models made of them; both share one name space."""

    models: dict[Name, ModelSettings] = Field(min_length=1)
    strategies: dict[Name, StrategySettings] = Field(default_factory=dict)
    server: ServerSettings = ServerSettings()
    resilience: Resilience = Resilience()
    keys: KeySettings = KeySettings()
    limits: LimitsSettings = LimitsSettings()
    state: StateSettings = StateSettings()
    redis: RedisSettings | None = None
    ledger: LedgerSettings = LedgerSettings()
    outbound: OutboundSettings = OutboundSettings()
    cache: CacheSettings | None = Field(None, description="off unless set")
    logging: LoggingSettings = LoggingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _names_resolve(self) -> Settings:
        check_names(self)
        return self

    def redacted(self) -> dict[str, Any]:
        """The effective settings as JSON values, every secret as `**********`, and none in an address."""
        redaction = Redaction(secrets_of(self))

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: clean(item) for key, item in value.items()}
            if isinstance(value, list):
                return [clean(item) for item in value]
            return redaction.text(value) if isinstance(value, str) and "://" in value else value

        told: dict[str, Any] = clean(self.model_dump(mode="json", exclude_none=True))
        return told
