"""A slice of the fault matrix: every fault met by a plain model and by a pair, and every kind of call."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults.__main__ import MEASURED, PAGE, page
from tests.faults.cells import CELLS, Cell, faulty_upstream, show
from tests.faults.scenes import SCENES, Scene
from tests.faults.upstream import FaultyUpstream

ALL_KINDS = ("refused", "422", "429-later", "500-once", "truncated", "reset", "usage-wrong", "hang")
SLICE = [cell for cell in CELLS.values() if cell.kind in ("single", "pair") or cell.fault in ALL_KINDS]


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[FaultyUpstream, int]]:
    """The faulty upstream, and its port."""
    upstream = faulty_upstream()
    async with upstream.serving() as port:
        yield upstream, port


@pytest.mark.parametrize("cell", SLICE, ids=lambda cell: cell.id)
async def test_cell(cell: Cell, faulty: tuple[FaultyUpstream, int]) -> None:
    """The cell shows what the table says, and leaves nothing behind."""
    await show(cell, *faulty)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
async def test_scene(scene: Scene, faulty: tuple[FaultyUpstream, int]) -> None:
    """What must show does, and nothing is left."""
    await scene.show(*faulty)


def test_page_is_current() -> None:
    """docs/faults.md says what the cells assert; `make faults` writes it when all are green."""
    assert PAGE.read_text().partition(f"\n{MEASURED}")[0] == page()
