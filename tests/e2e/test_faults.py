"""What clients, networks and clocks do to a server: it answers others all the while, and nothing is left.

Each fault is inflicted twice on a real process. The first time it may take what it then keeps for its work;
the second time it may leave no file descriptor, no thread and no memory behind.
"""

import contextlib
import random
import resource
import select
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cognate import Client
from cognate.client import RequestError
from cognate.encoder import Encoder
from cognate.v1 import embedding_pb2, info_pb2, search_pb2
from tests.certificates import DAY, NOW, Authority
from tests.e2e import http2
from tests.e2e.conftest import serving
from tests.e2e.http2 import ACK, END_HEADERS, END_STREAM, Frame
from tests.serving.servers import RECORDS, Stubs, eventually, write_index
from tests.serving.test_access import write_keys

pytestmark = pytest.mark.timeout(180)

ENCODE = "/cognate.v1.EmbeddingService/Encode"
ENCODE_STREAM = "/cognate.v1.EmbeddingService/EncodeStream"
SEARCH = "/cognate.v1.SearchService/Search"
GET_INFO = "/cognate.v1.InfoService/GetInfo"
HEALTH = "/grpc.health.v1.Health/Check"

TEXTS = ["how do i open the door", "reset the password", "what is the printer"]
CALL = embedding_pb2.EncodeRequest(texts=TEXTS * 7)
CHUNK = embedding_pb2.EncodeStreamRequest(id=1, request=CALL)
LARGE_ANSWER = embedding_pb2.EncodeStreamRequest(request=embedding_pb2.EncodeRequest(texts=["door"] * 500))
"""Quick to encode, for its texts are one."""
QUERY = search_pb2.SearchRequest(queries=[search_pb2.Query(text="open the door")], top_k=3)

MAX_STREAMS = 12

SPARE_THREADS = 16
"""That gRPC starts when it has much to do, and ends after some time."""

SPARE_MEGABYTES = 16
"""By which memory may differ between two times; a kilobyte for each of thousands of calls is less."""

MAX_RISES = 4
"""How often memory may rise by more before it is a leak."""

ALONE = [("grpc.use_local_subchannel_pool", 1)]
"""Makes a channel have a connection of its own."""


