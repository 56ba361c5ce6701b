"""HTTP/2 as clients rely on it, over real sockets; h2 checks all that the server sends."""

import random

import hpack
import pytest
from h2.settings import SettingCodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.http2 import CONNECTION_WINDOW, SEND_BUFFER
from serving.http2_frames import (
    HAS_PRIORITY,
    NO_ERROR,
    PADDED,
)
from tests.e2e.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    connect,
    headers,
    message,
)
from tests.e2e.http2 import settings as client_settings
from tests.serving.servers import eventually
from tests.serving.transport import Answer, Client, Transport, call_fields, noise, prefixed

PREFIX = len(prefixed(b""))

few_examples = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Requests


class Scribe:
    """Writes the frames of calls, in one of the many ways in which they may be written."""

    def __init__(self, chance: random.Random) -> None:
        self.encoder = hpack.Encoder()
        self._chance = chance

    def begin(self, stream: int, fields: list[tuple[str, str]]) -> list[Frame]:
        """Fields in one frame or several, padded or not, with a priority or not, by any means of HPACK."""
        sensitive = [(*each, self._chance.random() < 0.3) for each in fields]
        block = self.encoder.encode(sensitive, huffman=self._chance.random() < 0.5)
        parts = self._parts(block)
        flags, first = 0, parts[0]
        if self._chance.random() < 0.5:
            flags, first = HAS_PRIORITY, bytes([0, 0, 0, 0, 7]) + first
        kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
        padded, first = self._padded(first)
        written = [
            Frame(kind, 0, stream, part) for kind, part in zip(kinds, [first, *parts[1:]], strict=True)
        ]
        written[0] = Frame(HEADERS, flags | padded, stream, first)
        last = written[-1]
        return [*written[:-1], Frame(last.kind, last.flags | END_HEADERS, stream, last.payload)]

    def data(self, stream: int, data: bytes) -> list[Frame]:
        """Data in one frame or several, padded or not, with its end or not."""
        written = []
        for part in self._parts(data):
            flags, payload = self._padded(part)
            written.append(Frame(DATA, flags, stream, payload))
        last = written[-1]
        if self._chance.random() < 0.5:
            return [*written[:-1], Frame(DATA, last.flags | END_STREAM, stream, last.payload)]
        return [*written, Frame(DATA, END_STREAM, stream)]

    def _parts(self, data: bytes) -> list[bytes]:
        cuts = sorted(self._chance.randrange(len(data) + 1) for _ in range(self._chance.choice([0, 0, 1, 3])))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _padded(self, data: bytes) -> tuple[int, bytes]:
        if self._chance.random() < 0.6:
            return 0, data
        size = self._chance.choice([0, 1, 255])
        return PADDED, bytes([size]) + data + bytes(size)


@few_examples
@given(
    messages=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    values=st.lists(st.text("abcXYZ019 ~", max_size=40).map(str.strip), min_size=5, max_size=5),
    knows_from=st.integers(0, 6),
    chance=st.randoms(use_true_random=False),
)
def test_calls_are_answered_alike_however_they_are_written_and_cut(
    transport: Transport, messages: list[bytes], values: list[str], knows_from: int, chance: random.Random
) -> None:
    scribe = Scribe(chance)
    sent = b""
    unsent: list[list[Frame]] = []
    with Client(transport.target) as client:
        for number, message in enumerate(messages):
            if number == knows_from:
                # From here on, the server has no table for this client.
                sent += bytes(Frame(SETTINGS, ACK))
                scribe.encoder.header_table_size = 0
            stream = 1 + 2 * number
            fields = call_fields("Echo", ("x-value", values[number]), ("x-same", "always"))
            sent += b"".join(map(bytes, scribe.begin(stream, fields)))
            unsent.append(scribe.data(stream, prefixed(message)))
            while unsent and (number == len(messages) - 1 or chance.random() < 0.5):
                data = chance.choice(unsent)
                sent += bytes(data.pop(0))
                unsent = [each for each in unsent if each]
            # What h2 sends instead is thrown away, but it knows what was asked.
            client.state.send_headers(stream, fields)
            client.state.send_data(stream, prefixed(message), end_stream=True)
            client.answers[stream] = Answer()
        client.state.data_to_send()
        cuts = sorted(chance.randrange(len(sent) + 1) for _ in range(chance.choice([0, 3, 20])))
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            client.socket.sendall(sent[start:end])
            # So that the server has read it, and the rest comes by itself.
            transport.ask(lambda: None)
        for number, message in enumerate(messages):
            answer = client.answer(1 + 2 * number)
            assert answer.data == prefixed(message)
            assert answer.status == (0, "")
            assert answer.trailers["x-value"] == values[number]
            assert answer.trailers["x-same"] == "always"


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
def test_a_large_request_comes_whole_as_windows_let_it(client: Client, size: int) -> None:
    assert client.call("Echo", noise(size)).data == prefixed(noise(size))


