"""`python -m engines CONFIG --uds PATH | --port N`: run the engine host alone."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

from engines import preload
from engines.server import run
from engines.weights import WeightsError
from protocol.errors import SettingsError
from protocol.log_pipe import start_logging
from protocol.settings import load_settings

CONFIG_IS_WRONG = 2
"""Exit code that tells a supervisor not to try again."""


def main() -> int:
    """Parse the command line, load the settings, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m engines", description="Serve the engine models and fusions of a config."
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, help="what paths in it are relative to; its folder by default")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--uds", type=Path, help="Unix socket to listen on")
    where.add_argument("--port", type=int, default=8090, help="loopback port to listen on (default 8090)")
    asked = parser.parse_args()
    preload.ensure()
    # Torch's remarks on itself: an operator can do nothing about them.
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        settings = load_settings(asked.config, asked.base)
        start_logging(settings, "engines")
        return run(settings, uds=asked.uds, port=asked.port)
    except SettingsError as error:
        print(error.message, file=sys.stderr)
        return CONFIG_IS_WRONG
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
