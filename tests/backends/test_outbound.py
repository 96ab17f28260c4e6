"""Which way a backend is reached, and whom one trusts on it."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from backends.certificates import good_until, load_pair
from backends.http1 import Http1Error
from backends.openai_http import Deployment
from backends.outbound import Way, bypasses, find_way
from protocol.errors import SettingsError
from protocol.network import OutboundSettings
from protocol.settings import OpenAIModel, parse_settings


@pytest.mark.parametrize(
    ("host", "rules", "direct"),
    [
        ("a.example", [], False),
        ("a.example", ["*"], True),
        ("a.example", ["a.example"], True),
        ("A.Example.", ["a.example"], True),
        ("x.a.example", ["a.example"], True),
        ("x.a.example", [".a.example"], True),
        ("x.a.example", ["*.a.example"], True),
        ("xa.example", ["a.example"], False),
        ("a.example", ["", " "], False),
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("11.1.2.3", ["10.0.0.0/8"], False),
        ("10.1.2.3", ["10.1.2.3"], True),
        ("10.1.2.3", ["1.2.3"], False),
        ("fd00::1", ["fd00::/8"], True),
    ],
)
def test_no_proxy(host: str, rules: list[str], direct: bool) -> None:
    """Names cover their subdomains, networks their addresses, and nothing else is meant."""
    assert bypasses(host, rules) is direct


def way(url: str, environ: dict[str, str] | None = None, own: Any = None, **outbound: Any) -> str | None:
    upstream = OpenAIModel(base_url=url, model="x", **({} if own is None else {"proxy": own}))
    return find_way("m", upstream, OutboundSettings(**outbound), environ or {}).proxy


def test_who_decides() -> None:
    """A deployment's own proxy goes before the common one, and that before the environment's."""
    environ = {"HTTPS_PROXY": "http://env:1", "no_proxy": "inside.example", "HTTP_PROXY": "http://plain:1"}
    assert way("https://a.example/v1", environ) == "http://env:1"
    assert way("http://a.example/v1", environ) == "http://plain:1"
    assert way("https://a.example/v1", environ, environment=False) is None
    assert way("https://x.inside.example/v1", environ) is None
    assert way("http://127.0.0.1:9/v1", environ) is None
    assert way("unix:///run/x.sock", environ, proxy="http://all:1") is None
    assert way("https://x.inside.example/v1", environ, proxy="http://all:1") == "http://all:1"
    assert way("https://a.example/v1", environ, proxy="http://all:1", no_proxy=("a.example",)) is None
    assert way("https://a.example/v1", environ, "none", proxy="http://all:1") is None
    assert way("https://a.example/v1", environ, "http://own:1", no_proxy=("*",)) == "http://own:1"


def test_a_proxys_password_is_not_shown() -> None:
    """Neither in the effective settings, nor in what is said of a wrong one."""
    text = "models: {m: {openai: {base_url: 'https://a/v1', model: x, proxy: '%s://u:canary@p:1'}}}"
    assert "canary" not in str(parse_settings(text % "http").redacted())
    with pytest.raises(SettingsError, match="http:// URL") as caught:
        parse_settings(text % "socks5")
    assert "canary" not in str(caught.value)


@pytest.fixture
def authority() -> trustme.CA:
    """Whom only those trust who are told to."""
    return trustme.CA()


def write_pair(folder: Path, issued: trustme.LeafCert, name: str = "cert") -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


async def test_custom_authorities_and_client_certificates(tmp_path: Path, authority: trustme.CA) -> None:
    """With its CA file a backend is trusted, without it is not; it is shown who we are where it asks."""
    certificate, key = write_pair(tmp_path, authority.issue_cert("localhost"))
    ours = write_pair(tmp_path, authority.issue_cert("gateway.example"), "ours")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    load_pair(context, certificate, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "localhost", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    known = {"ca_file": tmp_path / "ca.pem"}
    shown = {"client_certificate": {"certificate": ours[0], "key": ours[1]}}
    async with server:
        for fields, outbound, good in (
            ({**known, **shown}, {}, True),
            (shown, known, True),
            (known, {}, False),
            (shown, {}, False),
        ):
            upstream = OpenAIModel.model_validate({"base_url": url, "model": "x", **fields})
            found = find_way("m", upstream, OutboundSettings.model_validate(outbound), {})
            deployment = Deployment("m", upstream, found)
            try:
                response = await deployment.client.get("/models")
                assert (await response.read() == b"{}") is good
            except Http1Error:
                assert not good
            finally:
                await deployment.close()


def test_renewed_files_are_another_way(tmp_path: Path, authority: trustme.CA) -> None:
    """A CA file that holds something else makes another way; the same content the same."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    upstream = OpenAIModel(base_url="https://a/v1", model="x", ca_file=path)
    first = find_way("m", upstream, OutboundSettings(), {})
    assert find_way("m", upstream, OutboundSettings(), {}) == first
    trustme.CA().cert_pem.write_to_path(path)
    assert find_way("m", upstream, OutboundSettings(), {}) != first
    path.write_text("no certificate")
    with pytest.raises(SettingsError, match=r"models\.m\.openai: cannot use .*ca\.pem"):
        find_way("m", upstream, OutboundSettings(), {})
    path.unlink()
    with pytest.raises(SettingsError, match="cannot read"):
        find_way("m", upstream, OutboundSettings(), {})
    assert Way() == Way()


def test_expiry(tmp_path: Path, authority: trustme.CA) -> None:
    """When a pair expires is told, also of a certificate that no authority of the system has signed."""
    from datetime import UTC, datetime, timedelta

    soon = datetime.now(UTC) + timedelta(days=3)
    pair = write_pair(tmp_path, authority.issue_cert("a.example", not_after=soon))
    until = good_until(*pair)
    assert until is not None
    assert abs(until - soon) < timedelta(seconds=2)
    past = write_pair(
        tmp_path,
        authority.issue_cert("a.example", not_before=soon - timedelta(9), not_after=soon - timedelta(5)),
        "past",
    )
    assert good_until(*past) is None
    with pytest.raises(ssl.SSLError):
        good_until(pair[0], past[1])
