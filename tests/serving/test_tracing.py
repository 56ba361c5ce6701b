"""Traces: a real collector's end of a socket gets the spans of calls, inside the trace of their callers."""

import logging
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from cognate.v1 import embedding_pb2, search_pb2
from serving.tracing import spans_to
from tests.serving.servers import GatedEncoder, Running, failure

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SHORT = embedding_pb2.EncodeRequest(texts=["open"])
SEARCH = search_pb2.SearchRequest(queries=[search_pb2.Query(text="open the door")], top_k=2)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector's gRPC port.

    Attributes:
        port: That it listens on.
        resources: The attributes of each resource that sent spans.
    """

    def __init__(self) -> None:
        self._spans: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.resources: list[dict[str, Any]] = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for group in request.resource_spans:
            self.resources.append(attributes(group.resource))
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._spans.put(span)
        return trace_service_pb2.ExportTraceServiceResponse()

    def take(self, name: str) -> Any:
        """Wait for a span of that name, and leave out those before it."""
        while (span := self._spans.get(timeout=60)).name != name:
            pass
        return span

    def take_all(self, count: int) -> dict[str, Any]:
        """Wait for so many spans, and give them by name."""
        spans = [self._spans.get(timeout=60) for _ in range(count)]
        return {span.name: span for span in spans}


def attributes(message: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in message.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield collector
    collector.server.stop(None)


def test_a_call_and_its_phases_are_spans_in_the_trace_of_the_caller(
    serve: Callable[..., Running], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    running = serve()
    answer = running.stubs.search(
        SEARCH, timeout=60, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x", "a")]
    )
    spans = collector.take_all(5)
    assert set(spans) == {"cognate.v1.SearchService/Search", "tokenize", "queue", "encode", "search"}
    call = spans.pop("cognate.v1.SearchService/Search")
    assert call.trace_id.hex() == TRACE
    assert call.parent_span_id.hex() == PARENT
    assert call.kind == call.SPAN_KIND_SERVER
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": "cognate.v1.SearchService",
        "rpc.method": "Search",
        "rpc.grpc.status_code": 0,
        "cognate.index": "default",
        "cognate.texts": 1,
        "cognate.tokens": answer.results[0].usage.tokens,
    }
    assert {span.parent_span_id for span in spans.values()} == {call.span_id}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    in_order = [spans[name] for name in ("tokenize", "queue", "encode", "search")]
    times = [time for span in in_order for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert call.start_time_unix_nano <= times[0]
    # The parts were rounded to microseconds, each by itself.
    assert times[-1] <= call.end_time_unix_nano + 4_000
    encode = spans["encode"]
    assert encode.end_time_unix_nano - encode.start_time_unix_nano == answer.timings.encode_us * 1000
    assert collector.resources[0]["service.name"] == "cognate"
    assert collector.resources[0]["deployment.environment.name"] == "test"


def test_a_call_without_a_trace_begins_one(
    serve: Callable[..., Running], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-of-ours")
    running = serve()
    running.stubs.encode(SHORT, timeout=60)
    call = collector.take("cognate.v1.EmbeddingService/Encode")
    assert call.parent_span_id == b""
    assert any(call.trace_id)
    assert collector.resources[0]["service.name"] == "search-of-ours"


def test_a_fault_of_the_server_is_an_error_and_a_refusal_is_not(
    serve_gated: Callable[..., tuple[Running, GatedEncoder]], collector: Collector
) -> None:
    running, encoder = serve_gated()
    failure(running.stubs.encode, embedding_pb2.EncodeRequest())
    refused = collector.take("cognate.v1.EmbeddingService/Encode")
    assert refused.status.code == refused.status.STATUS_CODE_UNSET
    assert attributes(refused)["rpc.grpc.status_code"] == 3
    assert attributes(refused)["cognate.reason"] == "BAD_FIELD"
    encoder.fails_on = len(encoder.tokenize(["open"])[0].ids)
    failure(running.stubs.encode, SHORT)
    failed = collector.take("cognate.v1.EmbeddingService/Encode")
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert attributes(failed)["cognate.reason"] == "ENCODING_FAILED"


def test_a_trace_that_the_caller_does_not_sample_is_not_sent(
    serve: Callable[..., Running], collector: Collector
) -> None:
    running = serve()
    running.stubs.encode(SHORT, timeout=60, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-00")])
    running.stubs.encode(SHORT, timeout=60)
    assert collector.take("cognate.v1.EmbeddingService/Encode").trace_id.hex() != TRACE


def test_what_waits_is_sent_when_the_server_stops(
    serve: Callable[..., Running], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    running = serve()
    running.stubs.encode(SHORT, timeout=60)
    running.stop()
    assert collector.take("cognate.v1.EmbeddingService/Encode")


def test_a_collector_that_is_not_there_harms_nobody(
    serve: Callable[..., Running], collector: Collector
) -> None:
    collector.server.stop(None).wait()
    running = serve()
    assert running.stubs.encode(SHORT, timeout=60).embeddings
    # And the server ends, though it cannot send what it has.
    running.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_a_variable_that_opentelemetry_cannot_read_is_a_warning_and_no_traces(
    serve: Callable[..., Running],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    running = serve()
    assert running.stubs.encode(SHORT, timeout=60).embeddings
    (said,) = [record.getMessage() for record in caplog.records if record.name == "serving.tracing"]
    assert said.startswith("no traces are sent: OpenTelemetry refuses its OTEL_ variables: ")
    assert value in said


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_asked_for(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert spans_to(environment) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "set it to grpc",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp is the one there is"),
    ],
)
def test_what_cannot_be_had_is_a_warning(
    environment: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert spans_to(environment) is None
    (record,) = caplog.records
    assert said in record.getMessage()
