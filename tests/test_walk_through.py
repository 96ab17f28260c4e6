"""The walk-through of docs/operating.md, followed literally from an empty folder."""

from __future__ import annotations

import asyncio
import csv
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from backends.scripted import Script, ScriptedUpstream
from tests.served import free_port

ROOT = Path(__file__).parents[1]


def blocks(page: str, heading: str) -> list[str]:
    """The shell blocks below a heading."""
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [part.partition("```")[0] for part in section.split("```bash\n")[1:]]


@pytest.mark.requires("curl")
async def test_the_walk_through(tmp_path: Path) -> None:
    """Every command works as it stands, but for the provider's address and the two ports: keys are made and one is
    revoked, an answer is paid for, usage and metrics tell of it, and the revoked key is refused."""
    folder, programs = tmp_path / "fresh", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "chorus").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from gateway.cli import main; main()' \"$@\"\n"
    )
    (programs / "chorus").chmod(0o755)
    port, admin = free_port(), free_port()
    first, second = blocks("docs/operating.md", "A walk-through")
    upstream = ScriptedUpstream()
    async with upstream.serving() as url:
        script = (first + second).replace("https://api.openai.com/v1", url)
        script = script.replace("8080", str(port)).replace("8081", str(admin))
        script = script.replace(
            "chorus serve chorus.yaml", f"chorus serve chorus.yaml --port {port} --admin-port {admin}"
        )
        tail = "\nsleep 1.5\ncurl --silent --output /dev/null --write-out 'REVOKED %{http_code}\\n' "
        tail += f'http://127.0.0.1:{port}/v1/models -H "authorization: Bearer $KEY"\nkill %1\nwait\n'
        environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OPENAI_API_KEY": "sk-of-the-test",
            "COLUMNS": "160",
            "no_proxy": "*",
        }
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script + tail), cwd=folder, env=environ, stdout=PIPE
        )
        try:
            async with asyncio.timeout(120):
                told = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    assert process.returncode == 0, told
    (seen,) = upstream.seen
    assert seen.headers["authorization"] == "Bearer sk-of-the-test"
    assert Script().text in told
    assert 'chorus_requests_total{outcome="ok",requested_model="gpt-4o-mini"' in told
    assert "REVOKED 401" in told
    (row,) = csv.DictReader((folder / "spend.csv").read_text().splitlines())
    assert row["team"] == "search"
    assert '"alias": "ci"' in told
    assert "revoke" in told.rpartition("# HELP")[2]  # the audit log, told after the metrics
