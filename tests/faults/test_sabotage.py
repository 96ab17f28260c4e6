"""The matrix bites."""

from __future__ import annotations

import pytest

from tests.faults.cells import CELLS, faulty_upstream, show
from tests.faults.sabotage import SABOTAGES, Sabotage
from tests.faults.scenes import SCENES


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
async def test_sabotage_turns_its_cell_red(sabotage: Sabotage) -> None:
    """The cell that a sabotage names is green without it, and red, for the reason given, with it."""
    upstream = faulty_upstream()

    async def shown() -> None:
        if sabotage.cell in SCENES:
            await SCENES[sabotage.cell].show(upstream, port)
        else:
            await show(CELLS[sabotage.cell], upstream, port, longest_s=2.0)

    async with upstream.serving() as port:
        await shown()
        with sabotage.done(), pytest.raises(AssertionError, match=sabotage.red):
            await shown()
