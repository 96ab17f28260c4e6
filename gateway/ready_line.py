"""What the operator reads when everything is up: where, which names, and a line to paste."""

from __future__ import annotations

from protocol.settings import ServerSettings, Settings

__all__ = ["ready_line"]

# Listening everywhere is no address to call.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - nothing is bound here


def ready_line(settings: Settings, server: ServerSettings) -> str:
    """Several lines; the last is a curl command."""
    scheme = "https" if server.tls else "http"
    base = f"{scheme}://{_address(server.host)}:{server.port}/v1"
    answering = [name for name, model in settings.models.items() if not model.embedder]
    names = [*settings.models, *settings.strategies]
    first = "auto" if "auto" in settings.strategies else answering[0]
    key = ' -H "authorization: Bearer $CHORUS_MASTER_KEY"' if server.master_key else ""
    return "\n".join(
        [
            f"Chorus is ready at {base}  (probes and metrics: http://{_address(server.admin_host)}:{server.admin_port})",
            f"Models: {', '.join(names)}",
            f"Try:    curl {base}/chat/completions{key} -H 'content-type: application/json' "
            f"""-d '{{"model": "{first}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'""",
        ]
    )


def _address(host: str) -> str:
    """`host` as it stands in a URL."""
    return _ANY.get(host, f"[{host}]" if ":" in host else host)