class Victim:
    """A server in a process of its own, and how it was before.

    Attributes:
        process: The server's.
        target: Its address.
        stubs: Of a connection that stays.
        log: The lines on its standard error.
    """

    def __init__(self, server: subprocess.Popen[str], target: str, channel: grpc.Channel) -> None:
        self.process = psutil.Process(server.pid)
        self.target = target
        self.stubs = Stubs(channel)
        self.log: list[str] = []
        threading.Thread(target=self._read, args=[server.stderr], daemon=True).start()
        # What it starts for its first calls, it keeps.
        for _ in range(100):
            self.answers_rightly(self.stubs)
        self.expected = self.answers_rightly(self.stubs)
        self.descriptors = self.process.num_fds()
        self.threads = self.process.num_threads()

    def answers_rightly(self, stubs: Stubs) -> np.ndarray[Any, Any]:
        """Call each kind, and compare the answers with the first ones."""
        answer = stubs.encode(embedding_pb2.EncodeRequest(texts=TEXTS), timeout=60)
        vectors = np.array([vector.values for vector in answer.embeddings])
        np.testing.assert_allclose(vectors, getattr(self, "expected", vectors), atol=1e-5)
        hits = stubs.search(QUERY, timeout=60).results[0].hits
        assert hits[0].text == "open the door"
        (chunk,) = stubs.encode_stream(iter([CHUNK]), timeout=60)
        assert len(chunk.response.embeddings) == len(CALL.texts)
        return vectors

    def megabytes(self) -> float:
        """Resident memory."""
        return float(self.process.memory_info().rss) / 1e6

    def forget_peak(self) -> float:
        """Make the peak of resident memory what it is now, and give it."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.megabytes()

    def peak_megabytes(self) -> float:
        """The most of resident memory since."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
        return int(peak) * 1024 / 1e6

    def is_rid_of_it(self) -> None:
        """Wait until it has as few file descriptors and threads as before."""
        eventually(lambda: self.process.num_fds() <= self.descriptors)
        eventually(lambda: self.process.num_threads() <= self.threads + SPARE_THREADS)

    def suffers(self, inflict: Callable[[], None], *, megabytes: float = SPARE_MEGABYTES) -> None:
        """Inflict a fault, and see that others are served meanwhile, and that nothing stays behind.

        A fault that leaks does so each time. What an allocator keeps of a busier time than the ones
        before, it keeps once; so a rise of memory is looked at again.
        """
        before = len(self.log)
        rises: list[float] = []
        while not rises or min(rises) >= megabytes:
            assert len(rises) < MAX_RISES, rises
            used = self.megabytes()
            with self._serving_others():
                inflict()
            self.is_rid_of_it()
            rises.append(self.megabytes() - used)
        assert not [line for line in self.log[before:] if "ERROR" in line or "Traceback" in line]

    @contextlib.contextmanager
    def _serving_others(self) -> Iterator[None]:
        """Call as another client does, all the while, and once more after."""
        over = threading.Event()

        def call() -> int:
            answered = 0
            with Client(self.target, timeout=60) as client:
                while not over.is_set() or not answered:
                    vectors = client.encode(TEXTS).vectors
                    np.testing.assert_allclose(vectors, self.expected, atol=1e-5)
                    assert client.search("open the door", top_k=1)[0].text == "open the door"
                    answered += 1
            return answered

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(call)
            try:
                yield
            finally:
                over.set()
            assert other.result(120)
        with grpc.insecure_channel(self.target, ALONE) as channel:
            self.answers_rightly(Stubs(channel))

    def _read(self, lines: Any) -> None:
        with contextlib.suppress(ValueError):
            self.log.extend(iter(lines.readline, ""))


@contextlib.contextmanager
def victim_with(*arguments: object) -> Iterator[Victim]:
    with (
        serving(*arguments) as (server, target),
        grpc.insecure_channel(target.replace("localhost", "127.0.0.1")) as channel,
    ):
        victim = Victim(server, target.replace("localhost", "127.0.0.1"), channel)
        yield victim
        assert server.poll() is None


@pytest.fixture(scope="module")
def index(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("faults") / "index", Encoder(tiny_bundle), RECORDS)


@pytest.fixture(scope="module")
def victim(tiny_bundle: Path, index: Path) -> Iterator[Victim]:
    roots = ("--admin", "--index-root", index.parent)
    with victim_with("--bundle", tiny_bundle, "--index", index, "--max-streams", MAX_STREAMS, *roots) as it:
        yield it


