"""LiteLLM, made to act on our word only."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from backends.hosted.quiet import clean_environment, load_litellm
from protocol.errors import SettingsError
from protocol.settings import HostedModel
from tests.backends.hosted.provider import Provider
from tests.backends.hosted.test_wire import BODY, DIALECTS, Start, ask

pytestmark = pytest.mark.requires("hosted")

KEYED = HostedModel(model="anthropic/c", api_key="k")  # type: ignore[arg-type]
AMBIENT = HostedModel(model="bedrock/c", region="us-east-1", credentials="environment")
HOSTILE = {
    "ANTHROPIC_API_KEY": "sk-other", "ANTHROPIC_API_BASE": "http://evil.test", "OPENAI_BASE_URL": "http://evil.test",
    "LITELLM_DROP_PARAMS": "true", "LITELLM_MODE": "DEV", "LITELLM_LOG": "DEBUG", "LANGFUSE_SECRET_KEY": "x",
    "AWS_PROFILE": "mine", "GOOGLE_APPLICATION_CREDENTIALS": "/x", "DATABASE_URL": "postgres://x", "JSON_LOGS": "1",
}  # fmt: skip
NETWORK = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy:3128", "SSL_CERT_FILE": "/ca.pem", "HOME": "/root"}


def test_the_environment_is_cleaned() -> None:
    """Left are the network's variables and our own switches: no key, address or switch of litellm's."""
    environ = {**HOSTILE, **NETWORK}
    clean_environment(environ, [KEYED])
    assert {name: environ[name] for name in NETWORK} == NETWORK
    assert environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert (environ["LITELLM_MODE"], environ["LITELLM_LOG"]) == ("PRODUCTION", "CRITICAL")
    assert not (set(environ) & set(HOSTILE)) - {"LITELLM_MODE", "LITELLM_LOG"}
    assert environ["AWS_EC2_METADATA_DISABLED"] == "true"


def test_the_machines_credentials_only_where_asked_for() -> None:
    """One deployment with `credentials: environment` finds what AWS's and Google's libraries read, and no more."""
    environ = {**HOSTILE, **NETWORK}
    clean_environment(environ, [KEYED, AMBIENT])
    assert (environ["AWS_PROFILE"], environ["GOOGLE_APPLICATION_CREDENTIALS"]) == ("mine", "/x")
    assert "AWS_EC2_METADATA_DISABLED" not in environ
    assert "ANTHROPIC_API_KEY" not in environ


def test_without_litellm_the_start_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is missing: the message is the remedy."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(SettingsError, match=r"pip install 'chorus-gateway\[hosted\]'"):
        load_litellm()


def test_nothing_acts_by_itself(litellm: Any) -> None:
    """No retries, caches, callbacks, telemetry or dropped parameters, whatever was on before."""
    litellm.callbacks, litellm.num_retries, litellm.drop_params, litellm.telemetry = ["x"], 5, True, True
    load_litellm()
    assert (litellm.callbacks, litellm.success_callback, litellm.failure_callback) == ([], [], [])
    assert (litellm.num_retries, litellm.cache, litellm.drop_params, litellm.telemetry) == (
        None,
        None,
        False,
        False,
    )


async def test_keys_and_words_stay_out_of_logs(
    start: Start, provider: Provider, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a key nor a word of question or answer is logged or printed, when all is well and when it fails."""
    model = await start("anthropic")
    provider.answer = DIALECTS["anthropic"].answer("text", False)
    await ask(model, BODY, False)
    provider.answer.body = b"<html>It is sunny"
    with pytest.raises(Exception, match="answered without choices"):
        await ask(model, BODY, False)
    out, err = capfd.readouterr()
    told = caplog.text + out + err
    assert "could not be read" in told
    assert not any(word in told for word in ("sk-canary", "Lima", "sunny", "Be brief"))


async def test_the_environment_decides_nothing(
    start: Start, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even were they there, a key and an address of the environment would not go before the config's."""
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    provider.answer = DIALECTS["anthropic"].answer("text", False)
    heard = await ask(await start("anthropic"), BODY, False)
    assert heard.finish_reason == "stop"
    assert provider.wire.headers["x-api-key"] == "sk-canary-key"
