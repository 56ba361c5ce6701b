"""SearchService: texts and vectors to hits."""

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import BundleManifest
from cognate.narrowing import MAX_EXCLUDED, Narrowing, narrowed_rows
from cognate.processors import available_cores
from cognate.records import Accuracy, Hit
from cognate.searchable import Searchable
from cognate.v1 import embedding_pb2, search_pb2, search_pb2_grpc
from serving.batcher import Encoded
from serving.callers import read_caller
from serving.encoding import check_count, check_text, count_queries, encode_texts, timings, usages
from serving.filter_messages import read_filter
from serving.indexes import IndexRegistry, Version
from serving.queue import Caller
from serving.refusal import bad_field, no_such_record
from serving.remote_indexes import RemoteFailures
from serving.settings import Settings
from serving.shared_encoding import SharedEncoder
from serving.streams import answer_chunks
from serving.vectors import read_vector

MAX_PARTS = 32
"""Of a combined query."""

MAX_WEIGHT = 1000.0

REMOTE_SEARCHES = 32
"""Searches that wait for other machines at a time."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A larger answer is refused, and never held whole: the records of an index may be of any size."""

_ACCURACIES: dict[int, Accuracy] = {
    search_pb2.ACCURACY_UNSPECIFIED: "balanced",
    search_pb2.ACCURACY_FAST: "fast",
    search_pb2.ACCURACY_BALANCED: "balanced",
    search_pb2.ACCURACY_EXACT: "exact",
}


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Answers Search and SearchStream. Raises ``Refusal``, which the boundary turns into a status."""

    def __init__(
        self,
        encoder: SharedEncoder,
        indexes: IndexRegistry,
        failures: RemoteFailures,
        *,
        model: BundleManifest,
        settings: Settings,
    ) -> None:
        """Make the service.

        Args:
            encoder: Encodes text queries.
            indexes: Of the encoder's model.
            failures: Of those indexes that other machines keep.
            model: The encoder's.
            settings: The server's.
        """
        self._encoder = encoder
        self._indexes = indexes
        self._model = model
        self._dimension = model.dimension
        self._settings = settings
        self._threads = ThreadPoolExecutor(available_cores(), "search")
        # These wait for another machine, and keep no core busy.
        self._waiting = ThreadPoolExecutor(REMOTE_SEARCHES, "search-remote")
        self._failures = failures

    def close(self) -> None:
        """Wait for the searches that are running, and end the threads."""
        self._threads.shutdown(cancel_futures=True)
        self._waiting.shutdown(cancel_futures=True)

    async def Search(  # noqa: N802
        self, request: search_pb2.SearchRequest, context: Any
    ) -> search_pb2.SearchResponse:
        """Search an index with texts and vectors."""
        return await self._search(request, context, read_caller(context), streamed=False)

    async def SearchStream(  # noqa: N802
        self, requests: AsyncIterator[search_pb2.SearchStreamRequest], context: Any
    ) -> AsyncIterator[search_pb2.SearchStreamResponse]:
        """Search with chunks of queries."""
        caller = read_caller(context)

        answered = answer_chunks(
            requests,
            count_queries,
            lambda request: self._search(request, context, caller, streamed=True),
            # An answer may be of MAX_ANSWER_BYTES.
            at_a_time=1,
        )
        async with aclosing(answered):
            async for chunk, response in answered:
                yield search_pb2.SearchStreamResponse(
                    id=chunk.message.id, first_query=chunk.first, response=response
                )

    async def _search(
        self, request: search_pb2.SearchRequest, context: Any, caller: Caller, *, streamed: bool
    ) -> search_pb2.SearchResponse:
        self._check(request)
        name, version = self._indexes.find(request.index)
        # Before its texts are encoded for nothing.
        self._failures.refuse_if_down(name)
        # One version for all of the answer: whatever is loaded meanwhile, this one stays open.
        with version:
            return await self._answer(name, version, request, context, caller, streamed=streamed)

    async def _answer(
        self,
        name: str,
        version: Version,
        request: search_pb2.SearchRequest,
        context: Any,
        caller: Caller,
        *,
        streamed: bool,
    ) -> search_pb2.SearchResponse:
        parts = _parts(request)
        vectors = np.empty((len(parts), self._dimension), np.float32)
        texts: dict[int, str] = {}
        ids: dict[int, str] = {}
        for place, part in enumerate(parts):
            kind = part.message.WhichOneof("input")
            field = f"{part.field}.{kind}"
            if kind == "text":
                if not part.message.text.strip():
                    raise bad_field(field, "is empty; give a text to search with")
                check_text(field, part.message.text, self._settings.max_text_bytes)
                texts[place] = part.message.text
            elif kind == "embedding":
                vectors[place] = read_vector(field, part.message.embedding, self._dimension)
            elif kind == "id":
                ids[place] = part.message.id
            else:
                raise bad_field(part.field, "has neither a text nor an embedding, nor an id")
        narrowing = _narrowing(request)
        fields = [part.field for part in parts]
        encoded = await self._encode(texts, fields, vectors, request, context, caller, streamed=streamed)
        started = time.monotonic()
        if version.index.remote:
            results = await version.run(
                self._waiting, self._find_remote, name, parts, vectors, ids, request, narrowing
            )
        else:
            results = await version.run(self._threads, _find, parts, vectors, ids, request, narrowing)
        response = search_pb2.SearchResponse(
            results=results,
            index=name,
            fingerprint=version.index.manifest.fingerprint,
            index_version=version.index.version,
            timings=timings(encoded, time.monotonic() - started),
            model=self._model.model,
        )
        if encoded:
            for place, usage in zip(texts, usages(encoded), strict=True):
                _add_usage(response.results[parts[place].query], usage)
        return response

    def _find_remote(
        self,
        index: Searchable,
        name: str,
        parts: Sequence["_Part"],
        vectors: NDArray[np.float32],
        ids: Mapping[int, str],
        request: search_pb2.SearchRequest,
        narrowing: Narrowing,
    ) -> list[search_pb2.QueryHits]:
        # It may have failed for others while this call waited for a thread.
        self._failures.refuse_if_down(name)
        with self._failures.refusing(name):
            return _find(index, parts, vectors, ids, request, narrowing)

    async def _encode(
        self,
        texts: Mapping[int, str],
        fields: Sequence[str],
        vectors: NDArray[np.float32],
        request: search_pb2.SearchRequest,
        context: Any,
        caller: Caller,
        *,
        streamed: bool,
    ) -> Encoded | None:
        """Encode the text queries into their rows."""
        if not texts:
            return None
        places = list(texts)
        encoded = await encode_texts(
            self._encoder,
            list(texts.values()),
            request,
            context,
            caller=caller,
            streamed=streamed,
            default="query",
            field=lambda number: f"{fields[places[number]]}.text",
        )
        vectors[places] = encoded.vectors
        return encoded

    def _check(self, request: search_pb2.SearchRequest) -> None:
        check_count("queries", count_queries(request), self._settings.max_texts)
        if not 1 <= request.top_k <= self._settings.max_top_k:
            raise bad_field("top_k", f"is {request.top_k}; it must be 1 to {self._settings.max_top_k}")
        # Also false where it is not a number.
        if request.HasField("min_score") and not -1 <= request.min_score <= 1:
            raise bad_field("min_score", f"is {request.min_score:g}; it must be a cosine, -1 to 1")
        if request.offset > self._settings.max_top_k - request.top_k:
            raise bad_field(
                "offset", f"is {request.offset}; with top_k it may be up to {self._settings.max_top_k}"
            )
        if len(request.exclude_ids) > MAX_EXCLUDED:
            raise bad_field(
                "exclude_ids", f"has {len(request.exclude_ids)}; a search leaves out up to {MAX_EXCLUDED}"
            )
        if request.accuracy not in _ACCURACIES:
            raise bad_field("accuracy", f"{request.accuracy} is no Accuracy")


@dataclass(frozen=True, slots=True)
class _Part:
    """A text, vector or record to search with.

    Attributes:
        query: The position of the query that it is, or is part of.
        field: Its name, for a refusal.
        weight: How much it counts.
        message: What the request says of it.
    """

    query: int
    field: str
    weight: float
    message: search_pb2.Query | search_pb2.QueryPart


def _parts(request: search_pb2.SearchRequest) -> list[_Part]:
    """The parts of all queries of a request, in order; one that is not combined is its only part."""
    parts = []
    for position, query in enumerate(request.queries):
        field = f"queries[{position}]"
        if query.WhichOneof("input") != "combined":
            parts.append(_Part(position, field, 1.0, query))
            continue
        field = f"{field}.combined.parts"
        if not 1 <= len(query.combined.parts) <= MAX_PARTS:
            raise bad_field(field, f"has {len(query.combined.parts)}; it must have 1 to {MAX_PARTS}")
        for number, part in enumerate(query.combined.parts):
            weight = part.weight if part.HasField("weight") else 1.0
            # Also false where it is not a number.
            if not 0 < abs(weight) <= MAX_WEIGHT:
                raise bad_field(
                    f"{field}[{number}].weight",
                    f"is {weight:g}; it must be -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, and not 0",
                )
            parts.append(_Part(position, f"{field}[{number}]", weight, part))
    return parts


def _combine(parts: Sequence[_Part], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors of the queries: the weighted sums of those of their parts, brought to unit length.

    Args:
        parts: Of all queries, in order.
        vectors: float32, a row for each part, unit length.
    """
    queries = [part.query for part in parts]
    count = queries[-1] + 1
    if len(parts) == count:
        # Nothing to add up, but an only part may have a weight below 0.
        if all(part.weight > 0 for part in parts):
            return vectors
        return vectors * np.sign([part.weight for part in parts]).astype(np.float32)[:, None]
    weights = np.array([part.weight for part in parts])
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, queries, vectors * weights[:, None])
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    scales = np.zeros(count)
    np.add.at(scales, queries, abs(weights))
    # What is left of vectors that cancel each other is their rounding.
    for position in np.flatnonzero(norms[:, 0] <= 1e-6 * scales).tolist():
        raise bad_field(
            f"queries[{position}].combined", "adds up to zero, which has no direction to search in"
        )
    unit: NDArray[np.float32] = (sums / norms).astype(np.float32)
    return unit


