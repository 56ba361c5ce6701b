"""What one writes with grpcio and onnxruntime in an afternoon: ``python bare_server.py NAME PORT BUNDLE``.

Run by ``serving.py``. ``encode`` answers Encode of the contract with a thread for each call and a run of the
model for each text, no batching. ``empty`` answers a call of no bytes with no bytes by grpc.aio.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnxruntime
import tokenizers

from cognate.processors import available_cores
from cognate.v1 import embedding_pb2, embedding_pb2_grpc


class BareModel:
    """A bundle's tokenizer and graph, with onnxruntime's own defaults."""

    def __init__(self, bundle: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        self._session = onnxruntime.InferenceSession(
            str(bundle / "onnx/model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]

    def feeds(self, text: str) -> dict[str, Any]:
        """What the graph takes for a text."""
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: known[name] for name in self._inputs}

    def run(self, feeds: dict[str, Any]) -> Any:
        """A text's vector, float32, shape (1, dimension)."""
        return self._session.run(["sentence_embedding"], feeds)[0]


class BareService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Encode, one text after another."""

    def __init__(self, model: BareModel) -> None:
        self._model = model

    def Encode(self, request: Any, context: Any) -> embedding_pb2.EncodeResponse:  # noqa: N802
        """Encode texts."""
        vectors = [self._model.run(self._model.feeds(text)) for text in request.texts]
        return embedding_pb2.EncodeResponse(
            embeddings=[embedding_pb2.Embedding(packed=vector.tobytes()) for vector in vectors]
        )


def serve_encode(port: int, bundle: Path) -> None:
    """Serve Encode until killed."""
    server = grpc.server(ThreadPoolExecutor())
    service = BareService(BareModel(bundle))
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


async def serve_empty(port: int) -> None:
    """Serve empty calls until killed, by grpc.aio."""

    async def answer(request: bytes, context: Any) -> bytes:
        return b""

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("benchmark.Empty", {"Call": handler})]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serve what the first argument says."""
    if sys.argv[1] == "encode":
        serve_encode(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        asyncio.run(serve_empty(int(sys.argv[2])))


if __name__ == "__main__":
    main()
