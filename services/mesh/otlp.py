"""Spans to an OTLP collector: imported only when one is configured, because the SDK and exporter are heavy."""

from contextlib import AbstractContextManager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from services.mesh.call import Call, Trace, maybe_current

# A collector that does not answer must not hold up the end of the process.
EXPORT_SECONDS: Final = 2


class _CallIds(RandomIdGenerator):
    """Gives a span the ids that its call already logs and forwards."""

    def generate_span_id(self) -> int:
        """Return the span id of the current call."""
        call = maybe_current()
        return int(call.trace.span_id, 16) if call else super().generate_span_id()

    def generate_trace_id(self) -> int:
        """Return the trace id of the current call."""
        call = maybe_current()
        return int(call.trace.trace_id, 16) if call else super().generate_trace_id()


class OtlpExporter:
    """Sends one span per served call to a collector, in batches, in the background."""

    def __init__(self, service: str, endpoint: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service, "service.namespace": "opsmesh"}), id_generator=_CallIds()
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("opsmesh")

    def span(self, call: Call, parent: Trace | None) -> AbstractContextManager[Any]:
        """Record one served call as a server span below its caller's."""
        context = None
        if parent:
            flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(NonRecordingSpan(remote))
        return self._tracer.start_as_current_span(
            call.method, context=context, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=True
        )

    def close(self) -> None:
        """Send what is left, within seconds."""
        self._provider.shutdown()
