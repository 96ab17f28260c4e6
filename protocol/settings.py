"""The settings: one YAML file, typed, frozen, validated once at the edge.

Every value that is wrong is reported with its path, what was found and what is accepted; an unknown key with the
nearest known one. Secrets are written as `os.environ/NAME` (LiteLLM's notation, also `${NAME}`) and shown redacted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    model_validator,
)

from protocol.errors import SettingsError
from protocol.features import Feature
from protocol.frozen import Frozen as _Frozen
from protocol.litellm_config import is_litellm, translate
from protocol.network import (
    ClientCertificate,
    CorsSettings,
    Network,
    OutboundSettings,
    ProxyUrl,
    TlsSettings,
    Url,
)
from protocol.observing import LoggingSettings, TelemetrySettings
from protocol.price_table import price_table, priced_name
from protocol.redaction import Redaction, secrets_of
from protocol.tenancy import (
    CacheSettings,
    KeySettings,
    LedgerSettings,
    LimitsSettings,
    RedisSettings,
    StateSettings,
)
from protocol.usage import Price, Tier

__all__ = [
    "Aggregate",
    "Cascade",
    "Deployment",
    "EmbedderModel",
    "Endpoint",
    "EngineModel",
    "Fusion",
    "Hedge",
    "HostedModel",
    "ModelSettings",
    "OpenAIModel",
    "PriceSettings",
    "Resilience",
    "Routing",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "StrategySettings",
    "Talk",
    "ThresholdRule",
    "TierSettings",
    "TokenPrices",
    "check_names",
    "load_settings",
    "parse_settings",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
Positive = Annotated[float, Field(gt=0)]


class TokenPrices(_Frozen):
    """US dollars per token; a part that has no price costs what its whole does."""

    input_usd_per_token: float = Field(ge=0, description="US dollars per input token")
    output_usd_per_token: float = Field(ge=0, description="US dollars per output token")
    cached_input_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token read from a cache"
    )
    cache_write_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token put into a cache"
    )
    cache_write_1h_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token put into a cache for an hour"
    )
    reasoning_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per output token of hidden reasoning"
    )
    audio_input_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token of sound"
    )
    audio_output_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per output token of sound"
    )

    @property
    def flat(self) -> Price:
        """The price without what longer prompts cost."""
        return Price(
            self.input_usd_per_token,
            self.output_usd_per_token,
            self.cached_input_usd_per_token,
            self.cache_write_usd_per_token,
            self.cache_write_1h_usd_per_token,
            self.reasoning_usd_per_token,
            self.audio_input_usd_per_token,
            self.audio_output_usd_per_token,
        )


class TierSettings(TokenPrices):
    """What a whole call costs whose prompt is longer than `above_input_tokens`."""

    above_input_tokens: int = Field(ge=1, description="tokens of the prompt")


class PriceSettings(TokenPrices):
    """US dollars per token; or, in place of this section, a name of the price table such as `azure/gpt-4o`."""

    tiers: tuple[TierSettings, ...] = Field((), description="higher prices of long prompts, shortest first")
    source: str = Field(
        "settings", description="where the price is from; Chorus writes it, `chorus check` shows it"
    )

    @model_validator(mode="after")
    def _tiers_rise(self) -> PriceSettings:
        bounds = [tier.above_input_tokens for tier in self.tiers]
        if bounds != sorted(set(bounds)):
            raise ValueError("tiers: above_input_tokens must rise from one to the next")
        return self

    @property
    def price(self) -> Price:
        return replace(self.flat, tiers=tuple(Tier(t.above_input_tokens, t.flat) for t in self.tiers))

    @classmethod
    def of(cls, price: Price, source: str) -> PriceSettings:
        """`price` as settings."""
        tiers = tuple({**_token_prices(t.price), "above_input_tokens": t.above_tokens} for t in price.tiers)
        return cls.model_validate({**_token_prices(price), "tiers": tiers, "source": source})


def _token_prices(price: Price) -> dict[str, float | None]:
    return {
        "input_usd_per_token": price.input_usd,
        "output_usd_per_token": price.output_usd,
        "cached_input_usd_per_token": price.cached_usd,
        "cache_write_usd_per_token": price.written_usd,
        "cache_write_1h_usd_per_token": price.written_1h_usd,
        "reasoning_usd_per_token": price.reasoning_usd,
        "audio_input_usd_per_token": price.audio_in_usd,
        "audio_output_usd_per_token": price.audio_out_usd,
    }


def _price_of(value: Any) -> Any:
    """A name of the price table as the price that stands there. Raises ValueError."""
    if not isinstance(value, str):
        return value
    table = price_table()
    if (found := table.find(value)) is None:
        near = ", ".join(table.near(value)) or "none is alike"
        raise ValueError(f"no {value!r} in the price table ({table.source}); near it: {near}")
    return PriceSettings.of(found[1], f"{table.source}: {found[0]}")


class EngineModel(_Frozen):
    """A model that the engine host loads, co-located with the others so that they can decode one text together."""

    weights: str = Field(
        description="id of known weights (`chorus models list`) or a path to a Hugging Face folder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = Field(2048, ge=64, description="context length, in tokens")
    kv_cache_gib: float = Field(0.5, gt=0, description="memory for the KV cache, in GiB")
    max_running: int = Field(16, ge=1, description="sequences decoded at once")
    temperature: float = Field(
        1.0, ge=0, le=2, description="where a request names none; a fusion takes its main member's"
    )
    chat: Literal["auto", "template", "transcript"] = Field(
        "auto", description="how messages become a prompt: the model's own template, or a plain transcript"
    )


Endpoint = Literal[
    "chat", "completions", "embeddings", "messages", "responses", "images", "audio", "moderations", "files", "batches"
]  # fmt: skip


class Deployment(_Frozen):
    """What every deployment of a model has, whoever serves it: clocks, weight and limits."""

    timeout_s: Positive = Field(600.0, description="whole attempt, in seconds")
    connect_timeout_s: Positive = Field(
        5.0, description="seconds until connected: name look-up, TCP and TLS together"
    )
    first_token_timeout_s: Positive = Field(
        120.0, description="of a stream: seconds from the request to its first words"
    )
    idle_timeout_s: Positive = Field(
        60.0, description="of a stream: longest silence between its words, in seconds"
    )
    max_connections: int = Field(1024, ge=1, description="open connections per worker")
    weight: Positive = Field(1.0, description="share of the calls, relative to the model's other deployments")
    account: str | None = Field(
        None,
        min_length=1,
        description="names the account whose limits its calls count against: a 429 with Retry-After rests every "
        "deployment of the account, in all models; by default those of this model with the same base_url and api_key",
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="calls at once, over all workers (at least one each)"
    )
    rpm: int | None = Field(None, ge=1, description="calls per minute, over all workers")
    tpm: int | None = Field(None, ge=1, description="tokens per minute, read and written, over all workers")


class OpenAIModel(Deployment):
    """A model behind an OpenAI-compatible HTTP endpoint."""

    base_url: Url = Field(
        description="up to and including /v1; http://, https://, or unix:///path/to.sock; or os.environ/NAME",
        pattern=r"^(https?|unix)://",
        # A file names the variable, and the schema is for files; the pattern above is for what stands in it.
        json_schema_extra={"pattern": r"^(https?|unix)://|^os\.environ/|^\$\{"},
    )
    model: str = Field(description="the model's name there")
    api_key: SecretStr | None = Field(None, description="os.environ/NAME")
    endpoints: frozenset[Endpoint] = Field(
        frozenset({"chat", "completions", "embeddings"}),
        description="what the server has; `messages` (Anthropic's) and `responses` are passed through where listed, "
        "else translated to chat; the others are 404 where not listed",
    )
    messages_auth: Literal["bearer", "x-api-key"] = Field(
        "bearer", description="how the key is sent with `messages`; Anthropic itself wants x-api-key"
    )
    proxy: ProxyUrl | Literal["none"] | None = Field(
        None, description="goes before outbound.proxy and the environment's; `none`: reach it directly"
    )
    ca_file: Path | None = Field(
        None,
        description="PEM file of the certificate authorities to trust for it; goes before outbound.ca_file",
    )
    client_certificate: ClientCertificate | None = None

    @field_serializer("endpoints")
    def _in_order(self, endpoints: frozenset[str]) -> list[str]:
        return sorted(endpoints)


class HostedModel(Deployment):
    """A model of a provider with a protocol of its own (Anthropic, Gemini, Bedrock, Azure, Cohere, …), reached through
    litellm, which needs the extra `hosted`."""

    model: str = Field(
        description="provider, a slash, and the model's name there, as `anthropic/claude-sonnet-4-5`",
        pattern=r"^[a-z0-9_]+/.+$",
    )
    api_key: SecretStr | None = Field(None, description="os.environ/NAME")
    base_url: Url | None = Field(
        None,
        description="where the provider is reached, if not at its public address; of Azure, your resource",
        pattern=r"^https?://",
        json_schema_extra={"pattern": r"^https?://|^os\.environ/|^\$\{"},
    )
    api_version: str | None = Field(None, description="of Azure, as 2024-10-21")
    region: str | None = Field(None, description="AWS region of Bedrock, or location of Vertex AI")
    aws_access_key_id: SecretStr | None = Field(None, description="of Bedrock; os.environ/NAME")
    aws_secret_access_key: SecretStr | None = Field(None, description="of Bedrock; os.environ/NAME")
    aws_session_token: SecretStr | None = Field(None, description="of Bedrock; os.environ/NAME")
    vertex_project: str | None = Field(None, description="of Vertex AI")
    vertex_credentials: SecretStr | None = Field(
        None, description="of Vertex AI: a service account's JSON; os.environ/NAME"
    )
    credentials: Literal["settings", "environment"] = Field(
        "settings",
        description="`environment`: of Bedrock and Vertex AI, what the machine's role, profile or environment gives",
    )
    pass_fields: frozenset[str] = Field(
        frozenset(),
        description="further fields of a request that the provider understands, such as `top_k`; others are refused",
    )
    drop_unsupported: bool = Field(
        False,
        description="drop what the provider cannot do (say `seed`) in place of refusing the request with 400",
    )

    @property
    def provider(self) -> str:
        """The provider, as litellm calls it."""
        return self.model.partition("/")[0]

    @field_serializer("pass_fields")
    def _in_order(self, fields: frozenset[str]) -> list[str]:
        return sorted(fields)

    @model_validator(mode="after")
    def _can_sign_in(self) -> HostedModel:
        if self.provider == "bedrock":
            keys = self.aws_access_key_id and self.aws_secret_access_key
            if not (keys or self.api_key or self.credentials == "environment"):
                raise ValueError(
                    "bedrock needs aws_access_key_id and aws_secret_access_key, or api_key, or credentials: environment"
                )
            if not self.region:
                raise ValueError("bedrock needs a region, as us-east-1")
        elif self.provider.startswith("vertex_ai"):
            if not (self.vertex_project and self.region):
                raise ValueError("vertex_ai needs vertex_project and region (a location, as us-central1)")
            if not (self.vertex_credentials or self.credentials == "environment"):
                raise ValueError("vertex_ai needs vertex_credentials, or credentials: environment")
        elif not self.api_key:
            raise ValueError(f"{self.provider} needs an api_key (os.environ/NAME)")
        if self.provider.startswith("azure") and not self.base_url:
            raise ValueError("azure needs the base_url of your resource, as https://name.openai.azure.com")
        return self


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Deployments = Annotated[
    tuple[OpenAIModel, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_many, json_schema_input_type=OpenAIModel | tuple[OpenAIModel, ...]),
]
HostedDeployments = Annotated[
    tuple[HostedModel, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_many, json_schema_input_type=HostedModel | tuple[HostedModel, ...]),
]
"""One deployment, or several of the same model."""


class Hedge(_Frozen):
    """Ask a second deployment when the first one is slow; the first answer counts, the other call is dropped."""

    after_s: Positive = Field(
        description="seconds without an answer, or a stream's first words, before hedging"
    )
    max_cost_usd: Positive = Field(
        description="US dollars the second call may cost; a dearer one is not made"
    )


class EmbedderModel(_Frozen):
    """An embedding model served by the gateway's own embedder process."""

    weights: str = Field(description="id of known weights or a path")
    threads: int = Field(1, ge=1)
    max_batch: int = Field(32, ge=1, description="texts embedded at once")


