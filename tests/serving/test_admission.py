"""Who is let in: bounds on calls and bytes, tenants and priorities, the time there is."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cognate.v1 import embedding_pb2, info_pb2, search_pb2
from serving.batcher import Batcher
from tests.serving.servers import GatedEncoder, Running, Stubs, failure, until_let_in

ServeGated = Callable[..., tuple[Running, GatedEncoder]]

OPEN = embedding_pb2.EncodeRequest(texts=["open"])
BULK = (("cognate-priority", "bulk"),)


def encode(texts: list[str], **fields: Any) -> embedding_pb2.EncodeRequest:
    return embedding_pb2.EncodeRequest(texts=texts, **fields)


def held_call(running: Running, encoder: GatedEncoder) -> Any:
    """Close the gate, and begin a call that waits there."""
    encoder.gate.clear()
    call = running.stubs.encode.future(OPEN, timeout=60)
    encoder.wait_for("forward")
    return call


def test_calls_over_the_bound_are_refused_before_they_cost_anything(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_calls=1)
    held = held_call(running, encoder)
    for refused in (
        failure(running.stubs.encode, OPEN),
        failure(running.stubs.search, search_pb2.SearchRequest(top_k=1)),
        failure(running.stubs.get_info, info_pb2.GetInfoRequest()),
    ):
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "TOO_MANY_CALLS"
        assert refused.retry_seconds
    assert encoder.events.empty()
    encoder.gate.set()
    assert held.result().embeddings
    until_let_in(running.stubs)


def test_bytes_over_the_bound_are_refused_but_not_a_call_alone(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_inflight_bytes=1024)
    large = encode(["printer " * 200])
    assert running.stubs.encode(large, timeout=60).embeddings
    held = held_call(running, encoder)
    assert failure(running.stubs.encode, large).reason == "TOO_MANY_CALLS"
    encoder.gate.set()
    assert held.result().embeddings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cognate-priority", "urgent"),
        ("cognate-priority", ""),
        ("cognate-tenant", ""),
        ("cognate-tenant", "a b"),
        ("cognate-tenant", "a" * 129),
    ],
)
def test_metadata_that_says_nothing_known_is_refused_and_named(stubs: Stubs, key: str, value: str) -> None:
    search = search_pb2.SearchRequest(queries=[search_pb2.Query(text="a")], top_k=1)
    for refused in (
        failure(stubs.encode, OPEN, metadata=[(key, value)]),
        failure(stubs.search, search, metadata=[(key, value)]),
    ):
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [key]


def test_bulk_waits_for_interactive_and_tenants_take_turns(serve_gated: ServeGated) -> None:
    running, encoder = serve_gated(max_batch_tokens=4)
    held = held_call(running, encoder)
    sent = [
        ("a", BULK),
        ("b", (("cognate-tenant", "many"),)),
        ("c", (("cognate-tenant", "many"),)),
        ("d", (("cognate-tenant", "few"),)),
    ]
    calls = []
    for text, metadata in sent:
        calls.append(running.stubs.encode.future(encode([text]), metadata=metadata, timeout=60))
        assert encoder.wait_for("tokenize") == [text]
    encoder.gate.set()
    assert all(call.result().embeddings for call in [held, *calls])
    order = [encoder.wait_for("forward") for _ in sent]
    assert order == [[list(encoder.tokenize([text])[0].ids)] for text in "bdca"]


def test_a_call_that_could_not_be_answered_in_time_is_refused_at_once(
    serve_gated: ServeGated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if a token took ten seconds.
    monkeypatch.setattr(Batcher, "_warm_up", lambda _: (1, 10.0))
    running, encoder = serve_gated()
    held = held_call(running, encoder)
    waiting = running.stubs.encode.future(encode(["door"]), timeout=3600)
    encoder.wait_for("tokenize")
    refused = failure(running.stubs.encode, encode(["door"]), timeout=45)
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "QUEUE_TOO_LONG"
    # Three tokens run, three wait, and three are its own: 90 seconds, but for what the first have run.
    assert refused.retry_seconds == pytest.approx(45, abs=30)
    assert encoder.events.empty()
    encoder.gate.set()
    assert held.result().embeddings
    assert waiting.result().embeddings


def test_a_query_that_is_asked_again_is_told_to_be_kept(serve: Callable[..., Running]) -> None:
    stubs = serve().stubs
    request = search_pb2.SearchRequest(
        queries=[search_pb2.Query(text="printer " * 100), search_pb2.Query(text="open")], top_k=3
    )
    first, second = (stubs.search(request, timeout=60) for _ in range(2))
    for one, again in zip(first.results, second.results, strict=True):
        assert one.hits == again.hits
        assert (one.usage.tokens, one.usage.truncated) == (again.usage.tokens, again.usage.truncated)
        assert (one.usage.cached, again.usage.cached) == (False, True)
    assert second.timings.encode_us == 0
    encoded = stubs.encode(encode(["open"], input_type=embedding_pb2.INPUT_TYPE_QUERY), timeout=60)
    assert encoded.usages[0].cached
    assert not stubs.encode(encode(["open"]), timeout=60).usages[0].cached
