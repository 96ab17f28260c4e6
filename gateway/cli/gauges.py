"""What happened between two looks at a gateway's metrics, in numbers that people read. No clock, no network."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Between", "Look", "Model", "Name"]

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One exposition: series → value."""

    series: Mapping[tuple[str, Labels], float]

    @classmethod
    def parse(cls, text: str) -> Look:
        """Raises `ValueError` where it is no exposition."""
        return cls(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The series of that name, added up by the values of `labels`."""
        added: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for (found, told), value in self.series.items():
            if found == name:
                values = dict(told)
                added[tuple(values.get(label, "") for label in labels)] += value
        return dict(added)

    def one(self, name: str) -> float:
        """The sum of that name's series; 0 without any."""
        return sum(self.by(name).values())


@dataclass(frozen=True, slots=True)
class Name:
    """What was asked for under one public name. Rates a second; times in seconds, NaN where nothing was answered;
    `failed` in [0, 1]; US dollars an hour."""

    name: str
    requests: float
    failed: float
    p50_s: float
    p95_s: float
    first_p95_s: float
    usd_h: float


@dataclass(frozen=True, slots=True)
class Model:
    """Calls to one model. Rates a second; `spent_usd` since the gateway's start; `left_alone`: deployments whose
    breaker is open."""

    name: str
    calls: float
    retries: float
    read: float
    written: float
    p95_s: float
    usd_h: float
    spent_usd: float
    left_alone: int


class Between:
    """From the look `before` until `after`, `took_s` seconds later."""

    def __init__(self, before: Look, after: Look, took_s: float) -> None:
        self._before, self.after, self._took_s = before, after, took_s

    def rate(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Events a second. A gateway that was started anew counts from 0."""
        past = self._before.by(name, *labels)
        return {
            values: (now - past.get(values, 0.0) if now >= past.get(values, 0.0) else now) / self._took_s
            for values, now in self.after.by(name, *labels).items()
        }

    def quantile(self, q: float, histogram: str, label: str) -> dict[str, float]:
        """By value of `label`, as Prometheus computes it: straight lines within buckets."""
        buckets: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for (value, bound), rate in self.rate(f"{histogram}_bucket", label, "le").items():
            buckets[value].append((float(bound), rate))
        return {value: _quantile(q, sorted(told)) for value, told in buckets.items()}

    def names(self) -> list[Name]:
        """The busiest first."""
        requests = self.rate("chorus_requests_total", "requested_model")
        ends = self.rate("chorus_requests_total", "requested_model", "outcome")
        usd = self.rate("chorus_request_cost_usd_total", "requested_model")
        p50 = self.quantile(0.5, "chorus_request_duration_seconds", "requested_model")
        p95 = self.quantile(0.95, "chorus_request_duration_seconds", "requested_model")
        first = self.quantile(0.95, "chorus_response_start_seconds", "requested_model")
        told = []
        for (name,), rate in requests.items():
            failed = sum(
                value for (asked, outcome), value in ends.items() if asked == name and outcome != "ok"
            )
            told.append(
                Name(
                    name,
                    rate,
                    failed / rate if rate else 0.0,
                    p50.get(name, math.nan),
                    p95.get(name, math.nan),
                    first.get(name, math.nan),
                    usd.get((name,), 0.0) * 3600,
                )
            )
        return sorted(told, key=lambda line: (-line.requests, line.name))

    def models(self) -> list[Model]:
        """The dearest first."""
        calls = self.rate("chorus_calls_total", "model")
        attempts = self.rate("chorus_attempts_total", "model")
        tokens = self.rate("chorus_tokens_total", "model", "kind")
        p95 = self.quantile(0.95, "chorus_call_duration_seconds", "model")
        usd, spent = (
            self.rate("chorus_cost_usd_total", "model"),
            self.after.by("chorus_cost_usd_total", "model"),
        )
        open_now = self.after.by("chorus_deployment_open", "model")
        known = {name for (name,) in (*calls, *open_now)}
        told = [
            Model(
                name,
                calls.get((name,), 0.0),
                max(0.0, attempts.get((name,), 0.0) - calls.get((name,), 0.0)),
                tokens.get((name, "input"), 0.0),
                tokens.get((name, "output"), 0.0),
                p95.get(name, math.nan),
                usd.get((name,), 0.0) * 3600,
                spent.get((name,), 0.0),
                int(open_now.get((name,), 0.0)),
            )
            for name in known
        ]
        return sorted(told, key=lambda line: (-line.spent_usd, line.name))

    def engines(self) -> Iterator[tuple[str, int, int, float]]:
        """Name, running, waiting and share of the KV cache in use of each co-located engine."""
        waiting = self.after.by("chorus_engine_waiting", "engine")
        kv = self.after.by("chorus_engine_kv_cache_usage", "engine")
        for (name,), running in sorted(self.after.by("chorus_engine_running", "engine").items()):
            yield name, int(running), int(waiting.get((name,), 0)), kv.get((name,), 0.0)


def _quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """Of cumulative `buckets`, (upper bound, rate), in order; NaN where nothing was counted."""
    total = buckets[-1][1]
    if total <= 0:
        return math.nan
    low, under = 0.0, 0.0
    for bound, rate in buckets:
        if rate >= q * total:
            return low if math.isinf(bound) else low + (bound - low) * (q * total - under) / (rate - under)
        low, under = bound, rate
    return low