class ModelSettings(_Frozen):
    """A thing that can answer: one of `engine`, `embedder`, `openai` and `hosted`, or the last two together."""

    engine: EngineModel | None = None
    openai: Deployments | None = Field(
        None, description="one deployment, or several of the same model taken in turn"
    )
    hosted: HostedDeployments | None = Field(
        None, description="the same, of providers with a protocol of their own"
    )
    embedder: EmbedderModel | None = None
    price: Annotated[
        PriceSettings | None, BeforeValidator(_price_of, json_schema_input_type=PriceSettings | str | None)
    ] = Field(None, description="from the price table where it is not given and the provider is known")
    context_length: int | None = Field(None, ge=1, description="tokens; of an engine model its max_model_len")
    lacks: frozenset[Feature] = Field(
        frozenset(), description="what it cannot do, so that a router gives it no request that asks for it"
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        description="the most one answer can have, reserved from a budget when the caller does not say; "
        "the context length by default",
    )
    fallbacks: tuple[Name, ...] = Field(
        (), description="models asked in this order when this one fails; never for embeddings"
    )
    balance: Literal["fastest", "least-busy", "weighted", "prefix"] = Field(
        "fastest",
        description="which deployment is asked: the faster and less busy of two drawn at random, the least busy, "
        "at random by weight, or the one that has seen the prompt's beginning (its KV cache is warm) unless it is "
        "busier than a quarter above the average; a session keeps its deployment",
    )
    prefix_bytes: int = Field(
        1024,
        ge=64,
        le=1024 * 1024,
        description="with balance `prefix`: prompts that agree in so many bytes of tools and messages, up to the "
        "first of the user, go to one deployment",
    )
    hedge: Hedge | None = Field(None, description="off by default; needs several deployments")

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelSettings:
        kinds = ("engine", "openai", "embedder") if self.openai else ("engine", "hosted", "embedder")
        _exactly_one_of(self, kinds, ("engine", "openai", "hosted", "embedder"))
        return self

    @property
    def deployments(self) -> tuple[OpenAIModel | HostedModel, ...]:
        """What is reached over the network, in the order of the settings."""
        return (*(self.openai or ()), *(self.hosted or ()))

    @property
    def output_cap(self) -> int | None:
        """Upper bound of an answer's tokens, as far as the settings tell."""
        engine = self.engine.max_model_len if self.engine else None
        return self.max_output_tokens or self.context_length or engine


