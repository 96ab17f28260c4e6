"""Loads on a running host: one model at a time, both busy at once, and many short requests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from benchmarks.asking import Answer, Asker, Ticket
from benchmarks.engines.watch import StepTime, WatchedHost
from benchmarks.machine import resident_mb

__all__ = ["QUESTIONS", "Bench"]

QUESTIONS = (
    "Write a short story about a lighthouse.",
    "Explain how rain forms.",
    "List things to pack for a week at the sea.",
    "Describe the city of Lisbon to a child.",
    "Why do leaves turn red in autumn?",
    "Give advice for learning to swim.",
    "Tell me about the history of bread.",
    "How does a bicycle stay upright?",
    "Write a letter to a friend who moved away.",
    "Explain what a map leaves out.",
    "Describe a storm seen from a train.",
    "How is paper made?",
    "Tell me about the life of a bee.",
    "Give three tips for a good night's sleep.",
    "Why does the moon change its shape?",
    "Describe a market on a winter morning.",
)
PLAIN_BESIDE = 4
"""Plain streams of each member beside the fused ones."""


@dataclass(slots=True)
class Bench:
    """A running host, and the same questions for everybody."""

    host: WatchedHost
    ask: Asker
    tokens: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, model: str, n: int) -> dict[str, Any]:
        """A model under n requests at once."""
        first = len(self.host.steps)
        begun = time.perf_counter()
        answers = [ticket.wait() for ticket in self._send(model, n)]
        seconds = time.perf_counter() - begun
        members = list(self.host.members_of(model))
        steps = self.host.steps[first:]
        full = [s for s in steps if all(s.rows.get(m) == n for m in members)][1:]
        total = sum(step.total for step in steps)
        parts = sorted(
            {part for step in steps for part in step.parts if part.split()[-1] in (*members, *OWN)}
        )
        found = {
            "model": model,
            "concurrent": n,
            "tokens_per_s": sum(answer.written for answer in answers) / seconds,
            "first_token_s": statistics.median(answer.first_s for answer in answers),
            "share": {part: sum(step.parts[part] for step in steps) / total for part in parts},
            "full_steps": len(full),
        }
        if (
            model in self.host.engine_specs or len(full) >= self.tokens // 4
        ):  # else members wait for each other
            found |= _of_steps(full, members)
        self.rows.append(found)
        return found

    def both_busy(self, fusion: str) -> dict[str, Any]:
        """16 fused streams and some plain ones of each member: what each plain stream gets, and the memory."""
        members = list(self.host.members_of(fusion))
        alone = {m: self._rates(self._send(m, PLAIN_BESIDE)) for m in members}
        before, usage = resident_mb(), [0.0]
        tickets = {fusion: self._send(fusion, 16), **{m: self._send(m, PLAIN_BESIDE, 2) for m in members}}
        while any(running for running, _ in self.host.counts().values()) or len(usage) < 20:
            usage.append(max(self.host.kv_usage().values()))
            time.sleep(0.05)
        beside = {name: self._rates(sent) for name, sent in tickets.items()}
        return {
            "fusion": fusion,
            "fused_streams": 16,
            "fused_tokens_per_s": beside[fusion],
            "plain": {
                m: {
                    "alone_tokens_per_s": statistics.mean(alone[m]),
                    "beside_tokens_per_s": beside[m],
                    "shares": [rate / statistics.mean(alone[m]) for rate in beside[m]],
                }
                for m in members
            },
            "kv_usage_at_most": max(usage),
            "rss_mb_before": before,
            "rss_mb_after": resident_mb(),
        }

    def soak(self, fusion: str, requests: int, at_once: int = 16) -> dict[str, Any]:
        """Many short requests; memory at ten points behind a warm-up of a tenth."""
        begun = time.perf_counter()
        course, failed = [], 0
        for tenth in range(11):
            if tenth:
                course.append(resident_mb())
            asked = islice(cycle(QUESTIONS), requests // 10)
            for answer in self.ask.all(fusion, [(q, {"max_tokens": 2}) for q in asked], at_once):
                failed += not answer.written
        course.append(resident_mb())
        patience = time.monotonic() + 10
        while any(map(sum, self.host.counts().values())) and time.monotonic() < patience:
            time.sleep(0.05)  # an engine forgets a request in its next step
        return {
            "fusion": fusion,
            "requests": requests // 10 * 11,
            "seconds": time.perf_counter() - begun,
            "without_text": failed,
            "rss_mb": course,
            "left_in_engines": sum(map(sum, self.host.counts().values())),
            "kv_usage_after": max(self.host.kv_usage().values()),
        }

    def _send(self, model: str, n: int, times: int = 1) -> list[Ticket]:
        told: dict[str, Any] = {"max_tokens": self.tokens * times, "stops": (), "before": b""}
        return [self.ask.send(model, question, **told) for question in QUESTIONS[:n]]

    @staticmethod
    def _rates(tickets: Sequence[Ticket]) -> list[float]:
        """Tokens/s of each stream from its first words on."""
        answers: list[Answer] = [ticket.wait() for ticket in tickets]
        return [(a.written - 1) / max(1e-9, a.last_s - a.first_s) for a in answers]


OWN = ("align", "mix", "commit")


def _of_steps(steps: Sequence[StepTime], members: Sequence[str]) -> dict[str, Any]:
    """Medians over steps in which every request decodes."""
    forwards = [f"forward {m}" for m in dict.fromkeys(members)]
    return {
        "step_ms": 1e3 * _median(s.total for s in steps),
        "parts_ms": {
            part: 1e3 * _median(s.parts[part] for s in steps)
            for part in (*forwards, *(f"finish {m}" for m in dict.fromkeys(members)), *OWN)
        },
        "loop_ms": 1e3 * _median(s.total - s.parts.total() for s in steps),
        "step_to_forwards": _median(s.total / s.sum("forward") for s in steps),
        "step_to_slowest": _median(s.total / max(s.parts[f] for f in forwards) for s in steps),
    }


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else float("nan")
