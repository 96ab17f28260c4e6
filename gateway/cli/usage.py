"""`chorus usage`: who used what, and what it cost; `chorus usage show`: one request."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.office import with_office
from gateway.cli.parameters import CONFIG, ConfigOption, Since, seconds, words
from gateway.cli.tables import print_table
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from gateway.ledger.savings import Saved
    from gateway.ledger.usage import Line

__all__ = ["group"]

group = typer.Typer(invoke_without_command=True)

_FIELDS = ("requests", "calls", "prompt_tokens", "completion_tokens", "cost_usd")


class Format(StrEnum):
    """How it is told."""

    table = "table"
    csv = "csv"
    parquet = "parquet"


@group.callback()
def usage(
    context: typer.Context,
    config: ConfigOption = CONFIG,
    by: Annotated[
        str,
        typer.Option(
            help="Comma-separated: key, team, owner, user, model, strategy, requested, outcome, day."
        ),
    ] = "key",
    since: Since = "30d",
    format: Annotated[Format, typer.Option(help="parquet needs --out.")] = Format.table,
    out: Annotated[Path | None, typer.Option(help="Write here instead of printing.")] = None,
    against: Annotated[
        str | None, typer.Option(help="A model: also estimate what was saved by not always asking it.")
    ] = None,
) -> None:
    """Add up the ledger: requests, calls, tokens, US dollars. Days are UTC.

    Examples:
        chorus usage --by team,model --since 7d

        chorus usage --by day,key --format csv --out spend.csv

        chorus usage --by strategy --against gpt-4o
    """
    if context.invoked_subcommand is not None:
        return
    from gateway.ledger.place import make_ledger, savings_against
    from gateway.ledger.store import reading
    from gateway.ledger.usage import usage as added_up
    from protocol.settings import load_settings

    groups, begin = tuple(words(by)), time.time() - seconds(since)
    settings = load_settings(config)
    with closing(make_ledger(settings)) as ledger:
        lines = added_up(ledger, groups, since=begin)
        saved = savings_against(settings, reading(ledger), against, begin, groups) if against else None
    if format is Format.parquet:
        _parquet(groups, lines, out)
    elif format is Format.csv:
        text = _csv(groups, lines)
        if out:
            out.write_text(text)
        else:
            sys.stdout.write(text)
    else:
        _table(groups, lines)
    if saved is not None:
        beside = format is not Format.table  # a file of figures stays one
        typer.echo(saved.told(), err=beside)
        if saved.groups:
            _saved_table(groups, saved.groups, beside)


@group.command()
def show(
    name: Annotated[str, typer.Argument(help="The request's id, or its `x-request-id` of the last week.")],
    config: ConfigOption = CONFIG,
    text: Annotated[bool, typer.Option(help="Show prompt and answer, where its key has them stored.")] = True,
) -> None:
    """Tell of one request: who asked, what was decided, which calls it led to, and what was said, where its key has
    that stored (`chorus keys change NAME --text-days`). That a prompt was read stands in the audit log.

    Example:
        chorus usage show req_5f1c2a
    """
    from gateway.ledger import views
    from gateway.ledger.place import make_ledger
    from gateway.ledger.texts import text_of
    from protocol.settings import load_settings

    settings = load_settings(config)
    with closing(make_ledger(settings)) as ledger:
        found = views.request(ledger.read, name, time.time()) if ledger.exists() else None
        if found is None:
            raise SettingsError(
                f"The ledger has no request {name!r}; it is written a moment after the answer."
            )
        said = text_of(ledger.read, found["id"]) if text and found["text"] else None
    _tell_request(found)
    if said is not None:
        with_office(config, lambda office, actor: office.looked(said["request"], said["key"], actor))
        for part in ("prompt", "answer"):
            typer.echo(f"\n{part}:\n{said[part] if said[part] is not None else 'none in words'}")
        if said["cut"]:
            typer.echo(f"\nNot all of it: ledger.max_text_kib is {settings.ledger.max_text_kib}.")


def _tell_request(found: dict[str, Any]) -> None:
    import orjson
    from rich.table import Table

    made = datetime.fromtimestamp(found["at"], UTC)
    for label, value in (
        ("request", found["id"]),
        ("x-request-id", found["request_id"]),
        ("when", f"{made:%Y-%m-%d %H:%M:%S} UTC"),
        ("key", found["alias"] or found["key"]),
        ("team", found["team"]),
        ("asked", f"{found['requested']} on /v1{found['path']}, answered by {found['strategy']}"),
        ("outcome", f"{found['outcome']} after {found['latency_s']:.3f} s"),
        ("cost", f"{found['cost_usd']:.9f} USD"),
        ("decision", orjson.dumps(found["decision"]).decode() if found["decision"] else None),
        ("stored", "prompt and answer" if found["text"] else "neither prompt nor answer"),
    ):
        if value is not None:
            typer.echo(f"{label:<13}{value}")
    if found["calls"]:
        table = Table("model", "kind", "outcome", "began_s", "took_s", "read", "written", "cost_usd")
        for call in found["calls"]:
            began = "" if call["began_s"] is None else f"{call['began_s']:.3f}"
            tokens = (str(call["prompt_tokens"]), str(call["completion_tokens"]))
            took, cost = f"{call['latency_s']:.3f}", f"{call['cost_usd']:.9f}"
            table.add_row(call["model"], call["kind"], call["outcome"], began, took, *tokens, cost)
        print_table(table)


def _row(line: Line) -> list[str]:
    numbers = (line.requests, line.calls, line.prompt_tokens, line.completion_tokens)
    return [*line.group, *map(str, numbers), f"{line.cost_usd:.9f}"]


def _csv(groups: tuple[str, ...], lines: list[Line]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*groups, *_FIELDS])
    # A spreadsheet runs a cell that begins like a formula; aliases and users are what callers write.
    writer.writerows(
        [f"'{cell}" if cell[:1] in "=+-@\t\r" and cell != "-" else cell for cell in _row(line)]
        for line in lines
    )
    return text.getvalue()


def _parquet(groups: tuple[str, ...], lines: list[Line], out: Path | None) -> None:
    import pyarrow
    import pyarrow.parquet

    if out is None:
        raise SettingsError("--format parquet needs --out FILE.")
    columns: dict[str, list[object]] = {
        name: [line.group[i] for line in lines] for i, name in enumerate(groups)
    }
    for field in _FIELDS:
        columns[field] = [getattr(line, field) for line in lines]
    pyarrow.parquet.write_table(pyarrow.table(columns), out)


def _saved_table(groups: tuple[str, ...], rows: Sequence[Saved], beside: bool) -> None:
    """In US dollars; what was saved lies between "from" and "to" at 95 %."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(*groups, box=SIMPLE)
    for name in ("requests", "measured", "spent", "against", "saved", "from", "to"):
        table.add_column(name, justify="right")
    for row in rows:
        money = (row.spent_usd, row.against_usd, row.usd, row.low_usd, row.high_usd)
        table.add_row(*row.group, str(row.requests), str(row.measured), *(f"{usd:.6g}" for usd in money))
    print_table(table, stderr=beside)


def _table(groups: tuple[str, ...], lines: list[Line]) -> None:
    from rich.table import Table

    table = Table(*groups, show_footer=bool(lines))
    totals = [str(sum(getattr(line, field) for line in lines)) for field in _FIELDS[:-1]]
    total_usd = f"{sum(line.cost_usd for line in lines):.9f}"
    for field, total in zip(_FIELDS, [*totals, total_usd], strict=True):
        # A request that made calls to several models stands in several lines: then requests do not add up.
        footer = "" if field == "requests" and "model" in groups else total
        table.add_column(field, justify="right", footer=footer)
    for line in lines:
        table.add_row(*_row(line))
    print_table(table)