@contextlib.contextmanager
def connections(count: int) -> Iterator[list[Any]]:
    """Room for connections of this process, which are broken off at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 300:
        pytest.skip(f"this machine lets a process open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 300), hard))
    opened: list[Any] = []
    try:
        yield opened
    finally:
        for connection in opened:
            http2.reset(connection)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def break_off(target: str, calls: int) -> None:
    """Break connections off: in a whole call, in half of one, in a stream, and before any."""
    whole, half = http2.message(CALL.SerializeToString()), http2.message(b"\x0a\x05ope", says=100, last=False)
    chunks = http2.message(CHUNK.SerializeToString(), last=False) * 2
    for number in range(calls):
        frames = (
            [http2.headers(ENCODE), *whole],
            [http2.headers(ENCODE), *half],
            [http2.headers(ENCODE_STREAM), *chunks],
            [],
        )[number % 4]
        http2.reset(http2.connect(target, http2.settings(), *frames))


def cancel(stubs: Stubs, calls: int) -> None:
    """Cancel calls, each while some of those before are under way."""
    under_way = []
    for number in range(calls):
        under_way.append(stubs.encode.future(CALL, timeout=60))
        if len(under_way) > number % 17:
            under_way.pop(0).cancel()
    for call in under_way:
        call.cancel()


def test_clients_that_go_in_the_middle_of_calls_by_the_thousand(victim: Victim) -> None:
    def inflict() -> None:
        break_off(victim.target, 1000)
        cancel(victim.stubs, 1000)

    victim.suffers(inflict)


def test_readers_that_stop_reading_streams_and_answers(victim: Victim) -> None:
    def inflict() -> None:
        with connections(60) as opened, contextlib.ExitStack() as stack:
            # These do not let the server send anything, nor give up.
            for _ in range(20):
                stalled = http2.connect(
                    victim.target,
                    http2.settings(window=0),
                    http2.headers(ENCODE),
                    *http2.message(CALL.SerializeToString()),
                )
                opened.append(stalled)
            # These read one answer of many. Each must be let in, which needs the places of the last round.
            for _ in range(MAX_STREAMS - 2):
                channel = stack.enter_context(grpc.insecure_channel(victim.target, ALONE))
                answers = Stubs(channel).encode_stream(iter([LARGE_ANSWER] * 60), timeout=120)
                stack.callback(answers.cancel)
                assert len(next(answers).response.embeddings) == 500
            for _ in range(20):
                victim.answers_rightly(victim.stubs)

    victim.suffers(inflict)


def flood(victim: Victim, count: int) -> None:
    """Connect, and say nothing, little, or all but a call."""
    with connections(count) as opened:
        for number in range(count):
            begins = (b"", b"PRI * HT", http2.PREFACE, http2.PREFACE + bytes(http2.settings()))[number % 4]
            opened.append(http2.connect(victim.target, begins=begins))
        for _ in range(10):
            victim.answers_rightly(victim.stubs)


def test_a_flood_of_connections(victim: Victim) -> None:
    victim.suffers(lambda: flood(victim, 1500))


@pytest.mark.slow
def test_a_flood_of_ten_thousand_connections(victim: Victim) -> None:
    # Memory settles after some 20,000, at 6 KB for each that is open at a time.
    victim.suffers(lambda: flood(victim, 10_000), megabytes=64)


def test_more_connections_than_the_server_may_open(tiny_bundle: Path, index: Path) -> None:
    with victim_with("--bundle", tiny_bundle, "--index", index) as victim:
        room = victim.descriptors + 50
        resource.prlimit(victim.process.pid, resource.RLIMIT_NOFILE, (room, room))
        with connections(200) as opened:
            for _ in range(200):
                opened.append(http2.connect(victim.target, http2.settings()))
            eventually(lambda: victim.process.num_fds() >= room)
            # Those who were there before are served, and others wait.
            victim.answers_rightly(victim.stubs)
        with grpc.insecure_channel(victim.target, ALONE) as channel:
            victim.answers_rightly(Stubs(channel))
        victim.is_rid_of_it()


def test_deadlines_of_a_millisecond(victim: Victim) -> None:
    ends: Counter[Any] = Counter()

    def inflict() -> None:
        def hurry(number: int) -> None:
            call = victim.stubs.encode.future(
                embedding_pb2.EncodeRequest(texts=[f"door {number}"]), timeout=0.001
            )
            ends[call.code()] += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(hurry, range(1000)))
        # These leave the deadline to the server.
        late = [http2.headers(ENCODE, grpc_timeout="1m"), *http2.message(CALL.SerializeToString())]
        with connections(200) as opened:
            for _ in range(200):
                opened.append(http2.connect(victim.target, http2.settings(), *late))
                opened[-1].recv(1)

    victim.suffers(inflict)
    assert set(ends) <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert ends[grpc.StatusCode.DEADLINE_EXCEEDED]


def test_messages_of_100_mb_are_refused_before_they_are_read(victim: Victim) -> None:
    large = embedding_pb2.EncodeRequest(texts=["a" * 1000] * 100_000)
    peaks: list[float] = []

    def inflict() -> None:
        options = [*ALONE, ("grpc.max_send_message_length", -1)]
        before = victim.forget_peak()
        with grpc.insecure_channel(victim.target, options) as channel:
            stubs = Stubs(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stubs.encode(large, timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError) as caught:
                list(
                    stubs.encode_stream(iter([embedding_pb2.EncodeStreamRequest(request=large)]), timeout=60)
                )
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        peaks.append(victim.peak_megabytes() - before)

    victim.suffers(inflict)
    assert max(peaks) < 50


SLOW_CLIENTS = 90
MESSAGE_MEGABYTES = 4
SLOW_LIMITS = (
    "--max-message-bytes",
    MESSAGE_MEGABYTES * 2**20,
    "--max-inflight-bytes",
    4 * MESSAGE_MEGABYTES * 2**20,
)


def hold_back_the_end(victim: Victim) -> float:
    """Send many calls all but the last byte of a message that is as large as may be.

    Returns:
        By how many megabytes the server's memory rose at most.
    """
    held_back = b"".join(frame.payload for frame in http2.message(b"a" * MESSAGE_MEGABYTES * 2**20))[:-1]
    before = victim.forget_peak()
    with connections(SLOW_CLIENTS) as opened:
        slow = [
            http2.Sender(victim.target, (ENCODE, ENCODE_STREAM, HEALTH)[number % 3], held_back)
            for number in range(SLOW_CLIENTS)
        ]
        opened += [each.connection for each in slow]
        over = threading.Event()

        def send() -> None:
            talking = {each.connection: each for each in slow}
            while not over.is_set():
                for connection in select.select(list(talking), [], [], 0.1)[0]:
                    with contextlib.suppress(ConnectionError):
                        if talking[connection].go_on():
                            continue
                    del talking[connection]

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send)
            try:
                # As many as have a place send all that they want to, and others are answered.
                eventually(lambda: sum(each.sent == len(held_back) for each in slow) >= 12)
                for _ in range(10):
                    victim.stubs.encode(CALL, timeout=60)
            finally:
                over.set()
            sending.result()
        return victim.peak_megabytes() - before


def test_many_large_messages_whose_end_does_not_come(tiny_bundle: Path, index: Path) -> None:
    rises: list[float] = []
    with victim_with("--bundle", tiny_bundle, "--index", index, *SLOW_LIMITS) as attacked:
        attacked.suffers(lambda: rises.append(hold_back_the_end(attacked)), megabytes=64)
    assert max(rises) < SLOW_CLIENTS * MESSAGE_MEGABYTES / 2, rises


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change, cut, repeat or insert bytes, in a few places."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        some = chance.randbytes(chance.randint(1, 8))
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = some[:1]
            case 1:
                del changed[at : at + chance.randint(1, 20)]
            case 2:
                changed[at:at] = changed[at : at + chance.randint(1, 40)]
            case _:
                changed[at:at] = some
    return bytes(changed)


ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    # A batch of thousands is more than waits at a time.
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def test_malformed_messages_are_refused_and_what_is_read_is_answered(victim: Victim) -> None:
    chance = random.Random(1)
    methods: list[tuple[str, Any, Callable[[Any, Any], bool]]] = [
        (ENCODE, CALL, lambda asked, answer: len(answer.embeddings) == len(asked.texts)),
        (SEARCH, QUERY, lambda asked, answer: len(answer.results) == len(asked.queries)),
        (GET_INFO, info_pb2.GetInfoRequest(), lambda asked, answer: answer.model.dimension == 32),
    ]
    answers: dict[str, Any] = {
        ENCODE: embedding_pb2.EncodeResponse,
        SEARCH: search_pb2.SearchResponse,
        GET_INFO: info_pb2.GetInfoResponse,
    }

    def inflict() -> None:
        with grpc.insecure_channel(victim.target, ALONE) as channel:
            for method, valid, fits in methods:
                call: Any = channel.unary_unary(method)
                for _ in range(200):
                    sent = damaged(valid.SerializeToString(), chance)
                    ended = call.future(sent, timeout=60)
                    code = ended.code()
                    assert code in ALLOWED, (method, sent, ended.details())
                    try:
                        asked = type(valid).FromString(sent)
                    except DecodeError:
                        assert code is grpc.StatusCode.INVALID_ARGUMENT, (method, sent)
                    else:
                        if code is grpc.StatusCode.OK:
                            assert fits(asked, answers[method].FromString(ended.result())), (method, sent)
            streams: Any = channel.stream_stream(ENCODE_STREAM)
            for _ in range(100):
                stream = streams(iter([damaged(CHUNK.SerializeToString(), chance)]), timeout=60)
                with contextlib.suppress(grpc.RpcError):
                    list(stream)
                assert stream.code() in ALLOWED, stream.details()

    victim.suffers(inflict)


def test_a_malformed_question_for_health_is_answered_in_a_status(victim: Victim) -> None:
    def inflict() -> None:
        with grpc.insecure_channel(victim.target, ALONE) as channel:
            for sent in (b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x01\xff"):
                check: Any = channel.unary_unary(HEALTH)
                ended = check.future(sent, timeout=60)
                assert ended.code() is not grpc.StatusCode.OK

    # gRPC's own service logs what it cannot read.
    inflict()
    victim.answers_rightly(victim.stubs)
    victim.is_rid_of_it()


def nonsense(chance: random.Random) -> bytes:
    """What a client of HTTP/2 may send, with frames left out, repeated, damaged, or of no sense at all."""
    frames: list[Frame] = [
        http2.settings(),
        http2.headers(chance.choice([ENCODE, ENCODE_STREAM, SEARCH, "/no/such"])),
        *http2.message(
            damaged(CALL.SerializeToString(), chance), says=chance.choice([None, 0, 7, 2**32 - 1])
        ),
    ]
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(frames) + 1)
        match chance.randrange(4):
            case 0:
                del frames[at : at + 1]
            case 1:
                frames[at:at] = frames[at : at + 1] * chance.randint(1, 5)
            case 2:
                kind, flags = chance.randrange(12), chance.randrange(256)
                stream = chance.choice([0, 1, 2, 3, 2**31 - 1, 2**32 - 1])
                frames.insert(
                    at, Frame(kind, flags, stream, chance.randbytes(chance.choice([0, 4, 5, 6, 8, 99])))
                )
            case _:
                frames.sort(key=lambda _: chance.random())
    return http2.PREFACE + b"".join(
        damaged(bytes(frame), chance) if chance.random() < 0.2 else bytes(frame) for frame in frames
    )


def ends(connection: Any) -> None:
    """See that the server closes a connection on which no more is sent."""
    with contextlib.suppress(ConnectionError):
        connection.shutdown(1)
        while connection.recv(65536):
            pass
    connection.close()


def test_malformed_frames_end_their_connection_only(victim: Victim) -> None:
    chance = random.Random(2)

    def inflict() -> None:
        for number in range(600):
            sent = nonsense(chance) if number % 10 else chance.randbytes(chance.randint(1, 500))
            with contextlib.suppress(ConnectionError):
                ends(http2.connect(victim.target, begins=sent))

    victim.suffers(inflict)


def test_a_method_that_is_not_utf_8_is_one_that_is_not_there(victim: Victim) -> None:
    head = bytes(http2.headers(ENCODE)).replace(b"Encode", b"\xafncode")

    def inflict() -> None:
        connection = http2.connect(victim.target, begins=http2.PREFACE + bytes(http2.settings()) + head)
        received = b""
        while b"this server has no method" not in received:
            received += connection.recv(65536)
        connection.close()

    victim.suffers(inflict)


HEAD = http2.headers(ENCODE)

ATTACKS = {
    "a stream opened and reset, again and again": [
        frame
        for stream in range(1, 4001, 2)
        for frame in (http2.headers(ENCODE, stream), Frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08"))
    ],
    "pings": [Frame(http2.PING, payload=b"\0" * 8)] * 20_000,
    "settings": [http2.settings(window=70_000)] * 20_000,
    "a head that never ends": [
        Frame(http2.HEADERS, 0, 1, HEAD.payload),
        *[Frame(http2.CONTINUATION, 0, 1, b"\0\x01a\x7e" + b"b" * 126)] * 20_000,
    ],
    "one field, told over and over": [
        Frame(http2.HEADERS, 0, 1, HEAD.payload + b"\x40\x01a\x7e" + b"b" * 126),
        *[Frame(http2.CONTINUATION, 0, 1, b"\xbe" * 16_000)] * 50,
        Frame(http2.CONTINUATION, END_HEADERS, 1, b""),
    ],
    "data of no bytes": [HEAD, *[Frame(http2.DATA, 0, 1)] * 20_000],
    "windows beyond all bounds": [HEAD, *[Frame(http2.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")] * 100],
    "more than the window": [HEAD, *http2.message(b"a" * 8_000_000, last=False)],
    "a message said to have 4 GB": [HEAD, *http2.message(b"a" * 1000, says=2**32 - 1, last=False)],
    "a thousand calls that send nothing": [http2.headers(ENCODE, stream) for stream in range(1, 2001, 2)],
    "the end before the beginning": [
        Frame(http2.DATA, END_STREAM, 1),
        HEAD,
        Frame(http2.GOAWAY, 0, 0, b"\0" * 8),
    ],
    "an answer to nothing": [Frame(http2.SETTINGS, ACK)] * 1000,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_frames_that_are_meant_to_harm(victim: Victim, attack: str) -> None:
    sent = http2.PREFACE + bytes(http2.settings()) + b"".join(map(bytes, ATTACKS[attack]))

    def inflict() -> None:
        for _ in range(3):
            with connections(1) as opened, contextlib.suppress(OSError):
                opened.append(http2.connect(victim.target, begins=b""))
                # The server need not read it all.
                opened[0].settimeout(1)
                opened[0].sendall(sent)

    # What gRPC reads of them varies, and is freed late.
    victim.suffers(inflict, megabytes=128)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long hours(void) {
    long found = 0;
    FILE *file = fopen(getenv("CLOCK_IS_WRONG_BY"), "r");
    if (file) { if (fscanf(file, "%ld", &found) != 1) found = 0; fclose(file); }
    return found * 3600;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += hours();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""The system's clock, wrong by as many hours as a file says; the monotonic one is right."""


