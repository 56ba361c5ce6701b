"""The layers of BERT-like graphs, in one operator, give the vectors that onnxruntime gives."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

import exporter
from cognate import bert_layers, operators
from cognate.encoder import Encoder
from cognate.graph_file import MappedGraph, map_graph
from tests import families

layers = pytest.mark.usefixtures("arithmetic")
"""By each arithmetic that this processor has."""

SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
LENGTH = 128


@pytest.fixture(params=["avx512", "amx"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if operators.arithmetic() not in (request.param, "amx"):
        pytest.skip(f"no {request.param} here, or cognate was installed without a C compiler")
    monkeypatch.setattr(operators, "arithmetic", lambda: request.param)


def random_model(folder: Path, family: str = "bert", **changes: object) -> Path:
    """A plain transformers folder with random weights, all of them: the published biases are not zero."""
    make_tokenizer, _ = families.FAMILIES[family]
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = LENGTH
    kind, config = {
        "bert": (transformers.BertModel, transformers.BertConfig),
        "roberta": (transformers.RobertaModel, transformers.RobertaConfig),
        "xlm-roberta": (transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
    }[family]
    sizes = SIZE | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH + 2} | changes
    torch.manual_seed(2)
    model = kind(config(**sizes, pad_token_id=tokenizer.pad_token_id))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(
            parameter, float("LayerNorm.weight" in name), 0.3 if parameter.dim() == 2 else 0.1
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    return exporter.export(random_model(folder / "model"), folder / "bundle", pooling="mean").folder


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as MiniLM, so that a thread takes 128 tokens through the layers at a time."""
    folder = tmp_path_factory.mktemp("wide")
    model = random_model(folder / "model", intermediate_size=1536)
    return exporter.export(model, folder / "bundle", pooling="mean").folder


