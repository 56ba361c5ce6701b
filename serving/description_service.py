"""IndexService and InfoService: what a server holds, runs and takes."""

import platform
from collections.abc import Mapping
from typing import Any

import faiss
import onnxruntime

from cognate.artifact import installed_versions
from cognate.encoder import Encoder
from cognate.index import Index
from cognate.v1 import index_pb2, index_pb2_grpc, info_pb2, info_pb2_grpc
from serving.batcher import Batcher
from serving.settings import Settings


class IndexService(index_pb2_grpc.IndexServiceServicer):
    """Answers ListIndexes."""

    def __init__(self, indexes: Mapping[str, Index]) -> None:
        self._answer = index_pb2.ListIndexesResponse(
            indexes=[_describe(name, index) for name, index in sorted(indexes.items())]
        )

    async def ListIndexes(  # noqa: N802
        self, _request: index_pb2.ListIndexesRequest, _context: Any
    ) -> index_pb2.ListIndexesResponse:
        """List the indexes."""
        return self._answer


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


def _describe(name: str, index: Index) -> index_pb2.IndexDescription:
    manifest = index.manifest
    description = index_pb2.IndexDescription(
        name=name,
        kind=manifest.kind,
        count=manifest.count,
        dimension=manifest.dimension,
        metric=manifest.metric,
        fingerprint=manifest.fingerprint,
    )
    description.created_at.FromDatetime(manifest.created_at)
    return description
