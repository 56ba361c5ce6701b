"""Metrics: what was done is what they say, each server for itself, on a port of its own."""

import http.client
import socket
from collections.abc import Callable

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.v1 import embedding_pb2, search_pb2
from tests.serving.servers import RECORDS, GatedEncoder, Running, failure

ServeGated = Callable[..., tuple[Running, GatedEncoder]]

SHORT = embedding_pb2.EncodeRequest(texts=["open"])
SEARCH = search_pb2.SearchRequest(queries=[search_pb2.Query(text="open the door")], top_k=2)


class Metrics:
    """What a server publishes, read anew for every question."""

    def __init__(self, running: Running) -> None:
        self.port = running.server.metrics_port
        assert self.port is not None

    def values(self, name: str, **labels: str) -> list[float]:
        """The values of the samples of a metric that have these labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value

    def wait_for(self, value: float, name: str, **labels: str) -> None:
        """Read until a metric has a value; the test's own timeout ends it."""
        while self.values(name, **labels) != [value]:
            pass


def test_no_metrics_are_published_unless_asked_for(running: Running) -> None:
    assert running.server.metrics is None
    assert running.server.metrics_port is None


def test_calls_are_counted_by_method_and_code(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(metrics_port=0)
    metrics = Metrics(running)
    for _ in range(3):
        running.stubs.encode(SHORT, timeout=60)
    running.stubs.search(SEARCH, timeout=60)
    failure(running.stubs.encode, embedding_pb2.EncodeRequest())
    failure(running.stubs.search, search_pb2.SearchRequest(queries=SEARCH.queries, top_k=1, index="none"))
    failure(running.channel.unary_unary("/cognate.v1.SearchService/Search"), b"\xff")
    encoder.fails_on = len(encoder.tokenize(["open"])[0].ids)
    failure(running.stubs.encode, SHORT)
    assert metrics.value("cognate_calls_total", method="Encode", code="OK") == 3
    assert metrics.value("cognate_calls_total", method="Search", code="OK") == 1
    assert metrics.value("cognate_calls_total", method="Encode", code="INVALID_ARGUMENT") == 1
    assert metrics.value("cognate_calls_total", method="Search", code="NOT_FOUND") == 1
    assert metrics.value("cognate_calls_total", method="Search", code="INVALID_ARGUMENT") == 1
    assert metrics.value("cognate_calls_total", method="Encode", code="INTERNAL") == 1
    assert metrics.value("cognate_call_seconds_count", method="Encode") == 5
    assert metrics.value("cognate_texts_total", method="Encode") == 3


def test_a_caller_that_goes_and_a_deadline_that_passes_are_told_apart(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(metrics_port=0)
    metrics = Metrics(running)
    encoder.gate.clear()
    cancelled = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    late = running.stubs.encode.future(SHORT, timeout=0.3)
    with pytest.raises(grpc.RpcError):
        late.result()
    metrics.wait_for(1, "cognate_calls_total", method="Encode", code="DEADLINE_EXCEEDED")
    cancelled.cancel()
    metrics.wait_for(1, "cognate_calls_total", method="Encode", code="CANCELLED")
    assert metrics.value("cognate_calls_under_way") == 0


def test_times_are_told_by_the_phases_that_a_call_goes_through(serve: Callable[..., Running]) -> None:
    running = serve(metrics_port=0)
    metrics = Metrics(running)
    vector = embedding_pb2.Embedding(values=[1.0] * 32)
    running.stubs.search(
        search_pb2.SearchRequest(queries=[search_pb2.Query(embedding=vector)], top_k=1), timeout=60
    )
    assert [
        sum(metrics.values("cognate_phase_seconds_count", phase=phase))
        for phase in ("tokenize", "queue", "encode", "search")
    ] == [0, 0, 0, 1]
    answer = running.stubs.search(SEARCH, timeout=60)
    running.stubs.encode(SHORT, timeout=60)
    assert metrics.value("cognate_phase_seconds_count", method="Search", phase="search") == 2
    assert metrics.value("cognate_phase_seconds_count", method="Search", phase="encode") == 1
    assert metrics.value("cognate_phase_seconds_sum", method="Search", phase="encode") == pytest.approx(
        answer.timings.encode_us * 1e-6
    )
    assert metrics.value("cognate_phase_seconds_count", method="Encode", phase="encode") == 1
    assert metrics.value("cognate_phase_seconds_count", method="Encode", phase="search") == 0


def test_batches_are_told_with_their_padding(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(metrics_port=0)
    metrics = Metrics(running)
    running.stubs.encode(embedding_pb2.EncodeRequest(texts=["open", "open the door", "door"]), timeout=60)
    lengths = [[len(text) for text in batch] for batch in encoder.batches]
    assert metrics.value("cognate_batch_texts_count") == len(lengths)
    assert metrics.value("cognate_batch_texts_sum") == 3
    assert metrics.value("cognate_batch_tokens_sum") == sum(map(sum, lengths))
    assert metrics.value("cognate_batch_padding_tokens_total") == sum(
        max(batch) * len(batch) - sum(batch) for batch in lengths
    )
    assert metrics.value("cognate_batch_seconds_total") > 0


def test_the_queue_is_told_as_it_is(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(metrics_port=0, max_queue_tokens=100)
    metrics = Metrics(running)
    assert metrics.value("cognate_queue_limit_tokens") == 100
    encoder.gate.clear()
    held = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    waiting = running.stubs.encode.future(embedding_pb2.EncodeRequest(texts=["open the door"]), timeout=60)
    tokens = len(encoder.tokenize(["open the door"])[0].ids)
    metrics.wait_for(tokens, "cognate_queue_tokens")
    assert metrics.value("cognate_calls_under_way") == 2
    encoder.gate.set()
    assert held.result()
    assert waiting.result()
    assert metrics.value("cognate_queue_tokens") == 0
    assert metrics.value("cognate_calls_under_way") == 0


def test_what_runs_and_what_it_needs_is_told(serve: Callable[..., Running], encoder: Encoder) -> None:
    metrics = Metrics(serve(metrics_port=0))
    fingerprint = encoder.fingerprint
    assert metrics.value("cognate_server_info", device="cpu", fingerprint=fingerprint) == 1
    assert metrics.value("cognate_index_info", index="default", kind="flat") == 1
    assert metrics.value("cognate_index_records", index="default") == len(RECORDS)
    assert metrics.value("cognate_index_created_timestamp_seconds", index="default") > 1.7e9
    assert metrics.value("process_resident_memory_bytes") > 10e6
    assert metrics.value("process_start_time_seconds") > 1.7e9


def test_the_cache_of_queries_is_counted(serve: Callable[..., Running]) -> None:
    running = serve(metrics_port=0)
    for _ in range(4):
        running.stubs.search(SEARCH, timeout=60)
    metrics = Metrics(running)
    assert metrics.value("cognate_query_cache_hits_total") == 3
    assert metrics.value("cognate_query_cache_misses_total") == 1
    assert metrics.value("cognate_query_cache_bytes") > 0


def test_two_servers_in_a_process_count_each_their_own(serve: Callable[..., Running]) -> None:
    first, second = serve(metrics_port=0), serve(metrics_port=0)
    first.stubs.encode(SHORT, timeout=60)
    assert Metrics(first).value("cognate_calls_total", method="Encode") == 1
    assert Metrics(second).values("cognate_calls_total", method="Encode") == []


def test_metrics_are_published_while_the_server_stops_and_no_longer(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(metrics_port=0)
    metrics = Metrics(running)
    encoder.gate.clear()
    accepted = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    running.begin_to_stop()
    # Not at once: the message may be on its way.
    while running.stubs.encode.future(SHORT, timeout=0.2).code() != grpc.StatusCode.UNAVAILABLE:
        pass
    metrics.wait_for(1, "cognate_calls_total", code="UNAVAILABLE")
    encoder.gate.set()
    assert accepted.result()
    running.stop()
    with pytest.raises(OSError, match="refused"):
        metrics.values("cognate_calls_total")


def test_a_metrics_port_in_use_is_one_sentence_and_leaves_nothing_listening(
    serve: Callable[..., Running],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CognateError) as caught:
            serve(metrics_port=port)
    assert str(caught.value) == (
        f"metrics cannot be published on port {port} of 127.0.0.1: Address already in use; "
        "give another with --metrics-port and --metrics-host"
    )


def test_a_reader_that_says_nothing_holds_up_no_other(serve: Callable[..., Running]) -> None:
    metrics = Metrics(serve(metrics_port=0))
    with (
        socket.create_connection(("127.0.0.1", metrics.port)),
        socket.create_connection(("127.0.0.1", metrics.port)) as other,
    ):
        other.sendall(b"GET /metrics HT")
        assert metrics.value("cognate_calls_under_way") == 0


@pytest.mark.gpu
def test_the_memory_of_the_gpus_is_told(serve: Callable[..., Running]) -> None:
    metrics = Metrics(serve(metrics_port=0, device="cuda"))
    (used,), (total,) = (
        metrics.values(f"cognate_gpu_memory_{what}_bytes", gpu="0") for what in ("used", "total")
    )
    assert 0 < used <= total
