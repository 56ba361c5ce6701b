"""Calls of gRPC as clients rely on them, over real sockets: by grpcio's client, and by h2's where it lies."""

import base64
import gzip
import queue
import zlib

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.servers import eventually, failure
from tests.serving.transport import (
    MAX_MESSAGE_BYTES,
    Answer,
    Client,
    Transport,
    noise,
    open_channel,
    prefixed,
    streaming,
    unary,
)

# Messages


@pytest.mark.parametrize("size", [0, 1, 2**14 - 5, 2**14, 65535, 1_000_000, 3_999_999])
def test_messages_of_any_size_come_whole(channel: grpc.Channel, size: int) -> None:
    assert unary(channel, "Echo")(noise(size), timeout=60) == noise(size)


def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(
    transport: Transport, channel: grpc.Channel, client: Client
) -> None:
    refused = failure(unary(channel, "Echo"), bytes(MAX_MESSAGE_BYTES + 1))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "MESSAGE_TOO_LARGE"
    assert str(MAX_MESSAGE_BYTES) in (refused.message or "")
    assert unary(channel, "Echo")(bytes(MAX_MESSAGE_BYTES), timeout=60)
    # By its length: nothing of it has to come.
    stream = client.begin("Echo")
    client.send(stream, b"\0\xff\xff\xff\xff", end=False)
    assert client.answer(stream).status[0] == 8
    assert client.call("Echo", b"there").data == prefixed(b"there")
    assert len(transport.server.connections) == 2


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_read(transport: Transport, compression: grpc.Compression) -> None:
    with open_channel(transport, compression=compression) as channel:
        for message in (b"a" * 1_000_000, noise(100_000), b""):
            assert unary(channel, "Echo")(message, timeout=60) == message
        answers = streaming(channel, "EchoAll")(iter([b"a" * 10_000] * 20), timeout=60)
        assert list(answers) == [b"a" * 10_000] * 20


def test_a_message_that_is_too_large_once_it_is_inflated_is_refused(transport: Transport) -> None:
    with open_channel(transport, compression=grpc.Compression.Gzip) as channel:
        refused = failure(unary(channel, "Echo"), bytes(100_000_000))
        assert refused.reason == "MESSAGE_TOO_LARGE"
        assert unary(channel, "Echo")(bytes(MAX_MESSAGE_BYTES), timeout=60)


def test_messages_that_are_not_compressed_as_they_say_are_refused(client: Client) -> None:
    def sent(data: bytes, **fields: str) -> Answer:
        stream = client.begin("Echo", end=False, **fields)
        client.send(stream, prefixed(data, compressed=True))
        return client.answer(stream)

    zipped = gzip.compress(b"there")
    assert sent(zipped, grpc_encoding="gzip").data == prefixed(b"there")
    assert sent(zlib.compress(b"there"), grpc_encoding="deflate").data == prefixed(b"there")
    for data, encoding in [
        (zipped, "identity"), (zipped, "deflate"), (b"there", "gzip"), (zipped[:-1], "gzip"), (b"", "gzip"),
    ]:  # fmt: skip
        status, sentence = sent(data, grpc_encoding=encoding).status
        assert (status, "not compressed" in sentence) == (3, True)
    assert sent(zipped).status[0] == 3
    # Who can compress need not.
    assert client.call("Echo", b"there", grpc_encoding="gzip").data == prefixed(b"there")


def test_an_unknown_compression_is_unimplemented_and_told_which_there_are(client: Client) -> None:
    answer = client.call("Echo", b"there", grpc_encoding="snappy")
    assert answer.status[0] == 12
    assert "snappy" in answer.status[1]
    assert (answer.fields | answer.trailers)["grpc-accept-encoding"] == "identity,gzip,deflate"


