"""The log: a line of JSON for what happens, never what is secret, and no harm where it cannot be written."""

import contextlib
import json
import logging
import logging.config
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.v1 import embedding_pb2
from serving.logs import JsonFormatter, TextFormatter, Writer, logging_to_standard_error
from tests.serving.servers import Stubs, failure

SECRET = "open the door of the printer"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def record(message: str, *, level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("serving.x", level, __file__, 1, message, (), None)
    made.fields = fields
    return made


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_whatever_is_logged_is_one_line_of_json(message: str, fields: dict[str, Any]) -> None:
    line = JsonFormatter().format(record(message, **{f"x{key}": value for key, value in fields.items()}))
    assert "\n" not in line
    document = json.loads(line)
    assert document["message"] == message
    assert document["level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["time"])
    assert {key[1:]: value for key, value in document.items() if key[0] == "x"} == fields


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        made = logging.LogRecord("serving", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    (line,) = JsonFormatter().format(made).splitlines()
    assert "ValueError: no" in json.loads(line)["exception"]


def test_text_is_plain_where_it_is_ordinary() -> None:
    assert TextFormatter().format(record("serving on 127.0.0.1:1")) == "serving on 127.0.0.1:1"
    line = TextFormatter().format(record("call", level=logging.DEBUG, method="Encode", input=['a "b"\n']))
    assert re.fullmatch(r'\d{4}-\S+ \S+ DEBUG serving\.x: call method=Encode input="\[\\"a .*\]"', line)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    try:
        yield reads, writes
    finally:
        for end in (reads, writes):
            with contextlib.suppress(OSError):
                os.close(end)


def test_a_log_that_works_again_says_how_much_was_lost() -> None:
    with pipe() as (reads, writes):
        # A full pipe that does not block fails, as a full disk does.
        os.set_blocking(writes, False)
        filler = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filler += os.write(writes, b"x" * 4096)
        writer = Writer(writes, TextFormatter())
        for number in range(3):
            writer.handle(record(f"lost {number}"))
        writer.flush()
        read = 0
        while read < filler:
            read += len(os.read(reads, filler - read))
        writer.handle(record("written"))
        writer.end()
        lines = os.read(reads, 65536).decode().splitlines()
    assert lines[0] == "written"
    assert lines[1].endswith("WARNING serving.logs: 3 lines of the log could not be written")


def test_the_log_goes_where_it_went_before_once_the_server_has_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("serving")
    before = root.handlers, root.level, ours.level
    with logging_to_standard_error("text", "debug"):
        logging.getLogger("serving.x").debug("one")
        logging.getLogger("a.library").info("not told")
        logging.getLogger("a.library").warning("two")
    assert (root.handlers, root.level, ours.level) == before
    one, two = capfd.readouterr().err.splitlines()
    assert one.endswith("DEBUG serving.x: one")
    assert two.endswith("WARNING a.library: two")


class Process:
    """A server in a process of its own.

    Attributes:
        stubs: A client of it.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", channel: grpc.Channel) -> None:
        self._popen = popen
        self.stubs = Stubs(channel)

    def stop(self) -> int:
        """Tell it to stop, and give its exit code."""
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(60)


@pytest.fixture
def process(bundle: Path, index: Path) -> Iterator[Callable[..., Process]]:
    """Starts ``cognate serve`` with a standard error of the test's own; it is ready once that returns."""
    with contextlib.ExitStack() as stack:

        def start(stderr: int | IO[Any], *flags: object) -> Process:
            # The port is learned from standard output, since standard error may say nothing.
            program = (
                "import sys, serving.server, cognate.cli\n"
                "start = serving.server.Server.start\n"
                "async def told(self):\n"
                "    await start(self)\n"
                "    print(self.port, flush=True)\n"
                "serving.server.Server.start = told\n"
                "cognate.cli.main()\n"
            )
            command = [sys.executable, "-c", program, "serve", "--bundle", bundle, "--index", index]
            command += ["--port", "0", "--device", "cpu", *flags]
            popen = stack.enter_context(
                subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=stderr)
            )
            stack.callback(popen.kill)
            assert popen.stdout
            channel = grpc.insecure_channel(f"127.0.0.1:{int(popen.stdout.readline())}")
            stack.callback(channel.close)
            return Process(popen, channel)

        yield start


def test_every_call_has_a_line_at_debug_that_tells_no_secret(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as log:
        server = process(log, "--log-format", "json", "--log-level", "debug")
    answer = server.stubs.encode(
        embedding_pb2.EncodeRequest(texts=[SECRET, "open"]),
        timeout=60,
        metadata=[
            ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),
            ("cognate-tenant", "shop"),
            ("authorization", "Bearer hunter2"),
        ],
    )
    failure(server.stubs.encode, embedding_pb2.EncodeRequest(texts=[SECRET], dimension=999))
    assert server.stop() == 0
    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    assert "hunter2" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    messages = [line["message"] for line in lines if line["message"] != "call"]
    assert messages[0] == "the model runs on cpu"
    assert messages[1].startswith("index default: version ")
    assert messages[2].startswith("serving on 127.0.0.1:")
    assert messages[-1] == "stopped"
    done, refused = (line for line in lines if line["message"] == "call")
    assert done["level"] == "debug"
    assert done["method"] == "Encode"
    assert done["code"] == "OK"
    assert done["texts"] == 2
    assert done["tokens"] == sum(usage.tokens for usage in answer.usages)
    assert done["encode_ms"] == answer.timings.encode_us / 1000
    assert done["ms"] > done["encode_ms"]
    assert done["tenant"] == "shop"
    assert done["trace_id"] == TRACE
    assert done["peer"].startswith("ipv4:127.0.0.1:")
    assert refused["code"] == "INVALID_ARGUMENT"
    assert refused["reason"] == "BAD_FIELD"


def test_texts_are_told_where_asked_for_and_not_at_length(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as log:
        server = process(log, "--log-format", "json", "--log-level", "debug", "--log-texts")
    server.stubs.encode(embedding_pb2.EncodeRequest(texts=[SECRET, "a" * 1000] * 20), timeout=60)
    assert server.stop() == 0
    (line,) = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"call"' in line)
    assert line["input"][0] == SECRET
    assert len(line["input"]) == 10
    assert max(map(len, line["input"])) == 256


def test_at_info_and_with_a_sample_of_none_no_call_has_a_line(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    for flags in (["--log-level", "info"], ["--log-level", "debug", "--log-sample", "0"]):
        with (tmp_path / "log").open("wb") as log:
            server = process(log, *flags)
        server.stubs.encode(embedding_pb2.EncodeRequest(texts=[SECRET]), timeout=60)
        assert server.stop() == 0
        lines = (tmp_path / "log").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["the", "index", "serving", "stopped"]


def test_a_full_disk_for_the_log_fails_no_call_and_no_server(process: Callable[..., Process]) -> None:
    with Path("/dev/full").open("wb") as full:
        server = process(full, "--log-level", "debug")
    for _ in range(20):
        assert server.stubs.encode(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60).embeddings
    failure(server.stubs.encode, embedding_pb2.EncodeRequest())
    assert server.stop() == 0


def test_a_log_that_nobody_reads_any_more_fails_no_call_and_no_server(
    process: Callable[..., Process],
) -> None:
    with pipe() as (reads, writes):
        server = process(writes, "--log-level", "debug")
        os.close(reads)
        for _ in range(20):
            assert server.stubs.encode(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60).embeddings
        assert server.stop() == 0


def test_a_log_whose_reader_stalls_holds_up_no_call_and_no_end(process: Callable[..., Process]) -> None:
    with pipe() as (_, writes):
        server = process(writes, "--log-format", "json", "--log-level", "debug", "--log-texts")
        # More than the 64 KiB that a pipe holds.
        texts = ["open the door of the printer " * 8] * 10
        for _ in range(60):
            server.stubs.encode(embedding_pb2.EncodeRequest(texts=texts), timeout=60)
        assert server.stop() == 0


def test_a_log_that_has_ended_is_waited_for_no_more() -> None:
    reading, writing = os.pipe()
    writer = Writer(writing, TextFormatter())
    writer.end()
    writer._thread.join(10)
    # As ``logging`` does at the end of every process, to all handlers that there were.
    writer.flush()
    writer.close()
    assert writer._lines.empty()
    os.close(reading)
    os.close(writing)


def test_a_library_that_sets_up_logging_does_not_end_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to_standard_error("text", "info"):
        # As pymilvus does where it is imported.
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        logging.getLogger("serving").warning("still there")
    assert "still there" in capfd.readouterr().err
