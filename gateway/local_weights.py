"""Where the weights that a config names lie on this machine."""

from __future__ import annotations

from pathlib import Path

from engines.weights import CATALOGUE, Home
from protocol.settings import Settings

__all__ = ["wanted", "weights_folder"]


def weights_folder(weights: str) -> Path:
    """The folder of `weights`: a known id, kept under `CHORUS_HOME`, or a path."""
    return Home.from_environ().weights / weights if weights in CATALOGUE else Path(weights).expanduser()


def wanted(settings: Settings) -> list[str]:
    """The known weights that the config's engines and embedders need; paths are the operator's own affair."""
    sections = [model.engine or model.embedder for model in settings.models.values()]
    return [section.weights for section in sections if section and section.weights in CATALOGUE]
