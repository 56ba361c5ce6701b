"""Products in float32 by three in bfloat16 are those of float32, to a hundred-thousandth."""

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cognate import bf16x3, operators
from cognate.encoder import Encoder
from cognate.graph_file import map_graph, rewritten

has_amx = pytest.mark.skipif(
    operators.arithmetic() != "amx", reason="no AMX here, or cognate was installed without a C compiler"
)


def product(path: Path, weights: np.ndarray, *, constant: bool = True) -> Path:
    """A graph of one MatMul."""
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)]
    if not constant:
        inputs.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, weights.shape))
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    constants = [onnx.numpy_helper.from_array(weights, "w")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", inputs, outputs, constants))
    model.ir_version = 10
    onnx.save(model, path)
    return path


def session(graph: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    mapped = map_graph(graph)
    products = bf16x3.products(mapped)
    assert products
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(operators.library()))
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent)
    )
    return onnxruntime.InferenceSession(rewritten(graph, mapped, products), options)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@has_amx
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.integers(1, 5),
    tokens=st.integers(1, 70),
    depth=st.integers(1, 60),
    columns=st.integers(1, 12),
    threads=st.integers(1, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
@example(texts=1, tokens=1, depth=1, columns=1, threads=1, scale=1.0)
# More than is done at a time: of the depth, and of the rows.
@example(texts=5, tokens=70, depth=48, columns=2, threads=2, scale=1.0)
def test_a_product_is_that_of_float32(
    tmp_path: Path, texts: int, tokens: int, depth: int, columns: int, threads: int, scale: float
) -> None:
    inputs, weights = (
        normal(0, texts, tokens, 32 * depth) * np.float32(scale),
        normal(1, 32 * depth, 32 * columns),
    )
    (found,) = session(product(tmp_path / "model.onnx", weights), threads).run(None, {"x": inputs})
    wide, matrix = inputs.astype(np.float64), weights.astype(np.float64)
    # What is left out of each single product is below 2^-16 of it.
    assert (np.abs(found - wide @ matrix) <= 2**-16 * (np.abs(wide) @ np.abs(matrix))).all()


@has_amx
def test_a_row_is_the_same_whatever_is_beside_it(tmp_path: Path) -> None:
    inputs = normal(0, 100, 384)
    graph = product(tmp_path / "model.onnx", normal(1, 384, 96))
    (together,) = session(graph, 2).run(None, {"x": inputs})
    alone = session(graph)
    for first, rows in ((0, 1), (31, 3), (64, 36)):
        (some,) = alone.run(None, {"x": inputs[first : first + rows]})
        np.testing.assert_array_equal(some, together[first : first + rows])
    # The rows that fill a tile up have whatever was there, which may be no number.
    odd = inputs[:33].copy()
    odd[32] = np.nan
    (some,) = alone.run(None, {"x": odd})
    np.testing.assert_array_equal(some[:32], together[:32])
    assert np.isnan(some[32]).all()


@has_amx
def test_no_rows_are_no_rows_and_inputs_of_another_depth_are_refused(tmp_path: Path) -> None:
    opened = session(product(tmp_path / "model.onnx", normal(1, 64, 32)))
    (none,) = opened.run(None, {"x": np.empty((0, 5, 64), np.float32)})
    assert none.shape == (0, 5, 32)
    with pytest.raises(Exception, match="the inputs do not fit the weights"):
        opened.run(None, {"x": normal(0, 2, 32)})


def test_products_of_other_sizes_or_with_weights_that_may_change_are_left_to_onnxruntime(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    assert len(bf16x3.products(map_graph(product(path, normal(0, 64, 32))))) == 1
    assert bf16x3.products(map_graph(product(path, normal(0, 64, 33)))) == []
    assert bf16x3.products(map_graph(product(path, normal(0, 16, 32)))) == []
    assert bf16x3.products(map_graph(product(path, normal(0, 64, 32), constant=False))) == []


@has_amx
def test_a_bundle_has_the_same_vectors_with_it_and_without(
    minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["How long does it take to learn a language?", "", "the sky " * 100, "x"]
    ours = Encoder(minilm_bundle, device="cpu", threads=2)
    with monkeypatch.context() as without:
        without.setattr(operators, "arithmetic", lambda: None)
        plain = Encoder(minilm_bundle, device="cpu", threads=2)
    assert ours._sessions._products
    assert not plain._sessions._products
    difference = np.abs(ours.encode(texts) - plain.encode(texts)).max()
    assert 0 < difference < 1e-5
    # Runs side by side have another session, with the weights of the first.
    with ours._sessions.session():
        np.testing.assert_allclose(ours.encode(texts), plain.encode(texts), atol=1e-5)
