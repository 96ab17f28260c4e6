"""`chorus keys`: virtual keys, made and ended by whoever can read the config and its state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.office import with_office
from gateway.cli.parameters import CONFIG, ConfigOption, words

if TYPE_CHECKING:
    from gateway.keys.key import Key
    from gateway.keys.office import Office

__all__ = ["group"]

group = typer.Typer(
    help="Virtual keys: create, list, change, revoke, rotate. A running gateway notices at once.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The key's id or alias.")]
Rpm = Annotated[int | None, typer.Option(min=1, help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option(min=1, help="Tokens per minute.")]
Concurrent = Annotated[int | None, typer.Option(min=1, help="Requests at once.")]
Budget = Annotated[
    list[str] | None,
    typer.Option(help="PERIOD=USD, e.g. day=5; day, week, month or total; may be repeated."),
]
TextDays = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Store its prompts and answers for so many days; 0: store none, and remove what there is.",
    ),
]
Cached = Annotated[
    bool | None, typer.Option(help="Whether its answers may be kept, and kept ones given to it.")
]
Team = Annotated[str | None, typer.Option(help="Its team.")]
Models = Annotated[
    str | None, typer.Option(help="Models and strategies it may name, comma-separated; '*' for all.")
]
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
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    budget: Budget = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Default: never.")] = None,
    cached: Annotated[
        bool, typer.Option(help="Whether its answers may be kept, and kept ones given to it.")
    ] = True,
    text_days: TextDays = None,
) -> None:
    """Make a key. Its secret is printed once, alone on standard output, and kept nowhere.

    Examples:
        chorus keys create alice --team search --models auto,gpt-4o-mini --budget day=5 --rpm 60

        KEY=$(chorus keys create ci --budget total=1)
    """
    from gateway.keys.office import Order

    body: dict[str, Any] = {"alias": alias, "owner": owner, "team": team, "expires_in_days": expires_in_days}
    body["cached"] = cached
    body["text_days"] = text_days or None
    body["models"] = words(models) if models else None
    body["tags"] = words(tags)
    limits: dict[str, Any] = {"rpm": rpm, "tpm": tpm, "concurrent": concurrent}
    body["limits"] = {**limits, "budgets_usd": _budgets(budget)}

    async def deed(office: Office, actor: str) -> tuple[Key, str, bool]:
        before = [key.alias for key in await office.keys() if key.revoked is None]
        return *await office.create(Order.parse(body), actor), alias is not None and alias in before

    key, secret, twin = with_office(config, deed)
    typer.echo(secret)
    typer.echo(f"{key.id} is made. The line above is its only copy. {_stored(key)}".rstrip(), err=True)
    if twin:
        typer.echo(f"Another key has the alias {alias!r}, too: name either by its id.", err=True)
    _say_unknown(key, config)


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
    from rich.table import Table

    from gateway.cli.tables import print_table

    keys = with_office(config, lambda office, _: office.keys())
    if json:
        for key in keys:
            typer.echo(orjson.dumps(key.wire()).decode())
        return
    table = Table("id", "alias", "team", "owner", "state", "may name", "limits", "stores", "made")
    for key in keys:
        made = datetime.fromtimestamp(key.created, UTC)
        may = "all" if key.models is None else ", ".join(key.models)
        table.add_row(
            *(key.id, key.alias or "", key.team or "", key.owner or "", key.state(time.time()), may),
            *(_limits(key), _text(key), f"{made:%Y-%m-%d %H:%M}"),
        )
    print_table(table)


@group.command()
def change(
    name: Name,
    config: ConfigOption = CONFIG,
    text_days: TextDays = None,
    cached: Cached = None,
    team: Team = None,
    models: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    budget: Budget = None,
) -> None:
    """Change what is named of a key; all else stays. Running gateways go by it within a second.

    Examples:
        chorus keys change alice --text-days 7

        chorus keys change alice --budget day=10 --rpm 120
    """
    terms = _Terms(text_days, cached, team, models, rpm, tpm, concurrent, budget)

    async def deed(office: Office, actor: str) -> Key:
        return await office.change(name, await terms.body(office, name), actor)

    key = with_office(config, deed)
    typer.echo(f"{key.id} is changed. {_stored(key)}".rstrip())
    _say_unknown(key, config)
    terms.say_removed()


@group.command()
def revoke(name: Name, config: ConfigOption = CONFIG) -> None:
    """End a key for good. Running gateways refuse it within a second.

    Example:
        chorus keys revoke alice
    """
    key = with_office(config, lambda office, actor: office.revoke(name, actor))
    typer.echo(f"{key.id} is revoked.")


@group.command()
def rotate(
    name: Name,
    config: ConfigOption = CONFIG,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="How long the old secret stays good.")
    ] = 0.0,
    expires_in_days: Annotated[
        float | None, typer.Option(help="From now; default: as before. An expired key needs it.")
    ] = None,
    text_days: TextDays = None,
    cached: Cached = None,
    team: Team = None,
    models: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    budget: Budget = None,
) -> None:
    """Give a key a new secret, printed once. What is named is changed with it; all else is carried over: limits,
    spending, what it may name, for how long its prompts and answers are stored.

    Examples:
        chorus keys rotate alice --grace-hours 24

        chorus keys rotate alice --expires-in-days 90 --text-days 0
    """
    terms = _Terms(text_days, cached, team, models, rpm, tpm, concurrent, budget)

    async def deed(office: Office, actor: str) -> tuple[Key, str]:
        body = await terms.body(office, name)
        if expires_in_days is not None:
            body["expires_in_days"] = expires_in_days
        return await office.rotate(name, actor, grace_s=grace_hours * HOUR_S, terms=body)

    key, secret = with_office(config, deed)
    typer.echo(secret)
    typer.echo(
        f"{key.id} has a new secret. The line above is its only copy. {_stored(key)}".rstrip(), err=True
    )
    _say_unknown(key, config)
    terms.say_removed(err=True)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is to be changed of a key; None: as it is."""

    text_days: float | None
    cached: bool | None
    team: str | None
    models: str | None
    rpm: int | None
    tpm: int | None
    concurrent: int | None
    budget: list[str] | None

    async def body(self, office: Office, name: str) -> dict[str, Any]:
        """As the admin API takes it. Limits and budgets that are not named stay beside those that are."""
        told = {"team": self.team, "cached": self.cached}
        body: dict[str, Any] = {field: value for field, value in told.items() if value is not None}
        if self.text_days is not None:
            body["text_days"] = self.text_days or None
        if self.models is not None:
            body["models"] = None if self.models == "*" else words(self.models)
        limits = {"rpm": self.rpm, "tpm": self.tpm, "concurrent": self.concurrent}
        changed = {field: value for field, value in limits.items() if value is not None}
        if changed or self.budget:
            kept = (await office.find(name)).limits
            budgets = {str(period): usd for period, usd in kept.budgets_usd.items()} | _budgets(self.budget)
            body["limits"] = {**kept.model_dump(exclude_none=True), **changed, "budgets_usd": budgets}
        return body

    def say_removed(self, *, err: bool = False) -> None:
        if self.text_days == 0:
            typer.echo(
                "What was stored of its prompts and answers is removed; on other machines within a minute.",
                err=err,
            )


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


def _text(key: Key) -> str:
    return "" if key.text_days is None else f"text, {key.text_days:g} days"


def _say_unknown(key: Key, config: Path) -> None:
    """What it may name may come with a later config; but most often it is misspelt."""
    from protocol.settings import load_settings

    settings = load_settings(config)
    unknown = [name for name in key.models or () if name not in {*settings.models, *settings.strategies}]
    if unknown:
        typer.echo(f"The config has no model or strategy {', '.join(map(repr, unknown))} so far.", err=True)


def _stored(key: Key) -> str:
    """What its owner should know."""
    return f"Its prompts and answers are stored for {key.text_days:g} days." if key.text_days else ""