def plain(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Without operators of ours."""
    with monkeypatch.context() as without:
        without.setattr(operators, "arithmetic", lambda: None)
        return Encoder(bundle, device="cpu", threads=1)


@layers
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_family_gives_the_vectors_of_sentence_transformers(family: str, tmp_path: Path) -> None:
    transformer = Transformer(str(random_model(tmp_path / "plain", family)), max_seq_length=LENGTH)
    # What is multiplied after the layers stays what it is.
    model = SentenceTransformer(modules=[transformer, Pooling(64), Dense(64, 32), Normalize()], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    encoder = Encoder(exporter.export(tmp_path / "model", tmp_path / "bundle"), device="cpu", threads=2)
    assert encoder._sessions.skips_padding
    texts = ["how do i reset the password", "", "what is the printer " * 60, "door"]
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    np.testing.assert_allclose(encoder.encode(texts), theirs, atol=1e-4)
    assert (theirs @ theirs.T).min() < 0.99


@layers
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=9), threads=st.integers(1, 3))
@example(lengths=[1], threads=2)
@example(lengths=[16, 17], threads=1)
@example(lengths=[32, 33, 31, 1], threads=3)
def test_batches_of_any_lengths_and_threads_have_the_graphs_vectors(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int], threads: int
) -> None:
    ours = Encoder(bundle, device="cpu", threads=threads)
    rng = np.random.default_rng(len(lengths))
    batch = [rng.integers(5, 60, length).tolist() for length in lengths]
    together = ours.forward(batch)
    # Weights this large multiply what is rounded; MiniLM's vectors differ by 3e-6.
    np.testing.assert_allclose(together, plain(bundle, monkeypatch).forward(batch), atol=1e-4)
    # Whatever is beside it, and however many threads it had.
    for position, ids in enumerate(batch):
        np.testing.assert_allclose(ours.forward([ids])[0], together[position], atol=2e-6)


@layers
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, LENGTH), min_size=2, max_size=20))
@example(lengths=[64, 64])
@example(lengths=[64, 65])
@example(lengths=[128, 1, 128])
@example(lengths=[1] * 150)
def test_more_tokens_than_go_through_the_layers_together_have_the_graphs_vectors(
    wide_bundle: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    ours = Encoder(wide_bundle, device="cpu", threads=1)
    assert ours._sessions.skips_padding
    rng = np.random.default_rng(len(lengths))
    batch = [rng.integers(5, 60, length).tolist() for length in lengths]
    together = ours.forward(batch)
    np.testing.assert_allclose(together, plain(wide_bundle, monkeypatch).forward(batch), atol=1e-4)


@layers
def test_a_model_of_few_tokens_is_compared_by_as_many(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model", max_position_embeddings=20)
    bundle = exporter.export(model, tmp_path / "bundle", pooling="mean")
    assert bundle.manifest.max_length == 20
    assert Encoder(bundle, device="cpu")._sessions.skips_padding


@layers
@pytest.mark.parametrize(("bundle_of", "threads"), [("bundle", 2), ("wide_bundle", 1)])
def test_a_mask_with_holes_leaves_out_what_it_says(
    bundle_of: str, threads: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Path = request.getfixturevalue(bundle_of)
    mask = np.random.default_rng(0).integers(0, 2, (12, 40))
    mask[:, 7] = 1
    feeds = {"input_ids": np.random.default_rng(1).integers(5, 60, mask.shape), "attention_mask": mask}
    encoders = Encoder(bundle, device="cpu", threads=threads), plain(bundle, monkeypatch)
    ours, theirs = (
        encoder._sessions._alone.run(
            None,
            feeds | ({"token_type_ids": 0 * mask} if "token_type_ids" in encoder._sessions.inputs else {}),
        )
        for encoder in encoders
    )
    names = [each.name for each in encoders[0]._sessions._alone.get_outputs()]
    for name, of_ours, of_theirs in zip(names, ours, theirs, strict=True):
        there = mask == 1 if name == "last_hidden_state" else ...
        np.testing.assert_allclose(of_ours[there], of_theirs[there], atol=5e-4)


@layers
def test_runs_side_by_side_share_the_weights_and_give_the_same(bundle: Path) -> None:
    encoder = Encoder(bundle, device="cpu", threads=2)
    alone = encoder.encode(["how do i reset the password"])
    with encoder._sessions.session():
        np.testing.assert_array_equal(encoder.encode(["how do i reset the password"]), alone)


@layers
def test_what_the_operator_would_calculate_otherwise_is_left_to_onnxruntime(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = plain(bundle, monkeypatch).encode(["what is a door"])
    monkeypatch.setattr(bert_layers, "_heads", lambda config: 1)
    encoder = Encoder(bundle, device="cpu", threads=2)
    assert not encoder._sessions.skips_padding
    assert "has layers that are left to onnxruntime" in caplog.text
    np.testing.assert_allclose(encoder.encode(["what is a door"]), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 3, "hidden_act": "gelu"},
        {"num_attention_heads": 4, "hidden_act": "gelu"},
        {"num_attention_heads": 0, "hidden_act": "gelu"},
        {"num_attention_heads": "2", "hidden_act": "gelu"},
        {"num_attention_heads": 2, "hidden_act": "gelu_new"},
        {"hidden_act": "gelu"},
        [],
    ],
)
def test_layers_whose_heads_are_not_known_or_not_of_multiples_of_32_are_none(
    bundle: Path, tmp_path: Path, config: object
) -> None:
    graph = map_graph(bundle / "onnx/model.onnx")
    assert bert_layers.find_layers(graph, bundle / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not bert_layers.find_layers(graph, tmp_path / "config.json")
    assert not bert_layers.find_layers(graph, tmp_path / "none.json")


@layers
@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"intermediate_size": 72}]
)
def test_other_layers_are_left_to_onnxruntime(tmp_path: Path, changes: dict[str, object]) -> None:
    model = random_model(tmp_path / "model", **changes)
    encoder = Encoder(exporter.export(model, tmp_path / "bundle", pooling="mean"), device="cpu")
    assert not encoder._sessions.skips_padding


@layers
@pytest.mark.parametrize("family", ["distilbert", "mpnet", "modernbert"])
def test_the_layers_of_other_families_are_left_to_onnxruntime(family: str, tmp_path: Path) -> None:
    model = families.make(family, tmp_path / "model")
    encoder = Encoder(exporter.export(model, tmp_path / "bundle", pooling="mean"), device="cpu")
    assert not encoder._sessions.skips_padding


def changed_graph(bundle: Path, path: Path, change: Callable[[onnx.GraphProto], None]) -> MappedGraph:
    model = onnx.load(bundle / "onnx/model.onnx")
    change(model.graph)
    onnx.save(model, path)
    return map_graph(path)


def read_elsewhere(graph: onnx.GraphProto) -> None:
    """The sums of a layer are an output of the graph too."""
    product = next(node for node in graph.node if node.op_type == "MatMul")
    graph.node.append(onnx.helper.make_node("Identity", product.output, ["elsewhere"]))
    graph.output.append(onnx.helper.make_tensor_value_info("elsewhere", onnx.TensorProto.FLOAT, None))


def no_residual(graph: onnx.GraphProto) -> None:
    """The hidden states are not added to a layer's output."""
    normed = [node for node in graph.node if node.op_type == "LayerNormalization"][1]
    added = next(node for node in graph.node if normed.input[0] in node.output)
    added.input[1] = added.input[0]


def other_epsilon(graph: onnx.GraphProto) -> None:
    normed = [node for node in graph.node if node.op_type == "LayerNormalization"][2]
    next(each for each in normed.attribute if each.name == "epsilon").f = 0.5


@pytest.mark.parametrize("change", [read_elsewhere, no_residual, other_epsilon])
def test_graphs_that_are_otherwise_connected_have_no_such_layers(
    bundle: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None]
) -> None:
    same = changed_graph(bundle, tmp_path / "same.onnx", lambda graph: None)
    assert bert_layers.find_layers(same, bundle / "config.json")
    other = changed_graph(bundle, tmp_path / "other.onnx", change)
    assert not bert_layers.find_layers(other, bundle / "config.json")
