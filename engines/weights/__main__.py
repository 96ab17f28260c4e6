"""``python -m engines.weights [ID…]``: fetch and convert the named weights, or all; what `make` and container
images call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.weights import CATALOGUE, Terminal, WeightsError, ensure


def main(argv: Sequence[str] | None = None) -> int:
    """Print the folder of each; exit status 1 with the remedy when something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.weights", description="Fetch and convert model weights."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"default: all of {', '.join(CATALOGUE)}")
    arguments = parser.parse_args(argv)
    try:
        folders = ensure(arguments.ids or CATALOGUE, progress=Terminal())
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    for id, folder in folders.items():
        print(f"{id}\t{folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