def test_large_requests_at_once_come_whole(client: Client) -> None:
    sizes = [300_000 + number for number in range(6)]
    streams = [client.begin("EchoAll") for _ in sizes]
    for _ in range(2):
        for stream, size in zip(streams, sizes, strict=True):
            client.send(stream, prefixed(noise(size)), end=False)
    for stream in streams:
        client.send(stream, b"")
    for stream, size in zip(streams, sizes, strict=True):
        assert client.answer(stream).data == prefixed(noise(size)) * 2


def test_padding_takes_a_window_and_is_given_back(client: Client) -> None:
    stream = client.begin("EchoAll")
    for _ in range(1000):
        while client.state.local_flow_control_window(stream) < 256:
            assert client.read()
        client.state.send_data(stream, b"", pad_length=255)
        client.flush()
    client.send(stream, prefixed(b"there"))
    assert client.answer(stream).data == prefixed(b"there")


def test_a_handler_that_does_not_read_holds_up_who_sends(transport: Transport, client: Client) -> None:
    stream = client.begin("Hang")
    client.send(stream, bytes(65535), end=False)
    transport.began.get(timeout=60)
    client.ping()
    assert client.state.local_flow_control_window(stream) == 0
    # Others go on.
    assert client.call("Echo", noise(200_000)).data == prefixed(noise(200_000))


def test_fields_behind_the_data_are_the_request_s_end(client: Client) -> None:
    stream = client.begin("Echo")
    client.send(stream, prefixed(b"there"), end=False)
    client.state.send_headers(stream, [("x-late", "1")], end_stream=True)
    client.flush()
    assert client.answer(stream).data == prefixed(b"there")


def test_an_answer_before_the_request_is_whole_ends_it(client: Client) -> None:
    stream = client.begin("Early")
    answer = client.answer(stream)
    assert answer.data == prefixed(b"early")
    assert answer.status == (0, "")
    while answer.reset is None:
        assert client.read()
    assert answer.reset == NO_ERROR
    # The client may not have known, and have sent more.
    late = (
        Frame(DATA, 0, stream, bytes(1000)),
        Frame(WINDOW_UPDATE, 0, stream, bytes([0, 0, 0, 1])),
        Frame(DATA, END_STREAM, stream),
        Frame(RST_STREAM, 0, stream, bytes(4)),
    )
    client.socket.sendall(b"".join(map(bytes, late)))
    assert client.call("Echo", b"there").data == prefixed(b"there")


def test_data_that_nobody_reads_any_more_holds_up_no_other(transport: Transport) -> None:
    # More than the connection's window, of calls that are answered before it comes.
    with connect(transport.target, client_settings()) as connection:
        size = 60_000
        count = CONNECTION_WINDOW // size + 50
        for number in range(count):
            stream = 1 + 2 * number
            unread = [headers("/test/Early", stream), *message(bytes(size), stream)]
            connection.sendall(b"".join(map(bytes, unread)))
        last = [headers("/test/Echo", 1 + 2 * count), *message(b"there and back", 1 + 2 * count)]
        connection.sendall(b"".join(map(bytes, last)))
        came = b""
        while b"there and back" not in came:
            some = connection.recv(2**16)
            assert some
            came = came[-100:] + some


# Answers


