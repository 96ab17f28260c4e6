"""The matrix bites."""

from __future__ import annotations

import pytest

from tests.faults.cells import CELLS, faulty_upstream, show
from tests.faults.sabotage import SABOTAGES, Sabotage


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
async def test_sabotage_turns_its_cell_red(sabotage: Sabotage) -> None:
    """The cell that a sabotage names is green without it, and red, for the reason given, with it."""
    cell = CELLS[sabotage.cell]
    upstream = faulty_upstream()
    async with upstream.serving() as port:
        await show(cell, upstream, port)
        with sabotage.done(), pytest.raises(AssertionError, match=sabotage.red):
            await show(cell, upstream, port, longest_s=2.0)
