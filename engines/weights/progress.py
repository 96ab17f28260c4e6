"""Showing what a pull is doing: a small Protocol, a silent one, and one for terminals (rich)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

__all__ = ["Progress", "Silent", "Terminal"]


class Progress(Protocol):
    """What `ensure` reports, in order: notes, and downloads that begin, grow and end."""

    def note(self, text: str) -> None:
        """Say one line: what happens now and how long it may take."""

    def begin(self, label: str, size: int) -> None:
        """A download of ``size`` bytes starts."""

    def reached(self, done: int) -> None:
        """``done`` bytes of the current download are here."""

    def end(self) -> None:
        """The current download is over, well or not."""


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def begin(self, label: str, size: int) -> None:
        """Ignore it."""

    def reached(self, done: int) -> None:
        """Ignore it."""

    def end(self) -> None:
        """Ignore it."""


class Terminal:
    """Bars on a terminal, plain lines elsewhere (a log wants one line per file, not a redrawn bar); both on
    stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bars: RichBars | None = None

    def note(self, text: str) -> None:
        """Print the line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, label: str, size: int) -> None:
        """Show a bar, or say the name and size."""
        if not self._console.is_terminal:
            self.note(f"  {label} ({size / 1e6:.0f} MB)")
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=self._console)
        self._bars.add_task(label, total=size)
        self._bars.start()

    def reached(self, done: int) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=done)

    def end(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
