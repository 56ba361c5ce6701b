"""A model that fails on some texts fails their calls alone; the sessions are real ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cognate.bundle import BundleManifest, fingerprint_of
from cognate.encoder import Encoder
from cognate.v1 import embedding_pb2
from tests.serving.servers import Running, failure

FINE = embedding_pb2.EncodeRequest(texts=["open the door"])
FAILING = embedding_pb2.EncodeRequest(texts=["open the printer"])


def altered(bundle: Path, folder: Path, alter: Callable[[Path], None]) -> Path:
    """A bundle with other files, for which its manifest vouches."""
    shutil.copytree(bundle, folder)
    alter(folder)
    fields = BundleManifest.read(bundle).model_dump(
        exclude={"artifact", "format_version", "created_at", "versions", "files", "fingerprint"}
    )
    manifest = BundleManifest.read(bundle)
    fingerprint = fingerprint_of(folder, max_length=manifest.max_length, prompts=manifest.prompts)
    BundleManifest.write(folder, **{**fields, "prompts": manifest.prompts}, fingerprint=fingerprint)
    return folder


def with_an_unknown_token(folder: Path) -> None:
    """Give "printer" an id that the model has no embedding for."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["printer"] = 5000
    path.write_text(json.dumps(tokenizer))


def with_a_hungry_graph(folder: Path) -> None:
    """Let the model ask for half an exabyte where a text has the word "printer"."""
    printer = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["printer"]
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    graph = model.graph
    (producer,) = [node for node in graph.node if "sentence_embedding" in node.output]
    producer.output[list(producer.output).index("sentence_embedding")] = "unfed"

    def constant(name: str, values: list[int] | int) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))

    constant("printer", printer)
    constant("much", [2**57])
    graph.node.extend(
        [
            helper.make_node("Equal", ["input_ids", "printer"], ["is_printer"]),
            helper.make_node("Cast", ["is_printer"], ["printers"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["printers"], ["any_printer"], keepdims=0),
            helper.make_node("Mul", ["any_printer", "much"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["eaten"]),
            helper.make_node("ReduceSum", ["eaten"], ["sum_eaten"], keepdims=0),
            helper.make_node("Add", ["unfed", "sum_eaten"], ["sentence_embedding"]),
        ]
    )
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("alter", "code", "reason", "says"),
    [
        (with_an_unknown_token, grpc.StatusCode.INTERNAL, "ENCODING_FAILED", "the server's log says why"),
        (with_a_hungry_graph, grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "had no memory"),
    ],
)
def test_a_model_that_fails_on_a_text_fails_its_call_and_goes_on(
    bundle: Path,
    encoder: Encoder,
    serve: Callable[..., Running],
    tmp_path: Path,
    alter: Callable[[Path], None],
    code: grpc.StatusCode,
    reason: str,
    says: str,
) -> None:
    stubs = serve(bundle=altered(bundle, tmp_path / "bundle", alter), indexes={}).stubs
    for _ in range(2):
        failed = failure(stubs.encode, FAILING)
        assert (failed.code, failed.reason) == (code, reason)
        assert says in failed.message
        assert failed.retry_seconds is None
        (embedding,) = stubs.encode(FINE, timeout=60).embeddings
        assert list(embedding.values) == pytest.approx(encoder.encode(list(FINE.texts))[0], abs=1e-5)
