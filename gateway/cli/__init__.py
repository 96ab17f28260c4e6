"""The command `chorus`. One module a group of commands; what a command needs is imported when it runs, so
that `--help` is quick.

An error of ours ends in one line on stderr and a status: 2 for what the operator typed or configured, 1 for
all else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

EXTRAS = {
    "torch": "engines",
    "vllm": "engines",
    "transformers": "engines",
    "pyarrow": "learn",
    "scipy": "learn",
    "sklearn": "learn",
    "psycopg": "postgres",
}
"""Libraries that some commands need → the extra that brings them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `chorus` with `arguments` (default: those of the process) and exit."""
    from gateway.cli.application import application
    from protocol.errors import ChorusError, SettingsError

    try:
        application(args=None if arguments is None else list(arguments), prog_name="chorus")
    except SettingsError as error:
        sys.exit(_failed(error.message, 2))
    except ChorusError as error:
        sys.exit(_failed(error.message, 1))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(
            _failed(f"{error.name} is not installed; pip install 'chorus-gateway[{extra}]' brings it.", 1)
        )
    except OSError as error:
        # A file or address of the operator's: a disk that is full, a folder that may not be written to.
        sys.exit(_failed(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), 1))


def _failed(message: str, status: int) -> int:
    from protocol.redaction import Redaction

    sys.stderr.write(f"chorus: {Redaction().text(message)}\n")
    return status
