"""`chorus outcomes describe|merge|import`: looking at outcome tables, joining them, bringing others' in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import SettingsError

if TYPE_CHECKING:
    from outcomes.importing import Format
    from outcomes.table import OutcomeTable

__all__ = ["group"]

group = typer.Typer(help="Outcome tables: describe, merge, import.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Outcome table to write (parquet).")]


@group.command()
def describe(
    tables: Annotated[list[Path], typer.Argument(help="Parquet, or a folder of .jsonl.gz.")],
) -> None:
    """Print what outcome tables hold: every model's mean score and cost and for how many queries they are known, the
    best of any model (oracle), and the categories.

    Example:
        chorus outcomes describe outcomes.parquet
    """
    for path in tables:
        typer.echo(f"{path}:")
        _describe(_read(path))


@group.command()
def merge(
    tables: Annotated[list[Path], typer.Argument(help="Outcome tables, the later ones counting more.")],
    out: Out,
) -> None:
    """Join tables into one. A question is found by its text; of two values for one cell the later table's is kept,
    and how often they differed is told.

    Example:
        chorus outcomes merge monday.parquet tuesday.parquet --out week.parquet
    """
    from outcomes.importing import merged

    found, contradictions = merged([_read(path) for path in tables])
    _write(found, contradictions, out)


@group.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines.")],
    out: Out,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="wide (CSV, a column a model), log (LiteLLM, OpenAI), or rows (JSON lines)."
        ),
    ] = None,
) -> None:
    """Make an outcome table of RouterBench's or RouteLLM's CSV, of request logs, or of JSON lines.

    What the file does not say stays unknown: logs without grades give rows without scores. Of two values for the same
    question and model the later is kept, and how often they differed is told.

    Examples:
        chorus outcomes import routerbench_0shot.csv --out routerbench.parquet

        chorus outcomes import litellm.jsonl --format log --out traffic.parquet
    """
    from typing import get_args

    from outcomes import importing

    known = get_args(importing.Format)
    if form is not None and form not in known:
        raise SettingsError(f"--format {form!r}: it is one of {', '.join(known)}.")
    if not file.is_file():
        raise SettingsError(f"There is no file {file}.")
    chosen: Format | None = next((name for name in known if name == form), None)
    found, contradictions = importing.read_foreign(file, chosen)
    if not len(found):
        raise SettingsError(f"{file} has no rows.")
    _write(found, contradictions, out)
    _describe(found)


def _write(table: OutcomeTable, contradictions: int, out: Path) -> None:
    from outcomes.table import write_table

    write_table(table, out)
    typer.echo(f"{len(table)} queries, {len(table.models)} models written to {out}")
    if contradictions:
        typer.echo(
            f"{contradictions} values differed from an earlier one of the same question and model: the later count"
        )


def _read(path: Path) -> OutcomeTable:
    from outcomes.table import read_table

    return read_table(path)


def _describe(table: OutcomeTable) -> None:
    from collections import Counter

    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from outcomes.learning_set import known_means
    from outcomes.table import normalised_text

    known = ~np.isnan(table.score)
    means: dict[str, Any] = {
        name: known_means(getattr(table, name)) for name in ("score", "cost_usd", "latency_s")
    }
    shown = Table("model", "score", "graded", "USD / query", "seconds", box=None, pad_edge=False)
    order = np.argsort(-np.nan_to_num(means["score"], nan=-1.0), kind="stable")
    for j in order.tolist():
        cells = [
            "unknown" if np.isnan(means[name][j]) else format(means[name][j], form)
            for name, form in (("score", ".3f"), ("cost_usd", ".3g"), ("latency_s", ".2f"))
        ]
        shown.add_row(table.models[j], cells[0], f"{known[:, j].sum()} of {len(table)}", *cells[1:])
    console = Console(soft_wrap=True, highlight=False)
    console.print(shown)
    graded = known.any(axis=1)
    console.print(
        f"{len(table)} queries, {graded.sum()} with a score, {known.all(axis=1).sum()} with all scores"
    )
    if graded.any():
        oracle = np.nanmax(table.score[graded], axis=1).mean()
        console.print(f"oracle: {oracle:.3f}, over the scores that are known")
    copies = len(table) - len({normalised_text(text) for text in table.queries.texts})
    if copies:
        console.print(f"{copies} queries are copies of others")
    categories = Counter(table.categories)
    if set(categories) != {""}:
        told = ", ".join(f"{name or '(none)'} {count}" for name, count in categories.most_common(20))
        console.print(f"categories: {told}", markup=False)
