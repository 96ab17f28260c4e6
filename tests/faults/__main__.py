"""`make faults`: show every cell and scene, run the tests of the gateway's own faults, measure how soon a client that
leaves ends its calls, and write docs/faults.md. Exits with 1 if anything is red."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import Mapping

from tests.faults.cells import CELLS, KINDS, Cell, faulty_upstream, show
from tests.faults.faults import FAULTS
from tests.faults.own import OWN, ROOT, says
from tests.faults.sabotage import SABOTAGES
from tests.faults.scenes import BOUNDS, SCENES, WAYS, measured

PAGE = ROOT / "docs" / "faults.md"
MEASURED = "## How soon a leaving client ends its calls\n"
TIMES = 25

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

BOUND = """\
## Bounds

What holds over several calls. Each also asserts that nothing is left.

| what happens | what is seen |
|---|---|
"""

OURS = """\

## The gateway's own faults

Real processes, sockets and files; `make faults` runs these tests, and so does `make test`.

| what fails | what is seen | test |
|---|---|---|
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
    """All of docs/faults.md but what was measured."""
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
    parts.append(
        BOUND + "\n".join(f"| {s.about} (`bound/{name}`) | {s.seen} |" for name, s in BOUNDS.items())
    )
    ours = [
        f"| {what if not i else ''} | {says(test)} | `{test.partition('::')[2]}` |"
        for what, tests in OWN.items()
        for i, test in enumerate(tests)
    ]
    parts.append(OURS + "\n".join(ours))
    parts.append(BITES + "\n".join(f"| {s.about} | `{s.cell}` |" for s in SABOTAGES.values()) + "\n")
    return "\n".join(parts)


def distribution(took_s: Mapping[str, list[float]]) -> str:
    """What was measured, as the page's last part."""
    everything = sorted(s for each in took_s.values() for s in each)
    rows = []
    for name, each in took_s.items():
        ms = sorted(1000 * s for s in each)
        rows.append(f"| {name} | {ms[len(ms) // 2]:.1f} | {ms[-1]:.1f} |")
    where = f"{os.cpu_count()} shared cores, Python {platform.python_version()}"
    return f"""{MEASURED}
From the client's closing its connection to the abort of the last upstream call of the tree, over sockets and through
a server, {TIMES} times each; all in one process, which looks every 2 ms ({where}). The target is 200 ms; the slowest
of all {len(everything)} took {1000 * everything[-1]:.0f} ms.

| who leaves | median, ms | slowest, ms |
|---|---|---|
""" + "".join(f"{row}\n" for row in rows)


async def shown() -> tuple[Mapping[str, str], Mapping[str, list[float]]]:
    """Every red cell and scene, with what is wrong with it; and the seconds in which leaving ends calls."""
    red: dict[str, str] = {}
    took_s: dict[str, list[float]] = {}
    upstream = faulty_upstream()
    async with upstream.serving() as port:
        for id, seen in {**CELLS, **SCENES}.items():
            try:
                await (show(seen, upstream, port) if isinstance(seen, Cell) else seen.show(upstream, port))
            except AssertionError as error:
                red[id] = str(error).splitlines()[0]
            told = text(seen) if isinstance(seen, Cell) else seen.seen
            print(f"{'RED  ' if id in red else 'green'} {id:<44} {red.get(id, told)}", flush=True)
        for name, way in WAYS.items():
            for stream in (False, True) if way.streams else (False,):
                told = f"{name}, {'streamed' if stream else 'whole'}"
                took_s[told] = await measured(way, stream, TIMES, upstream, port)
    return red, took_s


def main() -> int:
    red, took_s = asyncio.run(shown())
    told = distribution(took_s)
    print(f"\n{told}\n{len(CELLS)} cells and {len(SCENES)} scenes, {len(red)} red", flush=True)
    tests = sorted({test for tests in OWN.values() for test in tests})
    failed = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode
    if red or failed:
        return 1
    PAGE.write_text(f"{page()}\n{told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
