"""The hosted process, as the supervisor runs it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from backends.registry import make_models
from protocol.settings import load_settings
from tests.backends.hosted import provider as shapes
from tests.backends.hosted.conftest import section
from tests.backends.hosted.provider import Answer, Provider
from tests.gateway.conftest import until

ROOT = Path(__file__).parents[2]
LIGHT = """
import json, sys
from pathlib import Path
import gateway.worker
from gateway.app import make_app
from gateway.run_dir import RunDir
from protocol.settings import load_settings
make_app(load_settings(Path(sys.argv[1])), RunDir(Path("/run/x")).sockets())
print(json.dumps([name for name in ("litellm", "boto3", "openai", "aiohttp.web") if name in sys.modules]))
"""


def write(folder: Path, url: str) -> Path:
    """A config of one hosted model."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"models": {"claude": {"hosted": section("anthropic", url)}}}))
    return path


def test_a_worker_loads_no_litellm(tmp_path: Path) -> None:
    """A worker in front of hosted models is as light as any: litellm is in the hosted process only."""
    told = subprocess.run(
        [sys.executable, "-c", LIGHT, str(write(tmp_path, "http://127.0.0.1:9"))],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(told.stdout) == []


@pytest.mark.requires("hosted")
async def test_serves_until_told_to_stop(tmp_path: Path) -> None:
    """It answers on its socket, whatever litellm could read in the environment, and ends on SIGTERM."""
    provider = Provider()
    provider.answer = Answer(body=shapes.anthropic([{"type": "text", "text": "Hi"}]))
    hostile = {"ANTHROPIC_API_BASE": "http://evil.test", "LITELLM_LOG": "DEBUG", "OPENAI_API_KEY": "sk-env"}
    with TemporaryDirectory(prefix="chorus-") as folder:
        async with provider.serving() as url:
            config, socket = write(tmp_path, url), Path(folder) / "h.sock"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway.hosted_host", str(config), "--uds", str(socket)),
                env={**os.environ, "PYTHONPATH": str(ROOT), **hostile},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            model = make_models(load_settings(config), {"hosted": socket})["claude"]
            try:
                await until(socket.exists, timeout_s=60)
                assert await model.deployments[0].healthy()
                body = {"model": "claude", "messages": [{"role": "user", "content": "Hello"}]}
                done = await model.call("/chat/completions", body)
                assert done.body["choices"][0]["message"]["content"] == "Hi"
                assert provider.wire.headers["x-api-key"] == "sk-canary-key"
            finally:
                await model.close()
                process.terminate()
                out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"")


@pytest.mark.requires("hosted")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "antropic/claude"}, "litellm knows no provider 'antropic'"),
        ({"pass_fields": ["api_base"]}, "'api_base' is a parameter of litellm's own"),
    ],
)
def test_a_wrong_config_stops_the_start(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    """What only litellm can judge is said with its path, and with the status that tells the supervisor not to retry."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"models": {"m": {"hosted": section("anthropic", "http://x", **changes)}}})
    )
    done = subprocess.run(
        [sys.executable, "-m", "gateway.hosted_host", str(path), "--uds", str(tmp_path / "h.sock")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "models.m.hosted" in done.stderr
    assert told in done.stderr
