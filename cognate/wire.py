"""The wire contract in Python's own types: requests made from arguments, results read from answers.

All of it is pure, and shared by ``Client`` and ``AsyncClient``.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from numpy.typing import NDArray

from cognate.bundle import InputType
from cognate.errors import CognateError
from cognate.filters import (
    And,
    Contains,
    Exists,
    Filter,
    In,
    Not,
    Or,
    Prefix,
    Range,
    Value,
    check,
    field_text,
    parse,
)
from cognate.records import LARGE_INTEGER, Accuracy, Hit, Record, has_large_integer
from cognate.v1 import embedding_pb2, filter_pb2, index_pb2, info_pb2, search_pb2


@dataclass(frozen=True, slots=True)
class Like:
    """A query for what is like a record of the index; the record itself is left out of the hits.

    Attributes:
        id: The record's id.
    """

    id: str


@dataclass(frozen=True, slots=True)
class Combined:
    """Several texts, vectors and records as one query: the weighted sum of their vectors, of unit length.

    Attributes:
        parts: 1 up to 32.
        weights: How much each counts, -1000 to 1000 and not 0; None: 1 each.
    """

    parts: "Sequence[str | NDArray[Any] | Like]"
    weights: Sequence[float] | None = None


Query = str | NDArray[Any] | Like | Combined
"""A text, a vector that was encoded before (any real dtype, shape (dimension,)), a record of the index, or
several of these."""

Priority = Literal["interactive", "bulk"]
"""What a server serves first, and what it serves with the rest of its time."""

MAX_TEXTS_PER_CALL = 256
"""A longer list is sent in several calls, so that each is done well within its timeout."""

MAX_HITS_PER_CALL = 16384
"""Hits that one call asks for, top_k times queries; bounds the answer."""

ITEM_OVERHEAD = 24
"""More bytes than the contract puts around a text or a query."""

REQUEST_OVERHEAD = 4096
"""More bytes than the contract puts beside a request's texts or queries."""

LARGEST_EXACT_INTEGER = 2**53
"""The whole numbers up to here are exact in the doubles that Struct holds numbers in."""

_MAX_UINT32 = 2**32 - 1
_PRIORITIES = ("interactive", "bulk")
_INPUT_TYPES = {
    "query": embedding_pb2.INPUT_TYPE_QUERY,
    "passage": embedding_pb2.INPUT_TYPE_PASSAGE,
}

_ACCURACIES = {
    "fast": search_pb2.ACCURACY_FAST,
    "balanced": search_pb2.ACCURACY_BALANCED,
    "exact": search_pb2.ACCURACY_EXACT,
}

