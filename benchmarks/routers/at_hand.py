"""What these benchmarks need: the published tables, and an embedder's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.weights import Home
from outcomes.embedder import Embedder

__all__ = ["at_hand"]


def at_hand(asked: argparse.Namespace) -> tuple[Embedder, Path] | None:
    """The embedder `asked` for, and the folder of kept embeddings; None, saying what is missing, without the weights
    or the tables (`asked.data`)."""
    home = Home.from_environ()
    folder = home.weights / asked.embedder
    if asked.data is None or not folder.is_dir():
        print("Set CHORUS_DATA to the published outcome tables." if asked.data is None else f"No {folder}.")
        return None
    return Embedder.load(folder, max_batch=8), home.root / "embeddings"
