"""The token embeddings of a graph are mapped where they lie, and whatever is no such graph has none."""

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cognate.encoder import Encoder
from cognate.graph_file import LEAST_BYTES, map_graph

ROWS, COLUMNS = LEAST_BYTES // 4 // 32 + 1, 32


def graph(path: Path, table: np.ndarray, *, name: str = "table") -> Path:
    """A graph that reads rows of a table, and one that is multiplied with it."""
    dice = np.random.default_rng(0)
    matrix = dice.standard_normal((table.shape[1], ROWS), np.float32)
    nodes = [
        onnx.helper.make_node("Gather", [name, "ids"], ["rows"]),
        onnx.helper.make_node("Cast", ["rows"], ["float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["float", "matrix"], ["sentence_embedding"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])]
    outputs = [onnx.helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, None)]
    constants = [onnx.numpy_helper.from_array(table, name), onnx.numpy_helper.from_array(matrix, "matrix")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs, constants))
    model.ir_version = 10
    onnx.save(model, path)
    return path


def random_table(dtype: str) -> np.ndarray:
    return np.random.default_rng(1).integers(-99, 99, (4 * ROWS, COLUMNS)).astype(dtype)


# Names of different lengths, so that the table lies at whatever address.
@pytest.mark.parametrize("name", ["t", "ta", "tab", "tabl"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_table_that_rows_are_read_of_is_mapped_and_runs_as_before(
    tmp_path: Path, dtype: str, name: str
) -> None:
    table = random_table(dtype)
    path = graph(tmp_path / "model.onnx", table, name=name)
    mapped = map_graph(path).tables
    assert list(mapped) == [name]
    np.testing.assert_array_equal(mapped[name], table)
    assert not mapped[name].flags.writeable
    options = onnxruntime.SessionOptions()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(mapped[name])
    options.add_initializer(name, value)
    ids = {"ids": np.array([0, 5, len(table) - 1])}
    (there,) = onnxruntime.InferenceSession(str(path), options).run(None, ids)
    (read,) = onnxruntime.InferenceSession(str(path)).run(None, ids)
    np.testing.assert_array_equal(there, read)


def test_what_is_small_of_another_type_or_elsewhere_is_left_to_onnxruntime(tmp_path: Path) -> None:
    assert map_graph(graph(tmp_path / "small.onnx", random_table("float32")[:100])).tables == {}
    assert map_graph(graph(tmp_path / "half.onnx", random_table("float16"))).tables == {}
    path = graph(tmp_path / "model.onnx", random_table("float32"))
    onnx.save(onnx.load(path), tmp_path / "outside.onnx", save_as_external_data=True, location="weights")
    assert map_graph(tmp_path / "outside.onnx").tables == {}
    assert map_graph(tmp_path / "none.onnx").tables == {}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), cut=st.integers(1, 10_000_000), change=st.binary(max_size=20))
def test_a_damaged_file_has_no_tables_or_those_of_its_size(
    tmp_path: Path, content: bytes, cut: int, change: bytes
) -> None:
    (tmp_path / "random.onnx").write_bytes(content)
    assert map_graph(tmp_path / "random.onnx").tables == {}
    whole = tmp_path / "model.onnx"
    if not whole.exists():
        graph(whole, random_table("float32"))
    damaged = bytearray(whole.read_bytes()[:cut])
    damaged[len(damaged) // 2 : len(damaged) // 2 + len(change)] = change
    damaged[: len(change) // 2] = change[::2][: len(change) // 2]
    (tmp_path / "damaged.onnx").write_bytes(damaged)
    for table in map_graph(tmp_path / "damaged.onnx").tables.values():
        assert LEAST_BYTES <= table.nbytes <= len(damaged)


def test_all_sessions_of_an_encoder_have_the_same_table(minilm_bundle: Path) -> None:
    encoder = Encoder(minilm_bundle, device="cpu", threads=2)
    ids = [text.ids for text in encoder.tokenize(["open the door", "a language", "sky"])]
    alone = encoder.forward(ids)
    with encoder._sessions.session(), encoder._sessions.session() as beside:
        (vectors,) = beside.run(None, encoder._feeds(ids))[-1:]
        assert beside is not encoder._sessions._alone
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert encoder._sessions._constants
