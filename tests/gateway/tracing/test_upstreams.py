"""Whom a model is asked of, in the conventions' words."""

from __future__ import annotations

from gateway.tracing.upstreams import Upstream, upstreams
from protocol.settings import Settings


def test_hosted_models_have_their_providers_names() -> None:
    """Each deployment in its place: those of OpenAI's protocol by their host, hosted ones by their provider."""
    settings = Settings.model_validate(
        {
            "models": {
                "both": {
                    "openai": {"base_url": "https://api.groq.com/openai/v1", "model": "a"},
                    "hosted": [
                        {"model": "gemini/b", "api_key": "k"},
                        {"model": "anthropic/c", "api_key": "k"},
                    ],
                }
            }
        }
    )
    assert upstreams(settings) == {
        "both": (Upstream("groq", "api.groq.com", 443), Upstream("gcp.gemini"), Upstream("anthropic"))
    }