def test_an_unknown_compression_with_a_long_name_is_refused_in_few_words(client: Client) -> None:
    # Each of these characters is three in a status; of a frame that is too large, h2 would complain.
    answer = client.call("Echo", b"there", grpc_encoding="%" * 8000)
    assert answer.status[0] == 12
    assert (answer.fields | answer.trailers)["grpc-accept-encoding"] == "identity,gzip,deflate"
    assert client.call("Refuse", b"%" * 8000).status == (9, "%25" * 1000)
    assert client.call("Echo", b"there").data == prefixed(b"there")


@pytest.mark.parametrize("sent", [b"\0", b"\0\0\0\0", b"\0\0\0\0\5abcd"])
def test_a_message_that_is_cut_off_is_refused(client: Client, sent: bytes) -> None:
    stream = client.begin("Echo")
    client.send(stream, sent)
    status, sentence = client.answer(stream).status
    assert (status, "in the middle of a message" in sentence) == (3, True)


def test_a_call_without_a_message_has_none(client: Client) -> None:
    assert client.answer(client.begin("EchoAll", end=True)).status == (0, "")


def test_messages_of_a_stream_come_in_order_both_ways(channel: grpc.Channel) -> None:
    sent = [b"%d " % number * (number % 700) for number in range(1500)]
    assert list(streaming(channel, "EchoAll")(iter(sent), timeout=60)) == sent


# Metadata and statuses


def test_metadata_comes_both_ways_as_it_was_sent(channel: grpc.Channel) -> None:
    sent = (
        ("x-one", "a b"), ("x-many", "1"), ("x-many", "2"), ("x-empty", ""),
        ("x-some-bin", bytes(range(256))), ("x-some-bin", b"\xff"), ("x-none-bin", b""),
    )  # fmt: skip
    _, call = unary(channel, "Echo").with_call(b"", metadata=sent, timeout=60)
    came = [tuple(each) for each in call.trailing_metadata()]
    assert sorted(came) == sorted(sent)
    # Of one key, in their order.
    assert [each for each in came if each[0] == "x-many"] == [("x-many", "1"), ("x-many", "2")]


@pytest.mark.parametrize("padding", ["", "=="])
def test_several_bytes_may_come_in_one_value(client: Client, padding: str) -> None:
    written = ",".join(base64.b64encode(each).decode().rstrip("=") + padding for each in (b"a", b"b"))
    stream = client.begin("Echo", ("x-some-bin", written))
    client.send(stream, prefixed(b""))
    assert client.answer(stream).trailers["x-some-bin"] in ("YQ", "Yg")


@pytest.mark.parametrize("field", [("x-some-bin", "a"), ("x-some-bin", "!!!!"), ("x-some", "\xe9")])
def test_metadata_that_cannot_be_read_is_refused(client: Client, field: tuple[str, str]) -> None:
    status, sentence = client.call("Echo", b"", field).status
    assert (status, "metadata" in sentence) == (13, True)
    assert client.call("Echo", b"there").data == prefixed(b"there")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentence=st.text(st.characters(codec="utf-8"), max_size=100))
def test_a_sentence_comes_as_it_was_said(channel: grpc.Channel, sentence: str) -> None:
    refused = failure(unary(channel, "Refuse"), sentence.encode())
    assert (refused.code, refused.message) == (grpc.StatusCode.FAILED_PRECONDITION, sentence)


@pytest.mark.parametrize("sentence", ["é%ü\n\t\0…", "100 %41", "%", " a ", "\U0001f600"])
def test_a_sentence_of_any_characters_comes_as_it_was_said(channel: grpc.Channel, sentence: str) -> None:
    refused = failure(unary(channel, "Refuse"), sentence.encode(), metadata=[("x-why", "so")])
    assert (refused.code, refused.message) == (grpc.StatusCode.FAILED_PRECONDITION, sentence)


