"""Tallies: plain numbers, handed on to prometheus-client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.tally import Count, Spread

BOUNDS = (0.1, 1.0)
VALUES = (0.05, 0.1, 0.100001, 1.0, 2.0, -1.0)


def test_a_count_equals_its_counter() -> None:
    """What is flushed, at once or in parts, is what the counter itself would have counted."""
    told = []
    for parts in (1, 3):
        registry = CollectorRegistry()
        count = Count(Counter("n", "about", ["a", "b"], registry=registry))
        for _ in range(parts):
            count.add(("x", "y"), 3.0 / parts)
            count.add(("x", "z"), 0.0)
            count.flush()
        count.flush()
        told.append(generate_latest(registry).decode().split("n_created")[0])
    assert told[0] == told[1]
    assert 'n_total{a="x",b="y"} 3.0' in told[0]
    assert 'n_total{a="x",b="z"} 0.0' in told[0]


def test_a_spread_equals_its_histogram() -> None:
    """Buckets, count and sum are those that the histogram itself would have made, bounds included in their buckets."""
    registries = [CollectorRegistry() for _ in range(2)]
    ours, theirs = (Histogram("s", "about", ["a"], buckets=BOUNDS, registry=each) for each in registries)
    spread = Spread(ours, BOUNDS)
    for value in VALUES:
        spread.add(("x",), value)
        theirs.labels("x").observe(value)
    spread.flush()
    told = [generate_latest(each).decode().split("# HELP s_created")[0] for each in registries]
    assert told[0] == told[1]
