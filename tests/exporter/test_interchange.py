"""``exporter.interchange``: others' ONNX models become bundles with their own vectors, or one sentence says
why not; and other libraries open our bundles."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import optimum.exporters.onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from cognate.bundle import Bundle
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, ModelError
from exporter.interchange import import_folder

WORDS = ["open", "the", "door", "reset", "password", "printer", "how"]
TEXTS = ["open the door", "how", "reset the password the printer " * 30, "unknown words only", "door " * 7]
TABLE = np.random.default_rng(3).normal(size=(len(WORDS) + 4, 6)).astype(np.float32)
LENGTH = 20


def table_graph(
    *,
    opset: int = 17,
    inputs: int = TensorProto.INT64,
    output: str = "last_hidden_state",
    batch: object = "batch",
    table: np.ndarray = TABLE,
) -> onnx.ModelProto:
    """A model whose token vectors are rows of a table: all that import does can be worked out by hand."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Identity", ["rows"], [output]),
        ],
        "table",
        [
            helper.make_tensor_value_info(name, inputs, [batch, "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info(
                output, helper.np_dtype_to_tensor_dtype(table.dtype), [batch, "tokens", 6]
            )
        ],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def pooled_graph(*, masked: bool = True) -> onnx.ModelProto:
    """The same, with three times the mean of the tokens as its one output."""
    model = table_graph()
    graph = model.graph
    float_mask = helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT)
    weights = helper.make_node("Unsqueeze", ["mask", "two"], ["weights"])
    weighted = helper.make_node("Mul", ["rows", "weights"] if masked else ["rows", "three"], ["weighted"])
    mean = helper.make_node("ReduceMean", ["weighted"], ["mean"], axes=[1], keepdims=0)
    scaled = helper.make_node("Mul", ["mean", "three"], ["sentence_embedding"])
    del graph.node[1:]
    graph.node.extend([float_mask, weights, weighted, mean, scaled])
    graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    graph.initializer.append(numpy_helper.from_array(np.float32(3), "three"))
    graph.output[0].name = "sentence_embedding"
    del graph.output[0].type.tensor_type.shape.dim[1]
    return model


def table_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def optimum_folder(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """The layout that Optimum writes."""
    folder.mkdir(parents=True)
    onnx.save(table_graph() if model is None else model, folder / "model.onnx")
    table_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LENGTH}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(TABLE)}))
    return folder


def expected(text: str, pooling: str) -> np.ndarray:
    tokenizer = table_tokenizer()
    tokenizer.enable_truncation(LENGTH)
    rows = TABLE[tokenizer.encode(text).ids].astype(np.float64)
    vector = {
        "mean": rows.mean(axis=0),
        "cls": rows[0],
        "max": rows.max(axis=0),
        "lasttoken": rows[-1],
        "weightedmean": (rows * np.arange(1, len(rows) + 1)[:, None]).sum(axis=0),
    }[pooling]
    return vector / np.linalg.norm(vector)


def check_vectors(bundle: Bundle, pooling: str) -> None:
    vectors = Encoder(bundle, device="cpu").encode(TEXTS)
    assert vectors == pytest.approx(np.stack([expected(text, pooling) for text in TEXTS]), abs=1e-5)
    assert bundle.manifest.parity.min_cosine >= 0.99999
    assert bundle.manifest.parity.texts > 50


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
def test_optimums_layout_is_pooled_as_asked_whatever_the_operator_set(
    opset: int, pooling: str, tmp_path: Path
) -> None:
    source = optimum_folder(tmp_path / "source", table_graph(opset=opset))
    bundle = import_folder(source, tmp_path / "bundle", pooling=pooling)
    check_vectors(bundle, pooling)
    manifest = bundle.manifest
    assert (manifest.pooling, manifest.dimension, manifest.max_length) == (pooling, 6, LENGTH)
    assert (manifest.precision, manifest.opset, manifest.model) == ("fp32", opset, "source")


