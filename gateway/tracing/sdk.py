"""OpenTelemetry's SDK and its OTLP exporter, which nothing else of ours imports: they are an extra.

Its own variables (`OTEL_EXPORTER_OTLP_CERTIFICATE`, `OTEL_EXPORTER_OTLP_COMPRESSION`, `OTEL_RESOURCE_ATTRIBUTES`, …)
hold where the settings say nothing.
"""

from __future__ import annotations

import logging
import os

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway.tracing.metrics import Metrics
from gateway.tracing.spans import Span, Upstreams
from protocol.observing import TelemetrySettings

__all__ = ["Collector"]

_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SCOPE = InstrumentationScope("chorus")


class Collector:
    """The collector of the settings. `instance` tells this worker from others."""

    def __init__(self, settings: TelemetrySettings, *, instance: str) -> None:
        # It logs each failed export, and each repetition; ours says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._settings = settings
        self._resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME") or settings.service_name,
                "service.instance.id": instance,
            }
        )
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._spans = OTLPSpanExporter(
            self._url("traces"), headers=self._headers or None, timeout=settings.timeout_s
        )
        self._meters: MeterProvider | None = None

    def send(self, spans: list[Span]) -> bool:
        """Tell of `spans`; whether they were taken. Blocks, no longer than the settings' timeout."""
        return self._spans.export([self._readable(span) for span in spans]) is SpanExportResult.SUCCESS

    def metrics(self, upstreams: Upstreams) -> Metrics | None:
        """The instruments, exported from now on; None where the settings want none."""
        if not self._settings.metrics:
            return None
        told = self._settings
        exporter = OTLPMetricExporter(
            self._url("metrics"), headers=self._headers or None, timeout=told.timeout_s
        )
        reader = PeriodicExportingMetricReader(
            exporter, told.metrics_interval_s * 1000, export_timeout_millis=told.timeout_s * 1000
        )
        self._meters = MeterProvider([reader], self._resource, shutdown_on_exit=False)
        return Metrics(self._meters.get_meter("chorus"), upstreams)

    def close(self) -> None:
        """Tell the last of the metrics, and end."""
        if self._meters is not None:
            self._meters.shutdown(self._settings.timeout_s * 1000)
        self._spans.shutdown()  # type: ignore[no-untyped-call]

    def _url(self, signal: str) -> str:
        return f"{(self._settings.endpoint or '').rstrip('/')}/v1/{signal}"

    def _readable(self, span: Span) -> ReadableSpan:
        trace_id, state = int(span.trace_id, 16), TraceState.from_header([span.state] if span.state else [])
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = (
            SpanContext(trace_id, int(span.parent_id, 16), True, flags, state) if span.parent_id else None
        )
        return ReadableSpan(
            span.name,
            SpanContext(trace_id, int(span.span_id, 16), False, flags, state),
            parent,
            self._resource,
            span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=_SCOPE,
        )
