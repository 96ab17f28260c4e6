"""Which models are counted at which price, and which at none."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.settings import Settings

__all__ = ["UNPRICED", "unpriced"]

UNPRICED = (
    "its calls count as 0 US dollars, in budgets, costs and decisions. Set models.{name}.price, to the prices of its "
    "tokens or to the name of a known model (`chorus models prices --known PART` finds one)."
)


def unpriced(settings: Settings) -> Iterator[str]:
    """The models whose calls cost nothing because nobody said what they cost."""
    for name, model in settings.models.items():
        if model.price is None:
            yield name
