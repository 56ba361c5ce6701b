"""Calls to a server, from a process of its own that is told what to do on standard input.

Run by ``serving.py`` as ``python load.py TEXTS``, with the texts as a JSON list. Orders and answers are one
JSON document a line. A closed load has so many callers, each with its next call once the last one is
answered: it shows what a server can do. An open load has a schedule that is fixed beforehand and waits for
nobody: each call's time counts from when it was due, so that no queueing is hidden.
"""

import asyncio
import base64
import contextlib
import functools
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop

CHANNELS = 4
"""Connections of a gRPC load, as several clients would have."""

ENCODE = "/cognate.v1.EmbeddingService/Encode"
SEARCH = "/cognate.v1.SearchService/Search"
TOP_K = 10
LOOK_SECONDS = 0.001
"""How often an open load looks at its schedule and for answers: to be woken for each takes as long on the
cores, which it shares with the server, as to send and read it. Times are measured longer by up to as much."""
LOOKS_HELD = 32
"""Looks whose answers are kept, with the time of each, and understood together."""

NO_DEADLINE = 30.0
"""Seconds for a call that is given no deadline, so that a load always ends."""

LONG_TEXT_WORDS = 200
MIXED = (*("encode 1", "search 1") * 4, "encode 8", "search 8", "search 1", "encode long")
"""What a mixed load asks for, in turn."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made.

    Attributes:
        due: When it was to be made, in seconds from the start of the load.
        sent: When it was.
        done: When it ended.
        outcome: "answered", "refused" (the server has no room), "late" (its deadline passed), or what failed.
    """

    due: float
    sent: float
    done: float
    outcome: str