def _add_usage(result: search_pb2.QueryHits, usage: embedding_pb2.TextUsage) -> None:
    """Say how a text of a query was read, beside the others of that query."""
    if result.HasField("usage"):
        result.usage.tokens += usage.tokens
        result.usage.truncated |= usage.truncated
        result.usage.cached &= usage.cached
    else:
        result.usage.CopyFrom(usage)


def _narrowing(request: search_pb2.SearchRequest) -> Narrowing:
    return Narrowing(
        filter=read_filter("filter", request.filter) if request.HasField("filter") else None,
        exclude_ids=tuple(request.exclude_ids),
        group_by_label=request.group_by_label,
        offset=request.offset if request.HasField("offset") else None,
    )


def _find(
    index: Searchable,
    parts: Sequence[_Part],
    vectors: NDArray[np.float32],
    ids: Mapping[int, str],
    request: search_pb2.SearchRequest,
    narrowing: Narrowing,
) -> list[search_pb2.QueryHits]:
    """Search, fetch the records, and write the hits; in a thread, for all three take their time.

    Args:
        index: Where.
        parts: Of the queries.
        vectors: Of the parts; those that are asked for by id are put into it.
        ids: Of records to search with, by the part's place.
        request: Checked.
        narrowing: Read from it.
    """
    own_rows = _put_vectors(index, parts, vectors, ids) if ids else ()
    found = narrowed_rows(
        index,
        _combine(parts, vectors),
        request.top_k,
        narrowing,
        accuracy=_ACCURACIES[request.accuracy],
        min_score=request.min_score if request.HasField("min_score") else None,
        own_rows=own_rows,
    )
    results = []
    size = 0
    for scores, rows in found:
        result = _write_hits(index.hits(rows, scores), request)
        size += result.ByteSize()
        if size > MAX_ANSWER_BYTES:
            raise bad_field(
                "top_k", f"makes an answer of over {MAX_ANSWER_BYTES} bytes; ask for fewer hits or omit_text"
            )
        results.append(result)
    return results