def test_a_clock_that_jumps(
    tiny_bundle: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    library, wrong_by = tmp_path / "clock.so", tmp_path / "hours"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c"], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler, and a clock that jumps needs one")
    wrong_by.write_text("0")
    flags = ("--log-format", "json", "--log-level", "debug")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("CLOCK_IS_WRONG_BY", str(wrong_by))
        started = victim_with("--bundle", tiny_bundle, "--index", index, *flags)
        victim = started.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(started.__exit__)
        jumps = iter(["5", "-5", "90000", "-9000", "0"])
        here = threading.Semaphore(0)

        def chunks() -> Iterator[Any]:
            while here.acquire(timeout=60):
                yield CHUNK

        # A stream and a deadline that live through all jumps.
        answers = victim.stubs.encode_stream(chunks(), timeout=600)
        health: Any = health_pb2_grpc.HealthStub(victim.stubs.channel)
        for hours in jumps:
            wrong_by.write_text(hours)
            here.release()
            assert len(next(answers).response.embeddings) == len(CALL.texts)
            victim.suffers(lambda: None)
            status = health.Check(health_pb2.HealthCheckRequest(), timeout=60).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        answers.cancel()
        # The clock did jump, for the log has its times.
        years = {line.split('"time": "')[1][:4] for line in victim.log if '"time"' in line}
        assert len(years) == 3


