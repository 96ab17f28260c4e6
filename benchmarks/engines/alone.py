"""What the engine host costs a plain model: the same vLLM, in the host and in a bare loop of its own steps."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from benchmarks.asking import Asker
from benchmarks.engines.spin import spin
from engines.engine import Engine, EngineSpec
from engines.generation import Sampling
from engines.host import Host
from engines.templates import Prompting

__all__ = ["Alone", "against_vllm"]


@dataclass(frozen=True, slots=True)
class Alone:
    """Tokens/s of `concurrent` greedy requests, medians of rounds in which the two took turns. `lost`: the share of
    vLLM's own rate that the host does not reach."""

    model: str
    concurrent: int
    vllm: float
    host: float
    lost: float


def against_vllm(
    spec: EngineSpec, prompt: Prompting, asked: Sequence[str], loads: Sequence[int], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """One model loaded twice: in a host, and in a thread that does nothing but vLLM's step."""
    host = Host([spec])
    host.start()
    ask = Asker(host, {spec.name: prompt})
    # OpenMP's threads belong to the thread that loaded the model.
    with ThreadPoolExecutor(1) as thread:
        bare = thread.submit(_Bare, spec, host.vocabs[spec.name].eos).result()
        found = []
        try:
            for load in loads:
                prompts = [ask.prompt_ids(spec.name, question)[0] for question in asked[:load]]
                rates: dict[str, list[float]] = {"vllm": [], "host": []}
                for _ in range(rounds + 1):
                    rates["vllm"].append(thread.submit(bare.rate, prompts, tokens).result())
                    rates["host"].append(_rate(ask, spec.name, prompts, tokens))
                vllm, ours = (
                    statistics.median(rates[kind][1:]) for kind in ("vllm", "host")
                )  # less the warm-up
                found.append(asdict(Alone(spec.name, load, vllm, ours, 1 - ours / vllm)))
        finally:
            thread.submit(bare.close).result()
            host.stop()
    return found


def _rate(ask: Asker, model: str, prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
    begun = time.perf_counter()
    tickets = [ask.send_ids(model, (prompt,), max_tokens=tokens) for prompt in prompts]
    written = sum(ticket.wait().written for ticket in tickets)
    return written / (time.perf_counter() - begun)


class _Bare:
    """vLLM's engine core with its sampler as it was, stepped by itself."""

    def __init__(self, spec: EngineSpec, end_ids: Collection[int]) -> None:
        self._thread = threading.get_ident()
        self._engine = Engine.load(spec)
        spin()
        self._end_ids = end_ids
        self._engine._runner._sample = self._engine._sample  # noqa: SLF001  the step in one piece again
        self._ids = count()

    def rate(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
        """Tokens/s."""
        assert threading.get_ident() == self._thread
        begun = time.perf_counter()
        for prompt in prompts:
            sampling = Sampling(max_tokens=tokens, temperature=0.0)
            self._engine.add(f"bare-{next(self._ids)}", prompt, sampling, self._end_ids)
        core, written = self._engine._core, 0  # noqa: SLF001
        while core.scheduler.has_requests():
            outputs, _ = core.step_fn()
            written += sum(len(one.new_token_ids) for group in outputs.values() for one in group.outputs)
        return written / (time.perf_counter() - begun)

    def close(self) -> None:
        """Release the model."""
        self._engine.close()