def _put_vectors(
    index: Searchable, parts: Sequence[_Part], vectors: NDArray[np.float32], ids: Mapping[int, str]
) -> list[list[Any]]:
    """Put the vectors of records into the rows of the parts that ask with them.

    Returns:
        For each query, the rows in the index of its records.
    """
    found = index.rows_of(set(ids.values()))
    own: list[list[Any]] = [[] for _ in range(parts[-1].query + 1)]
    for place, identifier in ids.items():
        if identifier not in found:
            raise no_such_record(f"{parts[place].field}.id", identifier)
        own[parts[place].query].append(found[identifier])
    stored = index.vectors([found[identifier] for identifier in ids.values()])
    for place, vector in zip(ids, stored, strict=True):
        if not vector.any():
            raise bad_field(
                f"{parts[place].field}.id", "is of a record with a vector of zeros, which has no direction"
            )
    vectors[list(ids)] = stored
    return own


def _write_hits(hits: Iterable[Hit | None], request: search_pb2.SearchRequest) -> search_pb2.QueryHits:
    result = search_pb2.QueryHits()
    for hit in hits:
        # It was deleted meanwhile.
        if hit is None:
            continue
        written = result.hits.add(
            id=hit.id,
            score=hit.score,
            text="" if request.omit_text else hit.text,
            label=hit.label or "",
        )
        if hit.attributes is not None and not request.omit_attributes:
            written.attributes.update(hit.attributes)
            # Attributes that are there and empty are not none.
            written.attributes.SetInParent()
    return result
