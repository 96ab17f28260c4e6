"""A host whose fusions can also be given a text, and say how likely they found it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engines.engine import EngineSpec
from engines.fused_decode import FusedDecode
from engines.generation import Generation, Sampling, Sink
from engines.host import FusionSpec, Host
from ensembles.tokens.base import Mixture

__all__ = ["Read", "ReadingHost"]

FLOOR = 0.01
"""Share of the uniform distribution over all symbols that is mixed into every fused one, and into the members' own:
some methods call what they do not look at impossible, and no text may be infinitely unlikely."""


@dataclass(slots=True)
class Read:
    """How a text was found: of each symbol its probability, floor included; how many were called impossible; bytes."""

    probabilities: list[float] = field(default_factory=list)
    impossible: int = 0
    size: int = 0

    @property
    def nats_per_byte(self) -> float:
        """Mean surprise."""
        return -sum(map(math.log, self.probabilities)) / self.size


class ReadingHost(Host):
    """`read` queues a text to be read; everything else is a host's."""

    def __init__(self, engines: Sequence[EngineSpec], fusions: Sequence[FusionSpec]) -> None:
        super().__init__(engines, fusions)
        self._readings: dict[str, tuple[Read, Sequence[bytes]]] = {}

    def read(self, model: str, before: str, text: bytes, sink: Sink) -> Read:
        """What the fusion says of `text`, in the main member's own tokens, behind `before`; filled when `sink` hears
        the end."""
        spec, read = self.fusion_specs[model], Read(size=len(text))
        prompts = tuple(tuple(self.vocabs[m].encode_prompt(before)) for m in spec.members)
        main = self.vocabs[spec.members[spec.main]]
        symbols = [main.emits[i] for i in main.encode(text)]
        # Drawn, not greedy: then a fusion gives its whole distribution.
        generation = Generation(f"read-{id(read)}", model, prompts, Sampling(temperature=1.0))
        self._readings[generation.id] = (read, symbols)
        self.submit(generation, sink)
        return read

    def _begin(self, generation: Generation, sink: Sink) -> None:
        super()._begin(generation, sink)
        decode = self._live.get(generation.id)
        reading = self._readings.pop(generation.id, None)
        if reading is not None and isinstance(decode, FusedDecode):
            # The first decision comes with the first logits, after this.
            decode._choose = _Chooser(decode, *reading)  # type: ignore[method-assign]  # noqa: SLF001


class _Chooser:
    """Takes the text's next symbol whatever is likely, and writes down how likely it was."""

    def __init__(self, decode: FusedDecode, read: Read, symbols: Sequence[bytes]) -> None:
        union = decode._team.union  # noqa: SLF001
        self._end, self._size, self._read = union.eos, union.size, read
        place = {text: u for u, text in enumerate(union.symbols)}
        self._left: Iterator[int] = iter([place[symbol] for symbol in symbols])

    def __call__(self, decision: Mixture) -> int:
        symbol = next(self._left, self._end)
        if symbol != self._end:
            if decision.symbols is None:
                p = float(decision.q[symbol])
            else:
                p = float(decision.q[decision.symbols == symbol].sum())
            self._read.impossible += p == 0
            self._read.probabilities.append((1 - FLOOR) * p + FLOOR / self._size)
        return symbol
