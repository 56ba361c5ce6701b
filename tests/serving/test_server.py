"""The server as a whole: health, reflection, starting and stopping."""

import contextlib
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import proto_reflection_descriptor_database

from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.v1 import embedding_pb2, index_pb2, index_pb2_grpc, search_pb2
from serving.server import SERVICES
from serving.standard_services import MAX_BYTES
from tests.e2e.http2 import ACK, PING, Frame, connect, headers, settings
from tests.serving.servers import RECORDS, GatedEncoder, Running, Stubs, failure, write_index

SHORT = embedding_pb2.EncodeRequest(texts=["open"])
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

ServeGated = Callable[..., tuple[Running, GatedEncoder]]


def health(channel: grpc.Channel, service: str = "") -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status


def test_health_is_told_for_the_server_and_for_each_service(running: Running) -> None:
    assert sorted(SERVICES) == [
        f"cognate.v1.{name}Service" for name in ("Embedding", "Index", "Info", "Search")
    ]
    assert [health(running.channel, service) for service in ("", *SERVICES)] == [SERVING] * 5
    with pytest.raises(grpc.RpcError) as caught:
        health(running.channel, "cognate.v1.NoService")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_idle_streams_of_reflection_keep_no_check_of_health_waiting(running: Running) -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    streams = [headers(method, 1 + 2 * number) for number in range(400)]
    with connect(running.server.address, settings(), *streams, Frame(PING, 0, 0, bytes(8))) as connection:
        came = b""
        while bytes(Frame(PING, ACK, 0, bytes(8))) not in came:
            some = connection.recv(2**16)
            assert some
            came += some
        stub = health_pb2_grpc.HealthStub(running.channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == SERVING


def test_a_large_request_to_health_is_refused(running: Running) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel)
    small = failure(stub.Check, health_pb2.HealthCheckRequest(service="a" * (MAX_BYTES - 10)))
    assert small.code == grpc.StatusCode.NOT_FOUND
    large = failure(stub.Check, health_pb2.HealthCheckRequest(service="a" * MAX_BYTES))
    assert (large.code, large.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def test_a_client_can_learn_the_contract_by_reflection_alone(running: Running, encoder: Encoder) -> None:
    database = proto_reflection_descriptor_database.ProtoReflectionDescriptorDatabase(running.channel)
    assert set(database.get_services()) == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    # A pool of its own: nothing of the generated stubs is known here.
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("cognate.v1.SearchService").methods_by_name["Search"]
    request = message_factory.GetMessageClass(method.input_type)()
    request.queries.add().text = "open the door"
    request.top_k = 2
    answer = message_factory.GetMessageClass(method.output_type)
    search = running.channel.unary_unary(
        "/cognate.v1.SearchService/Search",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    (result,) = search(request, timeout=60).results
    scores = (
        encoder.encode([record.text for record in RECORDS]) @ encoder.encode(["open the door"], "query")[0]
    )
    assert result.hits[0].text == RECORDS[int(np.argmax(scores))].text


def test_a_port_in_use_is_one_sentence(serve: Callable[..., Running]) -> None:
    first = serve()
    with pytest.raises(CognateError) as caught:
        serve(port=first.server.port)
    assert str(caught.value) == (
        f"port {first.server.port} on 127.0.0.1 is in use; give another with --port, or stop what uses it"
    )
    # The first one is not disturbed.
    assert first.stubs.encode(SHORT, timeout=60).embeddings


def test_a_port_that_anything_else_listens_on_is_in_use(serve: Callable[..., Running]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CognateError, match="is in use"):
            serve(port=taken.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_this_machine_is_one_sentence(serve: Callable[..., Running], host: str) -> None:
    with pytest.raises(CognateError, match=f"the host '{host}' is no address of this machine"):
        serve(host=host)


def test_an_index_of_another_model_is_refused(
    serve: Callable[..., Running], tiny_bundle: Path, tmp_path: Path
) -> None:
    other = write_index(tmp_path / "index", Encoder(tiny_bundle), RECORDS)
    with pytest.raises(FingerprintError, match="was built with another bundle"):
        serve(indexes={"default": other})


def test_a_missing_bundle_is_refused(serve: Callable[..., Running], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        serve(bundle=tmp_path / "bundle")


def test_a_server_that_stops_finishes_what_it_accepted_and_refuses_what_comes(
    serve_gated: ServeGated,
) -> None:
    running, encoder = serve_gated()
    stub = health_pb2_grpc.HealthStub(running.channel)
    # A balancer watches for as long as it can: that must hold nobody up.
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    encoder.gate.clear()
    accepted = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    running.begin_to_stop()
    assert next(watch).status == NOT_SERVING
    assert health(running.channel) == NOT_SERVING
    assert health(running.channel, SERVICES[0]) == NOT_SERVING
    refused = failure(running.stubs.encode, SHORT)
    assert refused.code == grpc.StatusCode.UNAVAILABLE
    assert refused.reason == "STOPPING"
    encoder.gate.set()
    assert accepted.result().embeddings
    running.stop()


def test_a_server_that_stops_refuses_what_comes_on_all_of_its_ports(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(admin_port=0)
    encoder.gate.clear()
    accepted = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    with grpc.insecure_channel(f"127.0.0.1:{running.server.admin_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        running.begin_to_stop()
        assert next(watch).status == NOT_SERVING
        refused = failure(Stubs(channel).list_indexes, index_pb2.ListIndexesRequest())
    assert refused.reason == "STOPPING"
    encoder.gate.set()
    assert accepted.result().embeddings


def test_a_change_of_an_index_that_is_cut_off_is_told_of(
    serve_gated: ServeGated, caplog: pytest.LogCaptureFixture
) -> None:
    running, encoder = serve_gated(admin_port=0, updates=True, grace_seconds=0)
    encoder.gate.clear()
    request = index_pb2.UpsertRequest(records=[index_pb2.Record(id="new", text="open")])
    with grpc.insecure_channel(f"127.0.0.1:{running.server.admin_port}") as channel:
        cut_off = index_pb2_grpc.IndexServiceStub(channel).Upsert.future(request, timeout=60)
        encoder.wait_for("forward")
        running.begin_to_stop()
        assert cut_off.code() == grpc.StatusCode.UNAVAILABLE
    encoder.gate.set()
    running.stop()
    assert "calls were still under way after 0 s, and are cut off" in caplog.text


def test_a_large_answer_is_sent_whole_before_the_server_ends(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_texts=20_000)
    encoder.gate.clear()
    accepted = running.stubs.encode.future(embedding_pb2.EncodeRequest(texts=["open"] * 20_000), timeout=60)
    encoder.wait_for("forward")
    running.begin_to_stop()
    encoder.gate.set()
    assert len(accepted.result().embeddings) == 20_000


def test_what_is_not_done_within_the_grace_is_cut_off(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(grace_seconds=0)
    encoder.gate.clear()
    accepted = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    running.begin_to_stop()
    with pytest.raises(grpc.RpcError) as caught:
        accepted.result()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    encoder.gate.set()
    running.stop()


@contextlib.contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that serves, with pipes to talk to it by."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def say(running: subprocess.Popen[str]) -> str:
    assert running.stdout
    return running.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_process_exits_with_0(
    bundle: Path, index: Path, number: signal.Signals
) -> None:
    program = """
        import sys
        import serving, serving.server
        from cognate.encoder import Encoder

        class Gated(Encoder):
            open = True

            def forward(self, batch):
                if not self.open:
                    print("forward", flush=True)
                    sys.stdin.readline()
                return super().forward(batch)

        def ready(server):
            Gated.open = False
            print(server.port, flush=True)

        serving.server.Encoder = Gated
        serving.run(serving.Settings.load(bundle=sys.argv[1], indexes=[sys.argv[2]], port=0), ready)
        print("ended", flush=True)
        """
    with process(program, bundle, index) as running:
        with grpc.insecure_channel(f"127.0.0.1:{say(running)}") as channel:
            search = channel.unary_unary(
                "/cognate.v1.SearchService/Search",
                request_serializer=search_pb2.SearchRequest.SerializeToString,
                response_deserializer=search_pb2.SearchResponse.FromString,
            )
            request = search_pb2.SearchRequest(queries=[search_pb2.Query(text="door")], top_k=2)
            accepted = search.future(request, timeout=60)
            assert say(running) == "forward"
            running.send_signal(number)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert NOT_SERVING in (answer.status for answer in watch)
            assert failure(search, request).reason == "STOPPING"
            assert running.stdin
            running.stdin.write("\n")
            running.stdin.flush()
            assert len(accepted.result().results[0].hits) == 2
        assert say(running) == "ended"
        assert running.wait(60) == 0


def test_serving_imports_no_training_library(bundle: Path, index: Path) -> None:
    program = """
        import os, signal, sys
        import serving

        def ready(server):
            print(sorted({"torch", "transformers", "optimum", "sentence_transformers"} & set(sys.modules)))
            os.kill(os.getpid(), signal.SIGTERM)

        serving.run(serving.Settings.load(bundle=sys.argv[1], indexes=[sys.argv[2]], port=0), ready)
        """
    with process(program, bundle, index) as running:
        assert say(running) == "[]"
        assert running.wait(60) == 0


def test_what_a_process_has_loaded_is_not_collected_while_it_answers(bundle: Path) -> None:
    program = (
        "import gc, os, signal, sys, serving\n"
        "def ready(_):\n"
        "    print(gc.get_freeze_count())\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "serving.run(serving.Settings.load(bundle=sys.argv[1], port=0), ready)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=True
    )
    assert int(finished.stdout) > 10_000
