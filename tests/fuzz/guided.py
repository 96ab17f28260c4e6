"""A small coverage-guided fuzzer: inputs that reach lines in an order not seen before are kept and mutated further.

It watches the lines of the named modules with `sys.settrace`, as AFL watches branches; the same seed gives the same
run.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

from tests.fuzz.bodies import value

Arc = tuple[str, int, int]


def fuzz(
    target: Callable[[bytes], None],
    seeds: Sequence[bytes],
    modules: Sequence[ModuleType],
    *,
    words: Sequence[bytes] = (),
    rounds: int,
    seed: int = 0,
    mutated: Callable[[Sequence[bytes], Sequence[bytes], random.Random], bytes] | None = None,
) -> tuple[int, int]:
    """Call `target` with `rounds` inputs grown from `seeds`, with `words` of the language spliced in (or as
    `mutated` makes them). Whatever it raises is the finding. Returns how many arcs were reached by the seeds alone,
    and in the end."""
    rng = random.Random(seed)
    files = {module.__file__ for module in modules if module.__file__}
    corpus, known = list(seeds), set[Arc]()
    for raw in seeds:
        known |= _arcs(target, raw, files)
    begun_with = len(known)
    for _ in range(rounds):
        raw = (mutated or mutated_bytes)(corpus, words, rng)
        found = _arcs(target, raw, files)
        if not found <= known:
            known |= found
            corpus.append(raw)
    return begun_with, len(known)


def _arcs(target: Callable[[bytes], None], raw: bytes, files: set[str]) -> set[Arc]:
    found = set[Arc]()
    last = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal last
        found.add((frame.f_code.co_filename, last, frame.f_lineno))
        last = frame.f_lineno
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        target(raw)
    except Exception as error:
        error.add_note(f"input: {raw!r}")
        raise
    finally:
        sys.settrace(before)
    return found


def mutated_json(corpus: Sequence[bytes], words: Sequence[bytes], rng: random.Random) -> bytes:
    """One of `corpus`, all JSON objects, with nodes replaced, removed, or taken from others: still JSON."""
    made = json.loads(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(_nodes(made))
        if not nodes:
            break
        holder, key = rng.choice(nodes)
        if rng.random() < 0.2:
            del holder[key]
            continue
        foreign = list(_nodes(json.loads(rng.choice(corpus))))
        if foreign and rng.random() < 0.6:
            other, there = rng.choice(foreign)
            holder[key] = other[there]
        else:
            holder[key] = value(rng)
    return json.dumps(made).encode()


def _nodes(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as its holder and its key or index there."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _nodes(node[key])


def mutated_bytes(corpus: Sequence[bytes], words: Sequence[bytes], rng: random.Random) -> bytes:
    """One of `corpus` with bits flipped, bytes cut, and pieces of others or of `words` spliced in."""
    raw = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(7):
            case 0 if raw:
                raw[at % len(raw)] = rng.randrange(256)
            case 1 if raw:
                raw[at % len(raw)] ^= 1 << rng.randrange(8)
            case 2:
                del raw[at : at + rng.randrange(1, 9)]
            case 3:
                raw[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
            case 4 if words:
                raw[at:at] = rng.choice(words)
            case 5:
                other = rng.choice(corpus)
                start = rng.randrange(len(other) + 1)
                raw[at:at] = other[start : start + rng.randrange(64)]
            case _:
                raw[at:at] = raw[at : at + rng.randrange(32)]
    return bytes(raw[:100_000])
