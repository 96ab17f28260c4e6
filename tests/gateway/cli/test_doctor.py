"""`chorus doctor`: each fault of a machine or a config is found, and comes with what to do."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from engines.preload import Library
from gateway.cli import doctor
from gateway.cli.doctor import Finding, findings

Write = Callable[..., Path]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config of one hosted model, on free ports, with sections changed."""

    def make(url: str = "http://127.0.0.1:1/v1", /, **changes: Any) -> Path:
        body = {
            "models": {"m": {"openai": {"base_url": url, "model": "m", "api_key": "sk-canary"}}},
            "server": {"port": free_port(), "admin_port": free_port()},
        }
        for name, section in changes.items():
            body[name] = {**body.get(name, {}), **section}
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(body))
        return path

    return make


@pytest.fixture
def endpoint() -> Iterator[dict[str, Any]]:
    """An endpoint that answers `status` with the date `skew_s` from now, and keeps what it was asked."""
    told: dict[str, Any] = {"status": 200, "skew_s": 0.0, "body": b"{}", "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told["asked"].append((self.path, self.headers["authorization"]))
            self.send_response_only(told["status"])
            self.send_header("date", formatdate(_now() + told["skew_s"], usegmt=True))
            self.send_header("content-length", str(len(told["body"])))
            self.end_headers()
            self.wfile.write(told["body"])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        told["port"] = server.server_address[1]
        told["url"] = f"http://127.0.0.1:{told['port']}/v1"
        yield told
        server.shutdown()
        thread.join()


def _now() -> float:
    import time

    return time.time()


def about(found: list[Finding], word: str) -> Finding:
    """The one finding that begins with `word`."""
    (one,) = [finding for finding in found if finding.what.startswith(word)]
    return one


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    """Nothing else can be said then."""
    path = tmp_path / "config.yaml"
    path.write_text("modles: {}")
    (only,) = findings(path)
    assert only.level == "wrong"
    assert "did you mean 'models'" in only.what


def test_a_healthy_endpoint(write: Write, endpoint: dict[str, Any]) -> None:
    """It is asked for its models, which costs nothing, with its key; nothing is wrong."""
    found = list(findings(write(endpoint["url"])))
    assert about(found, "endpoint").level == "ok"
    assert endpoint["asked"] == [("/v1/models", "Bearer sk-canary")]
    assert not [finding for finding in found if finding.level == "wrong"]


@pytest.mark.parametrize(("status", "level"), [(401, "wrong"), (403, "wrong"), (503, "note"), (404, "ok")])
def test_what_an_endpoint_answers(write: Write, endpoint: dict[str, Any], status: int, level: str) -> None:
    """A refused key is wrong, an ailing endpoint is noted, and one without a list of models is fine."""
    endpoint["status"] = status
    assert about(list(findings(write(endpoint["url"]))), "endpoint").level == level


def test_an_endpoint_that_is_not_there(write: Write) -> None:
    """It is wrong; keys are never shown; with --offline nobody is asked."""
    found = about(list(findings(write("http://user:secret@127.0.0.1:1/v1"))), "endpoint")
    assert found.level == "wrong"
    assert "sk-canary" not in found.what
    assert "secret" not in found.what
    assert not [each for each in findings(write(), offline=True) if each.what.startswith("endpoint")]


@pytest.mark.parametrize(("skew_s", "word"), [(3600.0, "behind"), (-3600.0, "ahead of")])
def test_a_wrong_clock(write: Write, endpoint: dict[str, Any], skew_s: float, word: str) -> None:
    """An hour between our clock and an endpoint's is found."""
    endpoint["skew_s"] = skew_s
    wrong = [each for each in findings(write(endpoint["url"])) if each.level == "wrong"]
    assert [word in each.what for each in wrong] == [True]


def test_a_taken_port(write: Write) -> None:
    """Who has it is said, and which setting picks another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = [
            each for each in findings(write(server={"port": port}), offline=True) if each.level == "wrong"
        ]
    assert [f"Port {port}" in each.what and "server.port" in each.what for each in wrong] == [True]


def test_a_running_chorus_is_no_taken_port(write: Write, endpoint: dict[str, Any]) -> None:
    """Beside a running Chorus its state is told instead."""
    endpoint["body"] = b'{"status": "not ready"}'
    found = list(findings(write(server={"admin_port": endpoint["port"]}), offline=True))
    assert about(found, "Chorus runs here already and is not ready").level == "note"
    assert not [each for each in found if "Port" in each.what]


def test_an_open_door(write: Write) -> None:
    """Listening for everybody without a key is noted; with one, or on loopback, it is not."""
    open_to_all = {"host": "0.0.0.0"}
    assert about(list(findings(write(server=open_to_all), offline=True)), "whoever").level == "note"
    with_key = {"server": {**open_to_all, "master_key": "sk"}}
    for sections in (with_key, {"server": open_to_all, "keys": {"required": True}}, {}):
        found = list(findings(write(**sections), offline=True))
        assert not [each for each in found if each.what.startswith("whoever")]


def test_certificates(write: Write, tmp_path: Path) -> None:
    """A pair that is good for long is fine, one that is not is noted; one that has expired, or is none, is wrong."""
    authority, now = trustme.CA(), datetime.now(UTC)
    certificate, key = tmp_path / "cert.pem", tmp_path / "cert.key"
    tls = {"tls": {"certificate": str(certificate), "key": str(key)}}

    def found(days: int) -> Finding:
        issued = authority.issue_cert(
            "a.example", not_before=now - timedelta(90), not_after=now + timedelta(days=days, hours=1)
        )
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return about(list(findings(write(server=tls), offline=True)), "certificate")

    assert [found(days).level for days in (60, 3, -3)] == ["ok", "note", "wrong"]
    assert "60 days" in found(60).what
    key.write_bytes(authority.issue_cert("a.example").private_key_pem.bytes())
    assert about(list(findings(write(server=tls), offline=True)), "certificate").level == "wrong"
    key.unlink()
    assert "cannot be used" in about(list(findings(write(server=tls), offline=True)), "certificate").what


def test_ways_to_backends(write: Write, endpoint: dict[str, Any], tmp_path: Path) -> None:
    """A CA file that is none is wrong; a proxy is named without its password, and asked on the way to the endpoint."""
    url = "https://a.example/v1"
    bad = write(url, outbound={"ca_file": str(tmp_path / "nope.pem")})
    assert about(list(findings(bad, offline=True)), "models.m.openai: cannot read").level == "wrong"
    proxy = f"http://user:canary@127.0.0.1:{endpoint['port']}"
    through = list(findings(write("http://models.example/v1", outbound={"proxy": proxy})))
    assert about(through, "proxy").what.endswith(f"through 127.0.0.1:{endpoint['port']}")
    assert about(through, "endpoint").level == "ok"
    assert endpoint["asked"][0][0] == "http://models.example/v1/models"
    assert "canary" not in str(through)


def test_few_open_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A low hard limit is noted with the command that raises it; a soft one is raised at the start."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 65536))
    assert about(list(findings(write(), offline=True)), "open files").level == "ok"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    found = about(list(findings(write(), offline=True)), "open files")
    assert found.level == "note"
    assert "ulimit -Hn" in found.remedy


def test_missing_weights_and_artefacts(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are wrong, each with the command that makes it."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path / "empty"))
    config = write(
        models={
            "e": {"embedder": {"weights": "all-minilm-l6-v2-int8"}},
            "p": {"embedder": {"weights": "/no"}},
        },
        strategies={"c": {"cascade": {"stages": ["m", "m"], "artefact": "nowhere"}}},
    )
    wrong = [each for each in findings(config, offline=True) if each.level == "wrong"]
    assert "chorus models pull --config" in about(wrong, "weights: all-minilm").remedy
    assert about(wrong, "weights: there is no folder /no")
    assert "chorus calibrate" in about(wrong, "strategies.c").what


def test_hosted_providers(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hosted models litellm is looked for; a model without a price is named with the remedy."""
    models = {"claude": {"hosted": {"model": "anthropic/claude-sonnet-4-5", "api_key": "k"}}}
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "litellm" else object())
    found = list(findings(write(models=models), offline=True))
    assert about(found, "hosted providers: litellm not installed").level == "wrong"
    assert "models.m.price" in about(found, "price: models.m has none").remedy
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert about(list(findings(write(models=models), offline=True)), "hosted providers").level == "ok"


