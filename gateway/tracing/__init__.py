"""OpenTelemetry: what a request did, told to a collector by OTLP. See docs/observability.md."""

from gateway.tracing.exporter import Exporter, make_tracing

__all__ = ["Exporter", "make_tracing"]
