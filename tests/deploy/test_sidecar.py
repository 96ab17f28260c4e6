"""The sidecar is as small as docs/deploy/sidecar.md says."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from backends.scripted import ScriptedUpstream
from benchmarks.memory import memory_mb
from tests.served import Start, start

__all__ = ["start"]

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "sidecar" / "sidecar.yaml"
MOST_MB = 150


def settings(url: str) -> str:
    """The ConfigMap's, asking `url`."""
    (told,) = [each for each in yaml.safe_load_all(MANIFEST.read_text()) if each["kind"] == "ConfigMap"]
    return str(told["data"]["chorus.yaml"]).replace("https://api.openai.com/v1", url)


async def test_it_is_small(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After some traffic, streams and a vote among it, supervisor and worker together take no more than 150 MB, what
    they share counted once."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with ScriptedUpstream().serving() as url:
        served = await start(settings(url))
        await served.ready()
        base = f"http://127.0.0.1:{served.port}"
        async with httpx.AsyncClient(base_url=base, verify=False, timeout=30) as client:
            for number in range(300):
                name = "vote" if number % 10 == 0 else "gpt-4o-mini"
                asked = {"model": name, "messages": [{"role": "user", "content": "word " * 200}]}
                told = await client.post("/v1/chat/completions", json={**asked, "stream": number % 3 == 0})
                assert told.status_code == 200
        taken = memory_mb(served.process.pid)
    assert 20 < taken["pss_mb"] < MOST_MB, taken