def schedule(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """When the calls of an open load are due: at random and independent, as those of many people are.

    Args:
        rate: Calls a second, in the mean.
        seconds: From the first to the last.
        seed: The same gives the same schedule.

    Returns:
        Seconds from the start, ascending, all less than ``seconds``.
    """
    rng = np.random.default_rng(seed)
    # A Poisson process, given how many of its events there were, has them at uniform times.
    return sorted(rng.uniform(0, seconds, round(rate * seconds)).tolist())


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50 and p99 of seconds, in milliseconds; None where there are no values."""
    if not values:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(values, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def closed_account(calls: Sequence[Call]) -> dict[str, Any]:
    """What a closed load shows: answers a second until the last one, and how long they took."""
    answered = [call for call in calls if call.outcome == "answered"]
    seconds = max((call.done for call in calls), default=0.0)
    return {
        "calls_per_second": len(answered) / seconds if seconds else 0.0,
        **percentiles([call.done - call.sent for call in answered]),
        "failed": len(calls) - len(answered),
    }


def open_account(calls: Sequence[Call], seconds: float, deadline: float) -> dict[str, Any]:
    """What an open load shows.

    Args:
        calls: All of the schedule.
        seconds: Of the schedule.
        deadline: Seconds after which an answer is of no use, less than ``seconds``.

    Returns:
        goodput: answers within the deadline, a second. Counted while the load was full: not in its first
        ``deadline`` seconds, in which the queue fills, nor after its end. accepted: calls that were not
        refused; their p50_ms and p99_ms count from when they were due, and within_deadline is a share of
        them. refused: the share of all, and refusal_p50_ms and refusal_p99_ms count from when they were sent,
        since how late the loader was (late_ms, p99) is no doing of the server's.
    """
    accepted = [call for call in calls if call.outcome in ("answered", "late")]
    refused = [call for call in calls if call.outcome == "refused"]
    good = [call for call in accepted if call.outcome == "answered" and call.done - call.due <= deadline]
    refusal = percentiles([call.done - call.sent for call in refused])
    return {
        "offered_per_second": len(calls) / seconds,
        "goodput": sum(deadline <= call.done < seconds for call in good) / (seconds - deadline),
        "accepted": len(accepted),
        **percentiles([call.done - call.due for call in accepted]),
        "within_deadline": len(good) / len(accepted) if accepted else None,
        "refused": len(refused) / len(calls) if calls else 0.0,
        "refusal_p50_ms": refusal["p50_ms"],
        "refusal_p99_ms": refusal["p99_ms"],
        "failed": len(calls) - len(accepted) - len(refused),
        "late_ms": percentiles([call.sent - call.due for call in calls])["p99_ms"],
    }


def text_at(texts: Sequence[str], position: int) -> str:
    """A text for each position, hardly ever the same twice, so that no server answers from what it has kept.

    Where the texts are used up, they come again with their words in another order.
    """
    turn, index = divmod(position, len(texts))
    if not turn:
        return texts[index]
    words = texts[index].split()
    turn %= max(1, len(words))
    return " ".join(words[turn:] + words[:turn])


class Request(NamedTuple):
    """What a call sends.

    Attributes:
        path: Of the method, or in HTTP's words.
        body: Serialized.
        wanted: Vectors or results that an answer has.
    """

    path: str
    body: bytes
    wanted: int


Begin = Callable[[], asyncio.Future[Any]]
"""Begins a call that is prepared, and gives what will be its answer."""


class Target:
    """A server to call.

    Attributes:
        used: Texts that were sent so far, from the position that the order named.
    """

    def __init__(self, order: dict[str, Any], texts: Sequence[str]) -> None:
        self._address: str = order["address"]
        self._kind: str = order["call"]
        self._texts = texts
        self._first: int = order.get("first", 0)
        self.used = 0

    def take(self, count: int) -> list[str]:
        """The next so many texts."""
        start = self._first + self.used
        self.used += count
        return [text_at(self._texts, position) for position in range(start, start + count)]

    async def call(self, number: int, timeout: float) -> str:
        """Make a call, and tell its outcome."""
        request = self.request(number)
        return self.outcome(request, await self.answer(number, request, timeout))[0]

    def request(self, number: int) -> Request:
        """What a call sends."""
        raise NotImplementedError

    async def answer(self, number: int, request: Request, timeout: float) -> Any:
        """Send a call, and give its answer."""
        raise NotImplementedError

    async def prepare(self, requests: Sequence[Request], timeout: float) -> Sequence[Begin]:
        """Prepare calls, so that to send them takes little; their answers may be kept until ``read_held``.

        Args:
            requests: Of the calls, in their order.
            timeout: Seconds after which each is given up.
        """
        raise NotImplementedError

    def read_held(self) -> None:
        """Read the answers that were kept."""

    def outcome(self, request: Request, answer: Any) -> tuple[str, float]:
        """Judge a call that has ended.

        Args:
            request: What it sent.
            answer: What came.

        Returns:
            The outcome, and when its answer was there, by ``time.perf_counter``; 0 where the client gave up.
        """
        raise NotImplementedError

    async def encode(self, texts: list[str]) -> Any:
        """Encode texts, and give the vectors, shape (texts, dimension)."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""
        raise NotImplementedError


class GrpcTarget(Target):
    """A server of the contract, or one that answers empty calls."""

    def __init__(self, order: dict[str, Any], texts: Sequence[str]) -> None:
        super().__init__(order, texts)
        from http2 import Channel, Connection

        from cognate.v1 import embedding_pb2, search_pb2

        self._embedding, self._search = embedding_pb2, search_pb2
        count = min(CHANNELS, order.get("concurrency", CHANNELS))
        self._channels = [Channel(self._address) for _ in range(count)]
        self._connections: list[Connection] = []

    def request(self, number: int) -> Request:  # noqa: D102
        kind = MIXED[number % len(MIXED)] if self._kind == "mixed" else self._kind
        if kind == "empty":
            return Request("/benchmark.Empty/Call", b"", 0)
        if kind == "encode long":
            texts = [" ".join(" ".join(self.take(40)).split()[:LONG_TEXT_WORDS])]
            return Request(ENCODE, self._encode_request(texts), 1)
        method, _, count = kind.partition(" ")
        texts = self.take(int(count))
        if method == "encode":
            return Request(ENCODE, self._encode_request(texts), len(texts))
        return Request(SEARCH, self._search_request(texts), len(texts))

    async def answer(self, number: int, request: Request, timeout: float) -> Any:  # noqa: D102
        channel = self._channels[number % len(self._channels)]
        return await channel.call(request.path, request.body, timeout)

    async def prepare(self, requests: Sequence[Request], timeout: float) -> Sequence[Begin]:  # noqa: D102
        self._connections = [await channel.connection(timeout) for channel in self._channels]
        for connection in self._connections:
            connection.held = True
        return [
            connection.prepare(request.path, request.body, timeout)
            for connection, request in zip(itertools.cycle(self._connections), requests, strict=False)
        ]

    def read_held(self) -> None:  # noqa: D102
        for connection in self._connections:
            connection.read_held()

    def outcome(self, request: Request, answer: Any) -> tuple[str, float]:  # noqa: D102
        return self._outcome(request, answer), answer.at

    def _outcome(self, request: Request, answer: Any) -> str:
        status, details, message, _ = answer
        if status != "OK":
            outcomes = {"RESOURCE_EXHAUSTED": "refused", "DEADLINE_EXCEEDED": "late"}
            return outcomes.get(status, f"{status}: {details}")
        if request.path == ENCODE:
            found = len(self._embedding.EncodeResponse.FromString(message).embeddings)
        elif request.path == SEARCH:
            found = len(self._search.SearchResponse.FromString(message).results)
        else:
            found = len(message)
        return "answered" if found == request.wanted else f"wrong: {found} for {request.wanted}"

    async def encode(self, texts: list[str]) -> Any:  # noqa: D102
        answer = await self._channels[0].call(ENCODE, self._encode_request(texts), NO_DEADLINE)
        if answer.status != "OK":
            raise RuntimeError(f"{answer.status}: {answer.details}")
        embeddings = self._embedding.EncodeResponse.FromString(answer.message).embeddings
        return np.array([np.frombuffer(each.packed, "<f4") for each in embeddings])

    def close(self) -> None:  # noqa: D102
        for channel in self._channels:
            channel.close()

    def _encode_request(self, texts: list[str]) -> bytes:
        return self._embedding.EncodeRequest(
            texts=texts, format=self._embedding.EmbeddingFormat.EMBEDDING_FORMAT_PACKED
        ).SerializeToString()

    def _search_request(self, texts: list[str]) -> bytes:
        queries = [self._search.Query(text=text) for text in texts]
        return self._search.SearchRequest(queries=queries, top_k=TOP_K).SerializeToString()


class HttpTarget(Target):
    """A server with OpenAI's embeddings call, which Infinity has."""

    def __init__(self, order: dict[str, Any], texts: Sequence[str]) -> None:
        super().__init__(order, texts)
        from http1 import Pool

        self._pool = Pool(self._address)
        self._model: str = order["model"]

    def request(self, number: int) -> Request:  # noqa: D102
        texts = self.take(int(self._kind.split()[1]))
        return Request("/embeddings", self._request(texts), len(texts))

    async def answer(self, number: int, request: Request, timeout: float) -> Any:  # noqa: D102
        answer: Any
        try:
            answer = await self._pool.post(request.path, request.body, timeout)
        except OSError as error:
            answer = error
        return answer, time.perf_counter()

    async def prepare(self, requests: Sequence[Request], timeout: float) -> Sequence[Begin]:  # noqa: D102
        def begin(number: int, request: Request) -> asyncio.Future[Any]:
            return asyncio.ensure_future(self.answer(number, request, timeout))

        return [functools.partial(begin, *each) for each in enumerate(requests)]

    def outcome(self, request: Request, answer: Any) -> tuple[str, float]:  # noqa: D102
        response, at = answer
        return self._outcome(request, response), at

    def _outcome(self, request: Request, response: Any) -> str:
        if isinstance(response, TimeoutError):
            return "late"
        if isinstance(response, OSError):
            return f"{type(response).__name__}: {response}"
        status, body = response
        if status != 200:
            return "refused" if status == 429 else f"{status}: {body.decode(errors='replace')}"
        found = len(json.loads(body)["data"])
        return "answered" if found == request.wanted else f"wrong: {found} for {request.wanted}"

    async def encode(self, texts: list[str]) -> Any:  # noqa: D102
        status, body = await self._pool.post("/embeddings", self._request(texts), NO_DEADLINE)
        if status != 200:
            raise RuntimeError(f"{status}: {body.decode(errors='replace')}")
        data = json.loads(body)["data"]
        return np.array([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])

    def close(self) -> None:  # noqa: D102
        self._pool.close()

    def _request(self, texts: list[str]) -> bytes:
        # base64 is Infinity's quickest form.
        return json.dumps({"model": self._model, "input": texts, "encoding_format": "base64"}).encode()


Make = Callable[[int, float], Awaitable[str]]
"""Makes a call of this number within so many seconds, and gives its outcome."""


async def closed_load(call: Make, concurrency: int, seconds: float, calls: int | None) -> list[Call]:
    """Keep so many calls under way, until the seconds or the calls are over."""
    made: list[Call] = []
    numbers: Iterator[int] = iter(range(calls if calls is not None else sys.maxsize))
    started = time.perf_counter()

    async def caller() -> None:
        while (sent := time.perf_counter() - started) < seconds:
            number = next(numbers, None)
            if number is None:
                return
            outcome = await call(number, NO_DEADLINE)
            made.append(Call(sent, sent, time.perf_counter() - started, outcome))

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return made


async def open_load(
    calls: Sequence[Begin],
    outcome: Callable[[int, Any], tuple[str, float]],
    dues: Sequence[float],
    deadline: float,
    read_held: Callable[[], None] = lambda: None,
) -> list[Call]:
    """Make each call when it is due, whatever became of those before it.

    Args:
        calls: Prepared, one for each due.
        outcome: Judges its answer, and tells when that was there; after the load, so that it takes no time
            from it.
        dues: When each is due, in seconds.
        deadline: Seconds after which an answer is of no use.
        read_held: Reads the answers that are kept until then.
    """
    ended: list[Call] = []
    made: list[tuple[int, float, asyncio.Future[Any]]] = []
    looks = 0
    started = time.perf_counter()

    async def look() -> None:
        nonlocal looks
        # Not the event loop's waiting, which wakes for every answer.
        time.sleep(LOOK_SECONDS)
        # What has come is read meanwhile.
        await asyncio.sleep(0)
        looks += 1
        if looks % LOOKS_HELD == 0:
            read_held()

    for number, (due, begin) in enumerate(zip(dues, calls, strict=True)):
        while due > time.perf_counter() - started:
            await look()
        sent = time.perf_counter() - started
        if due + deadline <= sent:
            ended.append(Call(due, sent, sent, "late"))
        else:
            made.append((number, sent, begin()))
    for number, sent, answer in made:
        while not answer.done():
            await look()
        judged, at = outcome(number, answer.result())
        ended.append(Call(dues[number], sent, at - started if at else sent + deadline, judged))
    return ended


async def obey(order: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Do what an order says.

    Args:
        order: address, process (whose time on the cores is counted), protocol ("grpc" or "http"), model (for
            http), call ("encode N", "search N", "empty" or "mixed"), first (position of the first text); then
            vectors_of (texts), or rate, seconds, deadline and seed of an open load, or concurrency, seconds
            and perhaps calls of a closed one.
        texts: To send.
    """
    target = (HttpTarget if order.get("protocol") == "http" else GrpcTarget)(order, texts)
    try:
        if "vectors_of" in order:
            return {"vectors": (await target.encode(order["vectors_of"])).tolist()}
        # So that connecting, and what a server does first of all, is not counted.
        concurrency = order.get("concurrency", CHANNELS)
        await closed_load(target.call, concurrency, NO_DEADLINE, 2 * concurrency)
        dues = schedule(order["rate"], order["seconds"], order["seed"]) if "rate" in order else []
        # Made beforehand: the load is to take little of the cores that it shares.
        requests = [target.request(number) for number in range(len(dues))]
        prepared = await target.prepare(requests, order["deadline"]) if requests else []
        # Nor is what it keeps to be looked through for what may go.
        gc.disable()
        server, own = core_seconds(order["process"]), time.process_time()
        if "rate" in order:
            calls = await open_load(
                prepared,
                lambda number, answer: target.outcome(requests[number], answer),
                dues,
                order["deadline"],
                target.read_held,
            )
        else:
            calls = await closed_load(target.call, concurrency, order["seconds"], order.get("calls"))
        return {
            "calls": [(call.due, call.sent, call.done, call.outcome) for call in calls],
            "server_core_seconds": core_seconds(order["process"]) - server,
            "loader_core_seconds": time.process_time() - own,
            "used": target.used,
        }
    finally:
        gc.enable()
        target.close()


def core_seconds(process: int) -> float:
    """Time that a process and those it started have had on the cores."""
    import psutil

    top = psutil.Process(process)
    total = 0.0
    for each in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


async def main() -> None:
    """Obey until the input ends."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    texts = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({"ready": time.time()}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await obey(json.loads(line), texts)), file=answers, flush=True)


if __name__ == "__main__":
    uvloop.run(main())
