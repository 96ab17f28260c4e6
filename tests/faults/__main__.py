"""`make faults`: show every cell, print the matrix, and write it to docs/faults.md. Exits with 1 if a cell is red."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.faults.cells import CELLS, KINDS, Cell, faulty_upstream, show
from tests.faults.faults import FAULTS
from tests.faults.sabotage import SABOTAGES

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

HEAD = """\
# Fault matrix

Written by `make faults`, which shows every cell anew (tests/faults/); do not edit.

Each row is one way in which a backend fails; each cell one kind of call that meets it, asked for a whole
answer and for a stream. A cell says **what the client sees** (`200` is a complete answer; `200 + code` a
stream that had begun and ends with an error event and no `[DONE]`), **how often the failing model was tried**
(`×3`: two retries), `→ good` when another model answered, and **how many tokens were charged** (the prompt
has 10; an answer that reports its usage costs 15; `seen`: by what had come when a clock rang). Every cell
also asserts that nothing is left: no task, no socket in use, no place taken at a deployment, no money
reserved, and that the backend has stopped working.

A cascade's first stage and a vote's members are asked for whole answers also when the caller streams; faults of
streams (`—`) do not touch them. Retries wait 1 ms here.
"""

BITES = """\

## The matrix bites

Each sabotage breaks the gateway on purpose; the cell it names turns red (tests/faults/test_sabotage.py).

| sabotage | cell that turns red |
|---|---|
"""


def text(cell: Cell) -> str:
    """A cell in words."""
    seen = cell.seen
    tried = f" ×{seen.tried}" if seen.tried > 1 else ""
    charged = "seen" if seen.charged is None else str(seen.charged)
    return f"{seen.told()}{tried}{' → good' if cell.good else ''}, {charged}"


def page() -> str:
    """The whole of docs/faults.md."""
    parts = [HEAD]
    for stream in (False, True):
        parts.append(f"## Asked for {'a stream' if stream else 'a whole answer'}\n")
        parts.append("| the backend … | " + " | ".join(KINDS.values()) + " |\n|---|" + "---|" * len(KINDS))
        for name, fault in FAULTS.items():
            ids = [f"{name}/{'stream' if stream else 'whole'}/{kind}" for kind in KINDS]
            row = [text(CELLS[id]) if id in CELLS else "—" for id in ids]
            if set(row) != {"—"}:
                parts.append(f"| {fault.about} (`{name}`) | " + " | ".join(row) + " |")
        parts.append("")
    parts.append(BITES + "\n".join(f"| {s.about} | `{s.cell}` |" for s in SABOTAGES.values()) + "\n")
    return "\n".join(parts)


async def results() -> Mapping[str, str]:
    """Every red cell, with what is wrong with it."""
    red: dict[str, str] = {}
    upstream = faulty_upstream()
    async with upstream.serving() as port:
        for cell in CELLS.values():
            try:
                await show(cell, upstream, port)
            except AssertionError as error:
                red[cell.id] = str(error).splitlines()[0]
            print(
                f"{'RED  ' if cell.id in red else 'green'} {cell.id:<36} {red.get(cell.id, text(cell))}",
                flush=True,
            )
    return red


def main() -> int:
    red = asyncio.run(results())
    print(f"\n{len(CELLS)} cells, {len(CELLS) - len(red)} green, {len(red)} red")
    if not red:
        PAGE.write_text(page())
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
