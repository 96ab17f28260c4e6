"""The engine host's metrics, counted by the loop and read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from engines.metrics import EngineNumbers, Steps, exposition
from gateway.engine_metrics import engine_metrics
from tests.engines.test_host import _answer, _ask, _host


def values(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values → value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_the_loop_counts(tmp_path: Path) -> None:
    """Steps and their time, by engine and by fusion; generations by the name that was asked for, under way and begun;
    nothing is left under way, also of what was cancelled."""
    host, _ = _host(tmp_path, {"letters": "abcab", "pairs": "abcab"})
    before = values(host.metrics())
    assert before["chorus_engine_generations", "duet"] == 0
    assert before["chorus_engine_steps_total",] == 0
    _answer(_ask(host, "letters", "p"))
    _answer(_ask(host, "duet", "f"))
    _ask(host, "letters", "gone")
    host.cancel("gone")
    _answer(_ask(host, "letters", "last"))
    host.stop()
    told = values(host.metrics())
    assert told["chorus_engine_generations_begun_total", "letters"] == 3
    assert told["chorus_engine_generations_begun_total", "duet"] == 1
    assert {told["chorus_engine_generations", name] for name in ("letters", "pairs", "duet")} == {0}
    assert told["chorus_engine_steps_total",] >= 6
    parts = [told["chorus_engine_forward_seconds_total", name] for name in ("letters", "pairs")]
    parts.append(told["chorus_engine_decide_seconds_total", "duet"])
    assert all(part > 0 for part in parts)
    assert sum(parts) <= told["chorus_engine_step_seconds_total",]


def test_the_text() -> None:
    """Gauges of every engine, with names that hold quotes."""
    told = values(exposition({'a"\\b': EngineNumbers(2, 3, 0.25, 1 << 30)}, [], Steps()))
    assert told["chorus_engine_waiting", 'a"\\b'] == 3
    assert told["chorus_engine_kv_cache_usage", 'a"\\b'] == 0.25
    assert told["chorus_engine_kv_cache_bytes", 'a"\\b'] == 1 << 30


async def test_shown_along(tmp_path: Path) -> None:
    """The admin port's page has them of a host that answers, and goes without one that is away or does not."""
    assert await engine_metrics(None) == b""
    assert await engine_metrics(tmp_path / "none.sock") == b""

    async def metrics(request: web.Request) -> web.Response:
        if stuck.is_set():
            await asyncio.sleep(30)
        return web.Response(text="chorus_engine_running 1\n")

    stuck = asyncio.Event()
    application = web.Application()
    application.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    assert await engine_metrics(tmp_path / "s") == b"chorus_engine_running 1\n"
    stuck.set()
    assert await engine_metrics(tmp_path / "s") == b""
    await runner.cleanup()