_Request = TypeVar("_Request", embedding_pb2.EncodeRequest, search_pb2.SearchRequest)
_Fields = TypeVar("_Fields", "Timings", "ModelDescription", "Limits")


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went on the server, in microseconds.

    Attributes:
        queue_us: Waiting for a batch.
        tokenize_us: Turning text into tokens.
        encode_us: The model.
        search_us: The index, with fetching records.
    """

    queue_us: int
    tokenize_us: int
    encode_us: int
    search_us: int


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What encoding gave, in the order of the texts.

    Attributes:
        vectors: float32, shape (texts, dimension), unit length.
        tokens: Tokens of each text that the model saw, special tokens and prompt included.
        truncated: Whether each text was longer than the model takes, and cut.
        model: The model's name.
        fingerprint: Of the bundle: vectors of two fingerprints must not be mixed.
        timings: Where the time went, summed over the calls that the list took.
    """

    vectors: NDArray[np.float32]
    tokens: list[int]
    truncated: list[bool]
    model: str
    fingerprint: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream of texts is.

    Attributes:
        texts: Texts that were encoded.
        tokens: Tokens of theirs that the model saw.
        truncated: How many of them were longer than the model takes, and cut.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """An index that a server holds.

    Attributes:
        name: What ``search`` takes.
        kind: How it is searched: "flat" compares with every vector, other kinds with some.
        count: Number of records.
        dimension: Components of a vector.
        metric: "cosine".
        fingerprint: Of the bundle that its vectors are of.
        created_at: When it was built, in UTC.
        version: What tells its content from any other's; empty from a server that does not say.
        previous_version: What ``rollback_index`` goes back to. None where there is nothing.
        state: "serving", or "loading": it answers, while another version is being opened.
        revision: How many requests have updated it since it was built.
    """

    name: str
    kind: str
    count: int
    dimension: int
    metric: str
    fingerprint: str
    created_at: datetime
    version: str
    previous_version: str | None
    state: Literal["serving", "loading"]
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Upserted:
    """What writing records to an index did.

    Attributes:
        inserted: Records that are new.
        replaced: Records that took the place of one with their id.
        superseded: Records that a later one of the same call with the same id took the place of.
        truncated: Whether each text was longer than the model takes, and cut; of those that the server
            encoded.
        revision: The index's, with the records in it.
    """

    inserted: int
    replaced: int
    superseded: int
    truncated: list[bool]
    revision: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model that a server encodes with.

    Attributes:
        name: What it was exported from.
        fingerprint: sha256 of whatever decides its vectors, in hexadecimal.
        dimension: Components of an embedding.
        max_length: Tokens that it reads of a text, special tokens included.
        pooling: How token vectors become one: "mean", "cls", …
        precision: Number format of the weights: "fp32", …
        query_prompt: What is put before a query, often empty.
        passage_prompt: What is put before a passage, often empty.
    """

    name: str
    fingerprint: str
    dimension: int
    max_length: int
    pooling: str
    precision: str
    query_prompt: str
    passage_prompt: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask of a server.

    Attributes:
        max_texts: Texts or queries.
        max_text_bytes: Bytes of UTF-8 in a text.
        max_top_k: Hits for a query.
        max_message_bytes: Bytes of a request.
        max_batch_tokens: Tokens of a batch, padding included.
        max_queue_tokens: Tokens waiting, over which calls are refused.
    """

    max_texts: int
    max_text_bytes: int
    max_top_k: int
    max_message_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server runs and what it takes.

    Attributes:
        model: The model.
        limits: The limits.
        versions: Of what runs, by name: cognate, onnxruntime, faiss, python.
        device: Where the model runs: "cpu", "cuda", "tensorrt", …
    """

    model: ModelDescription
    limits: Limits
    versions: dict[str, str]
    device: str


def metadata(*, tenant: str | None, priority: str | None, api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Make the metadata that goes with every call.

    Args:
        tenant: For whom; a server shares its time fairly between tenants.
        priority: "interactive" or "bulk".
        api_key: What the server knows the caller by.

    Raises:
        CognateError: One of them cannot be a value of gRPC metadata.
    """
    if priority is not None and priority not in _PRIORITIES:
        raise CognateError(f"priority is {priority!r}; it must be one of {', '.join(_PRIORITIES)}")
    if tenant is not None and not _is_header(tenant):
        raise CognateError(f"tenant is {tenant!r}; it must be of ASCII characters, without spaces")
    if api_key is not None and not _is_header(api_key):
        # Not shown: what is printed may be logged.
        raise CognateError("the API key is empty, or has characters other than ASCII's without spaces")
    values = {
        "cognate-tenant": tenant,
        "cognate-priority": priority,
        "authorization": None if api_key is None else f"Bearer {api_key}",
    }
    return tuple((key, value) for key, value in values.items() if value is not None)


def encode_settings(
    *, input_type: InputType, allow_truncation: bool, dimension: int | None
) -> embedding_pb2.EncodeRequest:
    """Make a request to encode, without its texts.

    Raises:
        CognateError: An argument is out of range.
    """
    return embedding_pb2.EncodeRequest(
        input_type=_input_type(input_type),
        truncation=_truncation(allow_truncation),
        format=embedding_pb2.EMBEDDING_FORMAT_PACKED,
        dimension=0 if dimension is None else _at_least_one("dimension", dimension),
    )


def encode_request(
    texts: Sequence[str],
    *,
    input_type: InputType,
    allow_truncation: bool,
    dimension: int | None,
) -> embedding_pb2.EncodeRequest:
    """Make a request to encode texts, of any number; ``split`` makes it fit a server.

    Raises:
        CognateError: The texts are no list of strings or there are none, or an argument is out of range.
    """
    _check_list("texts", texts)
    _check_texts(texts, 0)
    request = encode_settings(input_type=input_type, allow_truncation=allow_truncation, dimension=dimension)
    request.texts.extend(texts)
    return request


