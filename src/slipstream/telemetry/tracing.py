"""OpenTelemetry spans, an extra: one server span for each generation, with the gen_ai attributes.

Nothing of OpenTelemetry is imported unless an endpoint is set. A span is written when its request has ended, from the
request's record, with the times of its arrival and end; a `traceparent` header makes it a child of the caller's span.
Attribute names: OpenTelemetry's semantic conventions for generative AI, and vLLM's gen_ai.latency ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipstream.errors import ConfigError
from slipstream.telemetry.record import GenerationRecord, ImageRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor


class Tracing:
    """Writes spans. `processor` decides where to: an exporter's batch processor, or a test's."""

    def __init__(self, processor: SpanProcessor, *, version: str) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            raise _missing(error) from None
        resource = Resource.create({"service.name": "slipstream", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("slipstream.server", version)

    def write(self, record: GenerationRecord | ImageRecord) -> None:
        """Write the span of a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            name: value
            for name, value in (("traceparent", record.traceparent), ("tracestate", record.tracestate))
            if value is not None
        }
        span = self._tracer.start_span(
            f"{record.operation} {record.model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=record.started_ns,
            attributes=image_attributes(record) if isinstance(record, ImageRecord) else attributes(record),
        )
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(end_time=record.started_ns + int(record.seconds * 1e9))

    def close(self) -> None:
        """Send what is buffered."""
        self._provider.shutdown()


def attributes(record: GenerationRecord) -> dict[str, Any]:
    """The span's attributes; values that the request did not set are left out."""
    values: dict[str, Any] = {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": "slipstream",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.request.id": record.request_id,
        "gen_ai.response.id": record.response_id,
        "gen_ai.request.choice.count": record.n,
        "gen_ai.request.stream": record.stream,
        "gen_ai.request.max_tokens": record.max_tokens,
        **{f"gen_ai.request.{name}": value for name, value in record.sampling.items()},
        "gen_ai.usage.input_tokens": sum(record.prompt_tokens),
        "gen_ai.usage.output_tokens": sum(record.output_tokens),
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.latency.time_to_first_token": record.time_to_first_token,
        "gen_ai.latency.e2e": record.seconds,
        "error.type": record.error,
    }
    return _given(values)


def image_attributes(record: ImageRecord) -> dict[str, Any]:
    """The same of a request for images. OpenTelemetry has no names for steps and sizes yet: those are our own."""
    return _given(
        {
            "gen_ai.operation.name": record.operation,
            "gen_ai.provider.name": "slipstream",
            "gen_ai.output.type": "image",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.request.id": record.request_id,
            "gen_ai.response.id": record.response_id,
            "gen_ai.request.choice.count": record.n,
            "gen_ai.request.stream": record.stream,
            **{f"gen_ai.request.{name}": value for name, value in record.sampling.items()},
            "gen_ai.response.finish_reasons": record.finish_reasons or None,
            "gen_ai.latency.e2e": record.seconds,
            "slipstream.image.width": record.width,
            "slipstream.image.height": record.height,
            "slipstream.image.steps": record.steps,
            "error.type": record.error,
        }
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def open_tracing(endpoint: str | None, *, version: str) -> Tracing | None:
    """Spans sent by OTLP over HTTP to `endpoint` (such as http://127.0.0.1:4318/v1/traces); None: no spans.

    Raises ConfigError if the extra is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _missing(error) from None
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), version=version)


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(f"spans need an extra: pip install 'slipstream[otel]' ({error.name} is missing)")