def test_engines(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With engine models the libraries, preloads, threads and memory of the engine host are looked at."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "vllm" else object())
    config = write(models={"e": {"engine": {"weights": str(tmp_path), "kv_cache_gib": 1e6}}})
    found = list(findings(config, offline=True))
    assert about(found, "engine host: vllm not installed").level == "wrong"
    assert about(found, "memory").level == "wrong"
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    absent = Library("libiomp5", None, ("libiomp",), "Install it.")
    monkeypatch.setattr("engines.preload.libraries", lambda: [absent])
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    found = list(findings(config, offline=True))
    assert "pip uninstall" in about(found, "engine host: torchvision").remedy
    assert about(found, "engine host: libiomp5 is not here").remedy == "Install it."
    assert about(found, "engine host: OMP_NUM_THREADS").level == "note"
    assert about(found, "engine host: OMP_WAIT_POLICY").level == "note"
    monkeypatch.setenv("LD_PRELOAD", "/opt/libiomp5.so")
    found = list(findings(config, offline=True))
    assert about(found, "engine host: libiomp5 is preloaded").level == "ok"


def test_the_command(chorus: Any, write: Write, endpoint: dict[str, Any]) -> None:
    """It exits with 0 when nothing is wrong and with 1 when something is, remedies below each finding."""
    status, out, _ = chorus("doctor", write(endpoint["url"]))
    assert status == 0
    assert "✓ config: 1 models" in out
    status, out, _ = chorus("doctor", write())
    assert status == 1
    assert "✗ endpoint" in out
    assert "  → Check base_url" in out