class TextStream:
    """A stream of texts on its way through calls to Encode: requests out of texts, vectors out of answers."""

    def __init__(
        self,
        texts: Iterable[str],
        settings: embedding_pb2.EncodeRequest,
        *,
        texts_per_call: int,
        calls_in_flight: int,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        """Check the arguments; nothing is read yet.

        Args:
            texts: Any number of them, none too.
            settings: As ``encode_settings`` makes them.
            texts_per_call: How many texts a call has at most.
            calls_in_flight: How many calls wait for their answer, or to be read, at most.
            progress: Told after each call.

        Raises:
            CognateError: The texts are no iterable of strings, or a number is less than 1.
        """
        if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
            raise CognateError(f"texts is of type {type(texts).__name__}; give strings to iterate over")
        self._texts = texts
        self._settings = settings
        self._texts_per_call = _at_least_one("texts_per_call", texts_per_call)
        self.calls_in_flight = _at_least_one("calls_in_flight", calls_in_flight)
        self._progress = progress
        self._done = Progress()
        self._fingerprint: str | None = None

    def requests(self, limits: Limits) -> Iterator[tuple[int, embedding_pb2.EncodeRequest]]:
        """Read the texts, no more of them than the next request takes.

        Args:
            limits: The server's.

        Yields:
            The position of the request's first text, and the request; in order.

        Raises:
            CognateError: A text is no string, or longer than the server takes.
        """
        texts = iter(self._texts)
        first = 0
        while some := list(islice(texts, self._texts_per_call)):
            _check_texts(some, first)
            request = embedding_pb2.EncodeRequest()
            request.CopyFrom(self._settings)
            request.texts.extend(some)
            yield from split(request, limits, first)
            first += len(some)

    def read(
        self, request: embedding_pb2.EncodeRequest, answer: embedding_pb2.EncodeResponse
    ) -> NDArray[np.float32]:
        """Read the answer to the next request, and tell the progress.

        Returns:
            float32, shape (texts, dimension), unit length.

        Raises:
            CognateError: The answer is not one to this request, or of another model than the last one.
        """
        encoded = embeddings([answer], len(request.texts))
        if self._fingerprint not in (None, encoded.fingerprint):
            raise _model_changed()
        self._fingerprint = encoded.fingerprint
        self._done = Progress(
            self._done.texts + len(encoded.tokens),
            self._done.tokens + sum(encoded.tokens),
            self._done.truncated + sum(encoded.truncated),
        )
        if self._progress is not None:
            self._progress(self._done)
        return encoded.vectors


def search_request(
    queries: Sequence[Query] | NDArray[Any],
    *,
    top_k: int,
    index: str | None,
    min_score: float | None,
    input_type: InputType,
    allow_truncation: bool,
    include_text: bool,
    include_attributes: bool,
    accuracy: Accuracy = "balanced",
    filter: str | Filter | None = None,  # noqa: A002
    group_by_label: bool = False,
    offset: int | None = None,
    exclude_ids: Sequence[str] = (),
) -> search_pb2.SearchRequest:
    """Make a request to search, with any number of queries; ``split`` makes it fit a server.

    Raises:
        CognateError: A query is neither a text, a finite vector, a ``Like`` nor ``Combined``, there is none,
            an argument is out of range, or the filter cannot be read.
    """
    _check_list("queries", queries)
    if isinstance(exclude_ids, str):
        raise CognateError("exclude_ids is a string; give a list, even of one id")
    for position, identifier in enumerate(exclude_ids):
        _check_id("exclude_ids", position, identifier)
    if min_score is not None and not math.isfinite(min_score):
        raise CognateError(f"min_score is {min_score}; give a cosine between -1 and 1, or None")
    return search_pb2.SearchRequest(
        queries=[_query(position, query) for position, query in enumerate(queries)],
        index=_optional_string("index", index),
        top_k=_at_least_one("top_k", top_k),
        min_score=min_score,
        input_type=_input_type(input_type),
        truncation=_truncation(allow_truncation),
        omit_text=not include_text,
        omit_attributes=not include_attributes,
        accuracy=_accuracy(accuracy),
        filter=None if filter is None else filter_message(filter),
        group_by_label=group_by_label,
        offset=None if offset is None else _at_least("offset", offset, 0),
        exclude_ids=exclude_ids,
    )


def filter_message(filter: str | Filter) -> filter_pb2.Filter:  # noqa: A002
    """Write a filter as a message.

    Args:
        filter: In its text form, or as ``cognate.filters`` has it.

    Raises:
        FilterError: It cannot be read, or is over a limit.
    """
    if isinstance(filter, str):
        filter = parse(filter)  # noqa: A001
    else:
        check(filter)
    return _filter_message(filter)


def _filter_message(filter: Filter) -> filter_pb2.Filter:  # noqa: A002
    match filter:
        case And(filters):
            return filter_pb2.Filter(all=_filter_list(filters))
        case Or(filters):
            return filter_pb2.Filter(any=_filter_list(filters))
        case Not(inner):
            return filter_pb2.Filter(none=_filter_list([inner]))
        case In(field, values):
            equals = filter_pb2.FilterEquals(field=field_text(field), values=map(_filter_value, values))
            return filter_pb2.Filter(equals=equals)
        case Range(field):
            bounds = {
                name: None if bound is None else _filter_value(bound)
                for name in ("above", "at_least", "below", "at_most")
                for bound in (getattr(filter, name),)
            }
            return filter_pb2.Filter(range=filter_pb2.FilterRange(field=field_text(field), **bounds))
        case Prefix(field, prefix):
            return filter_pb2.Filter(prefix=filter_pb2.FilterPrefix(field=field_text(field), prefix=prefix))
        case Exists(field):
            return filter_pb2.Filter(exists=field_text(field))
        case Contains(field, values):
            contains = filter_pb2.FilterContains(field=field_text(field), values=map(_filter_value, values))
            return filter_pb2.Filter(contains=contains)


def _filter_list(filters: Iterable[Filter]) -> filter_pb2.FilterList:
    return filter_pb2.FilterList(filters=map(_filter_message, filters))


def _filter_value(value: Value) -> filter_pb2.FilterValue:
    match value:
        case str():
            return filter_pb2.FilterValue(text=value)
        case bool():
            return filter_pb2.FilterValue(boolean=value)
        case int():
            return filter_pb2.FilterValue(integer=value)
        case float():
            return filter_pb2.FilterValue(number=value)


def split(request: _Request, limits: Limits, start: int = 0) -> Iterator[tuple[int, _Request]]:
    """Split a request into ones that a server takes.

    Args:
        request: With any number of texts or queries, at least one.
        limits: The server's.
        start: The position of the request's first text or query in the user's list.

    Yields:
        The position of the part's first text or query, and the part; in order.

    Raises:
        CognateError: A text is longer than the server takes.
    """
    if isinstance(request, embedding_pb2.EncodeRequest):
        field, most = "texts", MAX_TEXTS_PER_CALL
    else:
        field, most = "queries", max(1, min(MAX_TEXTS_PER_CALL, MAX_HITS_PER_CALL // request.top_k))
        # The parts of a combined query count each.
        parts = max(len(query.combined.parts) or 1 for query in request.queries)
        most = max(1, min(most, limits.max_texts) // parts)
    items = getattr(request, field)
    sizes = [_size(field, position, item, limits) for position, item in enumerate(items, start)]
    settings = type(request)()
    settings.CopyFrom(request)
    settings.ClearField(field)
    room = limits.max_message_bytes - REQUEST_OVERHEAD - settings.ByteSize()
    for first, end in _ranges(sizes, min(most, limits.max_texts), room):
        part = type(request)()
        part.CopyFrom(settings)
        getattr(part, field).extend(items[first:end])
        yield start + first, part


def upsert_requests(
    records: Sequence[Record],
    *,
    index: str | None,
    vectors: NDArray[Any] | None,
    fingerprint: str | None,
    allow_truncation: bool,
    limits: Limits,
) -> Iterator[tuple[int, index_pb2.UpsertRequest]]:
    """Make requests to write records, each of which a server takes.

    Yields:
        The position of the request's first record, and the request; in order.

    Raises:
        CognateError: There is no record, one cannot be sent or is longer than the server takes, there are
            not as many vectors as records, or the index or the fingerprint is no string.
    """
    _check_list("records", records)
    if vectors is not None and (not isinstance(vectors, np.ndarray) or len(vectors) != len(records)):
        raise CognateError(f"vectors must be a numpy array of shape ({len(records)}, dimension), or None")
    messages = [
        _record(position, record, None if vectors is None else vectors[position], limits)
        for position, record in enumerate(records)
    ]
    sizes = [ITEM_OVERHEAD + message.ByteSize() for message in messages]
    most = min(MAX_TEXTS_PER_CALL, limits.max_texts)
    for first, end in _ranges(sizes, most, limits.max_message_bytes - REQUEST_OVERHEAD):
        yield (
            first,
            index_pb2.UpsertRequest(
                index=_optional_string("index", index),
                records=messages[first:end],
                fingerprint=_optional_string("fingerprint", fingerprint),
                truncation=_truncation(allow_truncation),
            ),
        )


def upserted(parts: Sequence[index_pb2.UpsertResponse]) -> Upserted:
    """Read the answers to the parts of a request, at least one."""
    return Upserted(
        inserted=sum(part.inserted for part in parts),
        replaced=sum(part.replaced for part in parts),
        superseded=sum(part.superseded for part in parts),
        truncated=[usage.truncated for part in parts for usage in part.usages],
        revision=parts[-1].revision,
    )


def delete_requests(
    ids: Sequence[str], index: str | None, limits: Limits
) -> Iterator[tuple[int, index_pb2.DeleteRequest]]:
    """Make requests to delete records, each of which a server takes, with the position of its first id.

    Raises:
        CognateError: There is no id, or one, or the index, is no string.
    """
    _check_list("ids", ids)
    for position, identifier in enumerate(ids):
        if not isinstance(identifier, str):
            raise CognateError(f"ids[{position}] is of type {type(identifier).__name__}; give a string")
        _check_unicode(f"ids[{position}]", identifier)
    most = min(MAX_TEXTS_PER_CALL, limits.max_texts)
    sizes = [ITEM_OVERHEAD + len(identifier.encode()) for identifier in ids]
    for first, end in _ranges(sizes, most, limits.max_message_bytes - REQUEST_OVERHEAD):
        yield first, index_pb2.DeleteRequest(index=_optional_string("index", index), ids=ids[first:end])


def embeddings(parts: Sequence[embedding_pb2.EncodeResponse], count: int) -> Embeddings:
    """Read the answers to the parts of a request.

    Args:
        parts: In order, at least one.
        count: How many texts were sent.

    Raises:
        CognateError: There are not as many embeddings as texts, or they differ in length or model.
    """
    packed = [embedding.packed for part in parts for embedding in part.embeddings]
    usages = [usage for part in parts for usage in part.usages]
    if not len(packed) == len(usages) == count:
        raise _unlike("embeddings", len(packed), count)
    if len({len(vector) for vector in packed}) != 1 or len(packed[0]) % 4 or not packed[0]:
        raise CognateError("the server's embeddings differ in length; is it of this version?")
    if len({part.fingerprint for part in parts}) != 1:
        raise _model_changed()
    return Embeddings(
        # astype copies: what numpy reads from bytes cannot be written to.
        vectors=np.frombuffer(b"".join(packed), "<f4").reshape(count, -1).astype(np.float32),
        tokens=[usage.tokens for usage in usages],
        truncated=[usage.truncated for usage in usages],
        model=parts[0].model,
        fingerprint=parts[0].fingerprint,
        timings=Timings(
            *(
                sum(getattr(part.timings, field.name) for part in parts)
                for field in dataclasses.fields(Timings)
            )
        ),
    )


def hits(parts: Sequence[search_pb2.SearchResponse], count: int) -> list[list[Hit]]:
    """Read the answers to the parts of a request.

    Args:
        parts: In order.
        count: How many queries were sent.

    Raises:
        CognateError: There are not as many lists of hits as queries.
    """
    results = [result for part in parts for result in part.results]
    if len(results) != count:
        raise _unlike("lists of hits", len(results), count)
    return [[_hit(hit) for hit in result.hits] for result in results]


def server_info(response: info_pb2.GetInfoResponse) -> ServerInfo:
    """Read a server's description."""
    return ServerInfo(
        model=_fields(ModelDescription, response.model),
        limits=_fields(Limits, response.limits),
        versions=dict(response.versions),
        device=response.device,
    )


def index_descriptions(response: index_pb2.ListIndexesResponse) -> list[IndexDescription]:
    """Read a list of indexes."""
    return [index_description(index) for index in response.indexes]


def index_description(index: index_pb2.IndexDescription) -> IndexDescription:
    """Read the description of an index."""
    return IndexDescription(
        name=index.name,
        kind=index.kind,
        count=index.count,
        dimension=index.dimension,
        metric=index.metric,
        fingerprint=index.fingerprint,
        created_at=index.created_at.ToDatetime(tzinfo=UTC),
        version=index.version,
        previous_version=index.previous_version or None,
        state="loading" if index.state == index_pb2.INDEX_STATE_LOADING else "serving",
        revision=index.revision,
    )


def plain_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Turn a Struct into what ``json`` would give."""
    return {key: plain_value(value) for key, value in struct.fields.items()}


def plain_value(value: struct_pb2.Value) -> Any:
    """Turn a Value into what ``json`` would give; whole numbers, which it holds as doubles, become int."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [plain_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            whole = number.is_integer() and abs(number) <= LARGEST_EXACT_INTEGER
            return int(number) if whole else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _hit(hit: search_pb2.Hit) -> Hit:
    attributes = None
    if hit.HasField("attributes"):
        attributes = plain_struct(hit.attributes)
    return Hit(hit.id, hit.score, hit.text, hit.label or None, attributes)


def _query(position: int, query: object) -> search_pb2.Query:
    if not isinstance(query, Combined):
        return search_pb2.Query(**_input(position, query))
    _check_list(f"the parts of queries[{position}]", query.parts)
    weights = [1.0] * len(query.parts) if query.weights is None else query.weights
    if len(weights) != len(query.parts):
        raise CognateError(f"queries[{position}] has {len(query.parts)} parts and {len(weights)} weights")
    parts = [
        search_pb2.QueryPart(**_input(position, part), weight=weight)
        for part, weight in zip(query.parts, weights, strict=True)
    ]
    return search_pb2.Query(combined=search_pb2.CombinedQuery(parts=parts))


def _input(position: int, query: object) -> dict[str, Any]:
    """The fields that a Query and a QueryPart have in common."""
    if isinstance(query, Like):
        _check_id("queries", position, query.id)
        return {"id": query.id}
    if isinstance(query, str):
        _check_unicode(f"queries[{position}]", query)
        return {"text": query}
    if not isinstance(query, np.ndarray) or query.ndim != 1 or query.dtype.kind not in "fiu":
        what = (
            f"a {query.dtype} array of shape {query.shape}"
            if isinstance(query, np.ndarray)
            else f"of type {type(query).__name__}"
        )
        raise CognateError(
            f"queries[{position}] is {what}; give a string, a vector (a numpy array of shape (dimension,)), "
            "a Like or a Combined"
        )
    with np.errstate(over="ignore"):
        vector = query.astype("<f4")
    if not np.isfinite(vector).all():
        raise CognateError(f"queries[{position}] has a component that is not finite in float32")
    return {"embedding": embedding_pb2.Embedding(packed=vector.tobytes())}


def _record(position: int, record: object, vector: NDArray[Any] | None, limits: Limits) -> index_pb2.Record:
    if not isinstance(record, Record):
        raise CognateError(f"records[{position}] is of type {type(record).__name__}; give a Record")
    if not record.id:
        raise CognateError(f"records[{position}] has no id; what is written to an index needs a name")
    for text in (record.id, record.text, record.label or ""):
        _check_unicode(f"records[{position}]", text)
    _size("records", position, record.text, limits)
    message = index_pb2.Record(id=record.id, text=record.text, label=record.label or "")
    if record.attributes is not None:
        try:
            # A Struct has doubles alone: it would round them, or take none so large.
            if has_large_integer(record.attributes):
                raise CognateError(f"records[{position}] has attributes with {LARGE_INTEGER}")
            message.attributes.update(record.attributes)
        except (ValueError, TypeError, RecursionError):
            raise CognateError(f"records[{position}] has attributes that are no JSON object") from None
        # Attributes that are there and empty are not none.
        message.attributes.SetInParent()
    if vector is not None:
        message.embedding.CopyFrom(_query(position, vector).embedding)
    return message


def _size(field: str, position: int, item: str | search_pb2.Query, limits: Limits) -> int:
    text = item if isinstance(item, str) else item.text
    size = len(text.encode())
    if size > limits.max_text_bytes:
        raise CognateError(
            f"{field}[{position}] has {size} bytes; the server takes at most {limits.max_text_bytes}, "
            "so shorten or split it"
        )
    return ITEM_OVERHEAD + (size if isinstance(item, str) else item.ByteSize())


def _ranges(sizes: Sequence[int], max_items: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut positions into runs that are within both bounds; an item larger than max_bytes is one alone."""
    first = total = 0
    for position, size in enumerate(sizes):
        if position > first and (position - first == max_items or total + size > max_bytes):
            yield first, position
            first, total = position, 0
        total += size
    yield first, len(sizes)


def _check_list(name: str, values: object) -> None:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise CognateError(f"{name} is of type {type(values).__name__}; give a list, even of one")
    if not len(values):
        raise CognateError(f"{name} is empty; give at least one")


def _check_texts(texts: Sequence[object], start: int) -> None:
    for position, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise CognateError(f"texts[{position}] is of type {type(text).__name__}; give a string")
        _check_unicode(f"texts[{position}]", text)


def _is_header(value: object) -> bool:
    return isinstance(value, str) and bool(value) and all("!" <= character <= "~" for character in value)


def _check_id(field: str, position: int, identifier: object) -> None:
    if not isinstance(identifier, str):
        raise CognateError(
            f"{field}[{position}] has an id of type {type(identifier).__name__}; give a string"
        )
    _check_unicode(f"{field}[{position}]", identifier)


def string(name: str, value: object) -> str:
    """Check that a value is a string that can be sent, and give it.

    Raises:
        CognateError: It is none.
    """
    if not isinstance(value, str):
        raise CognateError(f"{name} is of type {type(value).__name__}; give a string")
    _check_unicode(name, value)
    return value


def _optional_string(name: str, value: object) -> str:
    """As ``string``, of what may be None: that is the empty string in the contract."""
    return "" if value is None else string(name, value)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CognateError(f"{name} has an unpaired surrogate, which no UTF-8 text can have") from None


def _at_least_one(name: str, value: int) -> int:
    return _at_least(name, value, 1)


def _at_least(name: str, value: int, least: int) -> int:
    # operator.index takes numpy's whole numbers too, and no float.
    if not hasattr(value, "__index__") or not least <= operator.index(value) <= _MAX_UINT32:
        raise CognateError(f"{name} is {value!r}; it must be a whole number, {least} to {_MAX_UINT32}")
    return operator.index(value)


def _input_type(input_type: str) -> embedding_pb2.InputType:
    if input_type not in _INPUT_TYPES:
        raise CognateError(f"input_type is {input_type!r}; it must be one of {', '.join(_INPUT_TYPES)}")
    return _INPUT_TYPES[input_type]


def _accuracy(accuracy: str) -> search_pb2.Accuracy:
    if accuracy not in _ACCURACIES:
        raise CognateError(f"accuracy is {accuracy!r}; it must be one of {', '.join(_ACCURACIES)}")
    return _ACCURACIES[accuracy]


def _truncation(allowed: bool) -> embedding_pb2.Truncation:
    return embedding_pb2.TRUNCATION_ALLOWED if allowed else embedding_pb2.TRUNCATION_REFUSED


def _fields(kind: type[_Fields], message: Message) -> _Fields:
    """Read a message whose fields have the names of the dataclass's."""
    return kind(**{field.name: getattr(message, field.name) for field in dataclasses.fields(kind)})


def _unlike(what: str, got: int, wanted: int) -> CognateError:
    return CognateError(f"the server answered with {got} {what} for {wanted}; is it of this version?")


def _model_changed() -> CognateError:
    return CognateError("the server changed its model between two calls for one list; encode it again")
