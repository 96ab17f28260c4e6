"""`chorus keys`: virtual keys, made and ended by whoever can read the config and its state."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gateway.cli.parameters import CONFIG, ConfigOption, words

if TYPE_CHECKING:
    from gateway.keys.key import Key
    from gateway.keys.office import Office

__all__ = ["group"]

T = TypeVar("T")

group = typer.Typer(
    help="Virtual keys: create, list, revoke, rotate. A running gateway notices at once.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The key's id or alias.")]
HOUR_S = 3600.0


@group.command()
def create(
    alias: Annotated[str | None, typer.Argument(help="A name for people.")] = None,
    config: ConfigOption = CONFIG,
    owner: Annotated[str | None, typer.Option(help="Who answers for it.")] = None,
    team: Annotated[
        str | None, typer.Option(help="Its team; limits.teams.NAME of the config applies too.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Models and strategies it may name, comma-separated; default all.")
    ] = None,
    tags: Annotated[str | None, typer.Option(help="Comma-separated; they stand in the ledger.")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens per minute.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="PERIOD=USD, e.g. day=5; day, week, month or total; may be repeated."),
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Default: never.")] = None,
    cached: Annotated[
        bool, typer.Option(help="Whether its answers may be kept, and kept ones given to it.")
    ] = True,
) -> None:
    """Make a key. Its secret is printed once, alone on standard output, and kept nowhere.

    Examples:
        chorus keys create alice --team search --models auto,gpt-4o-mini --budget day=5 --rpm 60

        KEY=$(chorus keys create ci --budget total=1)
    """
    from gateway.keys.office import Order

    body: dict[str, Any] = {"alias": alias, "owner": owner, "team": team, "expires_in_days": expires_in_days}
    body["cached"] = cached
    body["models"] = words(models) if models else None
    body["tags"] = words(tags)
    limits: dict[str, Any] = {"rpm": rpm, "tpm": tpm, "concurrent": concurrent}
    body["limits"] = {**limits, "budgets_usd": _budgets(budget)}
    key, secret = _with_office(config, lambda office, actor: office.create(Order.parse(body), actor))
    typer.echo(secret)
    typer.echo(f"{key.id} is made. The line above is its only copy.", err=True)


@group.command("list")
def list_keys(
    config: ConfigOption = CONFIG,
    json: Annotated[bool, typer.Option("--json", help="As JSON, one key a line.")] = False,
) -> None:
    """List keys with their state and limits; never a secret or a digest.

    Example:
        chorus keys list
    """
    import time

    import orjson
    from rich.console import Console
    from rich.table import Table

    keys = _with_office(config, lambda office, _: office.keys())
    if json:
        for key in keys:
            typer.echo(orjson.dumps(key.wire()).decode())
        return
    table = Table("id", "alias", "team", "owner", "state", "may name", "limits", "made")
    for key in keys:
        made = datetime.fromtimestamp(key.created, UTC)
        may = "all" if key.models is None else ", ".join(key.models)
        table.add_row(
            *(key.id, key.alias or "", key.team or "", key.owner or "", key.state(time.time()), may),
            *(_limits(key), f"{made:%Y-%m-%d %H:%M}"),
        )
    Console().print(table)


@group.command()
def revoke(name: Name, config: ConfigOption = CONFIG) -> None:
    """End a key for good. Running gateways refuse it within a second.

    Example:
        chorus keys revoke alice
    """
    key = _with_office(config, lambda office, actor: office.revoke(name, actor))
    typer.echo(f"{key.id} is revoked.")


@group.command()
def rotate(
    name: Name,
    config: ConfigOption = CONFIG,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="How long the old secret stays good.")
    ] = 0.0,
) -> None:
    """Give a key a new secret, printed once; limits and spending stay.

    Example:
        chorus keys rotate alice --grace-hours 24
    """
    key, secret = _with_office(
        config, lambda office, actor: office.rotate(name, actor, grace_s=grace_hours * HOUR_S)
    )
    typer.echo(secret)
    typer.echo(f"{key.id} has a new secret. The line above is its only copy.", err=True)


def _budgets(pairs: list[str] | None) -> dict[str, float]:
    """`["day=5"]` → {"day": 5.0}. Raises `SettingsError`."""
    from protocol.errors import SettingsError

    budgets = {}
    for pair in pairs or ():
        period, _, usd = pair.partition("=")
        try:
            budgets[period] = float(usd)
        except ValueError:
            raise SettingsError(f"--budget {pair!r}: write PERIOD=USD, e.g. day=5.") from None
    return budgets


def _limits(key: Key) -> str:
    limits = key.limits
    told = [
        f"{value} {name}"
        for name, value in (("rpm", limits.rpm), ("tpm", limits.tpm), ("at once", limits.concurrent))
        if value is not None
    ]
    return ", ".join([*told, *(f"${usd:g} {period}" for period, usd in limits.budgets_usd.items())])


def _with_office(config: Path, deed: Callable[[Office, str], Awaitable[T]]) -> T:
    """Do it, and write down which user of this machine did."""
    from gateway.keys.office import Office
    from gateway.state.store import StoreAway
    from gateway.tenancy import make_pepper, make_shared
    from protocol.errors import SettingsError
    from protocol.settings import load_settings

    settings = load_settings(config)

    async def act() -> T:
        shared = make_shared(settings)
        try:
            return await deed(Office(shared.book, make_pepper(settings)), f"cli:{getpass.getuser()}")
        except StoreAway as error:
            raise SettingsError(f"The store of keys does not answer: {error}") from None
        finally:
            await shared.store.close()

    return asyncio.run(act())