def test_a_fault_is_internal_and_tells_no_inner_things(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    failed = failure(unary(channel, "Fail"), b"")
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "0x7f00" not in (failed.message or "")
    assert "/test/Fail failed" in caplog.text


def test_calls_over_the_bound_and_of_no_method_are_refused() -> None:
    with Transport(max_calls=1) as transport, open_channel(transport) as channel:
        held = unary(channel, "Hang").future(b"", timeout=60)
        transport.began.get(timeout=60)
        refused = failure(unary(channel, "Echo"), b"")
        assert (refused.reason, refused.retry_seconds) == ("TOO_MANY_CALLS", 0.25)
        refused = failure(unary(channel, "Nothing"), b"")
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD")
        held.cancel()
        eventually(lambda: transport.ended)
        assert unary(channel, "Echo")(b"there", timeout=60) == b"there"


# Many


@pytest.mark.parametrize(("channels", "calls"), [(1, 600), (20, 30)])
def test_many_calls_at_once_get_their_own_answers(transport: Transport, channels: int, calls: int) -> None:
    opened = [open_channel(transport) for _ in range(channels)]
    under_way = []
    for number in range(calls):
        for place, channel in enumerate(opened):
            message = b"%d/%d " % (number, place) * (number * 7 % 3000)
            under_way.append((message, unary(channel, "Echo").future(message, timeout=60)))
    for message, call in under_way:
        assert call.result() == message
    assert transport.ask(transport.server.counts).succeeded == channels * calls
    for channel in opened:
        channel.close()


def test_many_streams_at_once_get_their_own_answers(channel: grpc.Channel) -> None:
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    sent = [[b"%d/%d " % (stream, each) * 2000 for each in range(20)] for stream in range(30)]
    streams = [streaming(channel, "EchoAll")(iter(messages), timeout=60) for messages in sent]
    for number, stream in enumerate(streams):
        stream.add_done_callback(lambda _, number=number: ended.put(number))
    for messages, stream in reversed(list(zip(sent, streams, strict=True))):
        assert list(stream) == messages
    assert sorted(ended.get(timeout=60) for _ in streams) == list(range(30))


# Channelz


def test_channelz_counts_calls_of_each_kind(transport: Transport, channel: grpc.Channel) -> None:
    for _ in range(3):
        unary(channel, "Echo")(b"there", timeout=60)
    failure(unary(channel, "Refuse"), b"no")
    failure(unary(channel, "Nothing"), b"")
    failure(unary(channel, "Hang"), b"", timeout=0.05)
    assert len(list(streaming(channel, "EchoAll")(iter([b"a"] * 5), timeout=60))) == 5
    eventually(lambda: len(transport.ended) == 6)
    stub = channelz_pb2_grpc.ChannelzStub(channel)
    (server,) = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=60).server
    told = server.data
    # The call that asks is under way.
    assert (told.calls_started, told.calls_succeeded, told.calls_failed) == (8, 4, 3)
    request = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
    (reference,) = stub.GetServerSockets(request, timeout=60).socket_ref
    socket = stub.GetSocket(channelz_pb2.GetSocketRequest(socket_id=reference.socket_id), timeout=60).socket
    data = socket.data
    assert (data.streams_started, data.streams_succeeded, data.streams_failed) == (10, 6, 3)
    # Of Hang and Nothing nobody reads the request.
    assert (data.messages_received, data.messages_sent) == (3 + 1 + 5 + 3, 3 + 5 + 2)
    assert socket.local.tcpip_address.ip_address == bytes([127, 0, 0, 1])
    assert f"127.0.0.1:{socket.local.tcpip_address.port}" == transport.target
    missing = failure(stub.GetSocket, channelz_pb2.GetSocketRequest(socket_id=0))
    assert missing.code == grpc.StatusCode.NOT_FOUND
    missing = failure(stub.GetServer, channelz_pb2.GetServerRequest(server_id=2))
    assert missing.code == grpc.StatusCode.NOT_FOUND
    # Calls of a connection that has gone are counted still.
    with Client(transport.target) as other:
        other.call("Echo")
    eventually(lambda: len(transport.server.connections) == 1)
    told = stub.GetServer(channelz_pb2.GetServerRequest(server_id=1), timeout=60).server.data
    assert (told.calls_started, told.calls_succeeded, told.calls_failed) == (14, 8, 5)
