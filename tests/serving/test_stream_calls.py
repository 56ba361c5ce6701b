"""EncodeStream and SearchStream over a real socket."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from cognate.encoder import Encoder
from cognate.v1 import embedding_pb2, search_pb2
from serving.embedding_service import CHUNKS_AT_A_TIME
from tests.serving.servers import Failure, GatedEncoder, Running, Stubs, failure, until_let_in

ServeGated = Callable[..., tuple[Running, GatedEncoder]]

TEXTS = [f"open the door {number}" for number in range(40)]
QUERY = search_pb2.Query(text="open the door")


def encode_chunk(texts: list[str], identifier: int = 0, **fields: Any) -> embedding_pb2.EncodeStreamRequest:
    request = embedding_pb2.EncodeRequest(texts=texts, **fields)
    return embedding_pb2.EncodeStreamRequest(id=identifier, request=request)


def search_chunk(queries: list[search_pb2.Query], identifier: int = 0) -> search_pb2.SearchStreamRequest:
    request = search_pb2.SearchRequest(queries=queries, top_k=3)
    return search_pb2.SearchStreamRequest(id=identifier, request=request)


def ended(answers: Any) -> tuple[list[Any], Failure]:
    """Read a stream that must fail, and give what came before."""
    came = []
    with pytest.raises(grpc.RpcError) as caught:
        came.extend(iter(answers.next, None))
    return came, Failure(caught.value)


class Sending:
    """A stream's messages as the test sends them, one after the other."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.sent = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Any]:
        while (message := self._messages.get(timeout=60)) is not None:
            yield message
            self.sent.release()

    def send(self, message: Any) -> None:
        self._messages.put(message)

    def end(self) -> None:
        self._messages.put(None)


