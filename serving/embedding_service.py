"""EmbeddingService: texts to embeddings."""

from typing import Any

from cognate.bundle import BundleManifest
from cognate.v1 import embedding_pb2, embedding_pb2_grpc
from cognate.vector_formats import cut
from serving.batcher import Batcher
from serving.encoding import check_count, check_text, encode_texts, timings, usages
from serving.refusal import bad_field
from serving.settings import Settings
from serving.vectors import write_vectors


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers Encode. Raises ``Refusal``, which the boundary turns into a status."""

    def __init__(self, batcher: Batcher, model: BundleManifest, settings: Settings) -> None:
        self._batcher = batcher
        self._model = model
        self._settings = settings

    async def Encode(  # noqa: N802
        self, request: embedding_pb2.EncodeRequest, context: Any
    ) -> embedding_pb2.EncodeResponse:
        """Encode texts."""
        check_count("texts", len(request.texts), self._settings.max_texts)
        texts = list(request.texts)
        for position, text in enumerate(texts):
            check_text(f"texts[{position}]", text, self._settings.max_text_bytes)
        if request.dimension > self._model.dimension:
            raise bad_field(
                "dimension", f"is {request.dimension}; vectors of this model have {self._model.dimension}"
            )
        if request.format not in embedding_pb2.EmbeddingFormat.values():
            raise bad_field("format", f"{request.format} is no EmbeddingFormat")
        encoded = await encode_texts(
            self._batcher, texts, request, context, default="passage", field="texts[{}]".format
        )
        vectors = cut(encoded.vectors, request.dimension or self._model.dimension)
        return embedding_pb2.EncodeResponse(
            embeddings=write_vectors(vectors, request.format),
            usages=usages(encoded),
            model=self._model.model,
            fingerprint=self._model.fingerprint,
            timings=timings(encoded),
        )
