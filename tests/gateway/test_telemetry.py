"""Metrics of one process and of several."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.balancer import Seat
from backends.model import Model
from gateway.run_dir import MULTIPROC_DIR
from gateway.telemetry import Telemetry, merged
from protocol.run import Call, Trace
from protocol.usage import Usage

ROOT = Path(__file__).parents[2]
COUNT = """
from gateway.telemetry import Telemetry
telemetry = Telemetry(["m"])
telemetry.started()
telemetry.finished("m", "direct", "ok", None, began_s=0.1, took_s=0.2)
telemetry.started()
telemetry.flush()
"""


def test_finished() -> None:
    """A request's calls are counted with what they spent; a name that is not configured is no label."""
    telemetry = Telemetry(["m"])
    trace = Trace([Call("m", Usage(3, 4), 0.5, 0.1, attempts=3)], [Call("e", Usage(2, 0), 0.25, 0.1)])
    telemetry.started()
    telemetry.finished("made up", "direct", "ok", trace, began_s=None, took_s=0.2)
    told = telemetry.exposition().decode()
    assert 'chorus_requests_total{outcome="ok",requested_model="unknown",strategy="direct"} 1.0' in told
    assert 'chorus_tokens_total{kind="output",model="m"} 4.0' in told
    assert 'chorus_cost_usd_total{model="e"} 0.25' in told
    assert 'chorus_request_cost_usd_total{requested_model="unknown",strategy="direct"} 0.75' in told
    assert 'chorus_request_calls_bucket{le="1.0",strategy="direct"} 1.0' in told
    assert 'chorus_call_duration_seconds_count{model="m"} 1.0' in told
    assert 'chorus_attempts_total{model="m"} 3.0' in told
    assert "made up" not in told


async def test_watches_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that is left alone shows in a gauge, by the model's name and its place in the config."""
    monkeypatch.setattr("gateway.telemetry.LOOP_PROBE_S", 0.001)
    telemetry, seats = Telemetry(["m"]), [Seat(), Seat()]
    seats[1].breaker.failed(0.0, probe=False, wait_s=60.0)
    watching = asyncio.create_task(telemetry.watch({"m": Model("m", [], prices={}, seats=seats)}))
    await asyncio.sleep(0.05)
    watching.cancel()
    told = telemetry.exposition().decode()
    assert 'chorus_deployment_open{deployment="0",model="m"} 0.0' in told
    assert 'chorus_deployment_open{deployment="1",model="m"} 1.0' in told


def test_decisions_are_counted() -> None:
    """Who was chosen and how, at what estimated quality, and what each model was estimated to cost."""
    telemetry = Telemetry(["m"])
    estimates = {"m": {"quality": 0.7, "cost_usd": 0.5}, "n": {"quality": None, "cost_usd": 2.0}}
    trace = Trace(decision={"chosen": "m", "reason": "highest quality", "estimates": estimates})
    telemetry.started()
    telemetry.finished("auto", "auto", "ok", trace, began_s=None, took_s=0.2)
    told = telemetry.exposition().decode()
    assert 'chorus_decisions_total{chosen="m",how="estimated",strategy="auto"} 1.0' in told
    assert 'chorus_estimated_quality_sum{strategy="auto"} 0.7' in told
    assert 'chorus_estimated_cost_usd_total{model="n",strategy="auto"} 2.0' in told


def test_processes_are_merged(tmp_path: Path) -> None:
    """Counters of two processes add up, also after they have ended."""
    environ = {**os.environ, MULTIPROC_DIR: str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, env=environ, check=True)
    told = merged(tmp_path).decode()
    assert 'chorus_requests_total{outcome="ok",requested_model="m",strategy="direct"} 2.0' in told
    assert 'chorus_request_duration_seconds_count{requested_model="m",strategy="direct"} 2.0' in told
    assert "chorus_requests_in_flight 2.0" in told


def test_two_gateways_share_nothing() -> None:
    """Two telemetries in one process count apart."""
    first, second = Telemetry(["m"]), Telemetry(["m"])
    first.started()
    assert b"chorus_requests_in_flight 1.0" in first.exposition()
    assert b"chorus_requests_in_flight 0.0" in second.exposition()
