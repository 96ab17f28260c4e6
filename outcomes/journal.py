"""A durable journal: rows appended one JSON line each, so that an interruption loses no row that was paid
for.

Every line is handed to the operating system at once (a killed process loses nothing) and forced to disk
every few lines (a power cut loses those at most). A torn last line, the mark of such a cut, is dropped when
the journal is opened again.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from outcomes.table import NUMBERS, UNKNOWN, Row
from protocol.errors import MethodError

__all__ = ["Journal"]

SYNC_EVERY = 16


class Journal:
    """The rows of a collection under way; a context manager that holds the file and its lock.

    `rows` are those written before, then those appended: of two rows for one (query, model) the later counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], Row] = {}
        self._unsynced = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise MethodError(f"Another collection is writing {self.path}.") from None
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        try:
            for line in data[:whole].splitlines():
                self._remember(_row(orjson.loads(line)))
        except (orjson.JSONDecodeError, TypeError) as error:
            self._file.close()
            raise MethodError(f"{self.path} is not a journal of ours: {error}.") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._sync()
        self._file.close()

    def append(self, row: Row) -> None:
        """Write a finished row."""
        self._file.write(orjson.dumps(asdict(row), option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        self._remember(row)
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def _remember(self, row: Row) -> None:
        self.rows[row.query_id, row.model] = row

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0


def _row(record: dict[str, Any]) -> Row:
    known = {field.name: record[field.name] for field in fields(Row) if field.name in record}
    for name in NUMBERS:
        if known.get(name) is None:
            known[name] = UNKNOWN
    if known.get("logprobs") is not None:
        known["logprobs"] = tuple(known["logprobs"])
    return Row(**known)