def test_an_index_that_is_damaged_is_refused_while_the_old_one_serves(
    victim: Victim, tiny_bundle: Path, index: Path
) -> None:
    damaged_index = index.parent / "damaged"
    if not damaged_index.exists():
        write_index(damaged_index, Encoder(tiny_bundle), RECORDS)
        with (damaged_index / "index.faiss").open("r+b") as file:
            file.seek(40)
            file.write(b"\xff" * 40)

    def inflict() -> None:
        with Client(victim.target) as client:
            for _ in range(5):
                with pytest.raises(RequestError) as caught:
                    client.load_index("default", str(damaged_index))
                assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION

    victim.suffers(inflict)


def test_strangers_at_a_secure_port(tiny_bundle: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("server", ends=NOW - DAY)
    keys = write_keys(tmp_path / "keys.toml", {"right": {"rights": {"encode"}}})
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    # Nobody reads its log, which must hold up no call.
    with serving("--bundle", tiny_bundle, *tls, "--keys", keys) as (server, target):
        target = target.replace("localhost", "127.0.0.1")
        with (
            Client(target, ca=authority.file, api_key="right", timeout=2) as client,
            pytest.raises(RequestError, match="certificate has expired"),
        ):
            client.encode(TEXTS)
        authority.issue("server")
        with Client(target, ca=authority.file, api_key="right", timeout=60) as client:
            eventually(lambda: _is_answered(client))
            process = psutil.Process(server.pid)
            for number in range(2):
                for _ in range(1000):
                    http2.reset(http2.connect(target, begins=b"GET / HTTP/1.0\r\n\r\n"))
                with Client(target, ca=authority.file, api_key="wrong") as stranger:
                    for _ in range(100):
                        with pytest.raises(RequestError) as caught:
                            stranger.encode(TEXTS)
                        assert caught.value.reason == "BAD_KEY"
                assert len(client.encode(TEXTS).vectors) == len(TEXTS)
                if number == 0:
                    eventually(lambda: process.num_fds() < 60)
                    before = process.memory_info().rss
            eventually(lambda: process.num_fds() < 60)
            assert process.memory_info().rss < before + SPARE_MEGABYTES * 1e6


def _is_answered(client: Client) -> bool:
    try:
        return len(client.encode(TEXTS).vectors) == len(TEXTS)
    except RequestError:
        return False


@pytest.mark.slow
def test_memory_is_flat_over_20_000_mixed_calls(victim: Victim) -> None:
    """Within SPARE_MEGABYTES of what the first tenth took."""
    chance = random.Random(3)

    def call(number: int) -> None:
        words = " ".join(
            chance.choices(["open", "the", "door", "printer", "learn", "42"], k=chance.randint(1, 60))
        )
        match number % 10:
            case 0:
                cancel(victim.stubs, 1)
            case 1:
                list(victim.stubs.encode_stream(iter([CHUNK, CHUNK]), timeout=60))
            case 2:
                with pytest.raises(grpc.RpcError):
                    victim.stubs.encode(embedding_pb2.EncodeRequest(), timeout=60)
            case 3:
                with contextlib.suppress(grpc.RpcError):
                    victim.stubs.encode(CALL, timeout=0.001)
            case 4:
                break_off(victim.target, 1)
            case 5 | 6:
                victim.stubs.encode(embedding_pb2.EncodeRequest(texts=[words] * 5), timeout=60)
            case _:
                query = search_pb2.Query(text=f"{words} {number}")
                victim.stubs.search(search_pb2.SearchRequest(queries=[query], top_k=3), timeout=60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(2000)))
        before = victim.megabytes()
        list(pool.map(call, range(2000, 20_000)))
    victim.is_rid_of_it()
    print(f"{before:.1f} MB after 2,000 calls, {victim.megabytes():.1f} MB after 20,000", file=sys.stderr)
    assert victim.megabytes() < before + SPARE_MEGABYTES
