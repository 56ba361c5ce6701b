"""The log of a server: lines of text or JSON on standard error, which may fail or stall without harm."""

import contextlib
import datetime
import json
import logging
import os
import queue
import random
import threading
from collections.abc import Iterator
from typing import Any, Literal

from serving.callers import TENANT
from serving.observing import ObservedCall, Observer, caller_trace_id

STANDARD_ERROR = 2

MAX_WAITING_LINES = 10_000
"""Lines that wait to be written; more are dropped, so that a reader that stalls costs no memory."""

LAST_LINES_SECONDS = 1.0
"""For what still waits when the server ends."""

MAX_LOGGED_TEXTS = 10
MAX_LOGGED_CHARACTERS = 256
"""Of a text, where texts are logged at all."""

MAX_LOGGED_NAME = 64
"""Characters of what a caller says about itself."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_log = logging.getLogger("serving.calls")


class CallLog(Observer):
    """Writes a line for each call, at debug. Of the metadata it tells the tenant and the trace, no more."""

    def __init__(self, *, sample: float, texts: bool) -> None:
        """Make it.

        Args:
            sample: The share of calls that get a line, 0 to 1.
            texts: Whether to tell the texts of the last request, the first characters of the first ones.
        """
        self._sample = sample
        self._texts = texts

    def ended(self, call: ObservedCall) -> None:
        """Write the line."""
        if self._sample < 1 and random.random() >= self._sample:  # noqa: S311
            return
        metadata = call.metadata()
        fields: dict[str, Any] = {
            "method": call.method,
            "code": call.code.name,
            "reason": call.reason,
            "ms": round(1000 * call.seconds, 3),
            "index": call.index,
            "tenant": metadata.get(TENANT, "")[:MAX_LOGGED_NAME],
            "peer": call.context.peer(),
            "trace_id": call.trace_id or caller_trace_id(metadata),
        }
        if answer := call.total:
            fields.update(
                texts=answer.texts,
                tokens=answer.tokens,
                tokenize_ms=answer.tokenize_us / 1000,
                queue_ms=answer.queue_us / 1000,
                encode_ms=answer.encode_us / 1000,
                search_ms=answer.search_us / 1000,
            )
        if self._texts and call.request is not None:
            fields["input"] = _input(call.request)
        fields = {key: value for key, value in fields.items() if value != ""}
        _log.debug("call", extra={"fields": fields})


def _input(request: Any) -> list[str]:
    texts = getattr(request, "texts", None)
    if texts is None:
        texts = [query.text for query in getattr(request, "queries", ())[:MAX_LOGGED_TEXTS]]
    return [text[:MAX_LOGGED_CHARACTERS] for text in texts[:MAX_LOGGED_TEXTS]]


class TextFormatter(logging.Formatter):
    """For a person: what is said in the ordinary way has no frills."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._plain = logging.Formatter("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Write a record, its fields as key=value."""
        line = self._plain.format(record) if record.levelno == logging.INFO else super().format(record)
        fields = getattr(record, "fields", {})
        return " ".join([line, *(f"{key}={_word(value)}" for key, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """For a program: one JSON object a line, with time, level, logger, message and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        document = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def _word(value: object) -> str:
    word = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(word, ensure_ascii=False) if any(c.isspace() or c == '"' for c in word) else word


class Writer(logging.Handler):
    """Writes lines to a file descriptor in a thread of its own.

    Who logs never waits and never fails: where the descriptor fails, a line is lost; where it stalls, lines
    wait up to a bound, and then are dropped. Once it works again, a line says how many were lost.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._lines: queue.Queue[logging.LogRecord | threading.Event | None] = queue.Queue(MAX_WAITING_LINES)
        self._lost = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record."""
        # Not emit: there is no need of the handler's lock, which a fork or a stall could leave held.
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._lost += 1
        return True

    def flush(self) -> None:
        """Wait until what was logged so far is written or lost, for a second at most."""
        if self._ended:
            return
        written = threading.Event()
        # Where the queue is full, the descriptor has stalled.
        with contextlib.suppress(queue.Full):
            self._lines.put(written, timeout=LAST_LINES_SECONDS)
            written.wait(LAST_LINES_SECONDS)

    def close(self) -> None:
        """Flush, no more: a library that sets up logging closes all handlers there are, as pymilvus does."""
        self.flush()

    def end(self) -> None:
        """Flush, and end the thread; one that has stalled ends with the process."""
        self.flush()
        # At its end the process flushes and closes all handlers that there were, once more.
        self._ended = True
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)

    def _run(self) -> None:
        while (taken := self._lines.get()) is not None:
            if isinstance(taken, threading.Event):
                taken.set()
                continue
            try:
                self._write(self.format(taken))
                if lost := self._lost:
                    self._write(self.format(_lost(lost)))
                    self._lost -= lost
            except Exception:
                self._lost += 1

    def _write(self, line: str) -> None:
        rest = line.encode("utf-8", "backslashreplace") + b"\n"
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def _lost(lines: int) -> logging.LogRecord:
    return logging.LogRecord(
        __name__, logging.WARNING, __file__, 0, "%d lines of the log could not be written", (lines,), None
    )


@contextlib.contextmanager
def logging_to_standard_error(form: LogFormat, level: LogLevel) -> Iterator[None]:
    """Send the log of this process to standard error, until the end; then it goes where it went before.

    Args:
        form: "text" or "json".
        level: What is logged of our own; of libraries, warnings and what is worse.
    """
    root = logging.getLogger()
    ours = [logging.getLogger(name) for name in ("serving", "cognate")]
    before = root.handlers, root.level, [each.level for each in ours]
    writer = Writer(STANDARD_ERROR, JsonFormatter() if form == "json" else TextFormatter())
    root.handlers = [writer]
    root.setLevel(logging.WARNING)
    for each in ours:
        each.setLevel(level.upper())
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        for each, its_level in zip(ours, before[2], strict=True):
            each.setLevel(its_level)
        writer.end()
