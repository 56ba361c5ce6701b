"""SearchService: texts and vectors to hits."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import BundleManifest
from cognate.narrowing import MAX_EXCLUDED, Narrowing, narrowed_rows
from cognate.processors import available_cores
from cognate.records import Accuracy, Record
from cognate.searchable import Searchable
from cognate.v1 import search_pb2, search_pb2_grpc
from serving.batcher import Encoded
from serving.callers import read_caller
from serving.encoding import check_count, check_text, encode_texts, timings, usages
from serving.filter_messages import read_filter
from serving.indexes import IndexRegistry, Version
from serving.queue import Caller
from serving.refusal import bad_field, no_such_record
from serving.remote_indexes import RemoteFailures
from serving.settings import Settings
from serving.shared_encoding import SharedEncoder
from serving.streams import answer_chunks
from serving.vectors import read_vector

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
            lambda request: len(request.queries),
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
        vectors = np.empty((len(request.queries), self._dimension), np.float32)
        texts: dict[int, str] = {}
        ids: dict[int, str] = {}
        for position, query in enumerate(request.queries):
            kind = query.WhichOneof("input")
            if kind == "text":
                field = f"queries[{position}].text"
                if not query.text.strip():
                    raise bad_field(field, "is empty; give a text to search with")
                check_text(field, query.text, self._settings.max_text_bytes)
                texts[position] = query.text
            elif kind == "embedding":
                vectors[position] = read_vector(
                    f"queries[{position}].embedding", query.embedding, self._dimension
                )
            elif kind == "id":
                ids[position] = query.id
            else:
                raise bad_field(f"queries[{position}]", "has neither a text nor an embedding, nor an id")
        narrowing = _narrowing(request)
        encoded = await self._encode(texts, vectors, request, context, caller, streamed=streamed)
        started = time.monotonic()
        if version.index.remote:
            results = await version.run(
                self._waiting, self._find_remote, name, vectors, ids, request, narrowing
            )
        else:
            results = await version.run(self._threads, _find, vectors, ids, request, narrowing)
        response = search_pb2.SearchResponse(
            results=results,
            index=name,
            fingerprint=version.index.manifest.fingerprint,
            index_version=version.index.version,
            timings=timings(encoded, time.monotonic() - started),
            model=self._model.model,
        )
        if encoded:
            for position, usage in zip(texts, usages(encoded), strict=True):
                response.results[position].usage.CopyFrom(usage)
        return response

    def _find_remote(
        self,
        index: Searchable,
        name: str,
        vectors: NDArray[np.float32],
        ids: Mapping[int, str],
        request: search_pb2.SearchRequest,
        narrowing: Narrowing,
    ) -> list[search_pb2.QueryHits]:
        # It may have failed for others while this call waited for a thread.
        self._failures.refuse_if_down(name)
        with self._failures.refusing(name):
            return _find(index, vectors, ids, request, narrowing)

    async def _encode(
        self,
        texts: Mapping[int, str],
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
        positions = list(texts)
        encoded = await encode_texts(
            self._encoder,
            list(texts.values()),
            request,
            context,
            caller=caller,
            streamed=streamed,
            default="query",
            field=lambda number: f"queries[{positions[number]}].text",
        )
        vectors[positions] = encoded.vectors
        return encoded

    def _check(self, request: search_pb2.SearchRequest) -> None:
        check_count("queries", len(request.queries), self._settings.max_texts)
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


def _narrowing(request: search_pb2.SearchRequest) -> Narrowing:
    return Narrowing(
        filter=read_filter("filter", request.filter) if request.HasField("filter") else None,
        exclude_ids=tuple(request.exclude_ids),
        group_by_label=request.group_by_label,
        offset=request.offset if request.HasField("offset") else None,
    )


def _find(
    index: Searchable,
    vectors: NDArray[np.float32],
    ids: Mapping[int, str],
    request: search_pb2.SearchRequest,
    narrowing: Narrowing,
) -> list[search_pb2.QueryHits]:
    """Search, fetch the records, and write the hits; in a thread, for all three take their time.

    Args:
        index: Where.
        vectors: Of the queries; those that are searched by id are put into it.
        ids: Of records to search with, by the query's position.
        request: Checked.
        narrowing: Read from it.
    """
    found = narrowed_rows(
        index,
        vectors,
        request.top_k,
        narrowing,
        accuracy=_ACCURACIES[request.accuracy],
        min_score=request.min_score if request.HasField("min_score") else None,
        own_rows=_put_vectors(index, vectors, ids) if ids else (),
    )
    results = []
    size = 0
    for scores, rows in found:
        records = index.fetch(rows.tolist())
        hits = [
            (records[row], score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            if row in records
        ]
        result = _write_hits(hits, request)
        size += result.ByteSize()
        if size > MAX_ANSWER_BYTES:
            raise bad_field(
                "top_k", f"makes an answer of over {MAX_ANSWER_BYTES} bytes; ask for fewer hits or omit_text"
            )
        results.append(result)
    return results


def _put_vectors(index: Searchable, vectors: NDArray[np.float32], ids: Mapping[int, str]) -> list[Any]:
    """Put the vectors of records into the rows of the queries that ask with them.

    Returns:
        The record's row in the index for each query, None for a query that is no record.
    """
    found = index.rows_of(set(ids.values()))
    own: list[Any] = [None] * len(vectors)
    for position, identifier in ids.items():
        if identifier not in found:
            raise no_such_record(f"queries[{position}].id", identifier)
        own[position] = found[identifier]
    stored = index.vectors([found[identifier] for identifier in ids.values()])
    for position, vector in zip(ids, stored, strict=True):
        if not vector.any():
            raise bad_field(
                f"queries[{position}].id", "is of a record with a vector of zeros, which has no direction"
            )
    vectors[list(ids)] = stored
    return own


def _write_hits(
    hits: Sequence[tuple[Record, float]], request: search_pb2.SearchRequest
) -> search_pb2.QueryHits:
    result = search_pb2.QueryHits()
    for record, score in hits:
        hit = result.hits.add(
            id=record.id,
            score=score,
            text="" if request.omit_text else record.text,
            label=record.label or "",
        )
        if record.attributes is not None and not request.omit_attributes:
            hit.attributes.update(record.attributes)
            # Attributes that are there and empty are not none.
            hit.attributes.SetInParent()
    return result
