"""What every call has around it: it always ends in a status that says what to do."""

import queue
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from cognate.encoder import Encoder
from cognate.records import Record
from cognate.v1 import embedding_pb2, search_pb2
from tests.serving.servers import Failure, GatedEncoder, Running, Stubs, failure, write_index

SHORT = embedding_pb2.EncodeRequest(texts=["open"])
LONG = embedding_pb2.EncodeRequest(texts=["printer door " * 15])
LONG_TOKENS = 32

ServeGated = Callable[..., tuple[Running, GatedEncoder]]


@pytest.mark.parametrize("method", ["EmbeddingService/Encode", "SearchService/Search"])
@pytest.mark.parametrize("sent", [b"\x0a\x02\xff\xfe", b"\x0a\x0a\x0a\xff", b"\xff" * 100])
def test_bytes_that_are_no_message_are_refused(running: Running, method: str, sent: bytes) -> None:
    refused = failure(running.channel.unary_unary(f"/cognate.v1.{method}"), sent)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "BAD_MESSAGE"
    assert f"no cognate.v1.{method.split('/')[1]}Request" in refused.message


def test_an_unknown_method_is_unimplemented(running: Running) -> None:
    refused = failure(running.channel.unary_unary("/cognate.v1.SearchService/Upsert"), b"")
    assert refused.code == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_over_the_limit_is_refused_and_the_server_goes_on(stubs: Stubs) -> None:
    refused = failure(stubs.encode, embedding_pb2.EncodeRequest(texts=["a" * 200_001]))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stubs.encode(SHORT, timeout=60).embeddings


def test_a_failing_model_is_internal_and_tells_no_inner_things(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated()
    encoder.fails_on = LONG_TOKENS
    failed = failure(running.stubs.encode, LONG)
    assert failed.code == grpc.StatusCode.INTERNAL
    assert failed.reason == "ENCODING_FAILED"
    assert "0x7f00" not in failed.message
    assert "Traceback" not in failed.message
    assert running.stubs.encode(SHORT, timeout=60).embeddings


def test_an_answer_that_cannot_be_written_is_internal(
    serve: Callable[..., Running], encoder: Encoder, tmp_path: Path
) -> None:
    nested: dict[str, object] = {}
    for _ in range(200):
        nested = {"a": nested}
    folder = write_index(tmp_path / "deep", encoder, [Record("deep", attributes=nested), Record("flat")])
    stubs = serve(indexes={"deep": folder}).stubs
    request = search_pb2.SearchRequest(queries=[search_pb2.Query(text="a")], top_k=2)
    failed = failure(stubs.search, request)
    assert failed.code == grpc.StatusCode.INTERNAL
    assert failed.reason == "INTERNAL"
    request.omit_attributes = True
    assert len(stubs.search(request, timeout=60).results[0].hits) == 2


def test_a_full_queue_refuses_at_once_with_the_time_to_wait(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_queue_tokens=LONG_TOKENS)
    encoder.gate.clear()
    held = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    # There is room for one of the two, and none is answered while the gate is closed but the refused one.
    ended: queue.SimpleQueue[grpc.Future] = queue.SimpleQueue()
    both = [running.stubs.encode.future(LONG, timeout=60) for _ in range(2)]
    for call in both:
        call.add_done_callback(ended.put)
    refused = Failure(ended.get(timeout=60).exception())
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "QUEUE_FULL"
    assert refused.retry_seconds is not None
    assert 0 < refused.retry_seconds <= 60
    encoder.gate.set()
    assert held.result().embeddings
    assert ended.get(timeout=60).result().embeddings


def admitted(
    running: Running, encoder: GatedEncoder, text: str, *, timeout: float = 60
) -> "grpc.Future[embedding_pb2.EncodeResponse]":
    """Call until the queue takes it, and see it through to there."""
    request = embedding_pb2.EncodeRequest(texts=[text])
    while True:
        call = running.stubs.encode.future(request, timeout=timeout)
        ended = ("ended", call)
        call.add_done_callback(lambda _, ended=ended: encoder.events.put(ended))
        while (event := encoder.events.get(timeout=60)) != ended:
            if event == ("tokenize", [text]):
                return call
        assert call.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_a_call_past_its_deadline_or_cancelled_is_never_encoded(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_queue_tokens=LONG_TOKENS)
    encoder.gate.clear()
    held = running.stubs.encode.future(SHORT, timeout=60)
    encoder.wait_for("forward")
    # Each of these fills the queue, so that the next is let in once the last was dropped, and not before.
    late = admitted(running, encoder, "printer door " * 15, timeout=0.5)
    with pytest.raises(grpc.RpcError):
        late.result()
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    cancelled = admitted(running, encoder, "door printer " * 15)
    cancelled.cancel()
    kept = admitted(running, encoder, "reset the password " * 10)
    encoder.gate.set()
    assert held.result().embeddings
    assert kept.result().embeddings
    read = encoder.tokenize(["open", "reset the password " * 10])
    assert encoder.batches == [[list(text.ids)] for text in read]
