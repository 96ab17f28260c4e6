"""What looks like a secret is blotted out of what is written."""

from __future__ import annotations

import pytest

from protocol.redaction import BLOT, Redaction, secrets_of
from protocol.settings import parse_settings


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("authorization: Bearer abcdef0123456789", "authorization:", "abcdef0123456789"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic", "dXNlcjpwYXNzd29yZA"),
        ("key sk-proj-AbC_123456789 refused", "refused", "AbC_123456789"),
        ("redis://user:hunter22@cache:6379/0", "@cache:6379/0", "hunter22"),
        ("https://token0123@host/v1", "@host/v1", "token0123"),
        ('{"api_key": "zzz0123456"}', "api_key", "zzz0123456"),
        ("x-api-key: zzz0123456", "x-api-key", "zzz0123456"),
        ("password=hunter2222&x=1", "x=1", "hunter2222"),
        ("AWS AKIAIOSFODNN7EXAMPLE denied", "denied", "AKIAIOSFODNN7EXAMPLE"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSM", "", "SflKxwRJSM"),
    ],
)
def test_shapes(text: str, kept: str, gone: str) -> None:
    """Keys, credentials and the like are blotted out; the words around them stay."""
    clean = Redaction().text(text)
    assert gone not in clean
    assert kept in clean
    assert BLOT in clean


@pytest.mark.parametrize(
    "text",
    [
        "POST /v1/chat/completions 200 ok 12.3 ms",
        "the deployment of 'smollm2-135m' answered with status 503",
        "max_tokens: 4096, tokens: 12",
        "see https://example.com/a@b",
        "task-12345678 of risk-assessment",
    ],
)
def test_words_stay(text: str) -> None:
    """Ordinary lines stay as they are."""
    assert Redaction().text(text) == text


def test_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets of the settings are known by heart, whatever their shape, and so are credentials in addresses."""
    monkeypatch.setenv("ODD", "plain words as a key")
    settings = parse_settings(
        "models: {m: {openai: {base_url: 'https://me:pw-of-mine@host/v1', model: m, api_key: os.environ/ODD}}}\n"
        "redis: {url: 'redis://:pw-of-redis@cache/0'}\n"
        "keys: {pepper: pepper-and-salt, admin: admin-of-all}"
    )
    redaction = Redaction(secrets_of(settings))
    for secret in ("plain words as a key", "pw-of-mine", "pw-of-redis", "pepper-and-salt", "admin-of-all"):
        assert redaction.text(f"it said {secret}!") == f"it said {BLOT}!"


def test_learns() -> None:
    """Secrets of settings that come into force later are blotted out beside those of before."""
    redaction = Redaction(["the-first-one"])
    redaction.learn(["another-one", "x"])
    assert redaction.text("the-first-one another-one x") == f"{BLOT} {BLOT} x"