def test_the_graph_has_a_bundles_inputs_and_outputs(tmp_path: Path) -> None:
    model = table_graph(inputs=TensorProto.INT32, output="token_embeddings")
    source = optimum_folder(tmp_path / "source", model)
    bundle = import_folder(source, tmp_path / "bundle", pooling="mean")
    session = onnxruntime.InferenceSession(str(bundle.graph))
    assert {each.name: each.type for each in session.get_inputs()} == {
        "input_ids": "tensor(int64)",
        "attention_mask": "tensor(int64)",
    }
    assert [each.name for each in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    check_vectors(bundle, "mean")


def test_half_precision_token_vectors_become_single_precision_embeddings(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source", table_graph(table=TABLE.astype(np.float16)))
    bundle = import_folder(source, tmp_path / "bundle", pooling="mean")
    assert bundle.manifest.precision == "fp16"
    vectors = Encoder(bundle, device="cpu").encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(np.stack([expected(text, "mean") for text in TEXTS]), abs=1e-3)


def test_weights_beside_the_graph_go_into_the_bundle(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    onnx.save(
        table_graph(),
        source / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    bundle = import_folder(source, tmp_path / "bundle", pooling="cls")
    shutil.rmtree(source)
    check_vectors(bundle, "cls")
    assert "onnx/model.onnx_data" in bundle.manifest.files


def test_a_graph_that_pools_by_itself_is_only_normalised(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source", pooled_graph())
    bundle = import_folder(source, tmp_path / "bundle")
    check_vectors(bundle, "mean")
    assert bundle.manifest.pooling == "in the graph"
    # Nobody could tell sentence-transformers how to pool, so it is not given token vectors to try.
    outputs = onnxruntime.InferenceSession(str(bundle.graph)).get_outputs()
    assert [each.name for each in outputs] == ["sentence_embedding"]


def test_values_inside_a_graph_may_have_the_names_of_a_bundles_outputs(tmp_path: Path) -> None:
    graph = table_graph(output="token_embeddings")
    # As where somebody left out the outputs that he did not want.
    for name in ("sentence_embedding", "last_hidden_state"):
        graph.graph.node.append(helper.make_node("Identity", ["rows"], [name]))
    source = optimum_folder(tmp_path / "source", graph)
    check_vectors(import_folder(source, tmp_path / "bundle", pooling="mean"), "mean")


def test_a_graph_that_lets_padding_into_its_vectors_is_refused(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source", pooled_graph(masked=False))
    with pytest.raises(ModelError, match="smallest cosine .* pools padding too"):
        import_folder(source, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("limits", "length"),
    [({}, 20), ({"max_seq_length": 12}, 12), ({"max_seq_length": None}, 20)],
)
def test_the_folders_own_length_counts(limits: dict, length: int, tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    (source / "sentence_bert_config.json").write_text(json.dumps(limits))
    assert import_folder(source, tmp_path / "bundle", pooling="cls").manifest.max_length == length


def test_lower_casing_that_the_folder_asks_for_is_done_by_the_tokenizer(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    (source / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    bundle = import_folder(source, tmp_path / "bundle", pooling="mean")
    vectors = Encoder(bundle, device="cpu").encode(["OPEN The door", "open the door"])
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)


def test_prompts_are_imported_and_open_elsewhere(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    prompts = {"query": "how ", "document": "the "}
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    bundle = import_folder(source, tmp_path / "bundle", pooling="mean")
    encoder = Encoder(bundle, device="cpu")
    for input_type, prompt in (("query", "how "), ("passage", "the ")):
        assert encoder.encode(["open"], input_type)[0] == pytest.approx(
            expected(f"{prompt}open", "mean"), abs=1e-5
        )


# Real models of both layouts, as their own tools write them.


@pytest.fixture(scope="module")
def transformer_graph(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Optimum writes of the tiny model's transformer."""
    folder = tmp_path_factory.mktemp("optimum") / "model"
    optimum.exporters.onnx.main_export(
        str(tiny_model),
        str(folder),
        task="feature-extraction",
        library_name="transformers",
        do_validation=False,
    )
    return folder


@pytest.fixture(scope="module")
def published(
    tiny_model: Path, transformer_graph: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A sentence-transformers folder of some pooling with its ONNX graph, as on the hub."""

    def make(pooling: str) -> Path:
        folder = tmp_path_factory.mktemp("published") / pooling
        modules = [Transformer(str(tiny_model)), Pooling(32, pooling_mode=pooling)]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
        (folder / "onnx").mkdir()
        shutil.copy(transformer_graph / "model.onnx", folder / "onnx/model.onnx")
        (folder / "model.safetensors").unlink()
        return folder

    return make


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
)
def test_sentence_transformers_layout_has_the_vectors_that_its_onnx_backend_gives(
    pooling: str, published: Callable[[str], Path], tmp_path: Path
) -> None:
    source = published(pooling)
    bundle = import_folder(source, tmp_path / "bundle")
    theirs = SentenceTransformer(str(source), backend="onnx", device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    ours = Encoder(bundle, device="cpu").encode(TEXTS)
    assert (theirs * ours).sum(axis=1).min() >= 0.9999
    opened = SentenceTransformer(str(bundle.folder), backend="onnx", device="cpu").encode(TEXTS)
    assert (opened * ours).sum(axis=1).min() >= 0.9999


def test_optimums_layout_as_optimum_writes_it(
    tiny_model: Path, transformer_graph: Path, tmp_path: Path
) -> None:
    bundle = import_folder(transformer_graph, tmp_path / "bundle", pooling="mean", max_length=64)
    torch_vectors = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    assert (torch_vectors * Encoder(bundle, device="cpu").encode(TEXTS)).sum(axis=1).min() >= 0.9999


def test_a_graph_quantised_by_others_keeps_its_own_vectors(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = published("mean")
    quantize_dynamic(
        source / "onnx/model.onnx", source / "onnx/model_quantized.onnx", weight_type=QuantType.QInt8
    )
    bundle = import_folder(source, tmp_path / "bundle", file="onnx/model_quantized.onnx")
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.parity.min_cosine >= 0.9999
    exact = Encoder(import_folder(source, tmp_path / "exact", file="onnx/model.onnx"), device="cpu")
    cosines = (exact.encode(TEXTS) * Encoder(bundle, device="cpu").encode(TEXTS)).sum(axis=1)
    assert 0.9 < cosines.min() < 0.99999


@pytest.mark.parametrize("made", ["exported", "imported", "minilm"])
def test_fastembed_opens_a_bundle_with_equal_vectors(
    made: str, tiny_bundle: Path, minilm_bundle: Path, published: Callable[[str], Path], tmp_path: Path
) -> None:
    fastembed = pytest.importorskip("fastembed", reason="pip install fastembed")
    from fastembed.common.model_description import ModelSource, PoolingType

    # As published, MiniLM's tokenizer says 128 tokens in one place and 256 in another.
    folder = minilm_bundle if made == "minilm" else tiny_bundle
    if made == "imported":
        source = published("mean")
        # FastEmbed heeds a length that nobody else does.
        config = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps({**config, "max_length": 8}))
        folder = import_folder(source, tmp_path / "bundle").folder
    name = f"cognate/{made}"
    fastembed.TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(url="http://localhost:1/none"),
        dim=Bundle.open(folder).manifest.dimension,
        model_file="onnx/model.onnx",
        output_name="sentence_embedding",
    )
    opened = fastembed.TextEmbedding(name, specific_model_path=str(folder), cache_dir=str(tmp_path))
    texts = [*TEXTS, "how do i reset the password of the door " * 50]
    vectors = np.stack(list(opened.embed(texts)))
    assert (vectors * Encoder(folder, device="cpu").encode(texts)).sum(axis=1).min() >= 0.9999


# What cannot be imported: one sentence, and nothing is left behind.


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def another_tokenizer(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4}))


def another_tokenizer_that_no_configuration_tells(folder: Path) -> None:
    onnx.save(table_graph(table=TABLE[:4]), folder / "model.onnx")
    (folder / "config.json").unlink()


def no_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def several_graphs(folder: Path) -> None:
    (folder / "onnx").mkdir()
    shutil.copy(folder / "model.onnx", folder / "onnx/model_O3.onnx")


def truncated_graph(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def no_weights(folder: Path) -> None:
    onnx.save(
        table_graph(), folder / "model.onnx", save_as_external_data=True, size_threshold=0, location="w"
    )
    (folder / "w").unlink()


def weights_elsewhere(folder: Path) -> None:
    model = table_graph()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../secret")
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def other_outputs(folder: Path) -> None:
    onnx.save(table_graph(output="logits"), folder / "model.onnx")


def float_inputs(folder: Path) -> None:
    onnx.save(table_graph(inputs=TensorProto.FLOAT), folder / "model.onnx")


def quantised_inputs(folder: Path) -> None:
    onnx.save(table_graph(inputs=TensorProto.UINT8), folder / "model.onnx")


def fixed_shape(folder: Path) -> None:
    onnx.save(table_graph(batch=1), folder / "model.onnx")


def old_opset(folder: Path) -> None:
    onnx.save(table_graph(opset=9), folder / "model.onnx")


def new_opset(folder: Path) -> None:
    onnx.save(table_graph(opset=99), folder / "model.onnx")


def custom_operator(folder: Path) -> None:
    model = table_graph()
    model.graph.node[1].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, folder / "model.onnx")


def other_input(folder: Path) -> None:
    model = table_graph()
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["b", "t"]))
    onnx.save(model, folder / "model.onnx")


def no_mask(folder: Path) -> None:
    model = table_graph()
    del model.graph.input[1]
    onnx.save(model, folder / "model.onnx")


def not_finite(folder: Path) -> None:
    onnx.save(table_graph(table=np.full_like(TABLE, np.nan)), folder / "model.onnx")


def no_length(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))


def left_truncation(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"truncation_side": "left", "model_max_length": 9})
    )


def modules_of(*kinds: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))

    return write


def modules_elsewhere(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": "../.."}]))


def pooling_of(**config: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(config))

    return write


def not_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


def a_bundle(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"artifact": "bundle"}')


UNUSABLE: list[tuple[Callable[[Path], None], str]] = [
    (no_tokenizer, "has no tokenizer.json"),
    (broken_tokenizer, "tokenizer.json is no tokenizer"),
    (another_tokenizer, "token ids up to 10, but the model has only 4 tokens"),
    (another_tokenizer_that_no_configuration_tells, "is tokenizer.json of another model"),
    (no_graph, "has no ONNX graph"),
    (several_graphs, "several graphs; choose one with --file: model.onnx, onnx/model_O3.onnx"),
    (truncated_graph, "is no ONNX graph or is cut off"),
    (no_weights, "needs its weights in .*w, which is missing"),
    (weights_elsewhere, "outside its folder"),
    (other_outputs, "has the outputs logits where last_hidden_state"),
    (float_inputs, "takes input_ids as float, where int64"),
    (quantised_inputs, "takes input_ids as uint8, where int64"),
    (fixed_shape, "one fixed shape"),
    (old_opset, "operator set 9, older than 11"),
    (new_opset, "newer than onnxruntime .* reads; update onnxruntime"),
    (custom_operator, "custom operators acme:Identity"),
    (other_input, "has an input position_ids"),
    (no_mask, "has no input attention_mask"),
    (not_finite, "not finite"),
    (no_length, "does not say how many tokens.*--max-length"),
    (left_truncation, "cuts long texts at their beginning"),
    (modules_of("Transformer", "Pooling", "CNN"), "has a module CNN"),
    (modules_of("Normalize"), "does not begin with a transformer"),
    (modules_of("Transformer", "Pooling", "Pooling"), "has 2 pooling modules"),
    (modules_of("Transformer", "Dense"), "dense layers that are not in its graph"),
    (modules_elsewhere, "outside its folder"),
    (pooling_of(pooling_mode=["mean", "max"]), "asks for the pooling mean\\+max"),
    (pooling_of(pooling_mode_cls_token=True, pooling_mode_max_tokens=True), "pooling cls\\+max"),
    (pooling_of(pooling_mode="median"), "asks for the pooling median"),
    (pooling_of(pooling_mode="cls"), "its pooling is cls, not mean; leave --pooling out"),
    (pooling_of(pooling_mode="mean", include_prompt=False), "leaves its prompts out of the pooling"),
    (not_json, "tokenizer_config.json is not JSON"),
    (a_bundle, "is a bundle of cognate's"),
]


@pytest.mark.parametrize(("spoil", "message"), UNUSABLE, ids=[message for _, message in UNUSABLE])
def test_a_folder_that_cannot_be_imported_is_one_sentence(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source = optimum_folder(tmp_path / "source")
    spoil(source)
    with pytest.raises(CognateError, match=message) as raised:
        import_folder(source, tmp_path / "bundle", pooling="mean")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_pooling_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give --pooling mean or cls"):
        import_folder(optimum_folder(tmp_path / "source"), tmp_path / "bundle")


def test_one_of_several_graphs_is_chosen_by_its_file(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    (source / "onnx").mkdir()
    onnx.save(table_graph(table=-TABLE), source / "onnx/other.onnx")
    first, second = (
        Encoder(import_folder(source, tmp_path / name, file=file, pooling="mean"), device="cpu").encode(TEXTS)
        for name, file in (("first", "model.onnx"), ("second", "onnx/other.onnx"))
    )
    assert first == pytest.approx(-second, abs=1e-6)
    for file, message in (("none.onnx", "does not exist"), ("../x.onnx", "outside its folder")):
        with pytest.raises(ModelError, match=message):
            import_folder(source, tmp_path / "bundle", file=file, pooling="mean")


def test_more_tokens_than_there_are_positions_are_refused(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    (source / "config.json").write_text(json.dumps({"max_position_embeddings": 16}))
    with pytest.raises(ModelError, match="--max-length 17 is more than the 16 tokens"):
        import_folder(source, tmp_path / "bundle", pooling="mean", max_length=17)
    assert import_folder(source, tmp_path / "bundle", pooling="mean").manifest.max_length == 16


def test_a_graph_that_does_not_pool_as_its_folder_says_is_refused_by_the_parity_gate(tmp_path: Path) -> None:
    model = pooled_graph()
    model.graph.output.append(
        helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "tokens", 6])
    )
    model.graph.node.append(helper.make_node("Identity", ["rows"], ["last_hidden_state"]))
    model.graph.output[1].name = "last_hidden_state"
    source = optimum_folder(tmp_path / "source", model)
    import_folder(source, tmp_path / "right", pooling="mean")
    with pytest.raises(ModelError, match="does not pool as its folder says"):
        import_folder(source, tmp_path / "wrong", pooling="cls")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right", "source"]


def test_an_existing_bundle_is_replaced_only_with_force(tmp_path: Path) -> None:
    source = optimum_folder(tmp_path / "source")
    import_folder(source, tmp_path / "bundle", pooling="cls")
    with pytest.raises(ArtifactError, match="exists.*--force"):
        import_folder(source, tmp_path / "bundle", pooling="mean")
    assert import_folder(source, tmp_path / "bundle", pooling="mean", force=True).manifest.pooling == "mean"
