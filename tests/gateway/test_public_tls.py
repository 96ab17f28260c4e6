"""TLS on the public port, with real processes."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from gateway.public_tls import server_context
from protocol.errors import SettingsError
from protocol.network import TlsSettings
from tests.served import Start


def write_pair(folder: Path, issued: trustme.LeafCert) -> None:
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (folder / "cert.key").write_bytes(issued.private_key_pem.bytes())


def serial(port: int, authority: trustme.CA, version: ssl.TLSVersion | None = None) -> str:
    """The serial number of the certificate that a new connection is shown."""
    import socket

    context = ssl.create_default_context()
    authority.configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        told = secure.getpeercert()
        assert told is not None
        return str(told["serialNumber"])


async def test_renewal(start: Start, config: str, tmp_path: Path) -> None:
    """It serves TLS 1.2 and 1.3; a renewed certificate is shown to new connections while an old one goes on; files that
    do not fit each other change nothing."""
    authority = trustme.CA()
    write_pair(tmp_path, authority.issue_cert("localhost"))
    served = await start(config + "\nserver: {tls: {certificate: cert.pem, key: cert.key}}")
    await served.ready()
    assert any(f"https://127.0.0.1:{served.port}/v1" in line for line in served.told)
    first = await asyncio.to_thread(serial, served.port, authority)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert await asyncio.to_thread(serial, served.port, authority, version) == first
    with pytest.raises(httpx.HTTPError):
        async with httpx.AsyncClient(verify=False) as plain:
            await plain.get(f"http://127.0.0.1:{served.port}/livez")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with httpx.AsyncClient(verify=context, base_url=f"https://localhost:{served.port}") as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        before = await served.config_told()

        write_pair(tmp_path, authority.issue_cert("localhost"))
        async with asyncio.timeout(20):
            while (await served.config_told())["digest"] == before["digest"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        second = await asyncio.to_thread(serial, served.port, authority)
        assert second != first
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

        (tmp_path / "cert.key").write_bytes(authority.issue_cert("localhost").private_key_pem.bytes())
        await served.logs("server.tls: cannot use")
        assert await asyncio.to_thread(serial, served.port, authority) == second


def test_unusable_files(tmp_path: Path) -> None:
    """Missing and encrypted files are refused with their names; nobody is asked for a password."""
    tls = TlsSettings(certificate=tmp_path / "cert.pem", key=tmp_path / "cert.key")
    with pytest.raises(SettingsError, match=r"cert\.pem"):
        server_context(tls)
    write_pair(tmp_path, trustme.CA().issue_cert("localhost"))
    assert server_context(tls).minimum_version == ssl.TLSVersion.TLSv1_2
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(tls.key.read_bytes(), None)
    secret = pem.BestAvailableEncryption(b"canary")
    encrypted = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret)
    tls.key.write_bytes(encrypted)
    with pytest.raises(SettingsError, match="encrypted"):
        server_context(tls)
