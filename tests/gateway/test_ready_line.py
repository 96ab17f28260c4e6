"""What the operator reads."""

from __future__ import annotations

from gateway.ready_line import ready_line
from protocol.settings import parse_settings

CONFIG = """
models:
  e: {embedder: {weights: x}}
  m: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}}
strategies:
  vote: {aggregate: {members: [m]}}
server: {host: 0.0.0.0, master_key: sk-canary}
"""


def test_ready_line() -> None:
    """It has an address that can be called, every name, and a curl line that asks a model that answers."""
    settings = parse_settings(CONFIG)
    told = ready_line(settings, settings.server)
    assert "http://127.0.0.1:8080/v1" in told
    assert "e, m, vote" in told
    assert '"model": "m"' in told
    assert "$CHORUS_MASTER_KEY" in told
    assert "canary" not in told
