"""Encode over a real socket."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from cognate.encoder import Encoder
from cognate.v1 import embedding_pb2
from serving.tokenizing import INLINE_CHARACTERS
from tests.serving.servers import Running, Stubs, failure

WORDS = ["how", "do", "i", "reset", "the", "printer", "password", "door", "open", "learn", "x7", "?!"]


def texts_of_all_lengths(count: int) -> list[str]:
    return [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(i % 23)) for i in range(count)]


def encode(stubs: Stubs, texts: list[str], **fields: Any) -> embedding_pb2.EncodeResponse:
    response: embedding_pb2.EncodeResponse = stubs.encode(
        embedding_pb2.EncodeRequest(texts=texts, **fields), timeout=60
    )
    return response


def vectors(response: embedding_pb2.EncodeResponse) -> NDArray[np.float32]:
    return np.array([embedding.values for embedding in response.embeddings], np.float32)


def test_embeddings_are_the_encoders_in_the_order_of_the_texts(stubs: Stubs, encoder: Encoder) -> None:
    texts = texts_of_all_lengths(50)
    assert vectors(encode(stubs, texts)) == pytest.approx(encoder.encode(texts), abs=1e-5)


def test_packed_embeddings_are_the_same_as_little_endian_float32(stubs: Stubs, encoder: Encoder) -> None:
    texts = ["open the door", "printer"]
    response = encode(stubs, texts, format=embedding_pb2.EMBEDDING_FORMAT_PACKED)
    packed = np.stack([np.frombuffer(embedding.packed, "<f4") for embedding in response.embeddings])
    assert packed == pytest.approx(encoder.encode(texts), abs=1e-5)
    assert not any(embedding.values for embedding in response.embeddings)


@pytest.mark.parametrize(
    ("asked", "read_as"),
    [
        (embedding_pb2.INPUT_TYPE_UNSPECIFIED, "passage"),
        (embedding_pb2.INPUT_TYPE_PASSAGE, "passage"),
        (embedding_pb2.INPUT_TYPE_QUERY, "query"),
    ],
)
def test_the_input_type_picks_the_prompt(stubs: Stubs, encoder: Encoder, asked: Any, read_as: Any) -> None:
    response = encode(stubs, ["open the door"], input_type=asked)
    assert vectors(response) == pytest.approx(encoder.encode(["open the door"], read_as), abs=1e-5)


def test_an_empty_text_is_a_text(stubs: Stubs, encoder: Encoder) -> None:
    response = encode(stubs, ["", "a"])
    assert vectors(response) == pytest.approx(encoder.encode(["", "a"]), abs=1e-5)
    assert response.usages[0].tokens == 2


def test_an_answer_says_which_model_made_it(stubs: Stubs, encoder: Encoder) -> None:
    response = encode(stubs, ["a"])
    assert response.fingerprint == encoder.fingerprint
    assert response.model == encoder.bundle.manifest.model


def test_usage_tells_the_tokens_and_which_text_was_cut(stubs: Stubs, encoder: Encoder) -> None:
    response = encode(stubs, ["open the door", "printer " * 100])
    assert [usage.tokens for usage in response.usages] == [5, encoder.max_length]
    assert [usage.truncated for usage in response.usages] == [False, True]


def test_truncation_can_be_refused(stubs: Stubs) -> None:
    request = embedding_pb2.EncodeRequest(
        texts=["short", "printer " * 100], truncation=embedding_pb2.TRUNCATION_REFUSED
    )
    refused = failure(stubs.encode, request)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "TEXT_TOO_LONG"
    assert refused.fields == ["texts[1]"]
    assert "more than the 64 tokens" in refused.message
    assert encode(stubs, ["short"], truncation=embedding_pb2.TRUNCATION_REFUSED).embeddings


def test_fewer_dimensions_are_the_first_ones_at_unit_length(stubs: Stubs, encoder: Encoder) -> None:
    texts = ["open the door", "printer"]
    first = encoder.encode(texts)[:, :5]
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    assert vectors(encode(stubs, texts, dimension=5)) == pytest.approx(expected, abs=1e-5)


def test_timings_tell_where_the_time_went(stubs: Stubs) -> None:
    timings = encode(stubs, texts_of_all_lengths(50)).timings
    assert timings.tokenize_us > 0
    assert timings.encode_us > 0
    assert timings.search_us == 0


@pytest.mark.parametrize(
    ("fields", "refused_field", "says"),
    [
        ({}, "texts", "is empty"),
        ({"texts": ["a"] * 51}, "texts", "has 51; this server takes up to 50"),
        ({"texts": ["a", "é" * 501]}, "texts[1]", "has 1002 bytes; this server takes up to 1000"),
        ({"texts": ["a"], "dimension": 33}, "dimension", "is 33; vectors of this model have 32"),
        ({"texts": ["a"], "input_type": 9}, "input_type", "9 is no InputType"),
        ({"texts": ["a"], "truncation": 9}, "truncation", "9 is no Truncation"),
        ({"texts": ["a"], "format": 9}, "format", "9 is no EmbeddingFormat"),
    ],
)
def test_a_bad_field_is_named(stubs: Stubs, fields: dict[str, Any], refused_field: str, says: str) -> None:
    refused = failure(stubs.encode, embedding_pb2.EncodeRequest(**fields))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "BAD_FIELD"
    assert refused.fields == [refused_field]
    assert refused.message.startswith(refused_field)
    assert says in refused.message


def test_limits_are_inclusive(stubs: Stubs) -> None:
    assert len(encode(stubs, ["a"] * 50).embeddings) == 50
    assert encode(stubs, ["é" * 500], dimension=32).embeddings


def test_concurrent_calls_of_all_sizes_get_the_same_vectors_as_alone(
    running: Running, encoder: Encoder
) -> None:
    texts = texts_of_all_lengths(600)
    # Some are short enough to be tokenised on the event loop, some are not.
    texts[100:110] = ["printer door " * 60] * 10
    assert sum(map(len, texts[100:104])) > INLINE_CHARACTERS
    calls = []
    start = 0
    for number in range(len(texts)):
        size = 1 + (number * 7) % 13
        calls.append(texts[start : start + size])
        start += size
        if start >= len(texts):
            break
    with ThreadPoolExecutor(32) as threads:
        responses = list(threads.map(lambda call: encode(running.stubs, call), calls))
    served = np.concatenate([vectors(response) for response in responses])
    assert served == pytest.approx(encoder.encode(texts), abs=1e-5)