@few_examples
@given(
    initial=st.integers(0, 100_000),
    size=st.integers(0, 300_000),
    updates=st.lists(st.integers(1, 60_000), max_size=16),
)
def test_an_answer_larger_than_the_windows_comes_whole(
    transport: Transport, initial: int, size: int, updates: list[int]
) -> None:
    with Client(transport.target, takes=False, initial_window=initial) as client:
        stream = client.begin("Large")
        client.send(stream, prefixed(str(size).encode()))
        answer = client.answers[stream]
        allowed, allowed_of_all = initial, 65535
        # At last, enough for all.
        for turn, more in enumerate([*updates, 300_000, 300_000, 300_000]):
            # What there is room for comes; of more, h2 would complain.
            whole = min(PREFIX + size, allowed, allowed_of_all)
            while len(answer.data) < whole:
                assert client.read()
            if turn % 2:
                client.widen(more)
                allowed_of_all += more
            elif not answer.ended:
                client.widen(more, stream)
                allowed += more
        assert client.answer(stream).data == prefixed(noise(size))


def test_a_window_made_smaller_in_the_middle_is_kept(transport: Transport) -> None:
    with Client(transport.target, takes=False, initial_window=50_000) as client:
        stream = client.begin("Large")
        client.send(stream, prefixed(b"60000"))
        answer = client.answers[stream]
        while len(answer.data) < 50_000:
            client.read()
        client.change(SettingCodes.INITIAL_WINDOW_SIZE, 10_000)
        # It is 40,000 less than none now.
        client.widen(40_000, stream)
        client.ping()
        assert len(answer.data) == 50_000
        client.widen(1, stream)
        client.ping()
        assert len(answer.data) == 50_001
        client.change(SettingCodes.INITIAL_WINDOW_SIZE, 30_000)
        assert client.answer(stream).data == prefixed(noise(60_000))


def test_a_long_answer_does_not_hold_up_short_ones(transport: Transport) -> None:
    with Client(transport.target, takes=False, initial_window=2**20) as client:
        long = client.begin("Large")
        client.send(long, prefixed(b"1000000"))
        while len(client.answers[long].data) < 65535:
            assert client.read()
        short = [client.begin("Large") for _ in range(5)]
        for stream in short:
            client.send(stream, prefixed(b"1000"))
        eventually(lambda: transport.ask(transport.server.counts).messages_sent == 6)
        client.widen(200_000)
        for stream in short:
            assert client.answer(stream).data == prefixed(noise(1000))
        assert not client.answers[long].ended
        client.widen(2**21)
        assert client.answer(long).data == prefixed(noise(1_000_000))


def test_who_writes_much_waits_for_a_client_that_gives_no_window(transport: Transport) -> None:
    size = 50_000
    with Client(transport.target, takes=False) as client:
        stream = client.begin("Many")
        client.send(stream, prefixed(b"1000 50000"))
        while len(client.answers[stream].data) < 65535:
            assert client.read()
        client.ping()
        assert transport.written <= 65535 + SEND_BUFFER
        client.takes = True
        client.widen(2**30)
        client.widen(2**30, stream)
        assert len(client.answer(stream).data) == 1000 * (PREFIX + size)


def test_who_writes_much_waits_for_a_client_that_does_not_read(transport: Transport) -> None:
    with Client(transport.target, initial_window=2**30) as client:
        client.widen(2**30)
        stream = client.begin("Many")
        client.send(stream, prefixed(b"600 50000"))
        eventually(lambda: transport.paused() == [True])
        # Some is in the network: whatever the system has room for.
        written = transport.written
        assert written < 600 * 50_000 / 2
        # Nor is read what would have to be answered, too.
        later = client.begin("Echo", end=True)
        for _ in range(10):
            transport.ask(lambda: None)
        assert transport.ask(transport.server.counts).started == 1
        assert transport.written <= written + 2 * 50_000
        assert len(client.answer(stream).data) == 600 * (PREFIX + 50_000)
        assert client.answer(later).status == (0, "")


@pytest.mark.parametrize("size", [0, 100, 4095, 4096, 2**16])
def test_a_client_may_have_another_table_of_fields(client: Client, size: int) -> None:
    client.change(SettingCodes.HEADER_TABLE_SIZE, size)
    for _ in range(2):
        assert client.call("Echo", b"there").status == (0, "")
    client.change(SettingCodes.HEADER_TABLE_SIZE, size // 2)
    assert client.call("Echo", b"there").status == (0, "")
