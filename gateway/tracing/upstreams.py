"""What OpenTelemetry calls those whom a model is asked of: the provider's name, and where it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from protocol.settings import HostedModel, OpenAIModel, Settings

__all__ = ["OURS", "Upstream", "upstreams"]

OURS = "chorus"
"""The provider of models that our own processes serve."""

_PROVIDERS = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    (".inference.ai.azure.com", "azure.ai.inference"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".amazonaws.com", "aws.bedrock"),
    ("api.cohere.com", "cohere"),
    ("api.cohere.ai", "cohere"),
    ("api.deepseek.com", "deepseek"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.moonshot.ai", "moonshot_ai"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
)
"""End of a host's name → the conventions' word for who serves there."""

_HOSTED = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""litellm's word for a provider → the conventions' word, where it is another one."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Upstream:
    """One deployment. Whoever is not known by his host is `openai`, whose protocol he speaks."""

    provider: str
    address: str | None = None
    port: int | None = None

    @classmethod
    def at(cls, base_url: str) -> Upstream:
        """The one that serves there. Of the URL only host and port are told."""
        url = urlsplit(base_url)
        host = url.hostname
        if host is None:  # a Unix socket
            return cls("openai")
        provider = next((name for end, name in _PROVIDERS if host.endswith(end)), "openai")
        return cls(provider, host, url.port or _PORTS.get(url.scheme))


def _upstream(deployment: OpenAIModel | HostedModel) -> Upstream:
    if isinstance(deployment, OpenAIModel):
        return Upstream.at(deployment.base_url)
    return Upstream(_HOSTED.get(deployment.provider, deployment.provider))


def upstreams(settings: Settings) -> Mapping[str, tuple[Upstream, ...]]:
    """Model or fusion → its deployments, in their order. Those not listed are our own."""
    return {
        name: tuple(map(_upstream, model.deployments))
        for name, model in settings.models.items()
        if model.deployments
    }
