"""OpenTelemetry spans of calls, sent to a collector by OTLP over gRPC."""

import threading

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cognate.artifact import installed_versions
from serving.observing import ObservedCall, Observer

FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that make a server's span an error, by OpenTelemetry's conventions for gRPC."""

LAST_SPANS_SECONDS = 3.0


class Spans(Observer):
    """Makes a span of each call, with one for each phase, inside the trace that the caller is in.

    They are made when the call has ended, from what was measured, so that nothing is spent while it is
    under way. The phases of a call are drawn one after the other; those of a large call, whose batches
    overlap with its waiting, are sums.
    """

    def __init__(self) -> None:
        """Read the ``OTEL_*`` variables, and begin to send in a thread."""
        version = installed_versions("cognate").get("cognate", "")
        defaults = Resource({SERVICE_NAME: "cognate", SERVICE_VERSION: version})
        self._provider = TracerProvider(
            # The environment has the last word.
            resource=Resource.create().merge(defaults).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("cognate.serving")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, call: ObservedCall) -> None:
        """Make the spans of a call, and put its trace's id into it."""
        span = self._tracer.start_span(
            f"{call.service}/{call.method}",
            self._propagator.extract(call.metadata()),
            SpanKind.SERVER,
            start_time=call.started_ns,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": call.service,
                "rpc.method": call.method,
                "rpc.grpc.status_code": call.code.value[0],
            },
        )
        call.trace_id = format(span.get_span_context().trace_id, "032x")
        if span.is_recording():
            if call.reason:
                span.set_attribute("cognate.reason", call.reason)
            if call.index:
                span.set_attribute("cognate.index", call.index)
            if call.code in FAULTS:
                span.set_status(StatusCode.ERROR, call.reason)
            if answer := call.total:
                span.set_attributes({"cognate.texts": answer.texts, "cognate.tokens": answer.tokens})
                within = set_span_in_context(span)
                at = call.started_ns
                for phase, microseconds in (
                    ("tokenize", answer.tokenize_us),
                    ("queue", answer.queue_us),
                    ("encode", answer.encode_us),
                    ("search", answer.search_us),
                ):
                    if microseconds:
                        child = self._tracer.start_span(phase, within, start_time=at)
                        at += 1000 * microseconds
                        child.end(at)
        span.end(call.started_ns + round(call.seconds * 1e9))

    def close(self) -> None:
        """Send what waits, for so long as is worth waiting for a collector that does not answer, and end."""
        # It would wait half a minute, past the time that a server has to end.
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(LAST_SPANS_SECONDS)