def test_chunks_are_encoded_in_order_and_know_their_place(stubs: Stubs, encoder: Encoder) -> None:
    sizes = [3, 1, 0, 20, 2]
    starts = np.cumsum([0, *sizes]).tolist()
    parts = [TEXTS[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    parts = [part for part in parts if part]
    answers = list(
        stubs.encode_stream(
            iter([encode_chunk(part, 100 + number) for number, part in enumerate(parts)]), timeout=60
        )
    )
    assert [answer.id for answer in answers] == [100, 101, 102, 103]
    assert [answer.first_text for answer in answers] == [0, 3, 4, 24]
    vectors = [list(vector.values) for answer in answers for vector in answer.response.embeddings]
    assert np.array(vectors) == pytest.approx(encoder.encode(TEXTS[:26]), abs=1e-5)
    for answer in answers:
        assert answer.response.fingerprint == encoder.fingerprint
        assert answer.response.model == encoder.bundle.manifest.model
        assert len(answer.response.usages) == len(answer.response.embeddings)
        assert answer.response.timings.encode_us > 0


def test_chunks_of_queries_are_searched_in_order(stubs: Stubs) -> None:
    alone = stubs.search(search_chunk([QUERY]).request, timeout=60)
    chunks = [search_chunk([QUERY] * (1 + number), number) for number in range(3)]
    answers = list(stubs.search_stream(iter(chunks), timeout=60))
    assert [(answer.id, answer.first_query) for answer in answers] == [(0, 0), (1, 1), (2, 3)]
    for number, answer in enumerate(answers):
        assert answer.response.index_version == alone.index_version != ""
        assert len(answer.response.results) == 1 + number
        for result in answer.response.results:
            assert [hit.id for hit in result.hits] == [hit.id for hit in alone.results[0].hits]


def test_a_stream_without_chunks_has_no_answers(stubs: Stubs) -> None:
    assert not list(stubs.encode_stream(iter([]), timeout=60))


def test_who_waits_for_each_answer_before_the_next_chunk_gets_it(stubs: Stubs) -> None:
    sending = Sending()
    answers = stubs.encode_stream(iter(sending), timeout=60)
    for number in range(3):
        sending.send(encode_chunk(["open"], number))
        assert next(answers).id == number
    sending.end()
    assert not list(answers)


def test_a_chunk_that_is_refused_ends_the_stream_and_is_named(stubs: Stubs) -> None:
    chunks = [encode_chunk(["open"], 7), encode_chunk(["a", "é" * 501], 8), encode_chunk(["open"], 9)]
    came, refused = ended(stubs.encode_stream(iter(chunks), timeout=60))
    assert [answer.id for answer in came] == [7]
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["request.texts[1]"]
    assert refused.metadata == {"chunk": "1", "id": "8"}
    assert refused.message.startswith("chunk 1 of the stream: texts[1]: has 1002 bytes")
    came, refused = ended(
        stubs.search_stream(iter([search_chunk([QUERY]), search_chunk([search_pb2.Query()], 5)]), timeout=60)
    )
    assert len(came) == 1
    assert refused.fields == ["request.queries[0]"]
    assert refused.metadata == {"chunk": "1", "id": "5"}


def test_bytes_that_are_no_chunk_are_refused(running: Running) -> None:
    method = running.channel.stream_stream("/cognate.v1.EmbeddingService/EncodeStream")
    _, refused = ended(method(iter([b"\xff" * 10]), timeout=60))
    assert refused.reason == "BAD_MESSAGE"
    assert "no cognate.v1.EncodeStreamRequest" in refused.message


def test_no_further_chunk_is_read_before_an_answer_is_sent(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated()
    encoder.gate.clear()
    chunks = iter([encode_chunk([f"open {number}"], number) for number in range(50)])
    answers = running.stubs.encode_stream(chunks, timeout=60)
    for number in range(CHUNKS_AT_A_TIME):
        assert encoder.wait_for("tokenize") == [f"open {number}"]
    # Another call goes through all that is at hand for the event loop, and no third chunk is among it.
    with pytest.raises(grpc.RpcError):
        running.stubs.encode(embedding_pb2.EncodeRequest(), timeout=60)
    assert encoder.events.qsize() <= 1
    encoder.gate.set()
    assert [answer.id for answer in answers] == list(range(50))


def test_a_reader_that_is_slow_holds_up_its_own_stream_only(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_texts=4096)
    # Answers of half a megabyte: more than flow control lets by unread.
    chunks = iter([encode_chunk(["open"] * 4096, number) for number in range(200)])
    answers = running.stubs.encode_stream(chunks, timeout=120)
    assert next(answers).id == 0
    for _ in range(20):
        assert running.stubs.encode(embedding_pb2.EncodeRequest(texts=["door"]), timeout=60).embeddings
    # Of its chunks, most have not even been read.
    read = 0
    while not encoder.events.empty():
        read += encoder.events.get() == ("tokenize", ["open"])
    assert read < 100
    answers.cancel()


def test_a_full_queue_holds_up_a_stream_and_does_not_refuse_it(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_queue_tokens=4)
    encoder.gate.clear()
    held = [running.stubs.encode.future(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60)]
    encoder.wait_for("forward")
    held.append(running.stubs.encode.future(embedding_pb2.EncodeRequest(texts=["door"]), timeout=60))
    encoder.wait_for("tokenize")
    refused = failure(running.stubs.encode, embedding_pb2.EncodeRequest(texts=["door"]))
    assert refused.reason == "QUEUE_FULL"
    answers = running.stubs.encode_stream(iter([encode_chunk(TEXTS)]), timeout=60)
    assert encoder.wait_for("tokenize") == TEXTS
    encoder.gate.set()
    assert len(next(answers).response.embeddings) == len(TEXTS)
    assert all(call.result().embeddings for call in held)


def test_streams_over_the_bound_are_refused_until_one_ends(serve: Callable[..., Running]) -> None:
    stubs = serve(max_streams=1).stubs
    sending = Sending()
    first = stubs.encode_stream(iter(sending), timeout=60)
    sending.send(encode_chunk(["open"]))
    assert next(first).response.embeddings
    _, refused = ended(stubs.search_stream(iter([search_chunk([QUERY])]), timeout=60))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "TOO_MANY_CALLS"
    assert refused.retry_seconds
    # Calls that are no streams go on.
    assert stubs.search(search_chunk([QUERY]).request, timeout=60).results
    sending.end()
    assert not list(first)
    assert list(stubs.search_stream(iter([search_chunk([QUERY])]), timeout=60))


def test_a_client_that_goes_in_the_middle_leaves_nothing_and_is_no_failure(
    serve_gated: ServeGated, caplog: pytest.LogCaptureFixture
) -> None:
    running, encoder = serve_gated(max_streams=1, max_calls=1)
    encoder.gate.clear()
    answers = running.stubs.encode_stream(iter([encode_chunk(TEXTS)]), timeout=60)
    encoder.wait_for("forward")
    answers.cancel()
    encoder.gate.set()
    # There is room for one: it is let in once the other is gone.
    until_let_in(running.stubs)
    # Nor is one that goes while an answer is being sent to it.
    many = iter([encode_chunk(TEXTS * 20, number) for number in range(200)])
    answers = running.stubs.encode_stream(many, timeout=60)
    next(answers)
    answers.cancel()
    until_let_in(running.stubs)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


def test_a_server_that_stops_answers_what_it_read_and_ends_the_stream(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated()
    encoder.gate.clear()
    sending = Sending()
    answers = running.stubs.encode_stream(iter(sending), timeout=60)
    sending.send(encode_chunk(["open"], 3))
    encoder.wait_for("forward")
    running.begin_to_stop()
    encoder.gate.set()
    came, refused = ended(answers)
    assert [answer.id for answer in came] == [3]
    assert refused.code == grpc.StatusCode.UNAVAILABLE
    assert refused.reason == "STOPPING"
    sending.end()
    running.stop()
