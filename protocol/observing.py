"""Settings of what is told about the gateway's work: its log, and OpenTelemetry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = ["LoggingSettings", "TelemetrySettings"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LoggingSettings(_Frozen):
    """The log of all processes, on standard error. No prompt, no answer, no key, no header of a client."""

    format: Literal["text", "json"] = Field("text", description="of each line")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="of our own; libraries': warning"
    )
    access: bool = Field(True, description="one line for each request, probes excepted")


class TelemetrySettings(_Frozen):
    """OpenTelemetry: traces and metrics by OTLP over HTTP. Off without `endpoint`; needs the `otel` extra."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="the collector's base URL, as http://127.0.0.1:4318; /v1/traces and /v1/metrics are added",
        json_schema_extra={"pattern": r"^https?://|^os\.environ/|^\$\{"},
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="sent with each export, as the collector's key: os.environ/NAME"
    )
    traces: bool = Field(True, description="one trace for each sampled request, without its words")
    metrics: bool = Field(True, description="the GenAI metrics, beside those of /metrics")
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of traces begun here; a caller's own trace keeps the caller's decision",
    )
    service_name: str = Field("chorus", min_length=1, max_length=128)
    queue: int = Field(
        2048,
        ge=1,
        description="requests per worker that wait for export; beyond, they are dropped and counted",
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="for one export, its repetitions included")
    metrics_interval_s: float = Field(30.0, gt=0, description="between exports of metrics, in seconds")
