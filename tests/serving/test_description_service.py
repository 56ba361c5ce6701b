"""GetInfo over a real socket."""

from cognate.encoder import Encoder
from cognate.processors import available_cores
from cognate.providers import PROVIDERS
from cognate.v1 import info_pb2
from serving.batcher import QUEUE_BATCHES
from tests.serving.servers import Stubs


def test_info_tells_the_model_the_limits_and_the_versions(stubs: Stubs, encoder: Encoder) -> None:
    info = stubs.get_info(info_pb2.GetInfoRequest(), timeout=60)
    assert info.model.fingerprint == encoder.fingerprint
    assert info.model.dimension == 32
    assert info.model.max_length == 64
    assert info.model.pooling == "mean"
    assert info.model.precision == "fp32"
    assert info.model.query_prompt == "how do i "
    assert info.model.passage_prompt == ""
    assert info.device == "cpu"
    assert info.limits == info_pb2.Limits(
        max_texts=50,
        max_text_bytes=1000,
        max_top_k=20,
        max_message_bytes=200_000,
        max_batch_tokens=PROVIDERS["cpu"].max_batch_tokens,
        max_queue_tokens=QUEUE_BATCHES * PROVIDERS["cpu"].max_batch_tokens * available_cores(),
        max_calls=1024,
        max_streams=64,
        max_inflight_bytes=256 * 1024 * 1024,
    )
    assert {"cognate", "onnxruntime", "faiss", "python"} <= set(info.versions)
