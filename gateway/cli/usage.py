"""`chorus usage`: who used what, and what it cost."""

from __future__ import annotations

import csv
import io
import re
import sys
import time
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.parameters import CONFIG, ConfigOption, words
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from gateway.ledger.usage import Line

__all__ = ["usage"]

_UNITS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_FIELDS = ("requests", "calls", "prompt_tokens", "completion_tokens", "cost_usd")


class Format(StrEnum):
    """How it is told."""

    table = "table"
    csv = "csv"
    parquet = "parquet"


def usage(
    config: ConfigOption = CONFIG,
    by: Annotated[
        str,
        typer.Option(
            help="Comma-separated: key, team, owner, user, model, strategy, requested, outcome, day."
        ),
    ] = "key",
    since: Annotated[str, typer.Option(help="How far back: 24h, 7d, 4w.")] = "30d",
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
    from gateway.ledger.place import make_ledger, savings_against
    from gateway.ledger.usage import usage as added_up
    from protocol.settings import load_settings

    groups, begin = tuple(words(by)), time.time() - _seconds(since)
    settings = load_settings(config)
    with closing(make_ledger(settings)) as ledger:
        lines = added_up(ledger, groups, since=begin)
        saved = savings_against(settings, ledger, against, begin) if against else None
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
        typer.echo(saved.told(), err=format is not Format.table)  # a file of figures stays one


def _seconds(since: str) -> float:
    match = re.fullmatch(r"(\d+)([hdw])", since)
    if match is None:
        raise SettingsError(f"--since {since!r}: write a number and h, d or w, e.g. 7d.")
    return int(match[1]) * _UNITS[match[2]]


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


def _table(groups: tuple[str, ...], lines: list[Line]) -> None:
    from rich.console import Console
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
    Console().print(table)
