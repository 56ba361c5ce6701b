"""EmbeddingService: texts to embeddings."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from cognate.bundle import BundleManifest
from cognate.v1 import embedding_pb2, embedding_pb2_grpc
from cognate.vector_formats import cut
from serving.callers import read_caller
from serving.encoding import check_count, check_text, encode_texts, timings, usages
from serving.queue import Caller
from serving.refusal import bad_field
from serving.settings import Settings
from serving.shared_encoding import SharedEncoder
from serving.streams import answer_chunks
from serving.vectors import write_vectors

CHUNKS_AT_A_TIME = 2
"""Of a stream: the next is tokenised while the model has one, and so many at most wait for a slow reader."""

_FORMATS = frozenset(embedding_pb2.EmbeddingFormat.values())


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers Encode and EncodeStream. Raises ``Refusal``, which the boundary turns into a status."""

    def __init__(self, encoder: SharedEncoder, model: BundleManifest, settings: Settings) -> None:
        self._encoder = encoder
        self._model = model
        self._settings = settings

    async def Encode(  # noqa: N802
        self, request: embedding_pb2.EncodeRequest, context: Any
    ) -> embedding_pb2.EncodeResponse:
        """Encode texts."""
        return await self._encode(request, context, read_caller(context), streamed=False)

    async def EncodeStream(  # noqa: N802
        self, requests: AsyncIterator[embedding_pb2.EncodeStreamRequest], context: Any
    ) -> AsyncIterator[embedding_pb2.EncodeStreamResponse]:
        """Encode chunks of texts."""
        caller = read_caller(context)

        answered = answer_chunks(
            requests,
            lambda request: len(request.texts),
            lambda request: self._encode(request, context, caller, streamed=True),
            at_a_time=CHUNKS_AT_A_TIME,
        )
        async with aclosing(answered):
            async for chunk, response in answered:
                yield embedding_pb2.EncodeStreamResponse(
                    id=chunk.message.id, first_text=chunk.first, response=response
                )

    async def _encode(
        self, request: embedding_pb2.EncodeRequest, context: Any, caller: Caller, *, streamed: bool
    ) -> embedding_pb2.EncodeResponse:
        check_count("texts", len(request.texts), self._settings.max_texts)
        texts = list(request.texts)
        for position, text in enumerate(texts):
            check_text(f"texts[{position}]", text, self._settings.max_text_bytes)
        if request.dimension > self._model.dimension:
            raise bad_field(
                "dimension", f"is {request.dimension}; vectors of this model have {self._model.dimension}"
            )
        if request.format not in _FORMATS:
            raise bad_field("format", f"{request.format} is no EmbeddingFormat")
        encoded = await encode_texts(
            self._encoder,
            texts,
            request,
            context,
            caller=caller,
            streamed=streamed,
            default="passage",
            field="texts[{}]".format,
        )
        vectors = cut(encoded.vectors, request.dimension or self._model.dimension)
        return embedding_pb2.EncodeResponse(
            embeddings=write_vectors(vectors, request.format),
            usages=usages(encoded),
            model=self._model.model,
            fingerprint=self._model.fingerprint,
            timings=timings(encoded),
        )
