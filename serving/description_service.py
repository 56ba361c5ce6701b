"""InfoService: what a server runs and takes."""

import platform
from typing import Any

import faiss
import onnxruntime

from cognate.artifact import installed_versions
from cognate.encoder import Encoder
from cognate.v1 import info_pb2, info_pb2_grpc
from serving.batcher import Batcher
from serving.settings import Settings


class InfoService(info_pb2_grpc.InfoServiceServicer):
    """Answers GetInfo."""

    def __init__(self, encoder: Encoder, batcher: Batcher, settings: Settings) -> None:
        model = encoder.bundle.manifest
        self._answer = info_pb2.GetInfoResponse(
            model=info_pb2.ModelDescription(
                name=model.model,
                fingerprint=model.fingerprint,
                dimension=model.dimension,
                max_length=model.max_length,
                pooling=model.pooling,
                precision=model.precision,
                query_prompt=model.prompts.query,
                passage_prompt=model.prompts.passage,
            ),
            limits=info_pb2.Limits(
                max_texts=settings.max_texts,
                max_text_bytes=settings.max_text_bytes,
                max_top_k=settings.max_top_k,
                max_message_bytes=settings.max_message_bytes,
                max_batch_tokens=batcher.max_batch_tokens,
                max_queue_tokens=batcher.max_queue_tokens,
                max_calls=settings.max_calls,
                max_streams=settings.max_streams,
                max_inflight_bytes=settings.max_inflight_bytes,
            ),
            versions={
                **installed_versions("cognate"),
                "onnxruntime": onnxruntime.__version__,
                "faiss": faiss.__version__,
                "python": platform.python_version(),
            },
            device=encoder.device,
        )

    async def GetInfo(  # noqa: N802
        self, _request: info_pb2.GetInfoRequest, _context: Any
    ) -> info_pb2.GetInfoResponse:
        """Say what the server runs and what it takes."""
        return self._answer
