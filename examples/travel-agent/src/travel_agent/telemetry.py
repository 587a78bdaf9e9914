"""Spans: one for the agent's run, one for each call of the model and of a tool.

Without an exporter they cost nothing and go nowhere.

    agent.run
    ├── model.call
    ├── tool.weather        the requests to Sandpool carry this span's `traceparent`
    └── tool.chart          the same
        └── model.call      the code that is drawn with

No span holds what people or models said.
"""

from __future__ import annotations

import os

import httpx
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

tracer = trace.get_tracer("travel_agent")
context = TraceContextTextMapPropagator()


class Traced(httpx.BaseTransport):
    """Gives each request the `traceparent` of the span in which it is sent, so that the spans of whoever answers can join."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        context.inject(request.headers)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def export_spans() -> bool:
    """Sends spans over OTLP/HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT says; False if it says nothing."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SystemExit("OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'travel-agent[otlp]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "travel-agent")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True
