"""`chorus top`: a gateway's traffic, spending, latency and breakers, live in a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.parameters import CONFIG, ConfigOption
from protocol.errors import UpstreamBroken, UpstreamUnavailable

if TYPE_CHECKING:
    import httpx
    from rich.console import RenderableType

    from gateway.cli.gauges import Between

__all__ = ["top"]

ADMIN_URL = "http://127.0.0.1:8081"
KEYS_SHOWN = 8


def top(
    url: Annotated[str, typer.Option(help="The admin port of a running gateway.")] = ADMIN_URL,
    config: ConfigOption = CONFIG,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="CHORUS_ADMIN_KEY", help="The admin key; else the one that the config's state has."
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds from one look to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view as plain text, and end.")] = False,
) -> None:
    """Traffic, spending, latency and breakers of a running gateway, all workers together. Ctrl-C ends it.

    With an admin key also who spent most in the last day. Rates are over the time between two looks.

    Examples:
        chorus top

        ssh gateway chorus top --once --every 10
    """
    import httpx
    from rich.console import Console
    from rich.live import Live

    given = key or _kept_key(config)
    headers = {"authorization": f"Bearer {given}"} if given else {}
    console = Console()
    with httpx.Client(base_url=url, headers=headers, timeout=5.0, trust_env=False) as admin:
        views = _views(admin, every)
        if once:
            console.print(next(views))
            return
        # In a screen of its own: what stood there before comes back in the end.
        with Live(next(views), console=console, screen=True, auto_refresh=False) as live:
            try:
                for view in views:
                    live.update(view, refresh=True)
            except KeyboardInterrupt:
                return


def _kept_key(config: Path) -> str | None:
    """The admin key of a gateway on this machine, where it can be read."""
    from protocol.errors import SettingsError
    from protocol.settings import load_settings
    from protocol.tenancy import state_folder

    try:
        settings = load_settings(config)
        if settings.keys.admin is not None:
            return settings.keys.admin.get_secret_value()
        return (state_folder(settings.state) / "admin.key").read_text().strip()
    except (SettingsError, OSError):
        return None


def _views(admin: httpx.Client, every: float) -> Iterator[RenderableType]:
    """One view after each pause."""
    from gateway.cli.gauges import Between, Look

    before, began = Look.parse(_told(admin, "/metrics").text), time.monotonic()
    while True:
        time.sleep(every)
        after, now = Look.parse(_told(admin, "/metrics").text), time.monotonic()
        status = _told(admin, "/status").json()
        spent = None
        if "authorization" in admin.headers:
            answer = admin.get("/admin/usage", params={"by": "key", "days": 1})
            spent = answer.json()["data"] if answer.status_code == 200 else None
        yield _view(Between(before, after, now - began), status, spent)
        before, began = after, now


def _told(admin: httpx.Client, path: str) -> httpx.Response:
    """Raises `UpstreamUnavailable`, `UpstreamBroken`."""
    import httpx

    try:
        answer = admin.get(path)
    except httpx.TransportError as error:
        raise UpstreamUnavailable(
            f"No gateway answers at {admin.base_url}: {type(error).__name__}."
        ) from error
    if answer.status_code != 200:
        raise UpstreamBroken(f"{admin.base_url}{path} said {answer.status_code}; is it the admin port?")
    return answer


def _view(told: Between, status: dict[str, Any], spent: list[dict[str, Any]] | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    names, models, after = told.names(), told.models(), told.after
    components = status["components"]
    restarts = sum(component.get("restarts", 0) for component in components.values())
    head = Text.assemble(
        (f" {status['status']} ", "bold reverse" if status["status"] == "ready" else "bold red reverse"),
        f"  {sum(name.requests for name in names):.1f} requests/s"
        f"  {after.one('chorus_requests_in_flight'):.0f} in flight"
        f"  {sum(model.usd_h for model in models):.4f} USD/h"
        f"  {sum(model.spent_usd for model in models):.6f} USD since the start"
        f"  {len(components)} processes, {restarts} restarts",
    )
    degraded = [component for (component,), on in after.by("chorus_degraded", "component").items() if on]
    lost = after.one("chorus_ledger_dropped_total")
    warnings = [f"degraded: {', '.join(degraded)}"] if degraded else []
    warnings += [f"{lost:.0f} requests are not in the ledger"] if lost else []
    parts: list[RenderableType] = [head, *(Text(f" {warning}", "bold red") for warning in warnings)]

    table = _table("asked for", "req/s", "failed", "p50", "p95", "first byte p95", "USD/h")
    for name in names:
        times = (_seconds(name.p50_s), _seconds(name.p95_s), _seconds(name.first_p95_s))
        table.add_row(name.name, f"{name.requests:.1f}", f"{name.failed:.1%}", *times, f"{name.usd_h:.4f}")
    parts.append(table)
    table = _table("model", "calls/s", "retries/s", "read/s", "written/s", "p95", "USD/h", "USD", "breaker")
    for model in models:
        state = Text(f"{model.left_alone} open", "bold red") if model.left_alone else Text("closed", "green")
        numbers = (f"{model.calls:.1f}", f"{model.retries:.1f}", f"{model.read:.0f}", f"{model.written:.0f}")
        money = (f"{model.usd_h:.4f}", f"{model.spent_usd:.6f}")
        table.add_row(model.name, *numbers, _seconds(model.p95_s), *money, state)
    parts.append(table)
    if engines := list(told.engines()):
        table = _table("engine", "running", "waiting", "KV cache")
        for engine, running, waiting, kv in engines:
            table.add_row(engine, str(running), str(waiting), f"{kv:.0%}")
        parts.append(table)
    if spent:
        table = _table("key, last day", "requests", "tokens", "USD")
        for row in spent[:KEYS_SHOWN]:
            tokens = row["prompt_tokens"] + row["completion_tokens"]
            # Callers name their keys: brackets in them are no markup.
            table.add_row(Text(row["key"]), str(row["requests"]), str(tokens), f"{row['cost_usd']:.6f}")
        parts.append(table)
    return Group(*parts)


def _table(first: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=True, header_style="bold", min_width=40)
    table.add_column(first, min_width=16, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
