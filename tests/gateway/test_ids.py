"""Ids of requests."""

from __future__ import annotations

import re

from gateway.ids import DRAWN, Ids


def test_fresh() -> None:
    """Ids never repeat, whatever their source, and those of one source sort by the time of their making."""
    first, second = Ids(), Ids()
    made = [source.fresh() for _ in range(DRAWN + 10) for source in (first, second)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    times = [one[:12] for one in made]
    assert times == sorted(times)