class ThresholdRule(_Frozen):
    """RouteLLM's rule: the strong model answers where its chance of beating the weak one reaches `alpha`."""

    strong: Name
    weak: Name
    alpha: float = Field(
        ge=0, le=1, description="calibrate it; also per request, `router-mf-0.116` or `chorus.threshold`"
    )


class RuleSettings(_Frozen):
    """How estimates become a choice, where the quality knob should not: exactly one of them."""

    threshold: ThresholdRule | None = None
    margin: float | None = Field(None, ge=0, le=1, description="the cheapest within this quality of the best")
    cheapest_above: float | None = Field(
        None, ge=0, le=1, description="the cheapest of at least this quality, else the dearest"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> RuleSettings:
        _exactly_one_of(self, ("threshold", "margin", "cheapest_above"))
        return self


class Routing(_Frozen):
    """Pick one model beforehand: a trained router estimates quality and cost, a policy chooses."""

    method: str = "knn-router"
    artefact: Path = Field(description="folder written by `chorus train`, relative to this file")
    embedder: Name | None = Field(
        None,
        description="the embedding model the router was trained with; none for routers that read the text",
    )
    models: tuple[Name, ...] = Field((), description="choose among these of the artefact's models only")
    quality: float = Field(0.5, ge=0, le=1, description="default trade: 0 takes the cheapest, 1 the best")
    policy: RuleSettings | None = Field(None, description="another rule than the quality knob")
    switch_margin: float = Field(
        0.05,
        ge=0,
        le=1,
        description="how much better another model must be, in quality less its price by the knob, for a conversation "
        "to leave the one it has; 0 decides each turn by itself",
    )
    explore: float = Field(
        0.0, ge=0, le=1, description="share of requests given to a model drawn at random, to learn from"
    )
    default: Name = Field(description="who answers when the router cannot decide in time")
    embed_deadline_ms: float = Field(500.0, gt=0)


class Cascade(_Frozen):
    """Ask in order, stop at the first answer that is good enough."""

    method: str = "token-uncertainty"
    stages: tuple[Name, ...] = Field(min_length=2, description="cheapest first")
    artefact: Path = Field(description="folder written by `chorus calibrate`, relative to this file")


class Fusion(_Frozen):
    """Decode one text with several engine models together, in the engine host."""

    method: str = "gac"
    members: dict[Name, Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="engine model → weight"
    )
    main: Name | None = Field(None, description="whose tokens max_tokens counts; the first member by default")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")


class Aggregate(_Frozen):
    """Ask several, then vote, rank or fuse their answers."""

    method: str = "agent-forest"
    members: tuple[Name, ...] = Field(min_length=1)
    samples: int = Field(2, ge=1, le=40, description="answers asked of each member")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")


class Talk(_Frozen):
    """Models that decide by what they say: one that asks others (router-r1), or each in turn answering or passing the
    question on (disrouter)."""

    method: str = "router-r1"
    members: dict[Name, str] = Field(
        min_length=1,
        description="model → what it is good at (told to the router of router-r1); in the order of asking",
    )
    router: Name | None = Field(None, description="router-r1: the model that thinks, asks and answers")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")


class StrategySettings(_Frozen):
    """A virtual model: exactly one of `route`, `cascade`, `fuse`, `aggregate`, `talk`."""

    route: Routing | None = None
    cascade: Cascade | None = None
    fuse: Fusion | None = None
    aggregate: Aggregate | None = None
    talk: Talk | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StrategySettings:
        _exactly_one_of(self, ("route", "cascade", "fuse", "aggregate", "talk"))
        return self


class ServerSettings(_Frozen):
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


class Resilience(_Frozen):
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


class Settings(_Frozen):
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


def load_settings(path: Path, base: Path | None = None) -> Settings:
    """Read and check the YAML file at `path`; paths in it are relative to `base`, by default its folder. Raises
    `SettingsError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"Cannot read the config file {path}: {reason}.") from None
    return parse_settings(text, base=path.parent if base is None else base, source=str(path))


def parse_settings(text: str, *, base: Path = Path(), source: str = "config") -> Settings:
    """Check YAML `text`, resolving relative paths against `base`. Raises `SettingsError` listing every fault found."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{source} is not valid YAML: {Redaction().text(str(error))}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{source} must be a mapping with a 'models' section.")
    if is_litellm(raw):
        raw = translate(raw)
    try:
        settings = Settings.model_validate(_resolve_secrets(raw, ()))
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(item, raw)}" for item in error.errors())
        raise SettingsError(f"{source} has {error.error_count()} fault(s):\n{faults}") from None
    return _find_prices(_resolve_paths(settings, base))


