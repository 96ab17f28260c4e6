"""A collector on loopback that takes OTLP over HTTP, and can be slow or refuse."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(slots=True)
class Node:
    """A span as the collector was told of it, with its children in the order they began."""

    span: Span
    told: dict[str, Any]
    children: list[Node] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_").lower()

    @property
    def failed(self) -> bool:
        return self.span.status.code == Status.STATUS_CODE_ERROR

    def shape(self) -> Any:
        """Names and outcomes only: `(name, outcome, children)`."""
        return self.span.name, self.told.get("chorus.outcome"), [child.shape() for child in self.children]


class Collector:
    """`raw` is all that it was sent, as bytes; `status` what it answers after `delay_s` seconds."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Any]] = {}
        self.resource: dict[str, Any] = {}
        self.headers: list[dict[str, str]] = []
        self.status, self.delay_s = 200, 0.0
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application()
        application.add_routes([web.post("/v1/traces", self._traces), web.post("/v1/metrics", self._metrics)])
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()

    def roots(self) -> list[Node]:
        """The spans as trees: those whose parent is not ours, with their descendants."""
        nodes = {span.span_id: Node(span, _values(span.attributes)) for span in self.spans}
        for node in sorted(nodes.values(), key=lambda node: node.span.start_time_unix_nano):
            if node.span.parent_span_id in nodes:
                nodes[node.span.parent_span_id].children.append(node)
        return [node for node in nodes.values() if node.span.parent_span_id not in nodes]

    async def _traces(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await self._read(request))
        if self.status == 200:
            for resource in told.resource_spans:
                self.resource = _values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return web.Response(status=self.status, content_type="application/x-protobuf")

    async def _metrics(self, request: web.Request) -> web.Response:
        told = ExportMetricsServiceRequest.FromString(await self._read(request))
        for resource in told.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    self.metrics[metric.name] = [(_values(point.attributes), point) for point in points]
        return web.Response(status=self.status, content_type="application/x-protobuf")

    async def _read(self, request: web.Request) -> bytes:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw.append(body)
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.delay_s)
        return body


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
