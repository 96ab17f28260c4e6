"""What can answer: models of our own processes, and deployments reached over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_serializer, model_validator

from protocol.features import Feature
from protocol.frozen import Frozen
from protocol.network import ClientCertificate, ProxyUrl, Url
from protocol.settings.base import Name, Positive, exactly_one_of
from protocol.settings.prices import PriceSettings, price_of

__all__ = [
    "Deployment",
    "EmbedderModel",
    "Endpoint",
    "EngineModel",
    "Hedge",
    "HostedModel",
    "ModelSettings",
    "OpenAIModel",
]


class EngineModel(Frozen):
    """A model that the engine host loads, co-located with the others so that they can decode one text together."""

    weights: str = Field(
        description="id of known weights (`chorus models list`) or a path to a Hugging Face folder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = Field(2048, ge=64, description="context length, in tokens")
    kv_cache_gib: float = Field(0.5, gt=0, description="memory for the KV cache, in GiB")
    max_running: int = Field(16, ge=1, description="sequences decoded at once")
    max_waiting: int = Field(
        1024,
        ge=0,
        description="requests that may wait beside those; a further one is told to come back (429)",
    )
    kv_commit: Positive | None = Field(
        None,
        description="how often over the KV cache may be promised to requests under way, each counted with the most it "
        "can hold; a further one is told to come back (429). By default as often as `max_waiting` allows",
    )
    device: str | None = Field(
        None,
        pattern=r"^(cpu|(cuda|xpu)(:\d+)?)$",
        description="where the model runs, such as `cuda:1`; by default where vLLM chooses. Run on CPUs only so far",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="devices of one machine that share the model, each with a process of the engine host; the same "
        "number for all models of a host, or 1: such a model every one of these processes computes for itself",
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="where a request names none; a fusion takes its main member's"
    )
    chat: Literal["auto", "template", "transcript"] = Field(
        "auto", description="how messages become a prompt: the model's own template, or a plain transcript"
    )


Endpoint = Literal[
    "chat", "completions", "embeddings", "messages", "responses", "images", "audio", "moderations", "files", "batches"
]  # fmt: skip


class Deployment(Frozen):
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


class Hedge(Frozen):
    """Ask a second deployment when the first one is slow; the first answer counts, the other call is dropped."""

    after_s: Positive = Field(
        description="seconds without an answer, or a stream's first words, before hedging"
    )
    max_cost_usd: Positive = Field(
        description="US dollars the second call may cost; a dearer one is not made"
    )


class EmbedderModel(Frozen):
    """An embedding model served by the gateway's own embedder process."""

    weights: str = Field(description="id of known weights or a path")
    threads: int = Field(1, ge=1)
    max_batch: int = Field(32, ge=1, description="texts embedded at once")


class ModelSettings(Frozen):
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
        PriceSettings | None, BeforeValidator(price_of, json_schema_input_type=PriceSettings | str | None)
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
        exactly_one_of(self, kinds, ("engine", "openai", "hosted", "embedder"))
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