_SECRET = re.compile(r"^(?:os\.environ/|\$\{)([A-Za-z_][A-Za-z0-9_]*)\}?$")


def _resolve_secrets(value: Any, path: tuple[str | int, ...]) -> Any:
    """Replace every `os.environ/NAME` and `${NAME}` by the variable's value."""
    if isinstance(value, dict):
        return {key: _resolve_secrets(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_secrets(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, str) and (match := _SECRET.match(value)):
        name = match.group(1)
        if name not in os.environ:
            where = ".".join(map(str, path))
            raise SettingsError(
                f"{where}: the environment variable {name} is not set; export it or remove the line."
            )
        return os.environ[name]
    return value


_UNTOLD = ("key", "proxy")
"""Parts of a path whose values may be, or hold, a secret."""


def _fault(item: Any, raw: Any) -> str:
    """One line for one validation error: path, what is wrong, and the nearest known key."""
    path = [part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    where = ".".join(map(str, path)) or "(top level)"
    if item["type"] == "value_error":
        # Written by the validators below: those of the whole file name their path themselves.
        message = item["msg"].removeprefix("Value error, ")
        return message if not path else f"{where}: {message}"
    if item["type"] != "extra_forbidden":
        found = item.get("input")
        showable = (
            isinstance(found, (str, int, float, bool))
            and not any(map(where.__contains__, _UNTOLD))
            and "headers" not in where
        )
        shown = f" (found {Redaction().text(repr(found))})" if showable else ""
        return f"{where}: {item['msg']}{shown}"
    known = _known_keys(path[:-1])
    close = get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def _known_keys(path: list[Any]) -> list[str]:
    """The keys accepted at `path`, read off the settings types themselves."""
    kind: Any = Settings
    parts = iter(path)
    for part in parts:
        field = kind.model_fields.get(part)
        kind = _model_in(field.annotation) if field else None
        if kind is None:
            return []
        if _holds_many(field.annotation):
            next(parts, None)  # the name or index of one of them
    return list(kind.model_fields)


def _holds_many(annotation: Any) -> bool:
    """Whether a field is a mapping or a list of settings, so that a path goes through a name or an index."""
    return get_origin(annotation) in (dict, tuple) or any(map(_holds_many, get_args(annotation)))


def _model_in(annotation: Any) -> Any:
    """The settings type inside an annotation such as `dict[str, Model]` or `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in reversed(get_args(annotation)):
        if (found := _model_in(argument)) is not None:
            return found
    return None


_FILES = frozenset({"artefact", "certificate", "key", "ca_file", "folder"})


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


def _exactly_one_of(value: BaseModel, kinds: tuple[str, ...], told: tuple[str, ...] = ()) -> None:
    given = [kind for kind in kinds if getattr(value, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of {', '.join(told or kinds)} (found {found})")
