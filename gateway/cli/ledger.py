"""`chorus ledger`: keep it safe, and see whether it is whole."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.parameters import CONFIG, ConfigOption
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from gateway.ledger.sqlite_ledger import SqliteLedger

__all__ = ["group"]

DAY_S = 86_400.0
DUMP = """ledger.url names a PostgreSQL, whose own programs do this, while gateways write:
  pg_dump --format=custom -t requests -t calls -t texts -t 'day*' -t ledger_version --file=ledger.dump "$LEDGER_URL"
  pg_restore --clean --if-exists --single-transaction --dbname="$LEDGER_URL" ledger.dump"""

group = typer.Typer(help="The ledger: back it up, restore it, check it.", no_args_is_help=True)


@group.command()
def backup(
    out: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    config: ConfigOption = CONFIG,
    text: Annotated[bool, typer.Option(help="With the prompts and answers that keys have stored.")] = True,
) -> None:
    """Copy the ledger to a file, whole and consistent, while the gateway writes into it.

    Example:
        chorus ledger backup ledger-$(date +%F).db
    """
    with closing(_file(config)) as ledger:
        ledger.backup(out, texts=text)
    typer.echo(f"{out}: {out.stat().st_size} bytes")


@group.command()
def restore(
    copy: Annotated[Path, typer.Argument(help="A file that `chorus ledger backup` wrote.")],
    config: ConfigOption = CONFIG,
    replace: Annotated[
        bool, typer.Option("--replace", help="Even where the ledger has rows, which are lost.")
    ] = False,
) -> None:
    """Put a backup in place of the ledger, in one step. A running gateway goes on writing behind its rows.

    Example:
        chorus ledger restore ledger-2026-11-01.db --replace
    """
    with closing(_file(config)) as ledger:
        if ledger.exists() and not replace:
            ((rows,),) = ledger.read("SELECT count(*) FROM requests")
            if rows:
                raise SettingsError(
                    f"{ledger.name} has {rows} requests; --replace puts the backup in their place."
                )
        ledger.restore(copy)
        ((rows,),) = ledger.read("SELECT count(*) FROM requests")
    typer.echo(f"{rows} requests")


@group.command()
def check(config: ConfigOption = CONFIG) -> None:
    """Compare the books: requests with their calls, rows with their retention, the file with itself. Ends with 1 where
    something is wrong.

    Example:
        chorus ledger check --config chorus.yaml
    """
    from gateway.ledger.care import check as looked_through
    from gateway.ledger.place import make_ledger
    from protocol.settings import load_settings

    settings = load_settings(config)
    with closing(make_ledger(settings)) as ledger:
        typer.echo(ledger.name)
        if not ledger.exists():
            typer.echo("nothing was written yet")
            return
        health = looked_through(ledger, time.time() - settings.ledger.retention_days * DAY_S)
    typer.echo(f"{health.requests} requests, {health.calls} calls")
    if health.first is not None and health.last is not None:
        typer.echo(f"from {_day(health.first)} to {_day(health.last)}")
    if health.expired:
        typer.echo(f"{health.expired} requests are past their {settings.ledger.retention_days} days")
    for fault in health.faults:
        typer.echo(f"wrong: {fault}")
    if health.faults:
        raise typer.Exit(1)


def _file(config: Path) -> SqliteLedger:
    from gateway.ledger.place import make_ledger
    from gateway.ledger.sqlite_ledger import SqliteLedger
    from protocol.settings import load_settings

    ledger = make_ledger(load_settings(config))
    if not isinstance(ledger, SqliteLedger):
        raise SettingsError(DUMP)
    return ledger


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
