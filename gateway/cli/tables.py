"""Tables on the terminal and in pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_table"]

PIPED_WIDTH = 1000
"""Columns where no terminal bounds them: whoever greps for an id must find the whole of it."""


def print_table(table: Table, *, stderr: bool = False) -> None:
    """Print `table`, cutting nothing off: a cell that does not fit goes on in the next line."""
    import os

    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, width=PIPED_WIDTH)
    console.print(table)
