"""What the workers' metrics tell of this moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess

__all__ = ["meters"]


def meters(folder: Path | None) -> dict[str, Any]:
    """Requests in flight, components that are degraded, and deployments left alone, of all workers that write into
    `folder`."""
    told: dict[str, Any] = {"in_flight": 0, "degraded": [], "left_alone": []}
    if folder is None or not folder.is_dir():
        return told
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    for metric in registry.collect():
        for sample in metric.samples:
            if not sample.value:
                continue
            if sample.name == "chorus_requests_in_flight":
                told["in_flight"] = int(sample.value)
            elif sample.name == "chorus_degraded":
                told["degraded"].append(sample.labels["component"])
            elif sample.name == "chorus_deployment_open":
                labels = sample.labels
                told["left_alone"].append({"model": labels["model"], "deployment": labels["deployment"]})
    return told
