"""The engine host's `/metrics`, as Prometheus reads it: what autoscalers and dashboards go by.

    chorus_engine_running{engine}            requests in the batch
    chorus_engine_waiting{engine}            requests that wait for room in it
    chorus_engine_kv_cache_usage{engine}     share of the KV cache in use, 0 to 1
    chorus_engine_kv_cache_bytes{engine}     its size
    chorus_engine_generations{model}         generations of a public name, engine or fusion, under way
    chorus_engine_generations_begun_total{model}
    chorus_engine_steps_total                steps of the loop
    chorus_engine_step_seconds_total         time spent in them
    chorus_engine_forward_seconds_total{engine}  of it, in this engine's forward pass
    chorus_engine_decide_seconds_total{model}    of it, in deciding for this fusion
    chorus_engine_refused_total{model}       generations that found no place
    chorus_engine_failures_total{engine}     steps of an engine that failed
    chorus_engine_yielded_total              times a stalled request gave up its place so that others could move
    chorus_engine_left_out_total{model,member,why}   answers of a fusion without a member: "failed" or "load"

Written as text by hand: the host has one process, all its numbers are kept by the loop, and nothing has to be merged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONTENT_TYPE", "EngineNumbers", "Steps", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Steps:
    """What the step loop counts, by itself; others only read. Times in seconds."""

    steps: int = 0
    step_s: float = 0.0
    forward_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    decide_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    begun: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    live: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    yielded: int = 0
    left_out: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    """By fusion, member and reason."""


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """One engine now: `kv_usage` in [0, 1], `kv_bytes` of its KV cache."""

    running: int
    waiting: int
    kv_usage: float
    kv_bytes: int


Labels = str | tuple[str, ...]
Family = tuple[str, str, str, Labels | None, Mapping[Any, float]]


def exposition(engines: Mapping[str, EngineNumbers], fusions: Collection[str], steps: Steps) -> str:
    """The text. `fusions`: names of fused models."""
    models = {**dict.fromkeys((*engines, *fusions), 0), **steps.live}
    begun = {**dict.fromkeys(models, 0), **steps.begun}
    forward = {**dict.fromkeys(engines, 0.0), **steps.forward_s}
    decide = {**dict.fromkeys(fusions, 0.0), **steps.decide_s}
    families: tuple[Family, ...] = (
        (
            "chorus_engine_running",
            "gauge",
            "Requests in an engine's batch",
            "engine",
            {name: engine.running for name, engine in engines.items()},
        ),
        (
            "chorus_engine_waiting",
            "gauge",
            "Requests that wait for room in an engine's batch",
            "engine",
            {name: engine.waiting for name, engine in engines.items()},
        ),
        (
            "chorus_engine_kv_cache_usage",
            "gauge",
            "Share of an engine's KV cache in use, 0 to 1",
            "engine",
            {name: engine.kv_usage for name, engine in engines.items()},
        ),
        (
            "chorus_engine_kv_cache_bytes",
            "gauge",
            "Size of an engine's KV cache",
            "engine",
            {name: engine.kv_bytes for name, engine in engines.items()},
        ),
        ("chorus_engine_generations", "gauge", "Generations under way, by public name", "model", models),
        (
            "chorus_engine_generations_begun_total",
            "counter",
            "Generations begun, by public name",
            "model",
            begun,
        ),
        ("chorus_engine_steps_total", "counter", "Steps of the loop", None, {"": steps.steps}),
        ("chorus_engine_step_seconds_total", "counter", "Time spent in steps", None, {"": steps.step_s}),
        (
            "chorus_engine_forward_seconds_total",
            "counter",
            "Of the steps, time in an engine's forward pass",
            "engine",
            forward,
        ),
        (
            "chorus_engine_decide_seconds_total",
            "counter",
            "Of the steps, time in deciding for a fusion",
            "model",
            decide,
        ),
        (
            "chorus_engine_refused_total",
            "counter",
            "Generations that found no place",
            "model",
            {**dict.fromkeys(models, 0), **steps.refused},
        ),
        (
            "chorus_engine_failures_total",
            "counter",
            "Steps of an engine that failed",
            "engine",
            {**dict.fromkeys(engines, 0), **steps.failures},
        ),
        (
            "chorus_engine_yielded_total",
            "counter",
            "Times a stalled request gave up its place so that others could move",
            None,
            {"": steps.yielded},
        ),
        (
            "chorus_engine_left_out_total",
            "counter",
            "Answers of a fusion without a member",
            ("model", "member", "why"),
            dict(steps.left_out),
        ),
    )
    lines: list[str] = []
    for name, kind, help, label, values in families:
        lines += (f"# HELP {name} {help}", f"# TYPE {name} {kind}")
        lines += (f"{name}{_where(label, value)} {float(number)!r}" for value, number in values.items())
    return "\n".join((*lines, ""))


def _where(label: Labels | None, value: Labels) -> str:
    if label is None:
        return ""
    labels, values = ((label,), (value,)) if isinstance(label, str) else (label, value)
    return "{" + ",".join(f'{k}="{_escaped(str(v))}"' for k, v in zip(labels, values, strict=True)) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
